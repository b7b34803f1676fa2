"""Folders and files that may not be read or written, or are not what they should be."""
import os
import shutil
import subprocess
import sys

import numpy as np
from common import SMALL, copy_of, fault, refused, run, sounds_of, state_of, undisturbed
from conftest import ROOT, drop_root

# ---------------------------------------------------------------- what may not be written

def lock_preproc(folder):
    """Preproc/ that may not be written to. What it has lost by then is not called finished."""
    (folder / "Preproc").chmod(0o555)
    err = refused("preprocess_data.py", "--n-mels", 64, cwd=folder, before=drop_root)
    assert "Preproc/settings.json: Permission denied" in err, err
    (folder / "Preproc").chmod(0o755)
    assert_not_mixed(folder)


def lock_class_of_preproc(folder):
    """A class folder of Preproc/ that may not be written to."""
    (folder / "Preproc/low").chmod(0o555)
    err = refused("preprocess_data.py", "--n-mels", 64, cwd=folder, before=drop_root)
    assert "Preproc/low/" in err and "Permission denied" in err, err
    (folder / "Preproc/low").chmod(0o755)
    assert_not_mixed(folder)


def assert_not_mixed(folder):
    """Check that training refuses an unfinished Preproc/, and that the command finishes it."""
    if len(list(folder.glob("Preproc/*/*.npy"))) < len(sounds_of(folder)):
        err = refused("train_network.py", cwd=folder)
        assert "Preproc/settings.json: preprocessing is not finished" in err, err
    run("preprocess_data.py", "--n-mels", 64, cwd=folder)
    arrays = [np.load(path) for path in folder.glob("Preproc/*/*.npy")]
    assert {array.shape[0] for array in arrays} == {64}
    assert len(arrays) == len(sounds_of(folder))


def lock_new_sound(folder):
    """New sounds whose spectrograms may not be written: named, the others done."""
    sound = folder / "Samples/low/00.wav"
    for name in ("low", "high"):
        shutil.copy(sound, folder / "Samples" / name / "new.wav")
    (folder / "Preproc/low").chmod(0o555)
    out, err = run("preprocess_data.py", cwd=folder, statuses=(1,), before=drop_root)
    assert err.startswith("skipped Preproc/low/new.wav.npy: cannot be written: Permission denied")
    assert len(err.splitlines()) == 2 and "1 spectrograms written, 20 kept" in out, out + err


def lock_class(folder):
    """A class folder of Samples/ that may not be written to."""
    (folder / "Samples/low").chmod(0o555)
    out, err = run("augment_data.py", 1, *sounds_of(folder), cwd=folder, statuses=(1,),
                   before=drop_root)
    assert "16 copies written" in out, out
    assert err.count("skipped Samples/low/") == 4 and len(err.splitlines()) == 5, err


def lock_all(folder):
    """A folder that nothing may be written to."""
    (folder / "weights.keras").rename(folder / "earlier.keras")
    folder.chmod(0o555)
    err = refused("train_network.py", "--epochs", 1, *SMALL, cwd=folder, before=drop_root)
    assert ": Permission denied; check " in err, err
    err = refused("eval_network.py", "--weights", "earlier.keras", "--results", "New", cwd=folder,
                  before=drop_root)
    assert "New: Permission denied" in err, err


def no_listener(folder):
    """Standard output that cannot be written to."""
    with open("/dev/full", "w") as full:
        result = subprocess.run([sys.executable, ROOT / "preprocess_data.py"], cwd=folder,
                                stdout=full, stderr=subprocess.PIPE, text=True)
    assert result.returncode == 1
    assert result.stderr.startswith(
        "preprocess_data.py: file: No space left on device; check "), result.stderr


# ---------------------------------------------------------------- what may not be read

def lock_sounds(folder):
    """Sounds that may not be read: named, the others done, spectrograms up to date kept."""
    for name in ("00.wav", "01.wav"):
        (folder / "Samples/low" / name).chmod(0)
    os.utime(folder / "Samples/low/00.wav")  # its spectrogram is not up to date
    out, err = run("preprocess_data.py", cwd=folder, statuses=(1,), before=drop_root)
    assert err.startswith(
        "skipped Samples/low/00.wav: expected a sound, found a file without read permission"), err
    assert len(err.splitlines()) == 2 and "0 spectrograms written, 19 kept" in out, out + err
    out, err = run("eval_network.py", "Samples/high", "Samples/low", cwd=folder, statuses=(1,),
                   before=drop_root)
    assert len(out.splitlines()) == 6 + 2 and len(err.splitlines()) == 3, out + err
    assert err.count("found a file without read permission") == 2, err
    out, err = run("augment_data.py", 1, *sounds_of(folder), cwd=folder, statuses=(1,),
                   before=drop_root)
    assert "18 copies written" in out and len(err.splitlines()) == 3, out + err


PREPROCESS = ["preprocess_data.py"]
PREPROCESS_ANEW = ["preprocess_data.py", "--n-mels", 64]
TRAIN = ["train_network.py", "--epochs", 1, *SMALL, "--fresh"]


def assert_stop(folder, path, problem, *commands):
    """Check that each command stops with one line that names a path, and changes no file."""
    before = state_of(folder)
    for script, *args in commands:
        err = refused(script, *args, cwd=folder, before=drop_root)
        assert err.startswith(f"{script}: {path}: {problem}"), err
    assert state_of(folder) == before


def lock_folders(folder):
    """Folders that may not be read: a class, one below it, and a class of Preproc/."""
    deep = folder / "Samples/high/deep"
    deep.mkdir()
    shutil.copy(folder / "Samples/high/00.wav", deep)
    run("preprocess_data.py", cwd=folder)
    (folder / "Samples/high/01.wav").unlink()  # preprocessing would remove its spectrogram
    for path in ("Samples/low", "Samples/high/deep", "Preproc/low"):
        (folder / path).chmod(0)
        commands = [PREPROCESS, PREPROCESS_ANEW, TRAIN]
        if path.startswith("Samples"):
            commands += [["eval_network.py", path], ["augment_data.py", 1, path]]
        assert_stop(folder, path, "Permission denied", *commands)
        (folder / path).chmod(0o755)


def lock_weights(folder):
    """Weights that may not be read."""
    (folder / "weights.keras").chmod(0)
    err = refused("eval_network.py", cwd=folder, before=drop_root)
    assert "weights.keras: expected the weights" in err and "Permission denied" in err, err


# ---------------------------------------------------------------- what is not what it should be

def folders_for_files(folder):
    """A folder where a script is to read, or write, a file."""
    (folder / "Samples/low/folder.wav").mkdir()
    for path in (folder / "Preproc/low/00.wav.npy", folder / "weights.keras"):
        path.unlink()
        path.mkdir()
        (path / "notes.txt").touch()
    _, err = run("preprocess_data.py", cwd=folder, statuses=(1,))
    assert err.startswith("skipped Preproc/low/00.wav.npy: cannot be written: Is a directory")
    assert len(err.splitlines()) == 2, err
    expected = "weights.keras: expected the weights that train_network.py saves, found a folder"
    assert expected in refused("eval_network.py", cwd=folder)
    assert expected in refused("train_network.py", "--epochs", 1, *SMALL, cwd=folder)
    shutil.rmtree(folder / "Preproc")
    (folder / "Preproc/settings.json").mkdir(parents=True)
    (folder / "Preproc/settings.json/notes.txt").touch()
    assert "Preproc/settings.json: Is a directory" in refused("preprocess_data.py", cwd=folder)


def files_for_folders(folder):
    """A file where a folder should be."""
    shutil.rmtree(folder / "Preproc/low")
    (folder / "Preproc/low").touch()
    _, err = run("preprocess_data.py", cwd=folder, statuses=(1,))
    assert err.count("skipped Preproc/low/") == 4 and len(err.splitlines()) == 5, err
    shutil.rmtree(folder / "Results")
    (folder / "Results").touch()
    assert "Results: File exists" in refused("eval_network.py", cwd=folder)
    shutil.rmtree(folder / "Preproc")
    (folder / "Preproc").touch()
    assert "Preproc: File exists" in refused("preprocess_data.py", cwd=folder)


def replace_by_dead_link(path):
    """Put a link that leads nowhere in the place of a file or folder."""
    path.rename(path.with_name(f"{path.name} moved"))
    path.symlink_to("nowhere")


def dead_links(folder):
    """Links that lead nowhere, for a sound, a spectrogram, the weights, Preproc/ and Results/."""
    for name in ("Samples/low/00.wav", "Preproc/low/01.wav.npy", "weights.keras"):
        replace_by_dead_link(folder / name)
    _, err = run(*TRAIN, "--save", "w.keras", cwd=folder, statuses=(1,))
    assert "skipped Preproc/low/01.wav.npy: expected a spectrogram" in err, err
    assert len(err.splitlines()) == 2, err
    assert "found nothing there" in refused("eval_network.py", cwd=folder)
    _, err = run("preprocess_data.py", cwd=folder, statuses=(1,))
    assert err.startswith("skipped Samples/low/00.wav: expected a sound, found nothing there"), err
    assert "01.wav" not in err and len(list(folder.glob("Preproc/low/*.npy"))) == 3, err
    for name in ("Preproc", "Results"):
        replace_by_dead_link(folder / name)
    assert "Preproc: " in refused("preprocess_data.py", cwd=folder)
    assert "Results: " in refused("eval_network.py", "--weights", "w.keras", "--preproc",
                                  "Preproc moved", cwd=folder)


def dead_link_to_class(folder):
    """A class on a drive that is not mounted: nothing changes, and its spectrograms stay."""
    (folder / "Samples/low").rename(folder / "drive")
    (folder / "Samples/low").symlink_to(folder / "drive")
    run("preprocess_data.py", cwd=folder)
    (folder / "drive").rename(folder / "unmounted")
    assert_stop(folder, "Samples/low", "is a broken link", PREPROCESS, PREPROCESS_ANEW, TRAIN)
    assert len(list(folder.glob("Preproc/low/*.npy"))) == 4


def pipes(folder):
    """A pipe that nobody writes to. Reading it would never end."""
    os.mkfifo(folder / "Samples/low/pipe.wav")
    for script, *args in (["preprocess_data.py"], ["augment_data.py", 1, "Samples/low/pipe.wav"],
                          ["eval_network.py", "Samples/low/pipe.wav"]):
        _, err = run(script, *args, cwd=folder, statuses=(1,))
        assert "skipped Samples/low/pipe.wav: expected a sound, found a pipe" in err, err


LOCKS = [lock_preproc, lock_class_of_preproc, lock_folders, dead_link_to_class, lock_new_sound,
         lock_class, no_listener, lock_sounds, lock_weights, lock_all,
         folders_for_files, files_for_folders, dead_links, pipes]


@fault("read-only folders, no permission, a folder for a file, dead links", len(LOCKS))
def locked(place, folder, rng):
    """Each of LOCKS in its turn."""
    copy_of(undisturbed(place, "trained"), folder)
    try:
        LOCKS[rng.number % len(LOCKS)](folder)
    finally:
        for path in (folder, *folder.rglob("*")):
            if path.is_dir():
                path.chmod(0o755)
