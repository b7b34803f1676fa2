"""Train on labelled folders and print the lines of the README's tables: seconds, accuracy, AUC.

digits     spoken digits (FSDD), official test set, three seeds
race       how soon the network of 2017 gets as far on the first of these, in 40 epochs
speakers   spoken digits, each speaker in turn left out
kitchen    kitchen sounds named fold-recording-letter-n, three seeds, test recordings unheard
commands   spoken words named speaker_NO_take_word, three seeds, test speakers unheard
drums      one-shot drums named kit-name, five seeds, test kits unheard
guitar     guitar effects named as in IDMT-SMT-Audio-Effects, test notes unheard

    python benchmarks/train.py digits Samples

Other flags go to train_network.py. The test sounds choose nothing. `race` looks at them after every
epoch only to print when an accuracy was first reached.
"""
import argparse
import csv
import itertools
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
WATCHED = f"""
import numpy as np
import sys; sys.path.insert(0, {str(ROOT)!r}); import models, train_network, utils
validate = models.validate_network
def watch(network, spectrograms, training):
    names = training.split.test
    sounds = ((name, spectrograms[name]) for name in names)
    scores = np.stack([row for _, row in models.predict_sounds(network, sounds)])
    is_right = scores.argmax(axis=1) == models.class_indices(names, training.classes)
    return validate(network, spectrograms, training) | {{"test_accuracy": is_right.mean()}}
models.validate_network = watch
utils.run(train_network.main)
"""
SPEAKERS = "george", "jackson", "lucas", "nicolas", "theo", "yweweler"
RUNS = {
    "digits": [["--test", r"_[0-4]\.wav$", "--seed", str(seed)] for seed in range(3)],
    "kitchen": [["--groups", r"(?<=\d-)\d{2,}(?=-)", "--seed", str(seed)] for seed in range(3)],
    "commands": [["--groups", r"^\d{8}", "--seed", str(seed)] for seed in range(3)],
    "speakers": [["--test", f"_{speaker}_"] for speaker in SPEAKERS],
    "drums": [["--groups", "^[^-]+", "--seed", str(seed)] for seed in range(5)],
    "guitar": [["--groups", r"^G\d\d-\d{5}"]],
}


def call(folder, command):
    """Run a command with its progress shown. Returns its output."""
    result = subprocess.run([str(word) for word in command], cwd=folder, text=True,
                            stdout=subprocess.PIPE)
    if result.returncode:
        sys.exit(result.stdout)
    return result.stdout


def train(folder, samples, *flags, watched=False):
    """Train and evaluate. Returns the scores, the seconds of training and its log as a dict."""
    start = ["-c", WATCHED] if watched else [ROOT / "train_network.py"]
    said = call(folder, [sys.executable, *start, "--samples", samples, "--fresh", *flags])
    call(folder, [sys.executable, ROOT / "eval_network.py", "--samples", samples])
    scores = json.loads((folder / "Results/metrics.json").read_text())
    with open(folder / "Results/training_log.csv", newline="") as file:
        log = [{key: float(value) for key, value in row.items() if value}
               for row in csv.DictReader(file)]
    return scores | {"seconds": int(re.search(r"Training took (\d+) s", said)[1]), "log": log}


def print_means(label, runs):
    """Print a line of the table: the mean of each column over the runs."""
    means = {key: np.mean([run[key] for run in runs])
             for key in ("seconds", "accuracy", "balanced_accuracy", "macro_auc", "n_test")}
    n_epochs = sum(len(run["log"]) for run in runs) / len(runs)
    windows = np.median([row["windows_per_second"] for run in runs for row in run["log"]])
    print(f"{label:42} {means['seconds']:6.0f} s {n_epochs:6.1f} epochs {windows:6.0f} windows/s  "
          f"accuracy {means['accuracy']:.4f}  balanced {means['balanced_accuracy']:.4f}  "
          f"macro AUC {means['macro_auc']:.4f}  of {means['n_test']:.0f} sounds", flush=True)


def race(folder, samples, *flags):
    """Print how soon each network reaches an accuracy on the test set, in seconds of training."""
    original = ["--network", "original", "--epochs", "40"]
    runs = {"default": train(folder, samples, *flags, watched=True),
            "original": train(folder, samples, *flags, *original, watched=True)}
    best = max(row["test_accuracy"] for row in runs["original"]["log"])
    for label, run in runs.items():
        print_means(f"{label}, in the race", [run])
        seconds = list(itertools.accumulate(row["seconds"] for row in run["log"]))
        for accuracy in sorted({best, 0.99}):
            reached = [s for s, row in zip(seconds, run["log"]) if row["test_accuracy"] >= accuracy]
            after = f"after {reached[0]:.0f}" if reached else f"never in {seconds[-1]:.0f}"
            print(f"  {accuracy:.2%} of the test set first right {after} s of training", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=[*RUNS, "race"])
    parser.add_argument("samples", type=Path)
    args, flags = parser.parse_known_args()
    samples = args.samples.resolve()
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        call(folder, [sys.executable, ROOT / "preprocess_data.py", "--samples", samples])
        if args.what == "race":
            race(folder, samples, *RUNS["digits"][0], *flags)
            return
        runs = []
        for more in RUNS[args.what]:
            runs.append(train(folder, samples, *more, *flags))
            print_means(f"{args.what} {' '.join(more)}", runs[-1:])
        if len(runs) > 1:
            print_means(f"{args.what}: mean of {len(runs)}", runs)


if __name__ == "__main__":
    main()
