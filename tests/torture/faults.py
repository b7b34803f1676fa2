"""What can happen to the four scripts, and what must hold then: one function a fault, one call a try.

Each gets an empty folder and a random.Random, and raises AssertionError where something was lost. One that tries
many files in one call returns how many.
"""
import contextlib
import ctypes
import functools
import io
import json
import os
import random
import re
import resource
import shutil
import signal
import struct
import subprocess
import sys
import time
import zipfile
from threading import Thread

import numpy as np
import soundfile
from conftest import DATA, ROOT, SAMPLE_RATE, read_table, tone, write_sounds
from mutate import damage, damage_archive, damage_json, packed

FAULTS = {}  # name: (function, what it is, how many tries in all, how many in `make test`)
SMALL = "--layers", "1", "--filters", "2"  # a network that trains in no time
MOST_SECONDS, MOST_MEMORY = 300, 2**30  # of a script; bytes
BATCH = 250  # files damaged in one try, of faults that take hundreds
TEMPORARY = re.compile(r"\.[0-9a-f]{12}(\.\w+)?")


def fault(text, times, few=1):
    def keep(function):
        FAULTS[function.__name__.replace("_", "-")] = function, text, times, few
        return function
    return keep


class Draw(random.Random):
    """The random numbers of a try; its number, how many files it may damage, and whether it is to be short."""

    def __init__(self, name, seed, number, room, short):
        super().__init__(f"{name} {seed} {number}")
        self.number, self.room, self.short = number, room, short


def try_one(name, place, seed, number, room=1, short=False):
    """Try a fault once, in a folder of its own below `place`; how many tries that was. Raises AssertionError."""
    folder = place / f"{name} {seed} {number}"
    folder.mkdir()
    n = FAULTS[name][0](place, folder, Draw(name, seed, number, room, short))
    shutil.rmtree(folder)
    return n or 1


def prepare(place):
    """What the tries share, done before two of them run side by side."""
    for kind in ("preprocessed", "augmented", "trained", "many"):
        undisturbed(place, kind)
    sources()
    originals(place)


# ---------------------------------------------------------------- the scripts, run as a user runs them

def start(script, *args, cwd, before=None):
    """The process of a script in a session of its own; its output is no terminal's."""
    return subprocess.Popen([sys.executable, ROOT / script, *map(str, args)], cwd=cwd, start_new_session=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, preexec_fn=before,
                            env=os.environ | {"TF_NUM_INTRAOP_THREADS": "1", "TF_NUM_INTEROP_THREADS": "1"})


def end(process, *statuses):
    """What a script wrote to stdout and stderr, once it has ended with one of the statuses, of its own accord."""
    try:
        out, err = (text.decode(errors="replace") for text in process.communicate(timeout=MOST_SECONDS))
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise AssertionError(f"{process.args}: hangs") from None
    assert process.returncode in statuses, f"{process.args}: status {process.returncode}\n{out}{err}"
    assert "Traceback" not in out + err, err
    return out, err


def run(script, *args, cwd, statuses=(0,), before=None):
    return end(start(script, *args, cwd=cwd, before=before), *statuses)


def refused(script, *args, cwd, before=None):
    """The one line with which a script must end."""
    _, err = run(script, *args, cwd=cwd, statuses=(1, 2), before=before)
    assert len(err.splitlines()) == 1 and script in err, err
    return err


def kill(process, sign, seconds, rng):
    """kill -9 so many seconds after a first sign of work, of the script alone or with all its processes.

    Returns whether it was still at work: else the try is to be made again.
    """
    while process.poll() is None and not sign():
        time.sleep(0.005)
    time.sleep(seconds)
    was_at_work = process.poll() is None
    with contextlib.suppress(ProcessLookupError):
        (os.killpg if rng.random() < 0.5 else os.kill)(process.pid, signal.SIGKILL)
    process.communicate()
    return was_at_work


def until_killed(attempt, reset):
    """Make a try until it was killed at work: one that ended before proves nothing."""
    while not attempt():
        reset()


# ---------------------------------------------------------------- sounds, and what became of them

def real_sounds():
    """Paths of short real recordings, of tones where these are not here."""
    paths = sorted(DATA.glob("drums/*/*")) + sorted(DATA.glob("fsdd/*/*"))[::7]
    return [path for path in paths if path.stat().st_size < 2e5]


def write_set(folder, n=4, n_classes=5):
    """Samples/ of n sounds a class, of all formats; few enough that a run takes a second."""
    write_sounds(folder, n=n)
    for k, path in enumerate(random.Random(0).sample(real_sounds(), min(n * (n_classes - 3), len(real_sounds())))):
        target = folder / "Samples" / f"real {k // n}" / path.name
        target.parent.mkdir(exist_ok=True)
        shutil.copy(path, target)
    return folder


def undisturbed(place, kind):
    """A folder in which nothing was disturbed: what the disturbed ones must come to."""
    folder = place / f"undisturbed {kind}"
    if folder.exists():
        return folder
    write_set(folder, **{"n": 100, "n_classes": 3} if kind == "many" else {})
    if kind == "augmented":
        run("augment_data.py", 3, *sounds_of(folder), cwd=folder)
        return folder
    run("preprocess_data.py", cwd=folder)
    if kind == "trained":
        run("train_network.py", "--epochs", 3, *SMALL, cwd=folder)
        run("eval_network.py", cwd=folder)
    return folder


def sounds_of(folder):
    return sorted(path.relative_to(folder) for path in folder.glob("Samples/*/*"))


def copy_of(folder, target, without=()):
    return shutil.copytree(folder, target, ignore=lambda _, names: set(names) & set(without), dirs_exist_ok=True)


def files_of(folder):
    """The bytes of all files below a folder, by name."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def assert_same_files(found, expected):
    found, expected = files_of(found), files_of(expected)
    assert not [name for name in found if TEMPORARY.fullmatch(name.rsplit("/")[-1])], "a temporary file is left"
    assert found.keys() == expected.keys(), found.keys() ^ expected.keys()
    assert not (other := [name for name in found if found[name] != expected[name]]), f"other bytes in {other}"


def weights_of(path):
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        json.loads(archive.read("training.json"))
        import h5py
        arrays = {}
        with archive.open("model.weights.h5") as file, h5py.File(file) as store:
            store.visititems(lambda name, item: arrays.update({name: item[()]} if hasattr(item, "shape") else {}))
    return arrays


def assert_same_weights(found, expected):
    found, expected = weights_of(found), weights_of(expected)
    assert found.keys() == expected.keys() and all(np.array_equal(found[name], expected[name]) for name in expected)


# ---------------------------------------------------------------- odd sets

def run_all(folder):
    run("preprocess_data.py", cwd=folder)
    run("train_network.py", "--epochs", 1, *SMALL, cwd=folder)
    return run("eval_network.py", cwd=folder)[0]


def write_tone(path, hertz, rng, seconds=0.1):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, tone(rng, hertz, seconds), SAMPLE_RATE)


def thousand_classes(folder, n=1000):
    rng = np.random.default_rng(0)
    for k in range(n):
        for i in range(3):
            write_tone(folder / f"Samples/{k:04d}/{i}.wav", 100 + 3 * k, rng)
    out = run_all(folder)
    assert f"on {n} sounds" in out, out


def lonely_sounds(folder):
    for k in range(100):
        for i in range(1 if k else 20):
            write_tone(folder / f"Samples/{k:02d}/{i}.wav", 100 + 20 * k, np.random.default_rng(k))
    run("preprocess_data.py", cwd=folder)
    assert "expected at least 2 sounds, found 1" in refused("train_network.py", cwd=folder)


def identical_sounds(folder):
    for k in range(30):
        write_tone(folder / f"Samples/{'abc'[k % 3]}/{k}.wav", 440, np.random.default_rng(0))
    assert "Accuracy 0.3333" in run_all(folder)


def silent_sounds(folder):
    for k in range(30):
        (folder / f"Samples/{'abc'[k % 3]}").mkdir(parents=True, exist_ok=True)
        soundfile.write(folder / f"Samples/{'abc'[k % 3]}/{k}.wav", np.zeros(1000 + k), SAMPLE_RATE)
    _, err = run("augment_data.py", 1, "Samples/a/0.wav", cwd=folder, statuses=(1,))
    assert "found silence" in err
    assert "Accuracy 0.3333" in run_all(folder)


def tiny_files(folder, n=100_000):
    for k in range(n):
        path = folder / f"Samples/{k % 10}/{k:06d}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        y = np.int16(10000 * np.sin(np.arange(80) * (0.1 + 0.2 * (k % 10)))) + np.int16(k % 997)
        path.write_bytes(HEADER + y.tobytes())
    out, _ = run("preprocess_data.py", cwd=folder)
    assert f"{n} spectrograms written" in out
    out, _ = run("preprocess_data.py", cwd=folder)
    assert f"0 spectrograms written, {n} kept" in out
    run("train_network.py", "--epochs", 1, *SMALL, "--batch-size", 512, cwd=folder)
    assert f"on {n // 5} sounds" in run("eval_network.py", cwd=folder)[0]


HEADER = struct.pack("<4sI8sIHHIIHH4sI", b"RIFF", 196, b"WAVEfmt ", 16, 1, 1, 8000, 16000, 2, 16, b"data", 160)
ODD = [lonely_sounds, silent_sounds, thousand_classes, identical_sounds, tiny_files]  # `make test` takes the first two


@fault("1,000 classes; one sound in 99 % of classes; identical; silent; 100,000 files", len(ODD), 2)
def odd_sets(place, folder, rng):
    ODD[::-1][rng.number % len(ODD)](folder) if not rng.short else ODD[rng.number](folder)  # the longest first


# ---------------------------------------------------------------- kill -9

@fault("kill -9 of preprocess at a random moment, then the same command", 50, 2)
def kill_preprocess(place, folder, rng):
    whole, preproc = undisturbed(place, "many"), folder / "Preproc"
    copy_of(whole / "Samples", folder / "Samples")

    def attempt():
        process = start("preprocess_data.py", cwd=folder)
        return kill(process, preproc.exists, rng.uniform(0, 0.5), rng)

    until_killed(attempt, lambda: shutil.rmtree(preproc, ignore_errors=True))
    expected = files_of(whole / "Preproc")
    for name, data in files_of(preproc).items():
        is_whole = name == "settings.json" or TEMPORARY.fullmatch(name.rsplit("/")[-1]) or data == expected[name]
        assert is_whole, f"{name} is not whole"
    run("preprocess_data.py", cwd=folder)
    assert_same_files(preproc, whole / "Preproc")


@fault("kill -9 of train at a random moment, then the same command", 15)
def kill_train(place, folder, rng):
    whole, flags = undisturbed(place, "trained"), ("--epochs", 3, *SMALL)
    for name in ("Samples", "Preproc"):
        copy_of(whole / name, folder / name)
    weights, state, seconds = folder / "weights.keras", folder / "weights.unfinished.npz", rng.uniform(0, 3)
    unreadable = []

    def look(process):
        while process.poll() is None:
            try:
                if weights.exists():
                    weights_of(weights)
            except Exception as error:
                unreadable.append(error)
            time.sleep(0.01)

    def attempt():
        process = start("train_network.py", *flags, cwd=folder)
        (watch := Thread(target=look, args=[process])).start()
        was_at_work = kill(process, state.exists, seconds, rng)
        watch.join()
        return was_at_work

    def reset():
        nonlocal seconds
        seconds *= 0.7
        for path in (weights, state):
            path.unlink(missing_ok=True)

    until_killed(attempt, reset)
    assert not unreadable, f"weights.keras was not readable at every moment: {unreadable}"
    if weights.exists():
        weights_of(weights)
    run("train_network.py", *flags, cwd=folder)
    assert_same_weights(weights, whole / "weights.keras")
    assert not state.exists()


@fault("kill -9 of augment at a random moment, then the same command", 20)
def kill_augment(place, folder, rng):
    whole = undisturbed(place, "augmented")
    copy_of(undisturbed(place, "preprocessed") / "Samples", folder / "Samples")
    sounds, expected = sounds_of(folder), files_of(whole / "Samples")

    def copies():
        return list(folder.glob("Samples/*/[!.]*_aug*"))

    def attempt():
        return kill(start("augment_data.py", 3, *sounds, cwd=folder), copies, rng.uniform(0, 0.5), rng)

    until_killed(attempt, lambda: [path.unlink() for path in folder.glob("Samples/*/*aug*")])
    for path in copies():
        assert path.read_bytes() == expected[str(path.relative_to(folder / "Samples"))], f"{path.name} is not whole"
    run("augment_data.py", 3, *sounds, cwd=folder)
    for path in filter(lambda path: TEMPORARY.fullmatch(path.name), folder.glob("Samples/*/.*")):
        path.unlink()  # of the killed run: another would remove it in an hour
    assert_same_files(folder / "Samples", whole / "Samples")


# ---------------------------------------------------------------- two at once

@fault("two preprocess runs, or preprocess beside train, on one folder", 10)
def two_at_once(place, folder, rng):
    whole, settings = undisturbed(place, "many"), folder / "Preproc/settings.json"
    copy_of(whole, folder)  # made with 96 mels: all is made again
    first = start("preprocess_data.py", "--n-mels", 64, cwd=folder)
    while first.poll() is None and b"unfinished" not in settings.read_bytes():
        time.sleep(0.001)
    os.kill(first.pid, signal.SIGSTOP)  # at work, with the folder in its hands
    second = (start("preprocess_data.py", cwd=folder) if rng.number % 2 else
              start("train_network.py", "--epochs", 1, *SMALL, cwd=folder))
    said = [second.stdout.readline() for _ in range(1 + rng.number % 2)]
    assert b"at work there; waiting for its end" in said[-1], said
    os.kill(first.pid, signal.SIGCONT)
    time.sleep(rng.uniform(0, 0.3))
    (end(first, 0), end(second, 0)) if rng.random() < 0.5 else (end(second, 0), end(first, 0))
    if rng.number % 2:
        assert_same_files(folder / "Preproc", whole / "Preproc")
    else:
        info = json.loads(zipfile.ZipFile(folder / "weights.keras").read("training.json"))
        assert info["features"]["n_mels"] == 64 and len(info["train"] + info["validation"] + info["test"]) == 300


# ---------------------------------------------------------------- the disk is full

@contextlib.contextmanager
def full_disk(folder, needed, rng, present=()):
    """A place where not all of some files can be written, of whose sizes in bytes the lists are given.

    A tmpfs in `folder`, too small for those needed beside those present, half of the time and where one can be mounted;
    else a limit to each file, below the largest needed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    pages = [sum(-(-size // 4096) for size in sizes) for sizes in (present, needed)]
    size = 4096 * max(1, pages[0] + rng.randrange(pages[1]))
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "none", folder]
    if rng.random() < 0.5 and subprocess.run(mount, capture_output=True).returncode == 0:
        try:
            yield None
        finally:
            subprocess.run(["umount", folder], check=True)
    else:
        limit = rng.randrange(1, max(needed))
        yield lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit,) * 2)


def sizes_of(folder):
    return [len(data) for data in files_of(folder).values()]


def room(folder):
    """Give a disk room again."""
    subprocess.run(["mount", "-o", "remount,size=64m", folder], capture_output=True)


def assert_full(err, script):
    assert re.fullmatch(rf"{script}: .+: (No space left on device|File too large)\n", err), err


@fault("disk full at a random byte: preprocess", 20)
def full_preprocess(place, folder, rng):
    whole, preproc = undisturbed(place, "preprocessed"), folder / "Preproc"
    copy_of(whole / "Samples", folder / "Samples")
    with full_disk(preproc, sizes_of(whole / "Preproc"), rng) as before:
        _, err = run("preprocess_data.py", cwd=folder, statuses=(1,), before=before)
        assert_full(err, "preprocess_data.py")
        expected = files_of(whole / "Preproc")
        for name, data in files_of(preproc).items():
            assert name == "settings.json" or data == expected[name], f"{name} is not whole"
        room(preproc)
        run("preprocess_data.py", cwd=folder)
        assert_same_files(preproc, whole / "Preproc")


@fault("disk full at a random byte: augment", 20)
def full_augment(place, folder, rng):
    whole = undisturbed(place, "augmented")
    plain = undisturbed(place, "preprocessed") / "Samples"
    needed = [path.stat().st_size for path in whole.glob("Samples/*/*_aug*")]
    with full_disk(folder / "Samples", needed, rng, sizes_of(plain)) as before:
        copy_of(plain, folder / "Samples")
        sounds, expected = sounds_of(folder), files_of(whole / "Samples")
        _, err = run("augment_data.py", 3, *sounds, cwd=folder, statuses=(1,), before=before)
        for path in folder.glob("Samples/*/*"):
            name = str(path.relative_to(folder / "Samples"))
            lines, lines_expected = path.read_bytes().splitlines(), expected[name].splitlines()
            is_whole = set(lines) <= {*lines_expected, b""} if path.suffix == ".csv" else lines == lines_expected
            assert is_whole, f"{name} is not whole"
        assert_full(err, "augment_data.py")
        room(folder / "Samples")
        run("augment_data.py", 3, *sounds, cwd=folder)
        assert_same_files(folder / "Samples", whole / "Samples")


@fault("disk full at a random byte: train", 20)
def full_train(place, folder, rng):
    whole, flags = undisturbed(place, "trained"), ("--epochs", 1, *SMALL, "--fresh")
    earlier = (whole / "weights.keras").read_bytes()
    with full_disk(folder, [len(earlier), len(originals(place)["state"])], rng, [len(earlier)]) as before:
        shutil.copy(whole / "weights.keras", folder)
        places = ("--preproc", whole / "Preproc", "--samples", whole / "Samples")
        out, err = run("train_network.py", *flags, *places, cwd=folder, statuses=(1,), before=before)
        assert_full(err, "train_network.py")
        assert (folder / "weights.keras").read_bytes() == earlier or (weights_of(folder / "weights.keras") and out)
        assert not [path for path in folder.rglob(".*") if TEMPORARY.fullmatch(path.name)], "a temporary file is left"


@fault("disk full at a random byte: eval", 20)
def full_eval(place, folder, rng):
    whole = undisturbed(place, "trained")
    sizes = sizes_of(whole / "Results")
    with full_disk(folder / "Results", [max(sizes)], rng, sizes) as before:
        copy_of(whole / "Results", folder / "Results")
        places = [part for name in ("Preproc", "Samples") for part in (f"--{name.lower()}", whole / name)]
        _, err = run("eval_network.py", *places, "--weights", whole / "weights.keras", cwd=folder, statuses=(1,),
                     before=before)
        assert_full(err, "eval_network.py")
        expected = files_of(whole / "Results")
        found = files_of(folder / "Results")
        assert found.keys() == expected.keys(), found.keys() ^ expected.keys()
        for name, data in found.items():
            assert name == "metrics.json" or data == expected[name], f"{name} is not whole"


# ---------------------------------------------------------------- what may not be read or written

def without_root():
    """In a new process, before it begins: take from root the right to pass over permissions."""
    for capability in (1, 2):  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
        ctypes.CDLL(None).prctl(24, capability, 0, 0, 0)  # PR_CAPBSET_DROP


def lock_preproc(folder):
    (folder / "Preproc").chmod(0o555)
    assert "Preproc" in refused("preprocess_data.py", "--n-mels", 64, cwd=folder, before=without_root)


def lock_class_of_preproc(folder):
    (folder / "Preproc/low").chmod(0o555)
    _, err = run("preprocess_data.py", "--n-mels", 64, cwd=folder, statuses=(1,), before=without_root)
    assert err.count("skipped Preproc/low/") == 4 and len(err.splitlines()) == 5, err
    assert {path.parent.name: np.load(path).shape[0] for path in folder.glob("Preproc/*/*.npy")} == {
        "low": 96, "middle": 64, "high": 64, "real 0": 64, "real 1": 64}
    assert "settings.json: expected settings of finished" in refused("train_network.py", cwd=folder)


def lock_sounds(folder):
    """A sound and a folder that may not be read: named, the rest done, what was made of them earlier stays."""
    (folder / "Samples/high/locked").mkdir()
    shutil.copy(folder / "Samples/high/00.wav", folder / "Samples/high/locked")
    run("preprocess_data.py", cwd=folder)
    (folder / "Samples/low/00.wav").chmod(0)
    os.utime(folder / "Samples/low/00.wav")
    (folder / "Samples/high/locked").chmod(0)
    _, err = run("preprocess_data.py", cwd=folder, statuses=(1,), before=without_root)
    assert "skipped Samples/low/00.wav: expected a sound, found one that may not be read" in err
    assert "skipped Samples/high/locked: expected a sound, found a folder that may not be read" in err
    assert len(err.splitlines()) == 3 and (folder / "Preproc/high/locked/00.wav.npy").exists()
    out, err = run("eval_network.py", "Samples/high", "Samples/low", cwd=folder, statuses=(1,), before=without_root)
    assert len(out.splitlines()) == 7 and err.count("may not be read") == 2 and len(err.splitlines()) == 3
    out, err = run("augment_data.py", 1, *sounds_of(folder), cwd=folder, statuses=(1,), before=without_root)
    assert out.startswith("Augmenting") and "19 copies written" in out and len(err.splitlines()) == 3, out + err


def lock_class(folder):
    """A class folder of Samples/ that may not be written to."""
    (folder / "Samples/low").chmod(0o555)
    out, err = run("augment_data.py", 1, *sounds_of(folder), cwd=folder, statuses=(1,), before=without_root)
    assert "16 copies written" in out and err.count("skipped Samples/low/") == 4 and len(err.splitlines()) == 5, err


def lock_all(folder):
    """A folder that nothing may be written to."""
    (folder / "weights.keras").rename(folder / "earlier.keras")
    folder.chmod(0o555)
    assert "weights" in refused("train_network.py", "--epochs", 1, *SMALL, cwd=folder, before=without_root)
    assert refused("eval_network.py", "--weights", "earlier.keras", "--results", "New", cwd=folder, before=without_root)


def lock_weights(folder):
    (folder / "weights.keras").chmod(0)
    assert "weights.keras" in refused("eval_network.py", cwd=folder, before=without_root)


def folders_for_files(folder):
    """A folder where each script wants to write, or read, a file."""
    (folder / "Samples/low/folder.wav").mkdir()
    for path in (folder / "Preproc/low/00.wav.npy", folder / "weights.keras"):
        path.unlink()
        path.mkdir()
        (path / "notes.txt").touch()
    _, err = run("preprocess_data.py", cwd=folder, statuses=(1,))
    assert err.startswith("skipped Preproc/low/00.wav.npy: expected a place to write to") and len(err.splitlines()) == 2
    assert "weights.keras: expected the weights" in (err := refused("eval_network.py", cwd=folder)) and "folder" in err
    assert "weights.keras: expected the weights" in refused("train_network.py", "--epochs", 1, *SMALL, cwd=folder)
    shutil.rmtree(folder / "Preproc")
    (folder / "Preproc/settings.json").mkdir(parents=True)
    (folder / "Preproc/settings.json/notes.txt").touch()
    assert "Preproc/settings.json" in refused("preprocess_data.py", cwd=folder)


def files_for_folders(folder):
    """A file where a folder should be."""
    shutil.rmtree(folder / "Preproc/low")
    (folder / "Preproc/low").touch()
    _, err = run("preprocess_data.py", cwd=folder, statuses=(1,))
    assert err.count("skipped Preproc/low/") == 4 and len(err.splitlines()) == 5, err
    shutil.rmtree(folder / "Results")
    (folder / "Results").touch()
    assert "Results" in refused("eval_network.py", cwd=folder)
    shutil.rmtree(folder / "Preproc")
    (folder / "Preproc").touch()
    assert "Preproc" in refused("preprocess_data.py", cwd=folder)


def dangling_links(folder):
    """Links to nowhere, in place of a sound, a spectrogram, the weights and the folders."""
    for name in ("Samples/low/00.wav", "Preproc/low/01.wav.npy", "weights.keras"):
        (folder / name).unlink()
        (folder / name).symlink_to("nowhere")
    _, err = run("train_network.py", "--epochs", 1, *SMALL, "--fresh", "--save", "w.keras", cwd=folder, statuses=(1,))
    assert "skipped Preproc/low/01.wav.npy: expected a spectrogram" in err and len(err.splitlines()) == 2, err
    assert "found nothing there" in refused("eval_network.py", cwd=folder)
    _, err = run("preprocess_data.py", cwd=folder, statuses=(1,))
    assert err.startswith("skipped Samples/low/00.wav: expected a sound, found nothing there") and "01.wav" not in err
    assert len(list(folder.glob("Preproc/low/*.npy"))) == 3
    for name in ("Preproc", "Results"):
        shutil.rmtree(folder / name)
        (folder / name).symlink_to("nowhere")
    assert "Preproc" in refused("preprocess_data.py", cwd=folder)
    assert "Results" in refused("eval_network.py", "--weights", "w.keras", cwd=folder)


def pipes(folder):
    """A pipe that nobody writes to, which would be waited for."""
    os.mkfifo(folder / "Samples/low/pipe.wav")
    run("preprocess_data.py", cwd=folder)
    _, err = run("augment_data.py", 1, "Samples/low/pipe.wav", cwd=folder, statuses=(1,))
    assert "skipped Samples/low/pipe.wav: expected a sound, found a pipe" in err, err
    _, err = run("eval_network.py", "Samples/low/pipe.wav", cwd=folder, statuses=(1,))
    assert "skipped Samples/low/pipe.wav: expected a sound, found a pipe" in err, err


def no_listener(folder):
    """Standard output that cannot be written to."""
    with open("/dev/full", "w") as full:
        result = subprocess.run([sys.executable, ROOT / "preprocess_data.py"], cwd=folder, stdout=full, text=True,
                                stderr=subprocess.PIPE)
    assert result.returncode == 1 and result.stderr == (
        "preprocess_data.py: standard output: No space left on device\n"), result


LOCKS = [lock_preproc, lock_class_of_preproc, lock_class, no_listener, lock_sounds, lock_weights, lock_all,
         folders_for_files, files_for_folders, dangling_links, pipes]


@fault("read-only folders, no permission, a folder for a file, dangling links", len(LOCKS), 5)
def locked(place, folder, rng):
    """Each of LOCKS in its turn."""
    whole = undisturbed(place, "trained")
    kind = LOCKS[rng.number % len(LOCKS)]
    copy_of(whole, folder)
    try:
        kind(folder)
    finally:
        for path in (folder, *folder.rglob("*")):
            if path.is_dir():
                path.chmod(0o755)


# ---------------------------------------------------------------- damaged sounds

SUBTYPES = {".wav": "PCM_16", ".flac": "PCM_24", ".ogg": "VORBIS", ".aiff": "PCM_16", ".mp3": "MPEG_LAYER_III"}


@functools.cache
def sources():
    """The bytes of sounds to be damaged, by extension: real ones as they are, and written anew in each format."""
    found = {suffix: [] for suffix in SUBTYPES}
    y = tone(np.random.default_rng(0), 440)
    loud = random.Random(0).sample(real_sounds(), min(20, len(real_sounds())))
    for path in loud:
        found.get(path.suffix.lower(), []).append(path.read_bytes())
    for suffix, data in found.items():
        for samples, rate in [(y, SAMPLE_RATE), *(soundfile.read(path) for path in loud[:3])]:
            with contextlib.suppress(soundfile.SoundFileError):  # a rate that the format does not know
                soundfile.write(file := io.BytesIO(), samples, rate, SUBTYPES[suffix], format=suffix[1:].upper())
                data.append(file.getvalue())
    return found


def write_damaged(folder, n, rng):
    """n damaged sounds of all formats in Samples/; their names."""
    names = []
    for k in range(n):
        suffix = rng.choice(list(SUBTYPES))
        names.append(f"{'ab'[k % 2]}/{k:04d}{suffix}")
        path = folder / "Samples" / names[-1]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(damage(rng.choice(sources()[suffix]), rng, suffix))
    return names


def measured(script, *args, cwd):
    """The output of a script that may skip files, after checking its memory."""
    code = ("import resource, subprocess, sys; status = subprocess.run(sys.argv[1:]).returncode\n"
            "print('peak', resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss); sys.exit(status)")
    process = subprocess.Popen([sys.executable, "-c", code, sys.executable, ROOT / script, *map(str, args)], cwd=cwd,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True)
    out, err = end(process, 0, 1)
    *lines, peak = out.splitlines()
    assert int(peak.split()[1]) * 1024 < MOST_MEMORY, f"{script}: {peak} kB"
    expected = rf"skipped |and \d+ more|{script}: "
    assert not (strange := [line for line in err.splitlines() if not re.match(expected, line)]), strange
    return lines, err


@fault("damaged sounds: preprocess, augment and eval read each, or name it", 2000, 60)
def damaged_sounds(place, folder, rng):
    n = rng.room
    names = set(write_damaged(folder, n, rng))
    measured("preprocess_data.py", "--sample-rate", 44100, cwd=folder)
    table = folder / "Preproc/skipped.csv"
    skipped = {row["file"] for row in read_table(table)} if table.exists() else set()
    written = {str(path.relative_to(folder / "Preproc"))[:-4] for path in folder.glob("Preproc/*/*.npy")}
    assert skipped | written == names and not skipped & written, (skipped | written) ^ names
    lines, _ = measured("augment_data.py", 1, *sounds_of(folder), cwd=folder)
    n_written, n_bad = (int(re.search(rf"(\d+) {text}", lines[-2])[1]) for text in ("copies", "files skipped"))
    copies = list(folder.glob("Samples/*/*_aug1*"))
    assert n_written + n_bad == n and len(copies) == n_written, lines
    for path in copies:
        path.unlink()
    weights = undisturbed(place, "trained") / "weights.keras"
    lines, _ = measured("eval_network.py", "--weights", weights, "Samples", cwd=folder)
    said = {line.split()[0].removeprefix("Samples/") for line in lines}
    assert said | skipped == names and not said & skipped, (said | skipped) ^ names
    return n


# ---------------------------------------------------------------- damaged spectrograms, settings, weights

KINDS = {"spectrograms": 0.45, "settings": 0.15, "weights": 0.25, "state": 0.15}  # shares of the tries


def originals(place):
    """The bytes of the file of each kind that is to be damaged, and its name."""
    whole, stopped = undisturbed(place, "trained"), place / "stopped"
    if not stopped.exists():
        stop_training(copy_of(whole, stopped))
    paths = {"spectrograms": sorted(whole.glob("Preproc/*/*.npy"))[0], "settings": whole / "Preproc/settings.json",
             "weights": whole / "weights.keras", "state": stopped / "weights.unfinished.npz"}
    return {kind: path.read_bytes() for kind, path in paths.items()}


def stop_training(folder):
    """Train until the first state with an epoch is saved."""
    code = ("import os, sys; sys.path.insert(0, sys.argv.pop(1)); import models, train_network, utils\n"
            "save = models.save_state\n"
            "models.save_state = lambda *args: (save(*args), os._exit(0) if args[3] else None)\n"
            "utils.run(train_network.main)")
    subprocess.run([sys.executable, "-c", code, ROOT, "--epochs", "3", *SMALL, "--fresh"], cwd=folder, check=True,
                   capture_output=True)


def write_damaged_file(kind, k, folder, place, rng):
    data = originals(place)[kind]
    path = {"spectrograms": folder / f"{k:04d}x.npy", "settings": folder / f"{k:04d}" / "settings.json",
            "weights": folder / f"{k:04d}x.keras", "state": folder / f"{k:04d}x.unfinished.npz"}[kind]
    path.parent.mkdir(exist_ok=True)
    how = {"spectrograms": damage, "settings": damage_json}.get(kind, damage_archive)
    path.write_bytes(how(data, rng))
    return path


@fault("damaged .npy, settings, weights and states: read, or named in one line", 500, 60)
def damaged_files(place, folder, rng):
    n = rng.room
    for kind, share in KINDS.items():
        paths = [write_damaged_file(kind, k, folder, place, rng) for k in range(max(1, round(share * n)))]
        judge = subprocess.Popen([sys.executable, ROOT / "tests/torture/judge.py", kind, undisturbed(place, "trained"),
                                  *paths], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                 start_new_session=True)
        out, _ = end(judge, 0)
        found = [json.loads(line) for line in out.splitlines()]
        assert len(found) == len(paths), f"{kind}: the process died at {paths[len(found)]}"
        assert not (bad := [pair for pair in found if pair[1] not in ("read", "named")]), bad
        if kind == "spectrograms":
            assert {verdict for _, verdict in found} == {"read", "named"}
    return n


class Bomb:
    """What creates a file when it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


@fault("pickles, and layers that run code: never run", 6)
def pickles(place, folder, rng):
    whole, bomb = undisturbed(place, "trained"), folder / "ran"
    copy_of(whole, folder)
    with zipfile.ZipFile(whole / "weights.keras") as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    network = json.loads(members["config.json"])
    kind = rng.number % 6
    if kind == 0:
        np.save(folder / "Preproc/low/00.wav.npy", np.array([Bomb(bomb)]), allow_pickle=True)
        _, err = run("train_network.py", "--fresh", "--epochs", 1, *SMALL, cwd=folder, statuses=(1,))
        assert "skipped Preproc/low/00.wav.npy: expected a spectrogram" in err
    elif kind == 1:
        with np.load(place / "stopped/weights.unfinished.npz") as state:
            np.savez(folder / "weights.unfinished.npz", np.array([Bomb(bomb)]), said=state["said"])
        assert "unfinished.npz: expected a training" in refused("train_network.py", "--epochs", 3, *SMALL, cwd=folder)
    elif kind == 2:
        import pickle
        (folder / "weights.keras").write_bytes(pickle.dumps(Bomb(bomb)))
        assert "weights.keras: expected the weights" in refused("eval_network.py", cwd=folder)
    else:
        code = f"open({str(bomb)!r}, 'w')"
        layer = {3: {"module": "keras.layers", "class_name": "Lambda", "registered_name": None,
                     "config": {"name": "x", "function": {"class_name": "__lambda__", "config": {"code": code}}}},
                 4: {"module": "builtins", "class_name": "exec", "registered_name": "exec", "config": code},
                 5: {"module": "keras.layers", "class_name": "TFSMLayer", "registered_name": None,
                     "config": {"name": "x", "filepath": "../elsewhere"}}}[kind]
        network["config"]["layers"].insert(1, layer | {"name": "x", "inbound_nodes": []})
        (folder / "weights.keras").write_bytes(packed(members | {"config.json": json.dumps(network).encode()}))
        assert f"(it holds {layer['class_name']}" in refused("eval_network.py", cwd=folder).replace("__lambda__, ", "")
    assert not bomb.exists(), "it was run"


# ---------------------------------------------------------------- names

NAMES = ["line\nbreak", "\x1b[31mred\x1b]0;title\x07", "-rf", "--help", "=1+1", "=cmd|'calc'!A0", "+1", "@SUM(1)",
         "..x", "$(touch ran)", "`touch ran`", "a;touch ran", "%s%n{}{0}", "[red]x[bold]", "$x^2$", "tab\there",
         "\u202egnp", "caf\xe9 \u96e8", "x" * 120, " space ", "\x9b31m", "back\\slash", "quote'\"", "\r over"]
FORMULA = re.compile(r"[=+@\t\r\n]|-[^0-9]")


def assert_fit_to_show(text):
    assert all(c.isprintable() or c == "\n" for c in text), f"shown raw: {text!r}"


def assert_no_formula(folder):
    for path in folder.rglob("*.csv"):
        rows = [line for line in read_table(path)] if path.stat().st_size else []
        cells = [cell for row in rows for pair in row.items() for cell in pair]
        assert not (bad := [cell for cell in cells if FORMULA.match(cell or "")]), f"{path.name}: {bad}"


@fault("hostile names: 24, each of a class and of files", 4)
def hostile_names(place, folder, rng):
    classes, inner = NAMES[rng.number % 4::4], folder / "inner"
    for n, class_name in enumerate(classes):
        (inner / "Samples" / class_name).mkdir(parents=True)
        for k, name in enumerate(classes):
            write_tone(inner / "Samples" / class_name / f"{name}{k}.wav", 200 + 200 * n, np.random.default_rng(k), 0.4)
    for suffix in (".wav", ".m4a"):
        (inner / "Samples" / classes[0] / f"{classes[1]}{suffix}").write_text("no sound")
    before, name = files_of(folder).keys(), classes[0]
    for script, *args in (["augment_data.py", 1, *sounds_of(inner)], ["preprocess_data.py"],
                          ["train_network.py", "--epochs", 1, *SMALL], ["eval_network.py"],
                          ["eval_network.py", "--csv", "new.csv", f"Samples/{name}"],
                          ["eval_network.py", "--timeline", f"Samples/{name}/{name}0.wav", "Samples/gone/\x1b"],
                          ["eval_network.py", "--data", "../inner/Samples"])[:5 if rng.short else None]:
        out, err = run(script, *args, cwd=inner, statuses=(0, 1))
        assert_fit_to_show(out + err)
        assert len(err.splitlines()) <= 4, err
    assert_no_formula(inner)
    outside = [path for path in files_of(folder).keys() - before if not path.startswith("inner/")]
    assert not outside and not list(folder.rglob("ran")), outside
    assert (inner / "Results/roc_curves.png").exists() and not (folder / "Samples").exists()


@fault("weights that name files elsewhere, flags with escape sequences", 2)
def hostile_weights(place, folder, rng):
    whole = undisturbed(place, "trained")
    copy_of(whole, folder / "inner")
    if rng.number % 2:
        err = refused("eval_network.py", "--weights", "\x1b[31m.keras", "--samples", "a\nb", cwd=folder)
        err += refused("train_network.py", "--\x1b[31m", cwd=folder)
        return assert_fit_to_show(err)
    with zipfile.ZipFile(whole / "weights.keras") as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    info = json.loads(members["training.json"])
    (folder / "secret").mkdir()
    shutil.copy(folder / "inner/Samples/low/00.wav", folder / "secret/00.wav")
    info["test"] += ["../secret/00.wav", "../../secret/00.wav", str(folder / "secret/00.wav")]
    (folder / "inner/weights.keras").write_bytes(packed(members | {"training.json": json.dumps(info).encode()}))
    out, _ = run("eval_network.py", cwd=folder / "inner")
    assert "secret" not in (folder / "inner/Results/scores.csv").read_text() and "3 of" in out, out
