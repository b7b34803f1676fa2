"""Find what is heard when in recordings: a table of detections, labels for Audacity, and pictures.

Reads weights.keras and recordings of any length. A recording is classified in steps, each from the
window around it and, by half, from those of the two next to it. Neighbouring steps in which a
class reaches the threshold are one detection.
Writes to Results/detections/:

    detections.csv       a row for each detection: file, start, end, class, confidence
    dawn.wav.txt         labels for Audacity (File, Import, Labels)
    dawn.wav.steps.csv   the probabilities of each step, for another run with other thresholds
    dawn.wav_000.png     a picture of the first half hour, and so on
    scores.csv, .png     with --truth: precision, recall and F1 at all thresholds

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
from matplotlib import colormaps
from matplotlib.patches import Patch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from cut_recordings import cut_recording, find_twins
from label_tables import Event, format_audacity, format_raven, read_labels, to_nfc

import utils
from eval_network import (
    COLORS,
    DASHES,
    MAX_CURVES,
    escape_math,
    find_loudest,
    flatten_path,
    format_decimals,
    list_sounds,
    parse_threshold,
)
from utils import TOP_DB, UserError, say

STEPS = ".steps.csv"  # the end of the name of a table of steps
RAVEN = ".Table.1.selections.txt"  # of a selection table, as Raven names it
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
        help="length of a step, not for tables of steps (default: a quarter of the window)")
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


def score_recording(path, step_seconds, classifier):
    """Score a recording step by step. Memory hardly grows with its length.

    Returns Steps, and the spectrogram for the pictures [shape=(n_mels, n_columns)] in dB.
    """
    training = classifier.training
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
        for (_, end), row in classifier.score(sounds):
            frames.append(end)
            probabilities.append(row.astype(np.float32))
            move_bar(len(probabilities))
    probabilities = np.stack(probabilities)  # (n_steps, n_classes)
    if step <= training.n_frames // 2:  # neighbouring windows overlap: their mean is steadier
        probabilities = scipy.ndimage.convolve1d(probabilities, [0.25, 0.5, 0.25], axis=0)
    probabilities = probabilities.round(4)  # as in the table of steps
    steps = Steps(path, np.array(frames) / rate, probabilities, classifier.classes)
    return steps, np.concatenate(columns, axis=1)


def read_steps(path, step_seconds, classifier):
    """Read a table of steps, or score a recording. Returns as score_recording; None for a table."""
    if path.name.endswith(STEPS):
        return load_steps(path), None
    return score_recording(path, step_seconds, classifier)


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
            if header[:4] != ["file", "start", "end", "class"] or len(header) < 5:
                raise ValueError(f"its columns are {', '.join(header):.100}")
        values = np.loadtxt(path, delimiter=",", skiprows=1, usecols=[2, *range(4, len(header))],
                            ndmin=2, comments=None, encoding="utf-8", quotechar='"')
    except (OSError, StopIteration, IndexError, ValueError, csv.Error) as error:
        raise UserError(f"{path}: expected a table of steps that detect.py wrote, found something "
                        f"else ({error or 'it is empty'}); run detect.py on the recording "
                        "again") from None
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
        name = to_nfc(name)  # as the labels are
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


def list_detections(detections):
    """Yield the rows of detections.csv. detections: dict from recording to a list of Events."""
    yield ["file", "start", "end", "class", "confidence"]
    for recording, found in sorted(detections.items()):
        for event in found:
            yield [recording, f"{event.start:.3f}", f"{event.end:.3f}", event.label,
                   f"{event.confidence:.4f}"]


# ---------------------------------------------------------------- compare with label tables

def count_right(detections, events):
    """Count the detections that overlap an event in time. Each event counts for one of them."""
    if not detections or not events:
        return 0
    found = np.array([event[:2] for event in detections])  # (n_detections, 2)
    known = np.array([event[:2] for event in events])
    overlap = (found[:, :1] < known[:, 1]) & (found[:, 1:] > known[:, 0])
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
    (folder / "scores.csv").unlink(missing_ok=True)  # of an earlier run
    if not truth:
        return
    classes = [to_nfc(name) for name in next(iter(scored.values())).classes]
    others = Counter(event.label for events in truth.values() for event in events
                     if event.label not in classes)
    if others:
        say(f"Labels that are no class of the weights, left out: {len(others)}, such as "
            f"{next(iter(others))} ({others.total()} events)")
    if without := scored.keys() - truth.keys():
        say(f"Recordings without a table, left out of the scores: {len(without)}, such as "
            f"{min(without)}")
    classes = [name for name in classes if not utils.is_background(name)]
    rows = [["threshold", "class", "detections", "events", "right", "precision", "recall", "f1"]]
    width = max(map(len, ["all classes", *classes]))
    say("", f"{'Class':{width}}  events  detections  right  precision  recall      F1")
    thresholds = sorted({rules.threshold, *THRESHOLDS})
    curves = []
    for threshold in thresholds:
        found = {recording: find_detections(scored[recording], rules._replace(threshold=threshold))
                 for recording in truth}
        counts = score_detections(found, truth, classes)
        counts = np.concatenate([counts, counts.sum(axis=0, keepdims=True)])  # all classes last
        scores = np.stack(measure_counts(counts), axis=1)  # (n_classes + 1, 3)
        curves.append(scores)
        names = [*classes, "all classes"]
        for name, (n_found, n_known, n_right), values in zip(names, counts, scores):
            texts = list(map(format_decimals, values))
            rows.append([f"{threshold:.4g}", name, n_found, n_known, n_right, *texts])
            if threshold == rules.threshold:
                say(f"{name:{width}}  {n_known:6}  {n_found:10}  {n_right:5}  {texts[0]:>9}  "
                    f"{texts[1]:>6}  {texts[2]:>6}")
    utils.save_csv(folder / "scores.csv", rows)
    curves = np.transpose(curves)  # (3, n_classes + 1, n_thresholds)
    with utils.new_figure(folder / f"scores.{picture_format}", 11, 5) as figure:
        left, right = figure.subplots(1, 2)
        for values, label, color in zip(curves[:, -1], ("precision", "recall", "F1"), COLORS):
            left.plot(thresholds, values, color=color, marker=".", label=label)
        for k, name in enumerate(classes[:MAX_CURVES]):
            right.plot(thresholds, curves[2, k], color=COLORS[k % len(COLORS)], marker=".",
                       ls=DASHES[k // len(COLORS)], label=escape_math(name))
        left.set_title(f"All classes: {len(truth)} recordings with {n_known} events")
        right.set_title("F1 of each class")
        for panel in (left, right):
            panel.axvline(rules.threshold, color="0.4", lw=1)
            panel.set(xlabel="Threshold", xlim=(0, 1), ylim=(-0.02, 1.02))
            panel.grid(color="0.92")
            panel.legend(fontsize=8)


# ---------------------------------------------------------------- pictures

def mark_frequencies(axes, settings):
    """Mark frequencies at the bands of a spectrogram, whose band k lies between k and k + 1."""
    n = settings.n_mels
    edges = librosa.mel_frequencies(n_mels=n + 2, fmin=settings.fmin, fmax=settings.highest)
    bands = np.arange(n) + 0.5
    at_bands = np.interp([n / 6, n / 2, n * 5 / 6], bands, edges[1:-1])
    hertz = [float(f"{value:.2g}") for value in at_bands]
    axes.set_yticks(np.interp(hertz, edges[1:-1], bands), [f"{value:g}" for value in hertz])


def plot_recording(path, columns, seconds, detections, training):
    """Draw a recording in rows of a minute, with its detections, in pictures of half an hour.

    path: of the pictures, without their numbers. columns: [shape=(n_mels, n_columns)], dB.
    seconds: the length of the recording.
    """
    row_seconds = min(ROW_SECONDS, seconds)
    n_rows = math.ceil(seconds / row_seconds)
    per_row = columns.shape[1] * row_seconds / seconds
    loudest = find_loudest(columns)
    colors = choose_colors(detections)
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
                mark_detections(axes, detections, start, row_seconds, colors)
                mark_frequencies(axes, training.features)
                axes.set(xlim=(start, start + row_seconds), ylim=(0, len(part)))
                axes.tick_params(labelsize=7)
            axes.set_xlabel("Seconds")
            figure.supylabel("Hz", fontsize=8)
            figure.suptitle(escape_math(path.stem), fontsize=10)
            figure.legend(handles=[Patch(color=color, label=escape_math(name))
                                   for name, color in colors.items()],
                          loc="outside lower center", ncols=10, fontsize=8)


def choose_colors(detections):
    """Choose a colour for each class of detections. Returns a dict."""
    names = sorted({event.label for event in detections})
    colors = COLORS if len(names) <= len(COLORS) else colormaps["tab20"].colors
    return dict(zip(names, itertools.cycle(colors)))


def mark_detections(axes, detections, start, seconds, colors):
    """Draw detections above a row of a picture, with their names where there is space."""
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
        if len(os.fsencode(name + RAVEN)) > 255:
            raise UserError(f"{recording}: its path is too long for a file name; move it")


def note_no_background(weights, classes):
    """Say what weights without a background class are worth for recordings."""
    if not any(map(utils.is_background, classes)):
        say(f"{weights}: has no background class, so it may detect classes where there are none, "
            "and the scores of eval_network.py do not hold for recordings; put sounds without any "
            "class into Samples/_background and train again")


def write_labels(base, recording, found, settings, has_raven):
    """Write the label tables of one recording, whose names begin with `base`, and say so."""
    utils.save_text(f"{base}.txt", format_audacity(found))
    if has_raven:
        utils.save_text(f"{base}{RAVEN}", format_raven(found, settings.fmin, settings.highest))
    noun = "detection" if len(found) == 1 else "detections"
    say(f"{recording}: {len(found)} {noun}")


def cut_detections(detections, folder):
    """Write each detection as a sound. Returns a dict of UserErrors."""
    errors = find_twins(detections)
    for recording, found in detections.items():
        if found and recording not in errors:
            try:
                errors |= cut_recording(recording, detections, folder, {}).errors
            except UserError as error:
                errors[recording] = error
    return errors


def main():
    """Detect, write and score. Returns how many recordings or tables were skipped."""
    args = parse_args()
    paths, errors = list_sounds(args.recordings)
    check_names([path for path in paths if not path.name.endswith(STEPS)])
    utils.check_weights_path(args.weights)
    import models  # loads Keras
    classifier = models.Classifier(args.weights, args.threshold)
    training = classifier.training
    rules = Rules(classifier.threshold, args.gap, args.min_length)
    note_no_background(args.weights, training.classes)

    folder = args.results / "detections"
    detections = {}  # from recording to a list of Events
    scored = {}  # from recording to Steps, for --truth
    try:
        for path in paths:
            try:
                steps, columns = read_steps(path, args.step, classifier)
                recording = steps.recording
                if recording in detections:
                    raise UserError(f"{path}: {recording} is given twice; leave one out")
            except UserError as error:
                errors[path] = error
                continue
            if args.truth:
                scored[recording] = steps
            detections[recording] = find_detections(steps, rules)
            base = str(folder / flatten_path(recording))
            write_labels(base, recording, detections[recording], training.features, args.raven)
            if columns is not None:
                utils.save_csv(f"{base}{STEPS}", list_steps(steps))
                plot_recording(Path(f"{base}.{args.format}"), columns, steps.times[-1],
                               detections[recording], training)
    finally:  # after Ctrl-C too
        if detections:
            utils.save_csv(folder / "detections.csv", list_detections(detections))

    counts = Counter(event.label for found in detections.values() for event in found)
    say(f"Detections at threshold {rules.threshold:.4g}: {counts.total()}"
        + "".join(f", {name} {n}" for name, n in counts.most_common()))
    if args.cut:
        errors |= cut_detections(detections, args.cut)
    if args.truth:
        truth, wrong = read_labels(args.truth, list(scored), args.column)
        errors |= wrong
        write_scores(folder, scored, truth, rules, args.format)
    if detections:
        say(f"Wrote {folder}")
    return utils.name_skipped(errors)


if __name__ == "__main__":
    utils.run(main)
