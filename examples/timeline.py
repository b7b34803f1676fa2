"""Show which class is heard at each time in a recording: a table, Audacity labels and a picture.

Reads weights.keras and sounds of any length. Each step of a recording is classified from the
window around it. For digits.wav, writes to Results/:

    digits.wav.csv  a row for each step
    digits.wav.txt  labels for Audacity (File, Import, Labels)
    digits.wav.png  the picture

    python examples/timeline.py digits.wav
    python examples/timeline.py digits.wav --step 0.1 --threshold auto
"""
import itertools
import math
import os
import sys
from collections import Counter
from functools import partial
from pathlib import Path

import librosa
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import utils
from eval_network import add_threshold, escape_math, find_loudest, flatten_path, list_sounds
from utils import TOP_DB, UserError

MAX_CLASSES = 20  # in the picture
MAX_COLUMNS = 2000  # of its spectrogram


def parse_args():
    parser = utils.Parser(__doc__, places=("results", "weights"))
    parser.add_argument("sounds", nargs="+", type=Path, metavar="SOUND",
                        help="recordings, or folders of them")
    parser.add_argument("--step", type=utils.number(float, 1e-3, 61), metavar="SECONDS",
                        help="length of a step (default: half of the window)")
    add_threshold(parser)
    parser.add_argument("--format", choices=("png", "pdf", "svg"), default="png",
                        help="of the picture (default: png)")
    return parser.parse_args()


def cut_steps(decibels, step, n_frames):
    """Yield (start, spectrogram) of each step of a recording. Lengths are in frames.

    decibels: [shape=(channels, n_mels, n)]. Each spectrogram has n_frames frames, or those of the
    step if it is longer, with the step in the middle.
    """
    length = max(step, n_frames)
    for start in range(0, max(1, decibels.shape[2] - 1), step):
        first = start - (length - step) // 2
        window = decibels[..., max(0, first):first + length]
        window = np.maximum(window, window.max() - TOP_DB)  # as if it were a sound of its own
        yield start, window[0] if len(window) == 1 else window


def score_recording(path, step_seconds, network, training):
    """Score a recording step by step.

    Returns the boundaries of the steps [shape=(n_steps + 1,), s], class probabilities
    [shape=(n_steps, n_classes)], and decibels [shape=(channels, n_mels, n)].
    """
    import models
    settings = training.features
    rate = settings.sample_rate / settings.hop_length  # frames a second
    step = max(1, round(step_seconds * rate)) if step_seconds else training.n_frames // 2
    blocks = utils.convert_blocks(utils.read_blocks(path), settings)
    decibels = np.concatenate(list(utils.iterate_decibels(blocks, settings)), axis=2)
    n_frames = max(1, decibels.shape[2] - 1)  # the last is centred on the end of the recording
    windows = cut_steps(decibels, step, training.n_frames)
    starts = []
    probabilities = []
    with utils.progress_bar(str(path), 1 + (n_frames - 1) // step) as move_bar:
        for start, row in models.predict_sounds(network, windows, training.temperature):
            starts.append(start)
            probabilities.append(row)
            move_bar(len(starts))
    return np.array([*starts, n_frames]) / rate, np.stack(probabilities), decibels[..., :n_frames]


def draw_spectrogram(axes, spectrogram, settings, seconds):
    """Draw a spectrogram [shape=(..., n_mels, n_frames)], the mean of its channels.

    seconds: its length. Returns its image, for a colour bar in dB.
    """
    image = spectrogram.reshape(-1, *spectrogram.shape[-2:]).mean(axis=0)  # (n_mels, n_frames)
    loudest = find_loudest(image)
    highest = settings.highest  # Hz
    edges = librosa.mel_frequencies(n_mels=settings.n_mels + 2, fmin=settings.fmin, fmax=highest)
    hertz = 1000 * 2.0 ** (math.ceil(math.log2(highest / 1000)) - np.arange(1, 9))  # octaves
    positions = np.interp(hertz, edges[1:-1], np.arange(settings.n_mels) + 0.5, left=0)
    is_apart = positions > settings.n_mels / 10  # below this, labels would overlap
    axes.set_yticks(positions[is_apart], [f"{h:g}" for h in hertz[is_apart]])
    axes.set(xlabel="Seconds", ylabel="Hz")
    return axes.imshow(image, origin="lower", aspect="auto", cmap="magma", vmin=loudest - TOP_DB,
                       vmax=loudest, extent=(0, seconds, 0, settings.n_mels))


def plot_timeline(path, times, probabilities, predicted, decibels, training):
    """Draw the probabilities of the most frequent classes above the spectrogram."""
    classes = training.classes
    counts = np.bincount(predicted[predicted >= 0], minlength=len(classes))
    rows = np.sort(np.argsort(-counts, kind="stable")[:MAX_CLASSES])[::-1]
    size = 1 + decibels.shape[2] // MAX_COLUMNS  # frames in a column, which shows the loudest
    columns = np.maximum.reduceat(decibels, range(0, decibels.shape[2], size), axis=2)
    height = 0.22 * len(rows)  # inches
    with utils.new_figure(path, 12, 4 + height) as figure:
        above, below = figure.subplots(2, 1, sharex=True, height_ratios=(0.5 + height, 3))
        image = above.pcolormesh(times, range(len(rows) + 1), probabilities[:, rows].T,
                                 cmap="Blues", vmin=0, vmax=1, rasterized=True)
        above.set_yticks(np.arange(len(rows)) + 0.5, [escape_math(classes[k]) for k in rows])
        above.set_title(escape_math(path.stem), fontsize=10)
        figure.colorbar(image, ax=above, label="Probability")
        image = draw_spectrogram(below, columns, training.features, times[-1])
        figure.colorbar(image, ax=below, label="dB")


def write_timeline(path, network, training, results, step_seconds, threshold, picture_format):
    """Write table, labels and picture of one recording into `results`. Raises UserError."""
    import models
    table = results / f"{flatten_path(path)}.csv"
    if len(os.fsencode(table.name)) > 255:
        raise UserError(f"{path}: its path is too long for a file name; move the recording")
    times, probabilities, decibels = score_recording(path, step_seconds, network, training)
    predicted = models.choose_classes(probabilities, threshold)
    names = [*training.classes, models.UNKNOWN]  # of the indices of the classes, and of -1
    rows = [["start", "end", "class", "probability"]]
    for start, end, k, p in zip(times, times[1:], predicted, probabilities.max(axis=1)):
        rows.append([f"{start:.3f}", f"{end:.3f}", names[k], f"{p:.4f}"])
    utils.save_csv(table, rows)

    changes = np.flatnonzero(np.diff(predicted, prepend=-2))  # steps at which a class begins
    labels = []
    for start, end in itertools.pairwise([*changes, len(predicted)]):
        if predicted[start] >= 0:
            name = " ".join(names[predicted[start]].split())
            labels.append(f"{times[start]:.6f}\t{times[end]:.6f}\t{utils.shown(name)}\n")
    utils.save_text(table.with_suffix(".txt"), "".join(labels))

    picture = table.with_suffix(f".{picture_format}")
    probabilities[predicted < 0] = np.nan  # drawn blank
    plot_timeline(picture, times, probabilities, predicted, decibels, training)
    noun = "step" if len(predicted) == 1 else "steps"
    utils.say(f"{path}: {times[-1]:.1f} s in {len(predicted)} {noun}. "
              f"Wrote {table}, {table.with_suffix('.txt')}, {picture}")


def main():
    args = parse_args()
    sounds, errors = list_sounds(args.sounds)
    names = Counter(flatten_path(path) for path in sounds)
    twins = [name for name, n in names.items() if n > 1]
    if twins:
        raise UserError(f"{args.results}: several recordings would be written to {twins[0]}.csv; "
                        "give each its own --results")
    utils.check_weights_path(args.weights)
    import models  # loads Keras
    network, training = models.load_network(args.weights)
    write = partial(write_timeline, network=network, training=training, results=args.results,
                    step_seconds=args.step, picture_format=args.format,
                    threshold=models.find_threshold(args.threshold, training))
    _, failed = utils.map_files(write, sounds, jobs=0)
    return utils.name_skipped(errors | failed)


if __name__ == "__main__":
    utils.run(main)
