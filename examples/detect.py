"""Find what is heard when in recordings: a table of detections, labels for Audacity, and pictures.

Reads weights.keras and recordings of any length. A recording is classified in steps, each from the
window around it. Neighbouring steps in which a class reaches the threshold are one detection.
Writes to Results/detections/:

    detections.csv       a row for each detection: file, start, end, class, confidence
    dawn.wav.txt         labels for Audacity (File, Import, Labels)
    dawn.wav.steps.csv   the probabilities of each step, for another run with other thresholds
    dawn.wav_000.png     a picture of the first half hour, and so on

    python examples/detect.py dawn.wav dusk/
    python examples/detect.py Results/detections/dawn.wav.steps.csv --threshold 0.8
    python examples/detect.py dawn.wav dusk/ --truth labels/
"""
import csv
import itertools
import math
import os
import sys
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import librosa
import numpy as np
import scipy

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from cut_recordings import cut_recording
from label_tables import Event, format_audacity, format_raven, read_labels

import utils
from eval_network import (
    COLORS,
    escape_math,
    find_loudest,
    flatten_path,
    format_decimals,
    list_sounds,
    parse_threshold,
)
from utils import TOP_DB, UserError, say

STEPS = ".steps.csv"  # the end of the name of a table of steps
ROW_SECONDS = 60  # of a recording in a row of a picture
MAX_ROWS = 30  # of a picture
ROW_COLUMNS = 700  # at least so many of the spectrogram in a row, if it has as many frames
THRESHOLDS = np.arange(1, 20) / 20  # for which detections are scored


def parse_args():
    parser = utils.Parser(__doc__, places=("results", "weights"))
    add = parser.add_argument
    add("recordings", nargs="+", type=Path, metavar="RECORDING",
        help="recordings, folders of them, or tables of steps of an earlier run")
    add("--step", type=utils.number(float, 1e-3, 61), metavar="SECONDS",
        help="length of a step (default: a quarter of the window)")
    add("--threshold", type=parse_threshold, default=0.5, metavar="P",
        help="the least probability of a class in a detection; auto: that of the weights, see "
        "eval_network.py (default: 0.5)")
    add("--gap", type=utils.number(float, 0, 1e6), default=0, metavar="SECONDS",
        help="detections of a class that are this close are one (default: 0)")
    add("--min-length", type=utils.number(float, 0, 1e6), default=0, metavar="SECONDS",
        help="drop shorter detections (default: 0)")
    add("--raven", action="store_true", help="write a selection table for Raven too")
    add("--cut", type=Path, metavar="DIR",
        help="write each detection as a sound, DIR/class/recording_start.flac")
    add("--truth", nargs="+", type=Path, metavar="TABLE", help="score the detections against these "
        "label tables, in the formats that cut_recordings.py reads, or folders of them")
    add("--column", metavar="NAME", help="the column of --truth that holds the classes")
    add("--format", choices=("png", "pdf", "svg"), default="png",
        help="of the pictures (default: png)")
    return parser.parse_args()


# ---------------------------------------------------------------- score the steps of a recording

class Steps(NamedTuple):
    """The steps of a recording."""

    recording: Path
    times: np.ndarray  # their boundaries in seconds [shape=(n_steps + 1,)]
    probabilities: np.ndarray  # [shape=(n_steps, n_classes)]
    classes: list  # names


def cut_steps(blocks, step, n_frames):
    """Yield ((start, end), spectrogram) of each step of a recording. Lengths are in frames.

    blocks: [shape=(channels, n_mels, n)], dB, one after the other. Each spectrogram has n_frames
    frames, or those of the step if it is longer, with the step in the middle.
    """
    length = max(step, n_frames)
    lead = (length - step) // 2
    start = 0
    n = 0  # frames so far
    rest = None  # those that later windows need
    for block in itertools.chain(blocks, [None]):
        is_last = block is None
        if not is_last:
            rest = block if rest is None else np.concatenate([rest, block], axis=2)
            n += block.shape[2]
        first = n - rest.shape[2]
        # The last frame of a recording is centred on its end.
        last = max(1, n - 1)
        while start < last if is_last else start - lead + length < n:
            window = rest[..., max(0, start - lead - first):start - lead + length - first]
            window = np.maximum(window, window.max() - TOP_DB)  # as if it were a sound of its own
            yield (start, min(start + step, last)), window[0] if len(window) == 1 else window
            start += step
        rest = rest[..., max(0, start - lead - first):]


def count_steps(path, settings, step):
    """How many steps a recording has by its header, for the progress bar."""
    with utils.reading(path), utils.open_sound(path) as file:
        seconds = file.frames / file.samplerate
    return math.ceil(seconds * settings.sample_rate / settings.hop_length / step)


def keep_columns(blocks, size, columns):
    """Yield blocks of frames, and add their columns, for a picture, to the list `columns`.

    size: frames in a column, which shows the loudest.
    """
    for block in blocks:
        loudest = np.maximum.reduceat(block.mean(axis=0), range(0, block.shape[2], size), axis=1)
        columns.append(loudest.clip(-128, 127).round().astype(np.int8))  # 6 MB or so an hour
        yield block


def score_recording(path, step_seconds, network, training):
    """Score a recording step by step. Memory hardly grows with its length.

    Returns Steps, and the spectrogram for the pictures [shape=(n_mels, n_columns)] in dB.
    """
    import models
    settings = training.features
    rate = settings.sample_rate / settings.hop_length  # frames a second
    step = max(1, round(step_seconds * rate) if step_seconds else training.n_frames // 4)
    # A divisor of the blocks of 64 frames, so that columns do not depend on the blocks.
    size = 2 ** int(np.clip(math.log2(rate * ROW_SECONDS / ROW_COLUMNS), 0, 6))
    columns = []
    blocks = utils.convert_blocks(utils.read_blocks(path), settings)
    blocks = keep_columns(utils.iterate_decibels(blocks, settings), size, columns)
    frames = [0]
    probabilities = []
    with utils.progress_bar(str(path), count_steps(path, settings, step)) as move_bar:
        sounds = cut_steps(blocks, step, training.n_frames)
        for (_, end), row in models.predict_sounds(network, sounds, training.temperature):
            frames.append(end)
            probabilities.append(row.astype(np.float32))
            move_bar(len(probabilities))
    steps = Steps(path, np.array(frames) / rate, np.stack(probabilities), training.classes)
    return steps, np.concatenate(columns, axis=1)


def list_steps(steps):
    """Yield the rows of a table of steps, one at a time. The class is the most probable one."""
    yield ["file", "start", "end", "class", *steps.classes]
    for start, end, p in zip(steps.times, steps.times[1:], steps.probabilities):
        yield [steps.recording, f"{start:.3f}", f"{end:.3f}", steps.classes[p.argmax()],
               *(f"{value:.4f}" for value in p)]


def load_steps(path):
    """Read a table of steps. Raises UserError. Its probabilities have four decimals."""
    try:
        with open(path, newline="", encoding="utf-8") as file:
            rows = csv.reader(file)
            header = next(rows)
            recording = next(rows)[0]
        values = np.loadtxt(path, delimiter=",", skiprows=1, usecols=[2, *range(4, len(header))],
                            ndmin=2, comments=None, encoding="utf-8", quotechar='"')
    except (OSError, StopIteration, IndexError, ValueError) as error:
        raise UserError(f"{path}: expected a table of steps that detect.py wrote, found something "
                        f"else ({error}); run detect.py on the recording again") from None
    return Steps(Path(recording), np.array([0, *values[:, 0]]), values[:, 1:].astype(np.float32),
                 header[4:])


# ---------------------------------------------------------------- detections

class Rules(NamedTuple):
    """How steps become detections."""

    threshold: float  # the least probability of a class in a step
    gap: float  # seconds; detections of a class that are this close are one
    min_length: float  # seconds; shorter ones are dropped


def find_detections(steps, rules):
    """Find the detections of each class in a recording. Returns a sorted list of Events.

    Their confidence is the highest probability. Background classes are left out.
    """
    found = []
    for name, p in zip(steps.classes, steps.probabilities.T):
        if utils.is_background(name):
            continue
        changes = np.flatnonzero(np.diff(p >= rules.threshold, prepend=False, append=False))
        spans = []  # first step, and the one after the last
        for first, end in changes.reshape(-1, 2):
            if spans and steps.times[first] - steps.times[spans[-1][1]] <= rules.gap:
                spans[-1][1] = end
            else:
                spans.append([first, end])
        events = [Event(steps.times[first], steps.times[end], name, p[first:end].max())
                  for first, end in spans]
        found += [event for event in events if event.end - event.start >= rules.min_length]
    return sorted(found)


# ---------------------------------------------------------------- compare with label tables

def count_right(detections, events):
    """Count the detections that overlap an event in time. Each event counts for one of them."""
    if not detections or not events:
        return 0
    found = np.array([event[:2] for event in detections])  # (n_detections, 2)
    known = np.array([event[:2] for event in events])
    overlap = (found[:, :1] <= known[:, 1]) & (found[:, 1:] >= known[:, 0])
    overlap = scipy.sparse.csr_array(overlap)  # (n_detections, n_events)
    partners = scipy.sparse.csgraph.maximum_bipartite_matching(overlap, perm_type="column")
    return int((partners >= 0).sum())


def score_detections(detections, truth, classes):
    """Count detections, events and right detections of each class over all recordings.

    detections, truth: dicts from recording to a list of Events. Returns int
    [shape=(n_classes, 3)].
    """
    counts = np.zeros((len(classes), 3), int)
    for recording, events in truth.items():
        for row, name in zip(counts, classes):
            found = [event for event in detections[recording] if event.label == name]
            known = [event for event in events if event.label == name]
            row += len(found), len(known), count_right(found, known)
    return counts


def measure_counts(counts):
    """Precision, recall and F1 of counts [shape=(..., 3)] as score_detections returns them."""
    n_found, n_known, n_right = np.moveaxis(counts, -1, 0).astype(float)
    with np.errstate(invalid="ignore"):  # NaN without detections, or without events
        return n_right / n_found, n_right / n_known, 2 * n_right / (n_found + n_known)


def write_scores(folder, scored, truth, rules, picture_format):
    """Print and write precision, recall and F1 of each class, at all THRESHOLDS too.

    scored: dict from recording to Steps. truth: dict from recording to its list of Events.
    """
    classes = [name for name in next(iter(scored.values())).classes
               if not utils.is_background(name)]
    if others := Counter(e.label for events in truth.values() for e in events
                         if e.label not in classes):
        say(f"Labels that are no class of the weights, left out: {len(others)}, such as "
            f"{next(iter(others))} ({others.total()} events)")
    rows = [["threshold", "class", "detections", "events", "right", "precision", "recall", "f1"]]
    width = max(map(len, ["Class", *classes]))
    say("", f"{'Class':{width}}  events  detections  right  precision  recall      F1")
    thresholds = sorted({rules.threshold, *THRESHOLDS})
    curves = []
    for threshold in thresholds:
        found = {recording: find_detections(scored[recording], rules._replace(threshold=threshold))
                 for recording in truth}
        counts = score_detections(found, truth, classes)
        counts = np.concatenate([counts, counts.sum(axis=0, keepdims=True)])  # all classes last
        scores = np.stack(measure_counts(counts), axis=1)  # (n_classes + 1, 3)
        curves.append(scores[-1])
        for name, (n_found, n_known, n_right), values in zip([*classes, "all"], counts, scores):
            texts = list(map(format_decimals, values))
            rows.append([f"{threshold:.4g}", name, n_found, n_known, n_right, *texts])
            if threshold == rules.threshold:
                say(f"{name:{width}}  {n_known:6}  {n_found:10}  {n_right:5}  {texts[0]:>9}  "
                    f"{texts[1]:>6}  {texts[2]:>6}")
    utils.save_csv(folder / "scores.csv", rows)
    with utils.new_figure(folder / f"scores.{picture_format}", 7, 5) as figure:
        panel = figure.subplots()
        for values, label, color in zip(np.transpose(curves), ("precision", "recall", "F1"),
                                        COLORS):
            panel.plot(thresholds, values, color=color, marker=".", label=label)
        panel.axvline(rules.threshold, color="0.4", ls="--", label="threshold of this run")
        panel.set(title=f"Detections in {len(truth)} recordings with {n_known} events",
                  xlabel="Threshold", xlim=(0, 1), ylim=(-0.02, 1.02))
        panel.grid(color="0.92")
        panel.legend()


# ---------------------------------------------------------------- pictures

def mark_frequencies(axes, settings):
    """Mark frequencies at the bands of a spectrogram, whose band k lies between k and k + 1."""
    highest = settings.highest  # Hz
    edges = librosa.mel_frequencies(n_mels=settings.n_mels + 2, fmin=settings.fmin, fmax=highest)
    hertz = 1000 * 2.0 ** (math.ceil(math.log2(highest / 1000)) - np.arange(1, 9, 2))
    positions = np.interp(hertz, edges[1:-1], np.arange(settings.n_mels) + 0.5, left=0)
    is_apart = positions > settings.n_mels / 10  # below this, labels would overlap
    axes.set_yticks(positions[is_apart], [f"{h:g}" for h in hertz[is_apart]], fontsize=7)


def plot_recording(path, columns, seconds, detections, training):
    """Draw a recording in rows of a minute, with its detections, in pictures of half an hour.

    path: of the pictures, without their numbers. columns: [shape=(n_mels, n_columns)], dB.
    seconds: the length of the recording.
    """
    row_seconds = min(ROW_SECONDS, seconds)
    n_rows = math.ceil(seconds / row_seconds)
    per_row = columns.shape[1] * row_seconds / seconds
    loudest = find_loudest(columns)
    for first in range(0, n_rows, MAX_ROWS):
        rows = range(first, min(first + MAX_ROWS, n_rows))
        name = f"{path.stem}_{first * ROW_SECONDS // 60:03}{path.suffix}"
        with utils.new_figure(path.with_name(name), 14, 0.8 + 1.1 * len(rows)) as figure:
            for row, axes in zip(rows, figure.subplots(len(rows), 1, squeeze=False)[:, 0]):
                part = columns[:, round(row * per_row):round((row + 1) * per_row)]
                start = row * row_seconds
                end = start + row_seconds * part.shape[1] / per_row
                axes.imshow(part, origin="lower", aspect="auto", cmap="magma",
                            vmin=loudest - TOP_DB, vmax=loudest, extent=(start, end, 0, len(part)))
                mark_detections(axes, detections, start, row_seconds, training.classes)
                mark_frequencies(axes, training.features)
                axes.set(xlim=(start, start + row_seconds), ylim=(0, len(part)))
                axes.tick_params(labelsize=7)
            axes.set_xlabel("Seconds")
            figure.supylabel("Hz", fontsize=8)
            figure.suptitle(escape_math(path.stem), fontsize=10)


def mark_detections(axes, detections, start, seconds, classes):
    """Draw detections above a row of a picture, with their names where there is space."""
    colors = dict(zip(classes, itertools.cycle(COLORS)))
    end_of_text = 0
    for event in detections:
        begin = max(start, event.start)
        end = min(start + seconds, event.end)
        if begin >= end:
            continue
        axes.plot([begin, end], [1.06, 1.06], transform=axes.get_xaxis_transform(), lw=5,
                  color=colors[event.label], solid_capstyle="butt", clip_on=False)
        if begin >= end_of_text:
            axes.text(begin, 1.14, escape_math(event.label), fontsize=7,
                      transform=axes.get_xaxis_transform())
            end_of_text = begin + 0.0045 * seconds * len(event.label)


# ---------------------------------------------------------------- the command

def check_names(recordings):
    """Raise UserError if two recordings would be written to the same files, or to none."""
    names = Counter(map(flatten_path, recordings))
    for recording in recordings:
        name = flatten_path(recording)
        if names[name] > 1:
            raise UserError(f"{recording}: several recordings would be written to {name}.txt; give "
                            "each its own --results")
        if len(os.fsencode(name + STEPS)) > 255:
            raise UserError(f"{recording}: its path is too long for a file name; move it")


def main():
    """Detect, write and score. Returns how many recordings or tables were skipped."""
    args = parse_args()
    paths, errors = list_sounds(args.recordings)
    check_names([path for path in paths if not path.name.endswith(STEPS)])
    utils.check_weights_path(args.weights)
    import models  # loads Keras
    network, training = models.load_network(args.weights)
    rules = Rules(models.find_threshold(args.threshold, training), args.gap, args.min_length)
    if not any(map(utils.is_background, training.classes)):
        say(f"{args.weights}: has no background class, so it may hear classes where there are "
            "none, and the scores of eval_network.py do not hold for recordings; put sounds "
            "without any class into Samples/_background and train again")

    folder = args.results / "detections"
    scored = {}  # from recording to Steps
    detections = {}  # from recording to a list of Events
    for path in paths:
        try:
            if path.name.endswith(STEPS):
                steps = load_steps(path)
            else:
                steps, columns = score_recording(path, args.step, network, training)
            recording = steps.recording
            base = folder / flatten_path(recording)
            found = find_detections(steps, rules)
            utils.save_text(f"{base}.txt", format_audacity(found))
            if args.raven:
                text = format_raven(found, training.features.fmin, training.features.highest)
                utils.save_text(f"{base}.Table.1.selections.txt", text)
            if not path.name.endswith(STEPS):
                utils.save_csv(f"{base}{STEPS}", list_steps(steps))
                plot_recording(Path(f"{base}.{args.format}"), columns, steps.times[-1], found,
                               training)
            if args.cut:
                cut_recording(recording, {recording: found}, args.cut)
        except UserError as error:
            errors[path] = error
            continue
        scored[recording] = steps
        detections[recording] = found
        noun = "detection" if len(found) == 1 else "detections"
        say(f"{recording}: {steps.times[-1]:.1f} s, {len(found)} {noun}")

    rows = [[recording, f"{event.start:.3f}", f"{event.end:.3f}", event.label,
             f"{event.confidence:.4f}"]
            for recording, found in sorted(detections.items()) for event in found]
    utils.save_csv(folder / "detections.csv",
                   [["file", "start", "end", "class", "confidence"], *rows])
    counts = Counter(row[3] for row in rows)
    say(f"Detections at threshold {rules.threshold:.4g}: {len(rows)}"
        + "".join(f", {name} {n}" for name, n in counts.most_common()))
    if args.truth:
        truth, missing = read_labels(args.truth, list(scored), args.column)
        errors |= missing
        if truth:
            write_scores(folder, scored, truth, rules, args.format)
    say(f"Wrote {folder}")
    return utils.name_skipped(errors)


if __name__ == "__main__":
    utils.run(main)
