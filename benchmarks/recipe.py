"""Judge a change of the defaults on six sets of sounds, each tested on sources never heard.

Reads the folders fsdd, drums, kitchen20, arabic_commands and guitar_effects of DATA. The last of
them is "sampled guitar"; "guitar" is synthetic. Writes to WORK: the spectrograms, the synthetic
guitar effects, and results.csv with a line for each training. A second run skips what is in
results.csv, so that a long one may be stopped. The last lines are the table of all labels: accuracy
in percent, as a mean over the seeds.

forest: scikit-learn's ExtraTreesClassifier on the mean and deviation of each mel band and of its
differences, with the same split. digits leaves out george, then theo. commands is tested on its six
official speakers (288 sounds), and trained on a tenth of the others (111 sounds).

With --folds K, the sounds that are not for testing are trained on in K folds, and the mean of the
K networks is tested.

    python benchmarks/recipe.py DATA WORK --label before
    python benchmarks/recipe.py DATA WORK --label wider --seeds 3 --filters 24
    python benchmarks/recipe.py DATA WORK --label "mean of five" --folds 5
"""
import argparse
import json
import re
import shutil
import sys
import zlib
from pathlib import Path

import numpy as np
from sklearn.ensemble import ExtraTreesClassifier

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from evaluate import describe_bands
from train import ROOT, call, train

import eval_network
import utils

TESTED = "03|04|10|14|26|28"  # speakers of commands
SETS = {  # the folder of sounds, and the flags of the split
    "digits, george": ("fsdd", ["--test", "_george_"]),
    "digits, theo": ("fsdd", ["--test", "_theo_"]),
    "drums": ("drums", ["--groups", "^[^-]+"]),
    "kitchen": ("kitchen20", ["--groups", r"(?<=\d-)\d{2,}(?=-)"]),
    "commands": ("commands", ["--test", rf"/\d{{6}}({TESTED})_", "--groups", r"^\d{8}"]),
    "guitar": ("guitar", ["--groups", r"^G\d\d-\d{5}"]),
    "sampled guitar": ("guitar_effects", ["--groups", r"^G\d\d-\d{5}"]),
}
SCORES = "accuracy", "balanced_accuracy", "macro_auc", "seconds"


def thin_commands(source, target):
    """Link all sounds of the tested speakers, and a tenth of those of the others."""
    for path in sorted(source.glob("*/*.flac")):
        is_tested = path.name[6:8] in TESTED.split("|")
        link = target / path.parent.name / path.name
        if is_tested or zlib.crc32(path.name.encode()) % 10 == 0:
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(path)


def prepare(data, work):
    """Make the sounds that are not in `data`, and all spectrograms.

    Returns a dict from each folder of SETS to its sounds. The spectrograms are in WORK/FOLDER.
    """
    samples = {"guitar": work / "guitar/Samples", "commands": work / "commands/Samples"}
    if not samples["guitar"].exists():
        unfinished = work / "guitar/unfinished"
        call(work, [sys.executable, ROOT / "examples/guitar_effects.py", unfinished, "--notes", 40])
        unfinished.rename(samples["guitar"])
    if not samples["commands"].exists():
        thin_commands(data / "arabic_commands", samples["commands"])
    for folder in dict.fromkeys(folder for folder, _ in SETS.values()):
        (work / folder).mkdir(exist_ok=True)
        samples.setdefault(folder, data / folder)
        call(work / folder, [sys.executable, ROOT / "preprocess_data.py", "--samples",
                             samples[folder]])
    return samples


def train_mean(folder, samples, *split, folds):
    """Train folds on the sounds that a split does not test, and score the mean of their networks.

    Returns the scores, and the seconds of all trainings.
    """
    import models
    script = [sys.executable, ROOT / "train_network.py", "--fresh"]
    call(folder, [*script, "--samples", samples, "--save", "split.keras", "--epochs", 1, *split])
    names = models.load_training(folder / "split.keras").split
    shutil.rmtree(folder / "outer", ignore_errors=True)
    for part, some in (("Samples", names.train + names.validation), ("Test", names.test)):
        for name in some:
            link = folder / "outer" / part / name
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(samples / name)
    if "--test" in split:  # it would name sounds that are not there
        k = split.index("--test")
        split = split[:k] + split[k + 2:]
    said = call(folder / "outer", [*script, "--folds", folds, *split])
    call(folder / "outer", [sys.executable, ROOT / "eval_network.py", "--data", "Test"])
    scores = json.loads((folder / "outer/Results/Test/metrics.json").read_text())
    return scores | {"seconds": sum(map(int, re.findall(r"Training took (\d+) s", said)))}


def describe(folder, names):
    """Describe the bands of sounds. [shape=(n_sounds, 4 * n_mels)]"""
    return np.stack([describe_bands(np.load(folder / f"Preproc/{name}.npy")) for name in names])


def score_forest(folder, seed):
    """Fit the forest on the sounds of the last training, and score it on the test sounds."""
    import models
    training = models.load_training(folder / "weights.keras")
    classes = training.classes
    split = training.split
    trained = split.train + split.validation
    forest = ExtraTreesClassifier(500, n_jobs=2, random_state=seed)
    forest.fit(describe(folder, trained), models.class_indices(trained, classes))
    probabilities = forest.predict_proba(describe(folder, split.test))
    predictions = eval_network.Predictions(
        split.test, models.class_indices(split.test, classes), probabilities, probabilities,
        training.find_groups(split.test), classes)
    return eval_network.measure_scores(predictions) | {"seconds": 0}


def add_row(path, label, name, seed, scores):
    """Add a line to the table of results."""
    row = {"label": label, "set": name, "seed": seed}
    row |= {key: round(scores[key], 4) for key in SCORES}
    rows = [*utils.read_csv(path), row]
    utils.save_csv(path, [list(row), *(each.values() for each in rows)])
    print(*row.values(), flush=True)


def average_sets(rows, key):
    """Average a score on each set, and over the six sets. The two digit splits count as one."""
    means = [np.mean([float(row[key]) for row in rows if row["set"] == name]) for name in SETS]
    return means, np.mean([np.mean(means[:2]), *means[2:]])


def print_table(rows):
    """Print a line for each label: the accuracy on each set, and the mean of each score."""
    heads = "".join(f"{name:>16}" for name in SETS)
    print(f"{'':16}{heads}    mean  balanced    AUC seconds")
    for label in dict.fromkeys(row["label"] for row in rows):
        some = [row for row in rows if row["label"] == label]
        seeds = [{row["seed"] for row in some if row["set"] == name} for name in SETS]
        if not seeds[0] or any(found != seeds[0] for found in seeds):
            print(f"{label:16} not finished")
            continue
        accuracies, accuracy = average_sets(some, "accuracy")
        cells = "".join(f"{100 * value:16.1f}" for value in accuracies)
        balanced, auc, seconds = (average_sets(some, key)[1] for key in SCORES[1:])
        print(f"{label:16}{cells}{100 * accuracy:8.1f}{100 * balanced:10.1f}{auc:7.4f}"
              f"{seconds:7.0f}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--label", required=True, help="the name of this change in the table")
    parser.add_argument("--folds", type=int, help="test the mean of the networks of K folds")
    parser.add_argument("--seeds", type=int, default=1, help="how many seeds, from 0 (default: 1)")
    args, flags = parser.parse_known_args()  # the others go to train_network.py
    work = args.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    samples = prepare(args.data.resolve(), work)
    results = work / "results.csv"
    done = {(row["label"], row["set"], row["seed"]) for row in utils.read_csv(results)}
    for seed in range(args.seeds):
        for name, (folder, split) in SETS.items():
            if (args.label, name, str(seed)) in done:
                continue
            place = work / folder, samples[folder]
            settings = *split, "--seed", seed, *flags
            if args.folds:
                scores = train_mean(*place, *settings, folds=args.folds)
            else:
                scores = train(*place, *settings)
                if ("forest", name, str(seed)) not in done:
                    add_row(results, "forest", name, seed, score_forest(work / folder, seed))
            add_row(results, args.label, name, seed, scores)
    print_table(utils.read_csv(results))


if __name__ == "__main__":
    main()
