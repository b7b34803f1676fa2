"""Folders and files that may not be read or written, or are not what they should be."""
import ctypes
import os
import shutil
import subprocess
import sys

import numpy as np
from common import SMALL, copy_of, fault, refused, run, sounds_of, undisturbed
from conftest import ROOT

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
    _, err = run("preprocess_data.py", cwd=folder, statuses=(1,))
    assert "skipped Samples/low/pipe.wav: expected a sound, found a pipe" in err, err
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


@fault("read-only folders, no permission, a folder for a file, dangling links", len(LOCKS), 4)
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
