"""Folders and files that may not be read or written, or are not what they should be."""
import os
import shutil

import numpy as np
from common import SMALL, copy_of, fault, refused, run, sounds_of, state_of, undisturbed
from conftest import drop_root

# ---------------------------------------------------------------- what may not be written

def lock_preproc(folder):
    """Preproc/, or a class in it, that may not be written to: the same command finishes it."""
    for path in ("Preproc", "Preproc/low"):
        (folder / path).chmod(0o555)
        err = refused("preprocess_data.py", "--n-mels", 64, cwd=folder, before=drop_root)
        assert f"{path}/" in err and "Permission denied" in err, err
        (folder / path).chmod(0o755)
    if len(list(folder.glob("Preproc/*/*.npy"))) < len(sounds_of(folder)):
        err = refused("train_network.py", cwd=folder)
        assert "Preproc/settings.json: preprocessing is not finished" in err, err
    run("preprocess_data.py", "--n-mels", 64, cwd=folder)
    shapes = [np.load(path).shape for path in folder.glob("Preproc/*/*.npy")]
    assert {shape[0] for shape in shapes} == {64} and len(shapes) == len(sounds_of(folder))


def lock_results(folder):
    """A class of Samples/, and the place of the weights and results, are read-only."""
    (folder / "Samples/low").chmod(0o555)
    _, err = run("augment_data.py", 1, "Samples/low", cwd=folder, statuses=(1,), before=drop_root)
    assert "skipped Samples/low/augmentations.csv: cannot be written: Permission denied" in err, err
    folder.chmod(0o555)
    err = refused(*TRAIN, cwd=folder, before=drop_root)
    assert ": Permission denied; check " in err, err
    err = refused("eval_network.py", "--results", "New", cwd=folder, before=drop_root)
    assert "New: Permission denied" in err, err


# ---------------------------------------------------------------- what may not be read

def lock_sounds(folder):
    """Sounds that may not be read: named, the others done, their spectrograms kept."""
    for name in ("00.wav", "01.wav"):
        (folder / "Samples/low" / name).chmod(0)
    out, err = run("preprocess_data.py", cwd=folder, statuses=(1,), before=drop_root)
    assert err.startswith(
        "skipped Samples/low/00.wav: expected a sound, found a file without read permission"), err
    assert len(err.splitlines()) == 3 and "0 spectrograms written, 18 kept" in out, out + err
    out, err = run("eval_network.py", "Samples/high", "Samples/low", cwd=folder, statuses=(1,),
                   before=drop_root)
    assert len(out.splitlines()) == 6 + 2 and len(err.splitlines()) == 3, out + err
    assert err.count("found a file without read permission") == 2, err


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


# ---------------------------------------------------------------- what is not what it should be

def put_folder(path):
    """Put a folder with a file in the place of a file."""
    path.unlink()
    path.mkdir()
    (path / "notes.txt").touch()


def put_dead_link(path):
    """Put a link that leads nowhere in the place of a file."""
    path.unlink()
    path.symlink_to("nowhere")


def not_files(folder):
    """Folders, dead links and a pipe for a sound, a spectrogram and the weights."""
    os.mkfifo(folder / "Samples/low/pipe.wav")  # reading it would never end
    put_dead_link(folder / "Samples/low/00.wav")
    put_dead_link(folder / "Preproc/low/01.wav.npy")
    put_folder(folder / "Preproc/low/02.wav.npy")
    _, err = run(*TRAIN, "--save", "w.keras", cwd=folder, statuses=(1,))
    assert "skipped Preproc/low/01.wav.npy" in err and len(err.splitlines()) == 2, err
    _, err = run("preprocess_data.py", cwd=folder, statuses=(1,))
    for words in ("Samples/low/00.wav: expected a sound, found nothing there",
                  "Preproc/low/02.wav.npy: cannot be written: Is a directory",
                  "Samples/low/pipe.wav: expected a sound, found a pipe"):
        assert f"skipped {words}" in err and len(err.splitlines()) == 4, err
    for put, found in ((put_dead_link, "nothing there"), (put_folder, "a folder")):
        put(folder / "weights.keras")
        assert f"found {found}" in refused("eval_network.py", cwd=folder)

def dead_link_to_class(folder):
    """A class on a drive that is not mounted: nothing changes, and its spectrograms stay."""
    (folder / "Samples/low").rename(folder / "drive")
    (folder / "Samples/low").symlink_to(folder / "drive")
    run("preprocess_data.py", cwd=folder)
    (folder / "drive").rename(folder / "unmounted")
    assert_stop(folder, "Samples/low", "is a broken link", PREPROCESS, PREPROCESS_ANEW, TRAIN)
    assert len(list(folder.glob("Preproc/low/*.npy"))) == 4


LOCKS = [lock_preproc, lock_folders, dead_link_to_class, lock_results, lock_sounds, not_files]


@fault("read-only folders, no permission, a folder or a pipe for a file, dead links", len(LOCKS))
def locked(place, folder, rng):
    """Each of LOCKS in its turn."""
    copy_of(undisturbed(place, "trained"), folder)
    try:
        LOCKS[rng.number % len(LOCKS)](folder)
    finally:
        for path in (folder, *folder.rglob("*")):
            if path.is_dir():
                path.chmod(0o755)
