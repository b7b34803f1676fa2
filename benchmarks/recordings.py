"""Measure how well networks that learned from short sounds find them in recordings.

Reads the folders drums, kitchen20 and arabic_commands of DATA. Builds recordings in WORK from
sounds of kits, speakers and recordings that are not in training: events at known times, over a bed
of kitchen sounds that are not in training either, 20, 13, 7 and 0 dB below them. Trains with the
defaults, without and with kitchen sounds in Samples/_background, and runs examples/detect.py.
WORK/results.csv gets a line for each network: F1 over all events in percent, for all recordings and
for each level of the bed, and the accuracy on the same sounds as files of their own. A second run
skips what is in results.csv.

    python benchmarks/recordings.py DATA WORK --seeds 3
"""
import argparse
import json
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import soundfile
import soxr

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "examples"))
import detect
import label_tables
from train import ROOT, call

import utils

SETS = {  # folder, pattern of the group, classes, sample rate in Hz, share of the sounds
    "drums": ("drums", r"^[^-]+", "kick snare tom ride rim", 44100, 1),
    "words": ("arabic_commands", r"^\d{8}", "", 16000, 0.25),
    "kitchen": ("kitchen20", r"(?<=\d-)\d{2,}(?=-)", "chopping eat microwave sweep", 44100, 1),
}
BED = "boiling-water clean-dishes frying-pan water-flowing".split()  # classes of kitchen20
TEST_SHARE = 1 / 3  # of the groups
ARMS = "plain", "background"  # folders of trainings
LEVELS = 20, 13, 7, 0  # dB from the bed up to the events
SECONDS = 180  # of a recording
GAP = 2.0  # seconds between events, in the mean


def draw(text, seed):
    """A random number from 0 to 1 that a text and a seed determine."""
    return np.random.default_rng([seed, *text.encode()]).random()


def read_mono(path, sample_rate):
    """A sound as float [shape=(n,)] at a sample rate in Hz."""
    y, rate = soundfile.read(path, always_2d=True)
    y = y.mean(axis=1)
    return y if rate == sample_rate else soxr.resample(y, rate, sample_rate)


def trim(y, sample_rate):
    """Cut the parts around a sound that are 40 dB below its loudest 10 ms. Returns sound, level.

    The level is that of its parts within 20 dB of the loudest ones, as a root mean square.
    """
    size = sample_rate // 100
    frames = np.square(y[:len(y) // size * size]).reshape(-1, size).mean(axis=1)
    loud = np.flatnonzero(frames > 1e-4 * frames.max())
    level = np.sqrt(frames[frames > 1e-2 * frames.max()].mean())
    return y[loud[0] * size:(loud[-1] + 1) * size], level


def list_set(data, name, seed):
    """List the sounds of a set. Returns those to train on and those to test on, as sorted paths."""
    folder, pattern, classes, _, share = SETS[name]
    paths = sorted(path for path in (data / folder).glob("*/*")
                   if not classes or path.parent.name in classes.split())
    paths = [path for path in paths if draw(path.name, 0) < share]
    tested = [path for path in paths
              if draw(re.search(pattern, path.name)[0], seed) < TEST_SHARE]
    return sorted(set(paths) - set(tested)), tested


def list_beds(data, seed):
    """List sounds for the background. Returns those to train on and those of the recordings."""
    paths = sorted(path for name in BED for path in (data / "kitchen20" / name).glob("*"))
    is_tested = [draw(path.name.split("-")[1], seed) < 0.5 for path in paths]
    return ([path for path, tested in zip(paths, is_tested) if not tested],
            [path for path, tested in zip(paths, is_tested) if tested])


def make_recording(path, events, beds, level, sample_rate, rng):
    """Write a recording, and a table of its labels beside it."""
    y = np.zeros(SECONDS * sample_rate)
    fade = np.minimum(1, np.arange(1, sample_rate) / (0.05 * sample_rate))
    start = 0
    while start < len(y):  # beds of the same level, one after the other
        bed = read_mono(beds[rng.integers(len(beds))], sample_rate)[:len(y) - start]
        if len(bed) > sample_rate:
            bed[:len(fade)] *= fade
            bed[-len(fade):] *= fade[::-1]
        y[start:start + len(bed)] = 0.02 * bed / max(1e-6, np.sqrt(np.mean(np.square(bed))))
        start += len(bed)
    labels = []
    start = rng.exponential(GAP)
    while True:
        sound = events[rng.integers(len(events))]
        event, event_level = trim(read_mono(sound, sample_rate), sample_rate)
        first = int(start * sample_rate)
        if first + len(event) > len(y):
            break
        y[first:first + len(event)] += 0.02 * 10 ** (level / 20) * event / event_level
        end = start + len(event) / sample_rate
        labels.append(label_tables.Event(start, end, sound.parent.name))
        start = end + rng.exponential(GAP)
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, 0.9 * y / np.abs(y).max(), sample_rate, "PCM_16")
    path.with_suffix(".txt").write_text(label_tables.format_audacity(labels))


def link(paths, folder, name=None):
    """Link sounds into class folders, or into one class."""
    for path in paths:
        target = folder / (name or path.parent.name) / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.symlink_to(path)


def prepare(data, work, name, seed):
    """Make the sounds and recordings of a set, once."""
    if work.exists():
        return
    trained, tested = list_set(data, name, seed)
    beds, test_beds = list_beds(data, seed)
    unfinished = work.with_name(f"{work.name}-unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    for arm in ARMS:
        link(trained, unfinished / arm / "Samples")
    link(beds, unfinished / "background/Samples", "_background")
    link(tested, unfinished / "tested")
    rng = np.random.default_rng(seed)
    for level in LEVELS:
        path = unfinished / f"recordings/{level}.wav"
        make_recording(path, tested, test_beds, level, SETS[name][3], rng)
    unfinished.rename(work)


def train(folder, name, seed, flags):
    """Train in `folder`, and score separate sounds. Returns the accuracy."""
    call(folder, [sys.executable, ROOT / "preprocess_data.py", "--sample-rate", SETS[name][3]])
    call(folder, [sys.executable, ROOT / "train_network.py", "--fresh", "--seed", seed,
                  "--groups", SETS[name][1], *flags])
    call(folder, [sys.executable, ROOT / "eval_network.py", "--data", "../tested"])
    return json.loads((folder / "Results/tested/metrics.json").read_text())["accuracy"]


def score_recordings(folder):
    """Detect with the weights in `folder`. Returns a dict of F1 over all events."""
    call(folder, [sys.executable, ROOT / "examples/detect.py", "../recordings", "--truth",
                  "../recordings"])
    rows = utils.read_csv(folder / "Results/detections/scores.csv")
    f1 = {row["threshold"]: float(row["f1"]) for row in rows if row["class"] == "all classes"}
    scores = {"f1": f1["0.5"], "best f1": max(f1.values())}
    for level in LEVELS:
        path = folder.parent / f"recordings/{level}.wav"
        steps = detect.load_steps(folder / f"Results/detections/recordings_{path.name}.steps.csv")
        truth, _ = label_tables.read_labels([path.with_suffix(".txt")], [path])
        found = {path: detect.find_detections(steps, detect.Rules(0.5, 0, 0))}
        classes = [name for name in steps.classes if not utils.is_background(name)]
        counts = detect.score_detections(found, truth, classes)
        scores[f"f1 at {level} dB"] = detect.measure_counts(counts.sum(axis=0))[2]
    return scores


def main():
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--seeds", type=int, default=1, help="how many seeds, from 0 (default: 1)")
    parser.add_argument("--label", default="", help="the name of this change in the table")
    args, flags = parser.parse_known_args()  # the others go to train_network.py
    results = args.work / "results.csv"
    for seed in range(args.seeds):
        for name in SETS:
            work = args.work.resolve() / f"{name}{seed}"
            prepare(args.data.resolve(), work, name, seed)
            for arm in ARMS:
                row = {"label": args.label, "set": name, "seed": seed, "training": arm}
                rows = utils.read_csv(results)
                if any(all(old[key] == str(row[key]) for key in row) for old in rows):
                    continue
                scores = {"accuracy": train(work / arm, name, seed, flags)}
                scores |= score_recordings(work / arm)
                row |= {key: round(100 * value, 1) for key, value in scores.items()}
                utils.save_csv(results, [list(row), *(old.values() for old in rows), row.values()])
                print(*row.values(), flush=True)


if __name__ == "__main__":
    main()
