"""Train on labelled folders and print the lines of the README's tables: seconds, accuracy, AUC.

digits     spoken digits (FSDD), official test set, three seeds
race       how soon the network of 2017 gets as far on the first of these, in 40 epochs
speakers   spoken digits, each speaker in turn left out
kitchen    kitchen sounds named fold-recording-letter-n, three seeds, test recordings unheard
commands   spoken words named speaker_NO_take_word, three seeds, test speakers unheard
drums      one-shot drums named kit-name, five seeds, test kits unheard
guitar     guitar effects named as in IDMT-SMT-Audio-Effects, test notes unheard
step       the time of a training step by part, on random windows of 96 bands

    python benchmarks/train.py digits Samples
    python benchmarks/train.py step

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
import time
from pathlib import Path
from unittest import mock

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


def make_step(n_frames):
    """Make the default network for 12 classes, and batches of random windows. Returns both."""
    import models
    import train_network
    import utils
    rng = np.random.default_rng(0)
    names = [f"{'abcdefghijkl'[k % 12]}/{k}" for k in range(320)]
    sounds = {name: rng.normal(-40, 10, (96, n_frames)).astype(np.float32) for name in names}
    split = utils.Split(names, [], [], [], {}, dict.fromkeys(names, ""), [], [])
    training = models.Training(
        list("abcdefghijkl"), utils.FeatureSettings(44100, 96, 2048, 512), "default",
        utils.Hyperparameters(), n_frames, 0, 20, {}, None, None, split)
    network = train_network.build_network(sounds, training)
    return network, models.Batches(sounds, training, models.band_means(network))


def measure_step(n_frames):
    """Print the time of a training step by part: the median of five rounds, in turn."""
    import models
    with mock.patch.object(models, "fuse_normalization"):
        by_keras, batches = make_step(n_frames)
        with mock.patch.object(models.layers, "BatchNormalization", lambda momentum: lambda x: x):
            bare, _ = make_step(n_frames)
    with mock.patch.object(models, "Muon", models.keras.optimizers.AdamW):
        adamw, _ = make_step(n_frames)
    network, _ = make_step(n_frames)
    batch = batches[0]
    parts = {"a batch of windows": lambda: batches[0],
             "forward pass": lambda: network.predict_on_batch(batch[0]),
             "step without batch normalisation": lambda: bare.train_on_batch(*batch),
             "step with AdamW alone": lambda: adamw.train_on_batch(*batch),
             "step": lambda: network.train_on_batch(*batch),
             "step with Keras's batch normalisation": lambda: by_keras.train_on_batch(*batch)}
    times = {name: [] for name in parts}
    for k in range(6):
        for name, part in parts.items():
            began = np.array([time.perf_counter(), time.process_time()])
            for _ in range(8):
                part()
            if k:  # TensorFlow traces the functions in the first round
                times[name].append([time.perf_counter(), time.process_time()] - began)
    for name, rounds in times.items():
        wall, cpu = 1000 / 8 * np.median(rounds, axis=0)
        print(f"96 x {n_frames:<4} {name:40} wall {wall:6.1f} ms  CPU {cpu:6.1f} ms", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=[*RUNS, "race", "step"])
    parser.add_argument("samples", type=Path, nargs="?")
    args, flags = parser.parse_known_args()
    if args.what == "step":
        sys.path.insert(0, str(ROOT))
        import models
        import utils
        utils.keep_freed_memory()
        models.use_seed(0)
        for n_frames in (256, 40):
            measure_step(n_frames)
        return
    if not args.samples:
        parser.error(f"{args.what}: no sounds given; name their folder")
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
