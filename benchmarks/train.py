"""Train on labelled folders and print the lines of the README's tables: seconds, accuracy, AUC.

digits     spoken digits (FSDD), official test set, three seeds
input      how long an epoch takes, held in memory, memory-mapped, and with batches that lie ready
race       how soon the network of 2017 gets as far on the first of these, in 40 epochs
speakers   spoken digits, each speaker in turn left out
kitchen    kitchen sounds named fold-recording-letter-n, three seeds, test recordings unheard
commands   spoken words named speaker_NO_take_word, three seeds, test speakers unheard
drums      one-shot drums named kit-name, five seeds, test kits unheard
guitar     guitar effects named as in IDMT-SMT-Audio-Effects, test notes unheard
stream     eight spectrograms of an hour each, held in memory and memory-mapped; needs no sounds

    python benchmarks/train.py digits Samples
    python benchmarks/train.py stream

The test sounds choose nothing. `race` looks at them after every epoch only to print when an
accuracy was first reached.
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

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
WATCHED = f"""
import numpy as np
import sys; sys.path.insert(0, {str(ROOT)!r}); import models, train_network, utils
validate = train_network.validate_network
def watch(network, spectrograms, info):
    sounds = ((name, spectrograms[name]) for name in info["test"])
    scores = np.stack([row for _, row in models.predict_sounds(network, sounds)])
    right = scores.argmax(axis=1) == models.class_indices(info["test"], info["classes"])
    return validate(network, spectrograms, info) | {{"test_accuracy": right.mean()}}
train_network.validate_network = watch
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
    "input": [],
    "race": [],
    "stream": [],
}
HOUR = 310_000  # frames
MEASURED = f"""
import resource, sys; sys.path.insert(0, {str(ROOT)!r}); import train_network; train_network.main()
print("Peak", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024, "MiB")
"""


def call(folder, command):
    """What a command said, with its progress shown."""
    said = subprocess.run(list(map(str, command)), cwd=folder, text=True, stdout=subprocess.PIPE)
    if said.returncode:
        sys.exit(said.stdout)
    return said.stdout


def train(folder, samples, *flags, watched=False):
    """Train and evaluate. Returns the scores, the seconds of training and its log as a dict."""
    start = (
        [sys.executable, "-c", WATCHED] if watched else [sys.executable, ROOT / "train_network.py"]
    )
    said = call(folder, [*start, "--samples", samples, "--fresh", *flags])
    call(folder, [sys.executable, ROOT / "eval_network.py", "--samples", samples])
    scores = json.loads((folder / "Results/metrics.json").read_text())
    with open(folder / "Results/training_log.csv", newline="") as file:
        log = [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]
    return scores | {"seconds": int(re.search(r"Training took (\d+) s", said)[1]), "log": log}


def tell(label, runs):
    """A line of the table: the mean of each column over the runs."""
    means = {
        key: np.mean([run[key] for run in runs])
        for key in ("seconds", "accuracy", "balanced_accuracy", "macro_auc", "n_test")
    }
    n_epochs = sum(len(run["log"]) for run in runs) / len(runs)
    windows = np.median([row["windows_per_second"] for run in runs for row in run["log"]])
    print(
        f"{label:42} {means['seconds']:6.0f} s {n_epochs:6.1f} epochs {windows:6.0f} windows/s  "
        f"accuracy {means['accuracy']:.4f}  balanced {means['balanced_accuracy']:.4f}  "
        f"macro AUC {means['macro_auc']:.4f}  of {means['n_test']:.0f} sounds",
        flush=True,
    )


def several(folder, samples, label, flags_of_runs, *flags):
    runs = []
    for more in flags_of_runs:
        runs.append(train(folder, samples, *more, *flags))
        tell(f"{label} {' '.join(more)}", runs[-1:])
    if len(runs) > 1:
        tell(f"{label}: mean of {len(runs)}", runs)


def race(folder, samples, flags):
    """Print how soon each network reaches an accuracy on the test set, in seconds of training."""
    default = train(folder, samples, *flags, watched=True)
    original = train(
        folder, samples, *flags, "--network", "original", "--epochs", "40", watched=True
    )
    best = max(row["test_accuracy"] for row in original["log"])
    for label, run in (("default", default), ("original", original)):
        tell(f"{label}, in the race", [run])
        seconds = list(itertools.accumulate(row["seconds"] for row in run["log"]))
        for accuracy in sorted({best, 0.99}):
            reached = [s for s, row in zip(seconds, run["log"]) if row["test_accuracy"] >= accuracy]
            print(
                f"  {100 * accuracy:.2f} % of the test set first right after "
                + (
                    f"{reached[0]:.0f} s of training"
                    if reached
                    else f"never in {seconds[-1]:.0f} s"
                ),
                flush=True,
            )


def measure_input(folder, samples):
    """Print the seconds of an epoch for each way of feeding it; medians of five.

    Held in memory, memory-mapped, and a plain loop over batches that lie ready.
    """
    sys.path.insert(0, str(ROOT))
    import models
    import train_network
    import utils

    source = utils.find_source(samples, folder / "Preproc")
    hyperparameters = models.HYPERPARAMETERS["default"]
    info = {
        "network": "default",
        "seed": 0,
        "epochs": 1,
        "classes": source.classes,
        "hyperparameters": hyperparameters,
        **train_network.split_sounds({name: name for name in source.names}, {}, seed=0),
    }
    held, _ = utils.read_spectrograms(source, source.names)
    mapped, _ = utils.read_spectrograms(source, source.names, memory=1)
    network = train_network.build_or_extend(held, info, None)
    models.compile_network(network, "default", hyperparameters, n_steps=1000)
    arguments = info | {"n_frames": network.input_shape[-1]}, models.band_means(network)
    kinds = {
        "held in memory": models.Batches(held, *arguments),
        "memory-mapped": models.Batches(mapped, *arguments),
    }
    ready = [kinds["held in memory"][step] for step in range(len(kinds["held in memory"]))]
    seconds = {"batches that lie ready": [], **{kind: [] for kind in kinds}}
    for _ in range(6):
        began = time.perf_counter()
        for x, y, weights in ready:
            network.train_on_batch(x, y, weights)
        seconds["batches that lie ready"].append(time.perf_counter() - began)
        for kind, batches in kinds.items():
            began = time.perf_counter()
            network.fit(batches, verbose=0, shuffle=False)
            seconds[kind].append(time.perf_counter() - began)
    medians = {
        kind: np.median(values[1:]) for kind, values in seconds.items()
    }  # the first compiles
    for kind, value in medians.items():
        print(
            f"{kind:22} {value:6.2f} s an epoch of {len(ready)} steps, "
            f"{value / medians['batches that lie ready']:.3f} times the first"
        )


def stream(folder):
    """Train for an epoch on hours held in memory, and on the same memory-mapped."""
    settings = {"sample_rate": 44100, "n_mels": 96, "n_fft": 2048, "hop_length": 512, "channels": 1}
    rng = np.random.default_rng(0)
    for k in range(8):
        path = folder / "Preproc" / "ab"[k % 2] / f"{k}.wav.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, rng.normal(-50, 20, (96, HOUR)).astype(np.float32))
    saved = {"features": settings, "copies": {}, "finished": True}
    (folder / "Preproc/settings.json").write_text(json.dumps(saved))
    for label, gigabytes in (("held in memory", "100"), ("memory-mapped", "0.1")):
        began = time.perf_counter()
        said = call(
            folder,
            [
                sys.executable,
                "-c",
                MEASURED,
                "--memory",
                gigabytes,
                "--layers",
                "1",
                "--filters",
                "2",
                "--epochs",
                "1",
                "--fresh",
            ],
        )
        peak = re.search(r"Peak (\d+) MiB", said)[1]
        print(
            f"{label:16} {time.perf_counter() - began:5.0f} s in all, peak {peak} MiB", flush=True
        )


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=RUNS)
    parser.add_argument("samples", type=Path, nargs="?")
    args, flags = parser.parse_known_args()  # the others are for training
    if args.samples is None and args.what != "stream":
        parser.error("name the folder of sounds")
    with tempfile.TemporaryDirectory() as folder:
        if args.what == "stream":
            stream(Path(folder))
            return
        samples = args.samples.resolve()
        call(folder, [sys.executable, ROOT / "preprocess_data.py", "--samples", samples])
        several(Path(folder), samples, args.what, RUNS[args.what], *flags)
        if args.what == "race":
            race(Path(folder), samples, RUNS["digits"][0])
        if args.what == "input":
            measure_input(Path(folder), samples)


if __name__ == "__main__":
    main()
