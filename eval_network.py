"""Score the trained network on the sounds that training never saw, and ask it about new ones.

Reads the weights, and the test sounds from Preproc/ or Samples/. Writes to Results/: metrics.json, scores.csv (a line a
sound), mistakes.csv, and pictures of the curves, the confusions, the calibration and the worst mistakes.

    python eval_network.py
    python eval_network.py kick.wav folder/
"""
import contextlib
import importlib.metadata
import itertools
import math
import os
import platform
import warnings
from collections import Counter, deque
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

import utils
from preprocess_data import AMIN, TOP_DB, FeatureSettings, listen, sound_to_spectrogram
from train_network import SIDES, find_source, originals, read_spectrograms
from utils import UserError, say, shown

MOST_LINES = 40  # of the table of classes
MOST_CURVES = 28  # that colours and dashes can tell apart
MOST_COLUMNS = 2000  # of a timeline's picture
N_BINS = 15  # of probabilities, to measure calibration as Guo 2017 does
# Okabe and Ito's colours, which the colour-blind tell apart, but for yellow, which white hides.
COLORS = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"
EXPORTS = {".onnx": "onnx", ".tflite": "litert"}  # as Keras calls them


def parse_args():
    parser = utils.Parser(__doc__, places=("samples", "preproc", "results", "weights"))
    parser.add_argument("sounds", nargs="*", type=Path, metavar="SOUND", help="new sounds, or folders of them")
    parser.add_argument("--timeline", action="store_true", help="what is heard when in them: table, labels, picture")
    parser.add_argument("--format", choices=("png", "pdf", "svg"), default="png", help="of pictures (default: png)")
    parser.add_flags(
        ("step", utils.number(float, 1e-3, high=61), None, "SECONDS", "of the timeline (default: half of the window)"),
        ("csv", Path, None, "FILE", "write what is said of new sounds there too"),
        ("data", Path, None, "DIR", "score this labelled folder of sounds or spectrograms, into Results/DIR/"),
        ("export", Path, None, "FILE", "the network for other tools, .onnx or .tflite, and a .json beside it"))
    args = parser.parse_args()
    if args.export and args.export.suffix not in EXPORTS:
        parser.error(f"--export {args.export}: expected a name that ends in .onnx or .tflite")
    given = {"new sounds": args.sounds, "--data": args.data, "--export": args.export}
    if len(found := [name for name, value in given.items() if value]) > 1:
        parser.error(f"expected one of {', '.join(given)}, found {' and '.join(found)}")
    if lonely := [f"--{name}" for name in ("csv", "timeline") if getattr(args, name) and not args.sounds]:
        parser.error(f"{lonely[0]}: expected new sounds, found none")
    if args.step and not args.timeline:
        parser.error("--step: expected --timeline beside it, found none")
    if args.csv and args.timeline:
        parser.error("--csv: expected no --timeline beside it, which writes tables of its own")
    return args


def read_labelled(args, info):
    """The spectrograms of the test sounds that the weights name, or those of --data; how many are bad.

    Raises UserError where there are classes that the weights do not know, or no sound is left.
    """
    source = find_source(args.data or args.samples, args.data or args.preproc, FeatureSettings(**info["features"]))
    if unknown := sorted(set(map(utils.class_of, source.names)) - set(info["classes"])):
        split = [word for flag in ("--groups", "--test") if info.get(flag) for word in (flag, info[flag])]
        training = utils.command("train_network.py", "--fresh", "--save", args.weights, *split,
                                 samples=args.samples, preproc=args.preproc, results=args.results)
        remedy = (f"name its folders as the classes: {', '.join(info['classes'])}" if args.data else
                  f"to train with them: {training}")
        raise UserError(f"{source.folder}: holds classes that {args.weights} does not know, {', '.join(unknown)}; "
                        + remedy)
    names = originals(source.names, source.copies) if args.data else sorted(set(source.names) & set(info["test"]))
    seen = {*info["train"], *info["validation"], *info.get("seen", [])} & set(names)
    if seen:
        say(f"{source.folder}: training used sounds named as {len(seen)} of these; where they are the same, scores "
            "say nothing of new sounds")
    elif not args.data and len(names) < len(info["test"]):
        say(f"{source.folder}: {len(info['test']) - len(names)} of {len(info['test'])} test sounds are not there")
    spectrograms, n_bad = read_spectrograms(source, names)
    if not spectrograms:
        raise UserError(f"{source.folder}: expected the test sounds of {args.weights}, found none that can be read")
    return spectrograms, n_bad


# ---------------------------------------------------------------- numbers

class Curves(NamedTuple):
    """The curves of each class against the rest, by its index, and of all decisions together. Both (x, height)."""

    roc: dict  # class index -> (false positive rate, true positive rate), where the class has sounds, but not all
    precision_recall: dict  # likewise (recall, precision), from the highest recall to none
    micro_roc: tuple
    micro_precision_recall: tuple


def find_curves(y, scores, show=lambda n: None):
    """The Curves of class indices y [shape=(n,)] and probabilities [shape=(n, n_classes)]; areas follow from them.

    show: is called with the number of classes that are done.
    """
    from sklearn.metrics import precision_recall_curve, roc_curve

    def find_both(truth, p):
        fpr, tpr, _ = roc_curve(truth, p)
        precision, recall, _ = precision_recall_curve(truth, p, drop_intermediate=True)
        return (fpr, tpr), (recall, precision)
    counts = np.bincount(y, minlength=scores.shape[1])
    found = {}
    for k in np.flatnonzero((counts > 0) & (counts < len(y))):
        found[k] = find_both(y == k, scores[:, k])
        show(k + 1)
    # Of all decisions there are n * n_classes: half as many bits order them as well.
    micro = find_both((y[:, None] == np.arange(scores.shape[1])).ravel(), scores.astype(np.float32).ravel())
    return Curves({k: roc for k, (roc, _) in found.items()}, {k: pr for k, (_, pr) in found.items()}, *micro)


def average_precision(recall, precision):
    """The area below a precision-recall curve, in steps, as scikit-learn's average_precision_score has it."""
    return float(-np.sum(np.diff(recall) * precision[:-1]))


def measure(y, scores, raw, info, curves=None):
    """The metrics of class indices y [shape=(n,)] and probabilities [shape=(n, n_classes)], as a dict for JSON.

    raw: the probabilities before calibration. curves: find_curves(y, scores), where that is known. What a class without
    a sound lacks is NaN, and counts in no macro mean.
    """
    import keras
    from scipy.stats import binomtest
    from sklearn import metrics
    classes, predicted, every = info["classes"], scores.argmax(axis=1), range(len(info["classes"]))
    curves, n_right = curves or find_curves(y, scores), int((predicted == y).sum())
    table = metrics.precision_recall_fscore_support(y, predicted, labels=every, zero_division=0)
    values = dict(zip(("precision", "recall", "f1"), np.where(table[3] > 0, table[:3], np.nan)))
    for key, found, area in (("auc", curves.roc, metrics.auc),
                             ("average_precision", curves.precision_recall, average_precision)):
        values[key] = [area(*found[k]) if k in found else math.nan for k in every]
    means = {key: float(np.nanmean(row)) if np.isfinite(row).any() else math.nan for key, row in values.items()}
    return {
        "accuracy": n_right / len(y), "accuracy_95": [*binomtest(n_right, len(y)).proportion_ci(method="wilson")],
        "balanced_accuracy": means["recall"], **{f"macro_{key}": value for key, value in means.items()},
        "micro_auc": metrics.auc(*curves.micro_roc),
        "micro_average_precision": average_precision(*curves.micro_precision_recall),
        "top_3_accuracy": metrics.top_k_accuracy_score(y, scores, k=3, labels=every) if len(every) > 3 else math.nan,
        **calibration(y, scores), "uncalibrated": calibration(y, raw), "temperature": info["temperature"],
        "classes": classes, "support": dict(zip(classes, map(int, table[3]))),
        **{key: dict(zip(classes, map(float, row))) for key, row in values.items()},
        "n_test": len(y),
        "n_train": len(info["train"]) + len(info["validation"]),  # sounds and copies that training used
        "n_validation": len(info["validation"]),  # those of them that chose the weights
        "features": info["features"], "network": info["network"], "recipe": info.get("recipe"), "seed": info["seed"],
        "versions": {"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in (
            "keras", keras.backend.backend(), "numpy", "scikit-learn", "soxr")}},
    }


def calibration(y, scores):
    """Log loss and expected calibration error: how far probabilities are from the share that is right."""
    from sklearn.metrics import log_loss
    counts, sure, right = in_bins(y, scores)
    return {"log_loss": log_loss(y, scores, labels=range(scores.shape[1])),
            "calibration_error": float(np.average(np.abs(sure - right), weights=counts))}


def in_bins(y, scores, n_bins=N_BINS):
    """Of each bin of confidence that is not empty: how many predictions, mean confidence, share that is right."""
    sure, right = scores.max(axis=1), scores.argmax(axis=1) == y
    rows = np.minimum(sure * n_bins, n_bins - 1).astype(int)
    counts, *sums = (np.bincount(rows, weights, n_bins) for weights in (None, sure, right))
    return counts[counts > 0], *(total[counts > 0] / counts[counts > 0] for total in sums)


def validate(network, spectrograms, info):
    """Loss, its standard error, accuracy and best temperature on the validation sounds, scored as in evaluation."""
    import models
    if not info["validation"]:
        return {}
    sounds = ((name, spectrograms[name]) for name in info["validation"])
    scores = np.stack([row for _, row in models.predict(network, sounds)])
    truth = models.one_hot(info["validation"], info["classes"]).astype(bool)  # (n_sounds, n_classes)
    losses = -np.log(np.maximum(scores[truth], 1e-7))
    return {"val_loss": losses.mean(), "val_accuracy": (scores.argmax(axis=1) == truth.argmax(axis=1)).mean(),
            "val_error": losses.std() / math.sqrt(len(losses)), "temperature": models.best_temperature(truth, scores)}


# ---------------------------------------------------------------- pictures

@contextlib.contextmanager
def new_figure(path, width, height):
    """A figure that needs no display, and is saved to `path`."""
    from matplotlib.figure import Figure
    figure = Figure(figsize=(width, height), layout="constrained")
    yield figure
    with utils.whole_file(path) as temporary, warnings.catch_warnings(action="ignore"):  # of letters no font has
        figure.savefig(temporary, dpi=120)


def plain(name):
    """A name as Matplotlib shows it to the letter: $ would begin a formula."""
    return shown(name).replace("$", r"\$")


def rounded(value, n):
    """A score of n sounds for a picture, in no more digits than n can tell: 2 for 3 sounds, 3 for 300, 4 from 1000."""
    return "none" if math.isnan(value) else f"{value:.{int(np.clip(math.ceil(math.log10(n + 1)), 2, 4))}f}"


def plot_roc(path, curves, report):
    """ROC curves of each class against the rest with their averages, whole and on a logarithmic axis."""
    n_test = report["n_test"]
    mean_auc = rounded(report["macro_auc"], n_test)
    with new_figure(path, 12.5, 5) as figure:
        panels = figure.subplots(1, 2)
        draw_curves(panels, curves.roc, curves.micro_roc, report, "auc")
        macro = macro_average(list(curves.roc.values()) or [curves.micro_roc])
        for panel in panels:
            panel.plot(*macro, color="0.5", lw=2.5, label=f"{mean_auc}  macro average")
            panel.set(xlabel="False positive rate", ylabel="True positive rate")
        panels[0].plot([0, 1], [0, 1], color="0.8", lw=1, label="0.5  chance")
        panels[0].set(title=f"ROC, {n_test} test sounds, macro AUC {mean_auc}")
        panels[1].set(title="The same where false positives are few", xscale="log", xlim=(0.3 / n_test, 1))
        finish_curves(figure, panels, "AUC  class (sounds)")


def macro_average(curves):
    """The mean height of ROC curves at each false positive rate that one of them has. Returns (x, height)."""
    x = np.unique(np.concatenate([fpr for fpr, _ in curves]))
    top = np.mean([np.interp(x, fpr, tpr) for fpr, tpr in curves], axis=0)
    foot = np.mean([np.interp(-x, -fpr[::-1], tpr[::-1]) for fpr, tpr in curves], axis=0)  # of the rises at x
    return np.repeat(x, 2), np.stack([foot, top], axis=1).ravel()


def plot_precision_recall(path, curves, report):
    """Precision over recall of each class against the rest, and of all decisions together."""
    with new_figure(path, 8, 5) as figure:
        panel = figure.subplots()
        draw_curves([panel], curves.precision_recall, curves.micro_precision_recall, report, "average_precision",
                    drawstyle="steps-post")
        n_test = report["n_test"]
        mean = rounded(report["macro_average_precision"], n_test)
        panel.set(xlabel="Recall", ylabel="Precision", title=f"{n_test} test sounds, mean average precision {mean}")
        finish_curves(figure, [panel], "AP  class (sounds)")


def draw_curves(panels, curves, micro, report, key, **style_of_all):
    """Draw the curves of the classes, by index, labelled with report[key], and the one of all decisions.

    Of very many classes the worst stand out from grey.
    """
    names = report["classes"]
    values = {k: report[key][names[k]] for k in curves}
    worst = sorted(sorted(values, key=values.get)[:MOST_CURVES])
    styles = {k: dict(color="0.85", lw=0.7) for k in values}
    for i, k in enumerate(worst):
        n = report["support"][names[k]]
        styles[k] = dict(color=COLORS[i % 7], ls=("-", "--", "-.", ":")[i // 7], lw=1.4, zorder=3,
                         label=f"{rounded(values[k], n)}  {plain(names[k])} ({n})")
    n_test = report["n_test"]
    if others := [k for k in values if k not in worst]:
        lowest = rounded(min(values[k] for k in others), n_test)
        styles[others[0]]["label"] = f"{len(others)} others, at least {lowest}"
    label = f"{rounded(report['micro_' + key], n_test)}  micro average"
    for panel in panels:
        for k, curve in curves.items():
            panel.plot(*curve, **styles[k], **style_of_all)
        panel.plot(*micro, color="0.5", lw=2.5, ls=":", label=label, **style_of_all)


def finish_curves(figure, panels, title):
    for panel in panels:
        panel.set(ylim=(-0.02, 1.02))
        panel.grid(color="0.92")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, title=title, loc="outside right upper", fontsize=8, ncols=1 + len(labels) // 25)


def plot_confusion(path, y, scores, report):
    """The confusion matrix: a row a true class, shaded by its share and labelled with counts and shares."""
    from sklearn.metrics import ConfusionMatrixDisplay, confusion_matrix
    counts, n = confusion_matrix(y, scores.argmax(axis=1), labels=range(scores.shape[1])), scores.shape[1]
    labels = list(map(plain, report["classes"]))
    with new_figure(path, min(41, 4 + 0.5 * n), min(40, 3 + 0.5 * n)) as figure:  # inches
        axes, shares = figure.subplots(), counts / np.maximum(1, counts.sum(axis=1, keepdims=True))
        display = ConfusionMatrixDisplay(shares, display_labels=labels)
        display.plot(ax=axes, cmap="Blues", xticks_rotation="vertical", include_values=False,
                     im_kw=dict(vmin=0, vmax=1))
        for row, column in np.argwhere(counts):
            axes.text(column, row, f"{counts[row, column]}\n{shares[row, column]:.0%}", ha="center", va="center",
                      fontsize=7, color="white" if shares[row, column] > 0.5 else "black")
        display.im_.colorbar.set_label("share of the true class")
        axes.set(title=f"{np.trace(counts)} of {len(y)} right", xlabel="Predicted", ylabel="True class")
        for k in np.flatnonzero(counts.sum(axis=1) == 0):
            axes.axhspan(k - 0.5, k + 0.5, facecolor="none", edgecolor="0.8", hatch="///", lw=0)
            labels[k] += " (no test sound)"
        axes.set_yticks(range(n), labels)


def plot_reliability(path, y, scores, raw, report):
    """How often predictions of a confidence are right, before and after calibration, and how many there are.

    Few sounds get few bins, and each point its 95 % interval: what is within it may be chance.
    """
    n_bins = int(np.clip(len(y) // 20, 3, N_BINS))
    with new_figure(path, 6, 6) as figure:
        panel, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
        panel.plot([0, 1], [0, 1], color="0.8", label="right as often as they say")
        for k, p, name, numbers in ((1, raw, "before", report["uncalibrated"]), (0, scores, "after", report)):
            error = rounded(numbers["calibration_error"], len(y))
            style = dict(color=COLORS[k], ls=("-", "--")[k], label=f"{name}: error {error} ({N_BINS} bins)")
            counts, sure, right = in_bins(y, p, n_bins)
            panel.errorbar(sure, right, np.abs(right - intervals(counts, right)), marker="o", capsize=3, lw=1.4,
                           elinewidth=0.7, **style)
            below.hist(p.max(axis=1), n_bins, range=(0, 1), histtype="step", **style)
        panel.set(ylabel="Share that is right (95 % interval)", ylim=(-0.02, 1.02),
                  title=f"Calibration by temperature {report['temperature']:.2f}, {len(y)} test sounds")
        below.set(xlabel="Confidence", ylabel="Sounds", xlim=(0, 1))
        panel.legend(fontsize=8)


def intervals(counts, shares):
    """Wilson's 95 % intervals of shares of some counts. [shape=(2, n)]"""
    from scipy.stats import binomtest
    pairs = [binomtest(round(n * share), int(n)).proportion_ci(method="wilson") for n, share in zip(counts, shares)]
    return np.array([(pair.low, pair.high) for pair in pairs]).T


def plot_mistakes(path, mistakes, spectrograms, report):
    """The spectrograms of the surest mistakes, at most twelve."""
    worst, settings = mistakes[:12], FeatureSettings(**report["features"])
    n_columns = max(1, min(4, len(worst)))
    n_rows = math.ceil(len(worst) / n_columns)
    noun = "mistake" if len(mistakes) == 1 else "mistakes"
    title = f"{len(mistakes) or 'No'} {noun} among {report['n_test']} test sounds"
    with new_figure(path, max(5, 3 * n_columns), 1 + 2.6 * n_rows) as figure:
        figure.suptitle(title + (", the surest" if len(worst) < len(mistakes) else ""))
        for k, (name, truth, predicted, confidence, _) in enumerate(worst):
            axes = figure.add_subplot(n_rows, n_columns, k + 1)
            show_spectrogram(axes, spectrograms[name], settings)
            lines = f"{truth}, taken for {predicted} ({confidence:.2f})", shorten(name.split("/", 1)[1])
            axes.set_title("\n".join(map(plain, lines)), fontsize=8)


def shorten(text, length=40):
    """Text for a narrow place: the middle of a long one is left out."""
    return text if len(text) <= length else f"{text[:length // 2 - 1]}...{text[-length // 2 + 2:]}"


def show_spectrogram(axes, spectrogram, settings, seconds=None):
    """The picture of a spectrogram [shape=(..., n_mels, n_columns)], the mean of its channels, over time; its image."""
    image = spectrogram.reshape(-1, *spectrogram.shape[-2:]).mean(axis=0)
    seconds = seconds or image.shape[1] * settings.hop_length / settings.sample_rate
    loudest = max(image.max(), 10 * math.log10(AMIN) + TOP_DB)
    shown_image = axes.imshow(image, origin="lower", aspect="auto", cmap="magma", vmin=loudest - TOP_DB, vmax=loudest,
                              extent=(0, seconds, 0, len(image)))
    ticks = hertz_ticks(settings)
    axes.set_yticks(list(ticks.values()), list(ticks))
    axes.set(xlabel="Seconds", ylabel="Hz")
    return shown_image


def hertz_ticks(settings):
    """Round frequencies that lie apart among the mel bands, as a dict from Hz to the place between 0 and n_mels."""
    from librosa import mel_frequencies
    edges = mel_frequencies(n_mels=settings.n_mels + 2, fmax=settings.sample_rate / 2)
    centres = edges[1:-1]  # Hz, of band k at place k + 0.5
    ticks, last = {}, math.inf
    for hertz in (*1000 * 2.0 ** np.arange(9, -4, -1), 100, 50, 25):
        place = float(np.interp(hertz, centres, np.arange(settings.n_mels) + 0.5, left=-1, right=-1))
        if place >= 0 and last - place >= settings.n_mels / 10:
            ticks[f"{hertz:g}"] = last = place
    return ticks


def plot_timeline(path, columns, scores, times, info):
    """The probabilities of the classes heard most over time, above the spectrogram."""
    classes, settings = info["classes"], FeatureSettings(**info["features"])
    order = np.argsort(-np.bincount(scores.argmax(axis=1), minlength=len(classes)), kind="stable")
    most = np.sort(order[:20])[::-1]
    with new_figure(path, 12, 4 + 0.22 * len(most)) as figure:
        above, below = figure.subplots(2, 1, sharex=True, height_ratios=(0.5 + 0.22 * len(most), 3))
        image = above.pcolormesh(times, range(len(most) + 1), scores[:, most].T, cmap="Blues", vmin=0, vmax=1,
                                 rasterized=True)
        above.set(yticks=np.arange(len(most)) + 0.5, yticklabels=[plain(classes[k]) for k in most])
        figure.colorbar(image, ax=above, label="Probability")
        above.set_title(plain(path.stem), fontsize=10)
        figure.colorbar(show_spectrogram(below, columns, settings, times[-1]), ax=below, label="dB")


# ---------------------------------------------------------------- what training says and draws

def describe(info, n_weights, device):
    """Print the classes with their sounds on each side, and what is trained on what."""
    sides = [Counter(map(utils.class_of, info[side])) for side in SIDES]
    rows = [(name, *(side[name] for side in sides)) for name in info["classes"]]
    rows = [("Class", *SIDES), *rows[:MOST_LINES], *[("...",)] * (len(rows) > MOST_LINES),
            ("all", *(side.total() for side in sides))]
    width = max(len(row[0]) for row in rows)
    for name, *counts in rows:
        say(f"{name:{width}}" + "".join(f"{n:>12}" for n in counts))
    if not info["validation"]:
        say("No validation sounds: the training loss chooses the epoch, and probabilities are not calibrated")
    if not info["test"]:
        say("No test sounds: evaluation needs another folder, --data")
    for side, counts in zip(SIDES, sides):
        if counts and (bare := [name for name in info["classes"] if not counts[name]]):
            say(f"No {side} sound in {', '.join(bare)}; another --seed splits differently")
    seconds = info["n_frames"] * info["features"]["hop_length"] / info["features"]["sample_rate"]
    say(f"Network: {info['network']}, {n_weights} weights, window {info['n_frames']} frames ({seconds:.2f} s), "
        f"{device}")
    say("Recipe: " + ", ".join(f"{key} {value}" for key, value in info["recipe"].items()))


def scores_of(row):
    keys = [key for key in ("loss", "accuracy", "val_loss", "val_accuracy") if key in row]
    return "  ".join(f"{key.replace('val_', 'validation ')} {row[key]:.4f}" for key in keys)


def plot_curves(path, history, kept):
    """Loss and accuracy of training and validation in each epoch, and which epoch is kept."""
    with new_figure(path, 10, 4) as figure:
        epochs = [row["epoch"] for row in history]
        for panel, key in zip(figure.subplots(1, 2), ("loss", "accuracy")):
            for name, color, label in ((key, "C0", "training, on varied windows"), (f"val_{key}", "C1", "validation")):
                if name in history[0]:
                    panel.plot(epochs, [row[name] for row in history], color=color, marker=".", label=label)
            panel.axvline(kept, color="0.6", lw=1, label=f"kept: epoch {kept}")
            panel.set(xlabel="Epoch", ylabel=key.capitalize())
            panel.xaxis.get_major_locator().set_params(integer=True)
            panel.grid(color="0.92")
            panel.legend(fontsize=8)


# ---------------------------------------------------------------- new sounds, and what is heard when

def list_sounds(paths):
    """The sounds that are named, and those in folders that are named, once each; a dict of UserErrors of empty ones."""
    sounds, errors = {}, {}
    for path in paths:
        names = utils.walk(path, str(path), ()) if path.is_dir() else []
        found = sorted(map(Path, filter(utils.is_sound, names))) if path.is_dir() else [path]
        sounds |= dict.fromkeys(found)
        if not found:
            errors[path] = UserError(f"{path}: expected sounds, found a folder of none")
    return list(sounds), errors


def classify(paths, errors, args, network, info):
    """Print a line a sound: name, class, confidence, runner-up, its probability. Adds to errors what is no sound."""
    import models
    settings, rows = FeatureSettings(**info["features"]), []
    width, name_width = max(map(len, info["classes"])), max((len(str(path)) for path in paths), default=0)
    heard = utils.done(partial(sound_to_spectrogram, folder="", settings=settings), paths, errors)
    try:
        for path, scores in models.predict(network, heard, info["temperature"]):
            (first, sure), (other, less) = ((info["classes"][k], scores[k]) for k in np.argsort(-scores)[:2])
            say(f"{path!s:{name_width}}  {first:{width}} {sure:.4f}  {other:{width}} {less:.4f}")
            rows.append([path, first, *(f"{p:.6f}" for p in scores)])
    finally:  # stopped, too
        if args.csv:
            utils.save_csv(args.csv, [["file", "predicted", *info["classes"]], *rows])


def flat_name(path):
    """A name for what is written of `path`, of all its folders ("a/b.wav" -> "a_b.wav")."""
    return "_".join(part for part in path.parts if part.strip("./")) or Path(os.path.abspath(path)).name or "root"


def timeline(path, network, info, args):
    """Write which class is heard when in a recording: a table, labels for Audacity, a picture. Raises UserError."""
    times, scores, columns = hear(path, network, info, args.step)
    predicted = scores.argmax(axis=1)
    names = [info["classes"][k] for k in predicted]
    table, labels, picture = (args.results / f"{flat_name(path)}.{end}" for end in ("csv", "txt", args.format))
    if len(os.fsencode(table.name)) > 255:
        raise UserError(f"{path}: expected a name that leaves room in 255 bytes for {table.suffix}, found more")
    rows = zip(times, times[1:], names, scores.max(axis=1))
    utils.save_csv(table, [["start", "end", "class", "probability"],
                           *([f"{start:.3f}", f"{end:.3f}", name, f"{p:.4f}"] for start, end, name, p in rows)])
    starts = [*np.flatnonzero(np.diff(predicted, prepend=-1)), len(names)]  # where another class begins
    utils.save_text(labels, "".join(f"{times[i]:.6f}\t{times[j]:.6f}\t{shown(' '.join(names[i].split()))}\n"
                                    for i, j in itertools.pairwise(starts)))
    plot_timeline(picture, columns, scores, times, info)
    say(f"{path}: {times[-1]:.1f} s in {len(names)} steps. Wrote {table}, {labels}, {picture}")


def hear(path, network, info, seconds=None):
    """Score a recording of any length step by step, each `seconds` long or half a window, in flat memory.

    Returns the times between the steps [shape=(n_steps + 1,), s], class probabilities [shape=(n_steps, n_classes)], and
    the spectrogram in fewer columns, each the loudest of some frames.
    """
    import models
    settings, n_frames, ends, scores, columns = FeatureSettings(**info["features"]), info["n_frames"], [0], [], []
    rate = settings.sample_rate / settings.hop_length  # frames a second
    step = max(1, round(seconds * rate)) if seconds else n_frames // 2
    errors = {}
    heard = utils.done(partial(listen, settings=settings, length=max(n_frames, step), step=step), [path], errors)
    n_columns = math.ceil(next(heard, (path, 0))[1] * rate)  # a header may lie: for bar and picture alone

    def parts():
        size, margin = 1 + n_columns // MOST_COLUMNS, max(0, n_frames - step) // 2
        for _, ((start, end), span) in heard:
            middle = span[..., min(start, margin):][..., :end - start]
            columns.append(np.maximum.reduceat(middle, range(0, end - start, size), axis=-1))
            yield end, span

    with utils.bar(str(path), math.ceil(n_columns / step)) as show:
        for end, row in models.predict(network, parts(), info["temperature"]):
            ends.append(end)
            scores.append(row)
            show(len(scores))
    if errors:
        raise errors[path]
    return np.array(ends) / rate, np.stack(scores), np.concatenate(columns, axis=-1)


# ---------------------------------------------------------------- the network for other tools

def export(path, network, info):
    """Write the network, and to a .json beside it what its use takes. Raises UserError where Keras cannot."""
    import keras
    network(np.zeros((1, *network.input_shape[1:]), np.float32))  # Keras exports none that was never called
    settings, normalization = FeatureSettings(**info["features"]), network.layers[1]
    mean, variance = map(keras.ops.convert_to_numpy, (normalization.mean, normalization.variance))
    normalization.mean, normalization.variance = mean, variance  # as constants: tensors would become inputs
    try:
        with utils.whole_file(path) as temporary, warnings.catch_warnings(action="ignore"):
            network.export(temporary, format=EXPORTS[path.suffix], verbose=False)
    except (ImportError, ValueError, RuntimeError) as error:  # one for each way that a backend lacks something
        raise UserError(f"--export {path}: expected Keras to export it by {keras.backend.backend()}, with what that "
                        f"takes (with tensorflow: pip install onnx tf2onnx); found {error}") from None
    filters = settings.filters.toarray()
    utils.save_json(path.with_suffix(".json"), {
        "classes": info["classes"], "features": info["features"], "amin": AMIN, "top_db": TOP_DB,
        "mel_filters": [dict(first_bin=int(np.argmax(row > 0)), weights=row[row > 0].tolist()) for row in filters],
        "n_frames": info["n_frames"], "temperature": info["temperature"],
        "normalisation": {"inside_the_network": True, "mean": np.ravel(mean).tolist(),
                          "variance": np.ravel(variance).tolist()}})
    say(f"Wrote {path}, {path.with_suffix('.json')}")


# ---------------------------------------------------------------- the command

def text_of(value):
    """A score as text; none where it is not defined."""
    return "none" if math.isnan(value) else f"{value:.4f}"


def tell(report, mistakes):
    """Print what the numbers say: each class's, the mistakes by name, the surest first, and all in all."""
    width = max(map(len, report["classes"]))
    say("", f"{'Class':{width}}  sounds  recall  precision     AUC")
    for name, n in report["support"].items():
        recall, precision, auc = (text_of(report[key][name]) for key in ("recall", "precision", "auc"))
        say(f"{name:{width}}  {n:6}  {recall:>6}  {precision:>9}  {auc:>6}"
            + ("" if n else "  no test sound: counts in no mean"))
    say("", f"Mistakes: {len(mistakes)}" + (", the surest first" if mistakes else ""))
    for name, _, predicted, confidence, _ in mistakes[:20]:
        say(f"  {name}: taken for {predicted} ({confidence:.3f})")
    if len(mistakes) > 20:
        say(f"  and {len(mistakes) - 20} more in mistakes.csv")
    say("", f"Accuracy {report['accuracy']:.4f} (95 % interval {{:.4f}} to {{:.4f}}), ".format(*report["accuracy_95"])
        + f"balanced accuracy {text_of(report['balanced_accuracy'])}, macro AUC {text_of(report['macro_auc'])} on "
        f"{report['n_test']} sounds",
        f"Calibration error {report['calibration_error']:.4f}, before calibration "
        f"{report['uncalibrated']['calibration_error']:.4f}")


def score_sounds(network, names, spectrograms):
    """The class probabilities of sounds before calibration, behind a bar. [shape=(n_sounds, n_classes)]"""
    import models
    sounds = ((name, spectrograms[name]) for name in names)
    numbered = ((k, row) for k, (_, row) in enumerate(models.predict(network, sounds)))
    raw = np.empty((len(names), network.output_shape[-1]))
    for k, row in utils.progress(numbered, names, "Scoring"):
        raw[k] = row
    return raw


def write_scores(path, columns, rows):
    """Write a table of (file, class, predicted class, probabilities), row by row: a large one is never in memory."""
    lines = ([*row[:3], *(f"{p:.6f}" for p in row[3:])] for row in rows)
    utils.save_csv(path, itertools.chain([["file", "class", "predicted", *columns]], lines))


def evaluate(args, network, info):
    """Score labelled sounds, and write all that is to be known of it. Returns how many cannot be read."""
    import models
    spectrograms, n_bad = read_labelled(args, info)
    folder = args.results / flat_name(args.data) if args.data else args.results
    names, classes = list(spectrograms), info["classes"]
    raw = score_sounds(network, names, spectrograms)
    scores, y = models.calibrated(raw, info["temperature"]), models.class_indices(names, classes)
    with utils.bar("Measuring", len(classes) + 1, transient=True) as show:
        curves = find_curves(y, scores, show)
    report = measure(y, scores, raw, info, curves) | {"data": str(args.data or args.samples)}
    rows = [(name, classes[k], classes[row.argmax()], row.max(), row[k]) for name, k, row in zip(names, y, scores)]
    mistakes = sorted((row for row in rows if row[1] != row[2]), key=lambda row: -row[3])
    tell(report, mistakes)
    files = {
        "metrics.json": (utils.save_json, report),
        "scores.csv": (write_scores, classes, ((*row[:3], *p) for row, p in zip(rows, scores))),
        "mistakes.csv": (write_scores, ["probability", "probability_of_class"], mistakes),
        f"roc_curves.{args.format}": (plot_roc, curves, report),
        f"precision_recall.{args.format}": (plot_precision_recall, curves, report),
        f"confusion_matrix.{args.format}": (plot_confusion, y, scores, report),
        f"reliability.{args.format}": (plot_reliability, y, scores, raw, report),
        f"mistakes.{args.format}": (plot_mistakes, mistakes, spectrograms, report)}
    with utils.bar("Writing", len(files), transient=True) as show:
        for n, (name, (write, *data)) in enumerate(files.items()):
            show(n, name)
            write(folder / name, *data)
    say(f"Wrote {folder}: metrics.json, scores.csv, mistakes.csv and the pictures, .{args.format}")
    return n_bad


def main():
    args = parse_args()
    sounds, errors = list_sounds(args.sounds)
    if args.timeline and (twins := [name for name, n in Counter(map(flat_name, sounds)).items() if n > 1]):
        raise UserError(f"--timeline: expected recordings whose results differ in name, found several {twins[0]}")
    utils.check_weights_path(args.weights)
    import models
    network, info = models.load(args.weights)
    if args.export:
        return export(args.export, network, info)
    if not args.sounds:
        return evaluate(args, network, info)
    if args.timeline:
        function = partial(timeline, network=network, info=info, args=args)
        deque(utils.done(function, sounds, errors, jobs=0), maxlen=0)
    else:
        classify(sounds, errors, args, network, info)
    return utils.name_skipped(errors)


if __name__ == "__main__":
    utils.run(main)
