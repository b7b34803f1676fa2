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
from threading import Thread

from common import (
    SMALL,
    arrays_of,
    assert_same_files,
    assert_same_weights,
    copy_of,
    end,
    fault,
    files_of,
    info_of,
    is_temporary,
    kill,
    originals,
    run,
    sounds_of,
    start,
    undisturbed,
    until_killed,
)

# ---------------------------------------------------------------- kill -9


def results_in(preproc):
    """The bytes of the spectrograms in a Preproc/, and of skipped.csv.

    suspicious.csv comes after the spectrograms are finished. The next run adds it if it is missing.
    """
    return {name: data for name, data in files_of(preproc).items()
            if name not in ("settings.json", "suspicious.csv") and not is_temporary(name)}


def assert_whole(preproc, *versions):
    """Check that no file is damaged, and that what is called finished is all of one version.

    versions: what Preproc/ may hold, as of results_in.
    """
    found = results_in(preproc)
    for name, data in found.items():
        is_whole = any(version.get(name) == data for version in versions)
        assert is_whole, f"{name} is not whole"
    settings = preproc / "settings.json"
    if settings.exists() and json.loads(settings.read_bytes())["finished"]:
        assert found in versions, f"Preproc/ is called finished with {len(found)} files"


@fault("kill -9 of preprocess at a random moment, then the same command", 50)
def kill_preprocess(place, folder, rng):
    """Each second time it replaces spectrograms of other settings."""
    whole = undisturbed(place, "many")
    preproc = folder / "Preproc"
    copy_of(whole / "Samples", folder / "Samples")
    replaces = rng.number % 2 == 1
    if replaces:
        run("preprocess_data.py", "--n-mels", 64, cwd=folder)
        shutil.move(preproc, folder / "before")
        copy_of(folder / "before", preproc)
        before = results_in(preproc)
        settings = (preproc / "settings.json").read_bytes()
    else:
        before = {}
        settings = b""

    def has_begun():
        if not replaces:
            return preproc.exists()
        n_left = sum(len(files) for _, _, files in os.walk(preproc))  # folders may vanish
        return n_left <= len(before) or (preproc / "settings.json").read_bytes() != settings

    def attempt():
        seconds = rng.choice([0, rng.uniform(0, 0.5)])
        return kill(start("preprocess_data.py", cwd=folder), has_begun, seconds, rng)

    def reset():
        shutil.rmtree(preproc, ignore_errors=True)
        if replaces:
            copy_of(folder / "before", preproc)

    until_killed(attempt, reset)
    assert_whole(preproc, before, results_in(whole / "Preproc"))
    run("preprocess_data.py", cwd=folder)
    assert_same_files(preproc, whole / "Preproc")


def watch_weights(process, paths, earlier, unreadable):
    """Read weights files while a process runs, and add what fails to `unreadable`.

    earlier: bytes that were there before.
    """
    while process.poll() is None:
        for path in paths:
            try:
                data = path.read_bytes()
                if data != earlier:
                    arrays_of(data)
            except FileNotFoundError:
                pass
            except Exception as error:
                unreadable.append(error)
        time.sleep(0.01)


@fault("kill -9 of train at a random moment, then the same command", 15)
def kill_train(place, folder, rng):
    """Each second time there are earlier weights, which must stay until the end."""
    whole = undisturbed(place, "trained")
    for name in ("Samples", "Preproc"):
        copy_of(whole / name, folder / name)
    weights = folder / "weights.keras"
    checkpoint = folder / "weights.unfinished.keras"
    earlier = originals(place)["checkpoint"] if rng.number % 2 else None  # of another training
    flags = "--epochs", 3, *SMALL
    seconds = rng.uniform(0, 3)
    unreadable = []

    def reset():
        nonlocal seconds
        seconds *= 0.7
        checkpoint.unlink(missing_ok=True)
        weights.unlink(missing_ok=True)
        if earlier:
            weights.write_bytes(earlier)

    def attempt():
        process = start("train_network.py", *flags, *["--fresh"] * bool(earlier), cwd=folder)
        watch = Thread(target=watch_weights,
                       args=[process, [weights, checkpoint], earlier, unreadable])
        watch.start()
        was_at_work = kill(process, checkpoint.exists, seconds, rng)
        watch.join()
        return was_at_work

    reset()
    until_killed(attempt, reset)
    assert not unreadable, f"the weights were not readable at every moment: {unreadable}"
    assert weights.exists() or not earlier
    if weights.exists() and weights.read_bytes() != earlier:
        assert_same_weights(weights, whole / "weights.keras")
    is_unfinished = checkpoint.exists()
    if is_unfinished:
        arrays_of(checkpoint)
    out, _ = run("train_network.py", *flags, cwd=folder)
    assert ("Continues after epoch" in out) == is_unfinished, out
    assert_same_weights(weights, whole / "weights.keras")
    assert not checkpoint.exists()


@fault("kill -9 of augment at a random moment, then the same command", 20)
def kill_augment(place, folder, rng):
    whole = undisturbed(place, "augmented")
    copy_of(undisturbed(place, "preprocessed") / "Samples", folder / "Samples")
    sounds = sounds_of(folder)
    expected = files_of(whole / "Samples")

    def copies():
        return list(folder.glob("Samples/*/[!.]*_aug*"))

    def attempt():
        process = start("augment_data.py", 3, *sounds, cwd=folder)
        return kill(process, copies, rng.uniform(0, 0.5), rng)

    def reset():
        for path in folder.glob("Samples/*/*aug*"):
            path.unlink()

    until_killed(attempt, reset)
    for path in copies():
        name = str(path.relative_to(folder / "Samples"))
        assert path.read_bytes() == expected[name], f"{name} is not whole"
    run("augment_data.py", 3, *sounds, cwd=folder)
    for path in folder.glob("Samples/*/.*"):
        if is_temporary(path):  # of the killed run: another run would remove it in an hour
            path.unlink()
    assert_same_files(folder / "Samples", whole / "Samples")


# ---------------------------------------------------------------- two at once

@fault("two preprocess runs, or preprocess beside train, on one folder", 10)
def two_at_once(place, folder, rng):
    whole = undisturbed(place, "many")
    settings = folder / "Preproc/settings.json"
    copy_of(whole, folder)  # made with 96 mels: the first makes everything again
    first = start("preprocess_data.py", "--n-mels", 64, cwd=folder)
    while first.poll() is None and json.loads(settings.read_bytes())["finished"]:
        time.sleep(0.001)
    os.kill(first.pid, signal.SIGSTOP)  # at work, and it holds the lock
    if rng.number % 2:
        second = start("preprocess_data.py", cwd=folder)
        n_lines = 3
    else:
        second = start("train_network.py", "--epochs", 1, *SMALL, cwd=folder)
        n_lines = 1
    said = [second.stdout.readline() for _ in range(n_lines)]
    assert b"at work there; waiting for its end" in said[-1], said
    os.kill(first.pid, signal.SIGCONT)
    time.sleep(rng.uniform(0, 0.3))
    for process in rng.sample([first, second], 2):
        end(process, 0)
    if rng.number % 2:
        assert_same_files(folder / "Preproc", whole / "Preproc")
    else:
        info = info_of(folder / "weights.keras")
        assert info["features"]["n_mels"] == 64
        assert len(info["train"] + info["validation"] + info["test"]) == 300


# ---------------------------------------------------------------- the disk is full

@contextlib.contextmanager
def full_disk(folder, needed, rng, present=()):
    """A place where some files cannot be written as a whole.

    needed: the sizes of these files in bytes. present: the sizes of files that must fit.

    Half of the time, and where one can be mounted, it is a tmpfs in `folder` that is too small.
    Else it is a limit to each file, below the largest needed. Yields what is to be called in a
    new process, or None.
    """
    folder.mkdir(parents=True, exist_ok=True)
    pages_present = count_pages(present)
    size = 4096 * max(1, pages_present + rng.randrange(count_pages(needed)))
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "none", folder]
    if rng.random() < 0.5 and subprocess.run(mount, capture_output=True).returncode == 0:
        try:
            yield None
        finally:
            subprocess.run(["umount", folder], check=True)
    else:
        limit = rng.randrange(1, max(needed))
        yield lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))


def count_pages(sizes):
    """How many pages of 4096 bytes files of these sizes take."""
    return sum(-(-size // 4096) for size in sizes)


def sizes_of(folder):
    """The sizes of all files below a folder."""
    return [len(data) for data in files_of(folder).values()]


def make_room(folder):
    """Give a full disk room again."""
    subprocess.run(["mount", "-o", "remount,size=64m", folder], capture_output=True)


def assert_full(err, script):
    """Check that stderr is one line that names a file and says that the disk is full."""
    reason = "(No space left on device|File too large)"
    assert re.fullmatch(rf"{script}: .+: {reason}; check the disk, .*\n", err), err


def assert_no_temporary_file(folder):
    """Check that a script that was not killed left no temporary file."""
    left = [path for path in folder.rglob(".*") if is_temporary(path)]
    assert not left, left


@fault("disk full at a random byte: preprocess", 20)
def full_preprocess(place, folder, rng):
    whole = undisturbed(place, "preprocessed")
    preproc = folder / "Preproc"
    copy_of(whole / "Samples", folder / "Samples")
    with full_disk(preproc, sizes_of(whole / "Preproc"), rng) as before:
        _, err = run("preprocess_data.py", cwd=folder, statuses=(1,), before=before)
        assert_full(err, "preprocess_data.py")
        assert_no_temporary_file(preproc)
        assert_whole(preproc, results_in(whole / "Preproc"))
        make_room(preproc)
        run("preprocess_data.py", cwd=folder)
        assert_same_files(preproc, whole / "Preproc")


@fault("disk full at a random byte: augment", 20)
def full_augment(place, folder, rng):
    whole = undisturbed(place, "augmented")
    plain = undisturbed(place, "preprocessed") / "Samples"
    needed = [path.stat().st_size for path in whole.glob("Samples/*/*_aug*")]
    with full_disk(folder / "Samples", needed, rng, sizes_of(plain)) as before:
        copy_of(plain, folder / "Samples")
        sounds = sounds_of(folder)
        expected = files_of(whole / "Samples")
        _, err = run("augment_data.py", 3, *sounds, cwd=folder, statuses=(1,), before=before)
        assert_no_temporary_file(folder)
        for name, data in files_of(folder / "Samples").items():
            if name.endswith(".csv"):
                is_whole = set(data.splitlines()) <= {*expected[name].splitlines(), b""}
            else:
                is_whole = data == expected[name]
            assert is_whole, f"{name} is not whole"
        assert_full(err, "augment_data.py")
        make_room(folder / "Samples")
        run("augment_data.py", 3, *sounds, cwd=folder)
        assert_same_files(folder / "Samples", whole / "Samples")


@fault("disk full at a random byte: train", 20)
def full_train(place, folder, rng):
    """Earlier weights stay, and a checkpoint that was saved is whole."""
    whole = undisturbed(place, "trained")
    earlier = (whole / "weights.keras").read_bytes()
    checkpoint = folder / "weights.unfinished.keras"
    size = len(originals(place)["checkpoint"]) - 100  # numbers in its text may be shorter
    with full_disk(folder, [size, size], rng, [len(earlier)]) as before:
        (folder / "weights.keras").write_bytes(earlier)
        places = "--preproc", whole / "Preproc", "--samples", whole / "Samples"
        _, err = run("train_network.py", "--epochs", 1, *SMALL, "--fresh", *places, cwd=folder,
                     statuses=(1,), before=before)
        assert_full(err, "train_network.py")
        assert (folder / "weights.keras").read_bytes() == earlier
        if checkpoint.exists():
            arrays_of(checkpoint)
        assert_no_temporary_file(folder)


@fault("disk full at a random byte: eval", 20)
def full_eval(place, folder, rng):
    whole = undisturbed(place, "trained")
    sizes = sizes_of(whole / "Results")
    with full_disk(folder / "Results", [max(sizes)], rng, sizes) as before:
        copy_of(whole / "Results", folder / "Results")
        places = ["--preproc", whole / "Preproc", "--samples", whole / "Samples",
                  "--weights", whole / "weights.keras"]
        _, err = run("eval_network.py", *places, cwd=folder, statuses=(1,), before=before)
        assert_full(err, "eval_network.py")
        assert_no_temporary_file(folder)
        expected = files_of(whole / "Results")
        found = files_of(folder / "Results")
        assert found.keys() == expected.keys(), found.keys() ^ expected.keys()
        for name, data in found.items():
            if name == "metrics.json":  # it names the paths
                json.loads(data)
            else:
                assert data == expected[name], f"{name} is not whole"
