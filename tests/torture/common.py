"""What the faults share: their list, the scripts run as a user runs them, sounds, and what became of them."""
import contextlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
import zipfile

import numpy as np
import soundfile
from conftest import DATA, ROOT, SAMPLE_RATE, tone, write_sounds

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


def write_tone(path, hertz, rng, seconds=0.1):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, tone(rng, hertz, seconds), SAMPLE_RATE)


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
