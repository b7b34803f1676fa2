"""What the tests share: small sets of sounds, and the scripts run as a user runs them."""
import csv
import ctypes
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

import utils

ROOT = Path(__file__).parent.parent
SAMPLE_RATE = 8000  # Hz
SMALL = "--layers", "1", "--filters", "2"  # a network that trains in no time
DATA = ROOT.parent / "shared/data"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="the real recordings are not here")
# Two workers share two cores: more threads would wait for one another.
THREADS = "TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS", "OMP_NUM_THREADS"
os.environ.update(dict.fromkeys(THREADS, "1"))
# A job in the background ignores Ctrl-C. The scripts that tests interrupt would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)


def run(script, *args, cwd, status=0, before=None):
    """Run a script, a path below the project, in the folder `cwd`. Returns its result.

    Checks the exit status, and that there is no traceback. before: called in the new process.
    """
    command = [sys.executable, ROOT / script, *map(str, args)]
    result = subprocess.run(command, cwd=cwd, capture_output=True, text=True, preexec_fn=before)
    assert result.returncode == status, result.stdout + result.stderr
    assert "Traceback" not in result.stderr
    return result


def one_line(script, *args, cwd, status=1, before=None):
    """Run a script that must fail with one line on stderr. Returns that line."""
    lines = run(script, *args, cwd=cwd, status=status, before=before).stderr.splitlines()
    assert len(lines) == 1, lines
    return lines[0]


def drop_root():
    """Take from root the right to pass over permissions. Called in a new process on Linux."""
    for capability in (1, 2):  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
        ctypes.CDLL(None).prctl(24, capability, 0, 0, 0)  # PR_CAPBSET_DROP


def tone(rng, hertz, seconds=0.4):
    """A sine of about `hertz` with a little noise. [shape=(n_samples,)]"""
    time = np.arange(int(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    sine = np.sin(2 * np.pi * hertz * rng.uniform(0.9, 1.1) * time)
    return 0.3 * sine + 0.01 * rng.normal(size=len(time))


def write_sounds(folder, classes=("low", "middle", "high"), n=10):
    """Write n tones of each class into folder/Samples, each class more than an octave higher."""
    rng = np.random.default_rng(1)  # with which no two tones are alike
    for k, name in enumerate(classes):
        (folder / "Samples" / name).mkdir(parents=True)
        for i in range(n):
            y = tone(rng, 200 * 3**k, seconds=rng.uniform(0.2, 0.6))
            soundfile.write(folder / "Samples" / name / f"{i:02d}.wav", y, SAMPLE_RATE)
    return folder


def load_json(path):
    return json.loads(path.read_text())


def read_table(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def read_scores(folder):
    return read_table(folder / "scores.csv")


def made_once(tmp_path_factory, name, make):
    """The folder `name` of this run of the tests, in which make(folder) was called once."""
    base = tmp_path_factory.getbasetemp()
    base = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    (base / f"{name} lock").mkdir(exist_ok=True)
    with utils.folder_lock(base / f"{name} lock"):
        if not (base / name).exists():
            (base / name).mkdir()
            make(base / name)
    return base / name


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """A folder in which the four scripts were run. Tests look, and copy what they change."""
    def make(folder):
        write_sounds(folder)
        run("augment_data.py", 1, *sorted((folder / "Samples").glob("*/*")), cwd=folder)
        run("preprocess_data.py", cwd=folder)
        said = run("train_network.py", "--epochs", 3, "--layers", 1, cwd=folder).stdout
        (folder / "train.txt").write_text(said)
        (folder / "eval.txt").write_text(run("eval_network.py", cwd=folder).stdout)
    return made_once(tmp_path_factory, "trained", make)


@pytest.fixture
def preprocessed(tmp_path_factory, tmp_path):
    """A folder with Samples/ of three classes of ten tones, and their Preproc/."""
    def make(folder):
        run("preprocess_data.py", cwd=write_sounds(folder))
    return shutil.copytree(made_once(tmp_path_factory, "preprocessed", make), tmp_path / "sounds")


@pytest.fixture
def copy_of_trained(trained, tmp_path):
    return shutil.copytree(trained, tmp_path / "copy")


@pytest.fixture
def sounds(tmp_path):
    """A folder with Samples/ of three classes of ten tones."""
    return write_sounds(tmp_path)


@pytest.fixture
def evaluate(monkeypatch, capsys):
    """A function that runs eval_network.py in this process, in a folder.

    It returns what main() returned, and what was printed.
    """
    def call(folder, *args):
        import eval_network
        monkeypatch.chdir(folder)
        monkeypatch.setattr(sys, "argv", ["eval_network.py", *map(str, args)])
        capsys.readouterr()
        return eval_network.main(), capsys.readouterr()
    return call
