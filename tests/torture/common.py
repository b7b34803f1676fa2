"""What the faults share: their list, the scripts run as commands, sounds, and comparisons."""
import contextlib
import io
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import h5py
import soundfile
from conftest import DATA, ROOT, SAMPLE_RATE, SMALL, tone, write_sounds

MAX_SECONDS = 300  # of a script
MAX_WAIT = 30  # seconds until the workers of a killed script have ended
BATCH = 250  # files damaged in one try, of faults that take hundreds
TEMPORARY = re.compile(r"\.[0-9a-f]{12}(\.\w+)?")
ONE_THREAD = {"TF_NUM_INTRAOP_THREADS": "1", "TF_NUM_INTEROP_THREADS": "1"}


class Fault(NamedTuple):
    """A fault that the scripts must survive."""

    function: Callable
    text: str
    n_tries: int


STOPPED = "--epochs", "40", *SMALL  # flags of the training that was stopped
FAULTS = {}  # by name


def fault(text, n_tries):
    """Add the decorated function to FAULTS, under its name with hyphens."""
    def add(function):
        name = function.__name__.replace("_", "-")
        FAULTS[name] = Fault(function, text, n_tries)
        return function
    return add


class Draw(random.Random):
    """The random numbers of a try.

    number: of the try. n_files: how many files it may damage.
    """

    def __init__(self, name, seed, number, n_files):
        super().__init__(f"{name} {seed} {number}")
        self.number = number
        self.n_files = n_files


# ---------------------------------------------------------------- the scripts, run as commands

def start(script, *args, cwd, before=None):
    """Start a script in a session of its own, without a terminal. Returns its process.

    before: called in the new process.
    """
    command = [sys.executable, ROOT / script, *map(str, args)]
    return subprocess.Popen(command, cwd=cwd, start_new_session=True, stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, preexec_fn=before,
                            env=os.environ | ONE_THREAD)


def end(process, *statuses):
    """Wait until a script ends by itself, with one of the statuses. Returns stdout and stderr."""
    try:
        out, err = process.communicate(timeout=MAX_SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise AssertionError(f"{process.args}: hangs") from None
    out = out.decode(errors="replace")
    err = err.decode(errors="replace")
    assert process.returncode in statuses, (
        f"{process.args}: status {process.returncode}\n{out}{err}")
    assert "Traceback" not in out + err, err
    return out, err


def run(script, *args, cwd, statuses=(0,), before=None):
    """Run a script. Returns what it wrote to stdout and stderr."""
    return end(start(script, *args, cwd=cwd, before=before), *statuses)


def refused(script, *args, cwd, before=None):
    """Run a script that must fail with one line on stderr. Returns that line."""
    _, err = run(script, *args, cwd=cwd, statuses=(1, 2), before=before)
    assert len(err.splitlines()) == 1 and script in err, err
    return err


def kill(process, has_begun, seconds, rng):
    """Kill a script by kill -9, so many seconds after has_begun() is first true.

    Kills it alone, or with its workers. Alone, its workers must end too. Returns whether it was
    still at work; if not, the try is to be made again.
    """
    while process.poll() is None and not has_begun():
        time.sleep(0.005)
    time.sleep(seconds)
    was_at_work = process.poll() is None
    send = rng.choice([os.kill, os.killpg])
    with contextlib.suppress(ProcessLookupError):
        send(process.pid, signal.SIGKILL)
    end_of_wait = time.monotonic() + MAX_WAIT
    while left := running_group(process.pid):
        if time.monotonic() > end_of_wait:
            os.killpg(process.pid, signal.SIGKILL)
            raise AssertionError(f"{process.args} was killed, but its workers {left} work on")
        time.sleep(0.01)
    process.communicate()
    return was_at_work


def running_group(group):
    """The ids of the processes of a process group that are no zombies."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it has just ended
            _, _, text = path.read_text().rpartition(")")
            state, _, group_of_process = text.split()[:3]
            if int(group_of_process) == group and state not in "ZX":
                found.append(int(path.parent.name))
    return found


# ---------------------------------------------------------------- sounds and networks

def real_sounds():
    """Paths of short real recordings; none where they are not at hand."""
    paths = sorted(DATA.glob("drums/*/*")) + sorted(DATA.glob("fsdd/*/*"))[::7]
    return [path for path in paths if path.stat().st_size < 2e5]


def write_set(folder, n=4, n_classes=5):
    """Write Samples/ with n sounds in each class: three classes of tones, the others real."""
    write_sounds(folder, n=n)
    paths = real_sounds()
    n_real = min(n * (n_classes - 3), len(paths))
    for k, path in enumerate(random.Random(0).sample(paths, n_real)):
        target = folder / "Samples" / f"real {k // n}" / path.name
        target.parent.mkdir(exist_ok=True)
        shutil.copy(path, target)
    return folder


def undisturbed(place, kind):
    """A folder in which nothing was disturbed: the disturbed ones must come to the same.

    kind: "preprocessed"; "augmented"; "trained", and evaluated; or "many", 300 sounds
    preprocessed.
    """
    folder = place / f"undisturbed {kind}"
    if folder.exists():
        return folder
    if kind == "many":
        write_set(folder, n=100, n_classes=3)
    else:
        write_set(folder)
    if kind == "augmented":
        run("augment_data.py", 3, *sounds_of(folder), cwd=folder)
        return folder
    run("preprocess_data.py", cwd=folder)
    if kind == "trained":
        run("train_network.py", "--epochs", 3, *SMALL, cwd=folder)
        run("eval_network.py", cwd=folder)
    return folder


def stopped(place):
    """A folder in which a training with the flags STOPPED was killed after its first epochs."""
    folder = place / "stopped"
    if folder.exists():
        return folder
    copy_of(undisturbed(place, "trained"), folder)
    process = start("train_network.py", *STOPPED, "--fresh", cwd=folder)
    while not (folder / "weights.unfinished.keras").exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    return folder


def originals(place):
    """The bytes of the file of each kind that is to be damaged."""
    whole = undisturbed(place, "trained")
    paths = {"spectrograms": sorted(whole.glob("Preproc/*/*.npy"))[0],
             "settings": whole / "Preproc/settings.json",
             "weights": whole / "weights.keras",
             "checkpoint": stopped(place) / "weights.unfinished.keras"}
    return {kind: path.read_bytes() for kind, path in paths.items()}


def write_tone(path, hertz, rng, seconds=0.1):
    """Write a tone as a sound file, and the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, tone(rng, hertz, seconds), SAMPLE_RATE)


# ---------------------------------------------------------------- files, and their comparison

def sounds_of(folder):
    """The paths of all files in the classes of Samples/, below `folder`."""
    return sorted(path.relative_to(folder) for path in folder.glob("Samples/*/*"))


def copy_of(folder, target):
    """Copy a folder, with its file times. Returns the target."""
    return shutil.copytree(folder, target, dirs_exist_ok=True)


def is_temporary(name):
    """Whether a name, or path, is that of a file that was being written."""
    return bool(TEMPORARY.fullmatch(str(name).rsplit("/")[-1]))


def files_of(folder):
    """The bytes of all files below a folder, by name."""
    return {str(path.relative_to(folder)): path.read_bytes()
            for path in folder.rglob("*") if path.is_file()}


def state_of(folder):
    """Bytes, file time and inode of all files below a folder, by name."""
    found = {}
    for name, data in files_of(folder).items():
        status = (folder / name).stat()
        found[name] = data, status.st_mtime_ns, status.st_ino
    return found


def assert_same_files(found, expected):
    """Check that two folders hold the same files, and no temporary ones."""
    found = files_of(found)
    expected = files_of(expected)
    assert not any(map(is_temporary, found)), "a temporary file is left"
    assert found.keys() == expected.keys(), found.keys() ^ expected.keys()
    other = [name for name in found if found[name] != expected[name]]
    assert not other, f"other bytes in {other}"


def arrays_of(weights):
    """All arrays in a weights file, or its bytes: of the network and its optimizer."""
    data = weights if isinstance(weights, bytes) else weights.read_bytes()
    arrays = {}

    def add(name, item):
        if isinstance(item, h5py.Dataset):
            arrays[name] = item[()]

    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        assert archive.testzip() is None
        with h5py.File(io.BytesIO(archive.read("model.weights.h5"))) as store:
            store.visititems(add)
    assert any(name.startswith("optimizer/") for name in arrays), list(arrays)
    return arrays


def assert_same_weights(found, expected):
    """Check that two weights files hold the same arrays, byte for byte."""
    found = arrays_of(found)
    expected = arrays_of(expected)
    assert found.keys() == expected.keys()
    other = [name for name in expected if found[name].tobytes() != expected[name].tobytes()]
    assert not other, f"other values in {other}"
