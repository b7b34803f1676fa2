"""Plant 20 faults of each kind among sounds, and count how many are found.

Prints how many of the 20 suspicious.csv lists as what they are, and how many other sounds it lists
as the same. With --labels, 20 sounds get a wrong label instead, and evaluation is to doubt them.

    python benchmarks/check.py SAMPLES
    python benchmarks/check.py SAMPLES --labels --folds 5
"""
import csv
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import soundfile

ROOT = Path(__file__).resolve().parent.parent
N_PLANTED = 20
SILENCE = 0.2  # seconds


def pad(y, rate):
    """Put silence before and after a sound."""
    silence = np.zeros(int(SILENCE * rate))
    return np.concatenate([silence, y, silence])


def clip(y, rate):
    """Make a sound four times as loud, and cut it at its former peak."""
    return np.clip(4 * y, -np.abs(y).max(), np.abs(y).max())


FAULTS = {  # fault: the kind in suspicious.csv, the file format, and the change of a sound
    "copy": ("nearly identical", "WAV", lambda y, rate: y),
    "copy at half the level": ("nearly identical", "WAV", lambda y, rate: y / 2),
    "copy between silences": ("nearly identical", "WAV", pad),
    "copy as OGG Vorbis": ("nearly identical", "OGG", lambda y, rate: y),
    "silence": ("silent", "WAV", lambda y, rate: 0 * y),
    "noise at -66 dB": ("silent", "WAV", lambda y, rate: np.random.default_rng(0).uniform(
        -5e-4, 5e-4, len(y))),
    "clipped at a quarter": ("clipped", "WAV", clip),
    "clipped at full scale": ("clipped", "WAV", lambda y, rate: np.clip(
        4 * y / np.abs(y).max(), -1, 1)),
    "sixteen times as long": ("odd length", "WAV", lambda y, rate: np.tile(y, 16)),
    "a fortieth as long": ("odd length", "WAV", lambda y, rate: y[len(y) // 2:][:len(y) // 40]),
}


def list_paths(samples):
    """List the sounds that soundfile can read, sorted."""
    return sorted(path for path in samples.glob("*/*") if path.suffix in (".wav", ".flac", ".ogg"))


def link(path, target, label):
    """Link a sound into the folder of a class. Returns the name of the link."""
    (target / label).mkdir(parents=True, exist_ok=True)
    (target / label / path.name).symlink_to(path.resolve())
    return f"{label}/{path.name}"


def plant(samples, target, fault):
    """Link all sounds into a folder, and write 20 changed ones. Returns their names."""
    paths = list_paths(samples)
    for path in paths:
        link(path, target, path.parent.name)
    _, file_format, change = FAULTS[fault]
    planted = set()
    for k in np.random.default_rng(0).choice(len(paths), N_PLANTED, replace=False):
        y, rate = soundfile.read(paths[k])
        name = f"{paths[k].parent.name}/zz-{paths[k].stem}.{file_format.lower()}"
        soundfile.write(target / name, change(y.reshape(len(y), -1).mean(axis=1), rate), rate,
                        format=file_format)
        planted.add(name)
    return planted


def move_labels(samples, target):
    """Link all sounds into a folder, 20 of them into a wrong class. Returns the names of these."""
    paths = list_paths(samples)
    classes = sorted({path.parent.name for path in paths})
    rng = np.random.default_rng(0)
    chosen = set(rng.choice(len(paths), N_PLANTED, replace=False).tolist())
    moved = set()
    for k, path in enumerate(paths):
        label = path.parent.name
        if k in chosen:
            others = [name for name in classes if name != label]
            moved.add(link(path, target, rng.choice(others)))
        else:
            link(path, target, label)
    return moved


def find_wrong_labels(samples, flags):
    """Train folds on sounds of which 20 have a wrong label, and count the labels in doubt."""
    with tempfile.TemporaryDirectory() as folder:
        moved = move_labels(samples, Path(folder, "Samples"))
        for command in ([ROOT / "preprocess_data.py"], [ROOT / "train_network.py", *flags],
                        [ROOT / "eval_network.py", "--folds"]):
            subprocess.run([sys.executable, *command], cwd=folder, check=True)
        with open(Path(folder, "Results/mistakes.csv"), newline="") as file:
            mistakes = list(csv.DictReader(file))
    listed = [row["file"] for row in mistakes if row["label_in_doubt"] == "yes"]
    found = moved.intersection(listed)
    among_first = moved.intersection(listed[:N_PLANTED])
    print(f"{len(found)} of {len(moved)} wrong labels are in doubt, {len(among_first)} of them "
          f"among the first {N_PLANTED}; {len(listed) - len(found)} others are in doubt, and "
          f"{len(mistakes) - len(listed)} mistakes are not")


def main():
    samples = Path(sys.argv[1])
    if sys.argv[2:3] == ["--labels"]:
        find_wrong_labels(samples, sys.argv[3:])
        return
    print(f"{'fault':24}{'found':>8}{'others listed':>16}")
    for fault, (kind, *_) in FAULTS.items():
        with tempfile.TemporaryDirectory() as folder:
            planted = plant(samples, Path(folder, "Samples"), fault)
            subprocess.run([sys.executable, ROOT / "preprocess_data.py"], cwd=folder, check=True,
                           stdout=subprocess.DEVNULL)
            with open(Path(folder, "Preproc/suspicious.csv"), newline="") as file:
                listed = {row["file"] for row in csv.DictReader(file)
                          if row["kind"].removeprefix("nearly ") == kind.removeprefix("nearly ")}
        print(f"{fault:24}{len(listed & planted):8}{len(listed - planted):16}", flush=True)


if __name__ == "__main__":
    main()
