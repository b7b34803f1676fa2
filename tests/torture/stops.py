"""The scripts are killed, run two at once, and find the disk full."""
import json
import os
import re
import resource
import shutil
import signal
import time
from pathlib import Path

from common import (
    SMALL,
    arrays_of,
    assert_same_files,
    assert_same_weights,
    copy_of,
    end,
    fault,
    files_of,
    is_temporary,
    kill,
    originals,
    run,
    sounds_of,
    start,
    undisturbed,
)

# ---------------------------------------------------------------- kill -9

def results_in(preproc):
    """The bytes of the spectrograms in a Preproc/."""
    return {name: data for name, data in files_of(preproc).items() if name.endswith(".npy")
            and not is_temporary(name)}


@fault("kill -9 of preprocess at a random moment, then the same command", 50)
def kill_preprocess(place, folder, rng):
    """It replaces spectrograms of other settings. What is called finished is all of one kind."""
    whole = undisturbed(place, "many")
    preproc = folder / "Preproc"
    settings = preproc / "settings.json"
    copy_of(whole / "Samples", folder / "Samples")
    run("preprocess_data.py", "--n-mels", 64, cwd=folder)
    shutil.copytree(preproc, folder / "before")
    before = results_in(preproc)
    old_settings = settings.read_bytes()

    def has_begun():
        return not settings.exists() or settings.read_bytes() != old_settings

    while not kill(start("preprocess_data.py", cwd=folder), has_begun,
                   rng.choice([0, rng.uniform(0, 0.5)]), rng):
        shutil.rmtree(preproc)
        copy_of(folder / "before", preproc)
    found = results_in(preproc)
    expected = results_in(whole / "Preproc")
    for name, data in found.items():
        assert data in (before.get(name), expected[name]), f"{name} is not whole"
    if settings.exists() and json.loads(settings.read_bytes())["finished"]:
        assert found in (before, expected), f"Preproc/ is called finished with {len(found)} files"
    run("preprocess_data.py", cwd=folder)
    assert_same_files(preproc, whole / "Preproc")


@fault("kill -9 of train at a random moment, then the same command", 15)
def kill_train(place, folder, rng):
    """There are earlier weights of another training, which must stay until the end."""
    whole = undisturbed(place, "trained")
    for name in ("Samples", "Preproc"):
        copy_of(whole / name, folder / name)
    weights = folder / "weights.keras"
    checkpoint = folder / "weights.unfinished.keras"
    earlier = originals(place)["checkpoint"]
    flags = "--epochs", 3, *SMALL
    seconds = rng.uniform(0, 3)
    weights.write_bytes(earlier)
    while not kill(start("train_network.py", *flags, "--fresh", cwd=folder), checkpoint.exists,
                   seconds, rng):
        seconds *= 0.7
        weights.write_bytes(earlier)
    if weights.read_bytes() != earlier:
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

    while not kill(start("augment_data.py", 3, *sounds, cwd=folder), copies,
                   rng.uniform(0, 0.5), rng):
        for path in folder.glob("Samples/*/*aug*"):
            path.unlink()
    for path in copies():
        name = str(path.relative_to(folder / "Samples"))
        assert path.read_bytes() == expected[name], f"{name} is not whole"
    run("augment_data.py", 3, *sounds, cwd=folder)
    for path in folder.glob("Samples/*/.*"):
        if is_temporary(path):  # of the killed run: another run would remove it in an hour
            path.unlink()
    assert_same_files(folder / "Samples", whole / "Samples")


# ---------------------------------------------------------------- two at once, full disks

@fault("two preprocess runs on one folder", 10)
def two_at_once(place, folder, rng):
    whole = undisturbed(place, "many")
    settings = folder / "Preproc/settings.json"
    copy_of(whole, folder)  # made with 96 mels: the first makes everything again
    first = start("preprocess_data.py", "--n-mels", 64, cwd=folder)
    while first.poll() is None and json.loads(settings.read_bytes())["finished"]:
        time.sleep(0.001)
    os.kill(first.pid, signal.SIGSTOP)  # at work, and it holds the lock
    second = start("preprocess_data.py", cwd=folder)
    said = [second.stdout.readline() for _ in range(3)]
    assert b"at work there; waiting for its end" in said[-1], said
    os.kill(first.pid, signal.SIGCONT)
    time.sleep(rng.uniform(0, 0.3))
    for process in rng.sample([first, second], 2):
        end(process, 0)
    assert_same_files(folder / "Preproc", whole / "Preproc")


FULL = [  # the folder that is to come out, what is removed from it before, and the command
    ("preprocessed", "Preproc/**/*", ["preprocess_data.py"]),
    ("augmented", "Samples/*/*aug*", ["augment_data.py", 3, "Samples"]),
    ("trained", "Results/[!t]*", ["eval_network.py"]),
    ("trained", "", ["train_network.py", "--epochs", 1, *SMALL, "--fresh"])]


@fault("disk full at a random byte: each of the four scripts", 40)
def full_disk(place, folder, rng):
    """A limit to the size of a file stands for the disk."""
    kind, pattern, (script, *args) = FULL[rng.number % 4]
    whole = undisturbed(place, kind)
    copy_of(whole, folder)
    expected = files_of(whole)
    if script == "train_network.py":
        largest = len(originals(place)["checkpoint"]) - 100  # numbers in its text may be shorter
    else:
        largest = 0
        for path in filter(Path.is_file, list(folder.glob(pattern))):
            largest = max(largest, path.stat().st_size)
            path.unlink()
    limit = rng.randrange(1, largest)
    _, err = run(script, *args, cwd=folder, statuses=(1,), before=lambda: resource.setrlimit(
        resource.RLIMIT_FSIZE, (limit, limit)))
    assert re.fullmatch(rf"{script}: .+: File too large; check the disk, .*\n", err), err
    for name, data in files_of(folder).items():
        assert not is_temporary(name), name
        if name == "weights.unfinished.keras":
            arrays_of(data)
        # The settings say that preprocessing is not finished. Training writes its log first.
        elif not name.startswith(("Preproc/settings", "Results/training")):
            assert data == expected[name], f"{name} is not whole"
    if script != "train_network.py":
        run(script, *args, cwd=folder)
        assert_same_files(folder, whole)
