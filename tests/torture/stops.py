"""The scripts are killed, run two at once, and find the disk full."""
import contextlib
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import time
import zipfile
from threading import Thread

from common import (
    SMALL,
    TEMPORARY,
    assert_same_files,
    assert_same_weights,
    copy_of,
    end,
    fault,
    files_of,
    kill,
    originals,
    run,
    sounds_of,
    start,
    undisturbed,
    until_killed,
    weights_of,
)

# ---------------------------------------------------------------- kill -9

@fault("kill -9 of preprocess at a random moment, then the same command", 50)
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
    said = [second.stdout.readline() for _ in range(3 if rng.number % 2 else 1)]
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
