"""Judge a change of the defaults on five sets of sounds, each tested on sources never heard.

Reads DATA/fsdd, DATA/drums, DATA/kitchen20 and DATA/arabic_commands. Writes to WORK: the
spectrograms, a synthetic set of guitar effects, and results.csv with a line for each training. A
second run skips what is in results.csv, so that a long one may be stopped. The last lines are the
table of all labels: accuracy in percent, as a mean over the seeds.

forest: scikit-learn's ExtraTreesClassifier on the mean and deviation of each mel band, with the
same split. digits leaves out george, then theo. commands has a tenth of the training sounds.

    python benchmarks/recipe.py DATA WORK --label before
    python benchmarks/recipe.py DATA WORK --label wider --seeds 3 --filters 24
"""
import argparse
import csv
import json
import os
import re
import subprocess
import sys
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
from sklearn.ensemble import ExtraTreesClassifier
from sklearn.metrics import balanced_accuracy_score, roc_auc_score

ROOT = Path(__file__).resolve().parent.parent
SETS = {  # the folder of sounds, and the flags of the split
    "digits, george": ("fsdd", ["--test", "_george_"]),
    "digits, theo": ("fsdd", ["--test", "_theo_"]),
    "drums": ("drums", ["--groups", "^[^-]+"]),
    "kitchen": ("kitchen20", ["--groups", r"(?<=\d-)\d{2,}(?=-)"]),
    "commands": ("commands", ["--groups", r"^\d{8}"]),
    "guitar": ("guitar", ["--groups", r"^G\d\d-\d{5}"]),
}
COLUMNS = "label", "set", "seed", "accuracy", "balanced", "auc", "seconds"


def call(folder, *command):
    """Run a command in a folder. Returns what it printed."""
    words = [sys.executable, *map(str, command)]
    done = subprocess.run(words, cwd=folder, text=True, stdout=subprocess.PIPE)
    if done.returncode:
        sys.exit(done.stdout)
    return done.stdout


def thin_commands(source, target):
    """Link a tenth of the training sounds of the commands, and all sounds of the test speakers."""
    for path in sorted(source.glob("*/*.flac")):
        is_test = path.name[6:8] in ("03", "04", "10", "14", "26", "28")
        link = target / path.parent.name / path.name
        if is_test or zlib.crc32(path.name.encode()) % 10 == 0:
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(path)


def prepare(data, work):
    """Make the folders of sounds that are not in `data`, and all spectrograms."""
    if not (work / "guitar").exists():
        call(work, ROOT / "examples/guitar_effects.py", work / "guitar", "--notes", 40)
    if not (work / "commands").exists():
        thin_commands(data / "arabic_commands", work / "commands")
    folders = {}
    for folder in sorted({folder for folder, _ in SETS.values()}):
        place = work if folder in ("guitar", "commands") else data
        folders[folder] = place / folder
        call(work, ROOT / "preprocess_data.py", "--samples", place / folder,
             "--preproc", f"Preproc_{folder}")
    return folders


def train(work, name, folder, seed, flags):
    """Train and evaluate once. Returns accuracy, balanced accuracy, AUC, and seconds."""
    folders = ["--samples", folder, "--preproc", f"Preproc_{SETS[name][0]}"]
    said = call(work, ROOT / "train_network.py", *folders, *SETS[name][1], "--fresh",
                "--seed", seed, *flags)
    call(work, ROOT / "eval_network.py", *folders)
    scores = json.loads((work / "Results/metrics.json").read_text())
    seconds = int(re.search(r"Training took (\d+) s", said)[1])
    return scores["accuracy"], scores["balanced_accuracy"], scores["macro_auc"], seconds


def describe(preproc, names):
    """The mean and deviation of each mel band. [shape=(n_sounds, 2 * n_mels)]"""
    rows = []
    for name in names:
        spectrogram = np.load(f"{preproc}/{name}.npy")  # (n_mels, n_frames)
        rows.append([*spectrogram.mean(axis=1), *spectrogram.std(axis=1)])
    return np.array(rows)


def fit_forest(work, name, seed):
    """Score the forest on the split of the last training. Returns the same as train."""
    sys.path.insert(0, str(ROOT))
    import models
    info = models.load_info(work / "weights.keras")
    preproc = work / f"Preproc_{SETS[name][0]}"
    names = info["train"] + info["validation"]
    forest = ExtraTreesClassifier(500, n_jobs=2, random_state=seed)
    forest.fit(describe(preproc, names), models.class_indices(names, info["classes"]))
    scores = forest.predict_proba(describe(preproc, info["test"]))
    labels = models.class_indices(info["test"], info["classes"])
    predicted = scores.argmax(axis=1)
    aucs = [roc_auc_score(labels == k, scores[:, k]) for k in np.unique(labels)]
    return ((predicted == labels).mean(), balanced_accuracy_score(labels, predicted),
            np.mean(aucs), 0)


def add_row(path, row):
    """Add a line to the table of results."""
    is_new = not path.exists()
    with open(path, "a", newline="") as file:
        writer = csv.writer(file)
        if is_new:
            writer.writerow(COLUMNS)
        writer.writerow([round(value, 4) if isinstance(value, float) else value for value in row])
    print(*row, flush=True)


def read_rows(path):
    """Read the table of results: a list of dicts."""
    if not path.exists():
        return []
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def print_table(rows, n_seeds):
    """Print a line for each label: the accuracy on each set, their mean, AUC and seconds."""
    heads = "".join(f"{name:>16}" for name in SETS)
    print(f"{'':16}{heads}    mean  balanced    AUC seconds")
    for label in dict.fromkeys(row["label"] for row in rows):
        some = [row for row in rows if row["label"] == label and int(row["seed"]) < n_seeds]
        counts = Counter(row["set"] for row in some)
        if set(counts) != set(SETS) or len(set(counts.values())) > 1:
            print(f"{label:16} not finished: {dict(counts)}")
            continue
        means = {}
        for key in COLUMNS[3:]:
            values = {name: np.mean([float(row[key]) for row in some if row["set"] == name])
                      for name in SETS}
            digits = (values["digits, george"] + values["digits, theo"]) / 2
            others = [value for name, value in values.items() if "digits" not in name]
            means[key] = values, np.mean([digits, *others])
        cells = "".join(f"{100 * value:16.1f}" for value in means["accuracy"][0].values())
        print(f"{label:16}{cells}{100 * means['accuracy'][1]:8.1f}"
              f"{100 * means['balanced'][1]:10.1f}{means['auc'][1]:7.4f}{means['seconds'][1]:7.0f}")


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--label", required=True, help="the name of this recipe in the table")
    parser.add_argument("--seeds", type=int, default=1, help="how many seeds, from 0 (default: 1)")
    args, flags = parser.parse_known_args()  # the others go to train_network.py
    work = args.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    folders = prepare(args.data.resolve(), work)
    results = work / "results.csv"
    done = {(row["label"], row["set"], row["seed"]) for row in read_rows(results)}
    for seed in range(args.seeds):
        for name, (folder, _) in SETS.items():
            if (args.label, name, str(seed)) in done:
                continue
            scores = train(work, name, folders[folder], seed, flags)
            add_row(results, (args.label, name, seed, *scores))
            if ("forest", name, str(seed)) not in done:
                add_row(results, ("forest", name, seed, *fit_forest(work, name, seed)))
    print_table(read_rows(results), args.seeds)


if __name__ == "__main__":
    main()
