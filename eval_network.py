"""Evaluate the trained network on the test sounds, or classify new sounds.

Reads weights.keras, and the test sounds from Preproc/ or Samples/. Writes to Results/:
report.html, a page to see and hear the mistakes; metrics.json; scores.csv with the probabilities of
each sound; mistakes.csv; and pictures of the curves, the confusion matrix and the calibration.

    python eval_network.py
    python eval_network.py --folds
    python eval_network.py kick.wav folder/
    python eval_network.py kick.wav folder/ --threshold auto
    python eval_network.py folder/ --copy-to Sorted
"""
import argparse
import base64
import dataclasses
import filecmp
import io
import itertools
import math
import os
import platform
import re
import shutil
import sys
import time
import warnings
from collections import Counter
from functools import partial
from pathlib import Path
from typing import NamedTuple

import librosa
import numpy as np
import scipy

import utils
from utils import AMIN, TOP_DB, UserError, say, shown

N_BINS = 15  # of confidence, for the calibration error of Guo 2017
MAX_LISTED = 20  # mistakes that are printed
MAX_GROUPS = 5  # that are printed, those of the lowest accuracy
MIN_RECALL = 0.5  # of a class whose labels may be in doubt
PLOTS = "roc_curves", "precision_recall", "confusion_matrix", "reliability", "coverage"
MAX_CARDS = 300  # mistakes on the page, and correct examples; each takes 5 kB
N_EXAMPLES = 3  # of each class
MAX_COLUMNS = 200  # of a spectrogram on the page
MAX_SECONDS = 10  # of each sound on the page
MIN_SHARED = 60  # seconds of sound on the page that are worth the start of worker processes
MAX_SOUND_BYTES = 22e6  # of all sounds on the page, so that it can be mailed
MP3_RATES = 8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000  # Hz
MP3_BITS = 2.2  # for a sample of noise; other sounds take fewer
MAX_CURVES = 21  # classes that colours and dashes can tell apart
MAX_COPIES = 1000  # of different sounds of one name in a folder
MAX_CELLS = 72  # classes whose counts are legible in a confusion matrix
# Okabe and Ito's colours, for the colour-blind. Their yellow is invisible on white.
COLORS = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"
DASHES = "-", "--", "-."


def parse_threshold(text):
    """Parse a threshold for argparse: a confidence, or "auto"."""
    if text == "auto":
        return text
    try:
        return utils.number(float, 0, high=1)(text)
    except argparse.ArgumentTypeError as error:
        text = str(error).replace("expected", "expected auto, or", 1)
        raise argparse.ArgumentTypeError(text) from None


def add_threshold(parser):
    """Add the flag --threshold to a parser."""
    parser.add_argument("--threshold", type=parse_threshold, default=0, metavar="P",
                        help="a sound is unknown if its confidence is below P; auto: the lowest "
                        "at or above which, by the validation sounds, probably at least 95 %% are "
                        "right (default: 0)")


def parse_args():
    """Read the command line."""
    parser = utils.Parser(__doc__, places=("samples", "preproc", "results", "weights"))
    parser.add_argument("sounds", nargs="*", type=Path, metavar="SOUND",
                        help="new sounds to classify, or folders of them")
    parser.add_argument("--folds", action="store_true",
                        help="evaluate all networks of train_network.py --folds together")
    parser.add_argument("--csv", type=Path, metavar="FILE",
                        help="write the probabilities of new sounds to this table")
    parser.add_argument("--copy-to", type=Path, metavar="DIR",
                        help="copy new sounds into DIR/class/, and unknown ones into DIR/unknown/")
    add_threshold(parser)
    parser.add_argument("--data", type=Path, metavar="DIR", help="evaluate on this labelled "
                        "folder of sounds or spectrograms, and write to Results/DIR/")
    parser.add_argument("--format", choices=("png", "pdf", "svg"), default="png",
                        help="of the pictures (default: png)")
    args = parser.parse_args()
    if args.sounds and args.data:
        parser.error("new sounds and --data exclude each other; leave one out")
    if args.folds and (args.sounds or args.data):
        parser.error("--folds: scores only the test sounds of the folds; leave out "
                     f"{'--data' if args.data else 'the new sounds'}")
    for flag, value in (("--csv", args.csv), ("--copy-to", args.copy_to),
                        ("--threshold", args.threshold)):
        if value and not args.sounds:
            parser.error(f"{flag}: no new sounds given; name sounds or folders")
    return args


# ---------------------------------------------------------------- the test sounds

def list_fold_weights(weights):
    """List the weights of all folds of a cross-validation. Raises UserError."""
    import models
    first = models.load_training(utils.fold_path(weights, 1))
    n_folds = first.fold[1] if first.fold else 1
    paths = [utils.fold_path(weights, k) for k in range(1, n_folds + 1)]
    tested = set()
    for k, path in enumerate(paths, 1):
        training = models.load_training(path)
        is_same = (training.classes == first.classes and training.settings() == first.settings()
                   and training.split.contents.keys() == first.split.contents.keys())
        is_fold = training.fold == [k, n_folds] and tested.isdisjoint(training.split.test)
        if not (is_same and is_fold):
            raise UserError(f"{path}: is not fold {k} of one cross-validation; train again with "
                            "--folds and --fresh")
        tested.update(training.split.test)
    return paths


def check_known_classes(source, training, path, places):
    """Raise UserError if there are classes that the weights at `path` do not know.

    places: the places of the training as a dict, or None for sounds of another folder.
    """
    unknown = sorted(set(map(utils.class_of, source.names)) - set(training.classes))
    if not unknown:
        return
    if places:
        save = path.with_stem(re.sub(r"-fold\d+$", "", path.stem)) if training.fold else path
        flags = [word for pair in training.flags.items() for word in pair]
        command = utils.command("train_network.py", "--fresh", "--save", save, *flags, **places)
        remedy = f"to train with them: {command}"
    else:
        remedy = f"rename its folders to classes of the weights: {', '.join(training.classes)}"
    raise UserError(f"{source.folder}: holds classes that {path} does not know, "
                    f"{', '.join(unknown)}; {remedy}")


def select_test_sounds(source, split):
    """Select the test sounds of a Split, and print how many are missing or new."""
    found = sorted(set(split.test).intersection(source.names))
    if n_missing := len(split.test) - len(found):
        say(f"{source.folder}: {n_missing} of {len(split.test)} test sounds missing")
    known = {*split.contents, *(name for name, _ in split.seen)}
    if n_new := len(set(utils.originals(source.names, source.copies)) - known):
        say(f"{source.folder}: {n_new} sounds are new since training and are not tested; "
            "train_network.py --fresh includes them")
    return found


def note_known_sounds(folder, spectrograms, split):
    """Print how many of the sounds to test the training used, by their contents."""
    known = {split.contents[name] for name in split.train + split.validation}
    known.update(content for _, content in split.seen)
    n_known = sum(utils.hash_content(s) in known for s in spectrograms.values())
    if n_known:
        say(f"{folder}: training used {n_known} of these {len(spectrograms)} sounds; the scores on "
            "them say nothing about new ones")


@dataclasses.dataclass
class Predictions:
    """The predictions of a network for labelled sounds."""

    names: list  # of the sounds
    y: np.ndarray  # indices of their classes [shape=(n,)]
    probabilities: np.ndarray  # [shape=(n, n_classes)]
    raw: np.ndarray  # the same before calibration
    groups: list  # the group of each sound
    classes: list  # names

    @property
    def predicted(self):
        """The index of the most probable class. [shape=(n,)]"""
        return self.probabilities.argmax(axis=1)

    @property
    def confidence(self):
        """The probability of the predicted class. [shape=(n,)]"""
        return self.probabilities.max(axis=1)

    @property
    def is_right(self):
        """Whether each prediction is right. [shape=(n,), bool]"""
        return self.predicted == self.y

    @property
    def is_of_class(self):
        """The labels as one-hot rows. [shape=(n, n_classes), bool]"""
        return self.y[:, None] == np.arange(len(self.classes))

    @property
    def support(self):
        """The number of sounds of each class. [shape=(n_classes,)]"""
        return self.is_of_class.sum(axis=0)

    @property
    def counts(self):
        """The confusion matrix. [shape=(n_classes, n_classes), rows true]"""
        counts = np.zeros((len(self.classes),) * 2, int)
        np.add.at(counts, (self.y, self.predicted), 1)
        return counts


def score_sounds(network, training, spectrograms):
    """Predict the class of each sound, in a mapping from name to spectrogram: its Predictions."""
    import models
    names = list(spectrograms)
    rows = models.predict_sounds(network, spectrograms.items())
    raw = np.stack([row for _, row in utils.show_progress(rows, len(names), "Scoring")])
    return Predictions(names, models.class_indices(names, training.classes),
                       models.apply_temperature(raw, training.temperature), raw,
                       training.find_groups(names), training.classes)


def pool_folds(folds):
    """Join the Predictions of all folds into one."""
    return Predictions([name for fold in folds for name in fold.names],
                       np.concatenate([fold.y for fold in folds]),
                       np.concatenate([fold.probabilities for fold in folds]),
                       np.concatenate([fold.raw for fold in folds]),
                       [group for fold in folds for group in fold.groups], folds[0].classes)


# ---------------------------------------------------------------- measure

def measure_scores(predictions):
    """Measure the scores of Predictions, as a dict for JSON.

    The scores of a class without test sounds are NaN and left out of the macro averages.
    """
    from sklearn import metrics
    y = predictions.y
    probabilities = predictions.probabilities
    classes = predictions.classes
    is_of_class = predictions.is_of_class
    top_3 = math.nan
    if len(classes) > 3:
        top_3 = metrics.top_k_accuracy_score(y, probabilities, k=3, labels=range(len(classes)))
    report = {
        "accuracy": float(predictions.is_right.mean()),
        "accuracy_95": compute_interval(predictions.is_right, predictions.groups),
        "n_groups": len(set(predictions.groups)),
        "top_3_accuracy": top_3,
        "micro_auc": metrics.roc_auc_score(is_of_class, probabilities, average="micro"),
        "micro_average_precision": metrics.average_precision_score(
            is_of_class, probabilities, average="micro"),
        **measure_calibration(y, probabilities),
        "uncalibrated": measure_calibration(y, predictions.raw),
        "classes": classes,
        "support": dict(zip(classes, predictions.support.tolist())),
        "n_test": len(y),
    }
    for key, values in measure_classes(predictions).items():
        defined = values[np.isfinite(values)]
        report[f"macro_{key}"] = float(defined.mean()) if len(defined) else math.nan
        report[key] = dict(zip(classes, values.tolist()))
    report["balanced_accuracy"] = report["macro_recall"]
    return report


def measure_classes(predictions):
    """Measure each class against the rest. Returns a dict from score to [shape=(n_classes,)]."""
    from sklearn import metrics
    y = predictions.y
    n_classes = len(predictions.classes)
    *rows, support = metrics.precision_recall_fscore_support(
        y, predictions.predicted, labels=range(n_classes), zero_division=0)
    precision, recall, f1 = np.where(support > 0, rows, np.nan)
    auc = np.full(n_classes, np.nan)
    average_precision = np.full(n_classes, np.nan)
    for k in np.flatnonzero((support > 0) & (support < len(y))):
        p = predictions.probabilities[:, k]
        auc[k] = metrics.roc_auc_score(y == k, p)
        average_precision[k] = metrics.average_precision_score(y == k, p)
    return {"precision": precision, "recall": recall, "f1": f1, "auc": auc,
            "average_precision": average_precision}


def measure_groups(predictions):
    """Measure the accuracy of each group. Returns dicts for JSON, lowest accuracy first."""
    names, index, sizes = np.unique(predictions.groups, return_inverse=True, return_counts=True)
    n_right = np.bincount(index, predictions.is_right)
    order = np.argsort(n_right / sizes, kind="stable")
    return [{"group": str(names[i]), "sounds": int(sizes[i]), "accuracy": n_right[i] / sizes[i]}
            for i in order]


def compute_interval(is_right, groups):
    """Compute the 95 % interval of the accuracy on new groups. Returns [low, high].

    is_right: bool [shape=(n,)]. groups: the group of each sound. It is Wilson's interval for n /
    inflation independent sounds, with the t quantile of the number of groups.
    """
    import models
    n = len(is_right)
    n_groups = len(set(groups))
    inflation = models.measure_inflation(is_right, groups)
    quantile = 1.96 if n_groups == n else scipy.stats.t.ppf(0.975, max(1, n_groups - 1))
    return np.stack(wilson_interval(np.mean(is_right), n / inflation, quantile)).tolist()


def wilson_interval(share, n, quantile=1.96):
    """Compute Wilson's interval of a share of n independent sounds. Returns its two ends."""
    ratio = quantile**2 / n
    centre = (share + ratio / 2) / (1 + ratio)
    half = np.sqrt(ratio * share * (1 - share) + ratio**2 / 4) / (1 + ratio)
    return np.maximum(centre - half, 0), np.minimum(centre + half, 1)


def measure_calibration(y, probabilities):
    """Measure log loss, and the mean distance between confidence and accuracy."""
    from sklearn.metrics import log_loss
    counts, confidence, n_right = bin_predictions(y, probabilities, N_BINS)
    distances = np.abs(confidence - n_right / counts)
    return {"log_loss": log_loss(y, probabilities, labels=range(probabilities.shape[1])),
            "calibration_error": float(np.average(distances, weights=counts))}


def bin_predictions(y, probabilities, n_bins):
    """Sort predictions into bins of confidence. Empty bins are left out.

    Returns counts, mean confidence, and how many are right, each [shape=(n_filled_bins,)].
    """
    confidence = probabilities.max(axis=1)
    is_right = probabilities.argmax(axis=1) == y
    bins = np.minimum(confidence * n_bins, n_bins - 1).astype(int)
    _, bins, counts = np.unique(bins, return_inverse=True, return_counts=True)
    return counts, np.bincount(bins, confidence) / counts, np.bincount(bins, is_right)


def measure_threshold(predictions, threshold):
    """Measure the share of the sounds that reach a threshold, and the accuracy on them."""
    reached = predictions.confidence >= threshold
    accuracy = float(predictions.is_right[reached].mean()) if reached.any() else math.nan
    return {"threshold": threshold, "coverage": float(reached.mean()), "accuracy": accuracy}


def order_by_confidence(predictions, rows):
    """Order some row numbers of Predictions, most confident first."""
    return rows[np.argsort(-predictions.confidence[rows], kind="stable")]


class Mistake(NamedTuple):
    """A wrong prediction."""

    file: str
    label: str  # its class
    predicted: str
    confidence: float  # the probability of the predicted class
    probability: float  # of the class
    is_doubtful: bool  # whether the label may be wrong

    @property
    def kind(self):
        """The part that background plays in a mistake: "missed, ", "false alarm, ", or ""."""
        if utils.is_background(self.label) == utils.is_background(self.predicted):
            return ""
        return "missed, " if utils.is_background(self.predicted) else "false alarm, "


def list_mistakes(predictions):
    """List the wrong predictions, most confident first. Returns a list of Mistake."""
    classes = predictions.classes
    predicted = predictions.predicted
    is_doubtful = find_doubtful(predictions)
    mistakes = []
    for i in order_by_confidence(predictions, np.flatnonzero(~predictions.is_right)):
        label = predictions.y[i]
        row = predictions.probabilities[i]
        mistakes.append(Mistake(
            predictions.names[i], classes[label], classes[predicted[i]], round(row.max(), 6),
            round(row[label], 6), bool(is_doubtful[i])))
    return mistakes


def find_doubtful(predictions):
    """Find labels that may be wrong, by confident learning (Northcutt, Jiang and Chuang 2021).

    The limit of a class is its mean probability over the sounds with that label. A class is likely
    for a sound if its probability reaches the limit. A label may be wrong if the prediction is
    wrong, the most probable likely class is another one, and at least half of its class is
    recognised. The margin between the confidence and the probability of the label estimates the
    chance of that. As many labels are doubtful as the margins add up to, those of the largest
    margins. The network must not have learned from the sounds. Returns bool [shape=(n_sounds,)].
    """
    y = predictions.y
    probabilities = predictions.probabilities
    limits = np.full(probabilities.shape[1], np.inf)  # of classes without sounds
    for k in np.unique(y):
        limits[k] = probabilities[y == k, k].mean()
    is_likely = probabilities >= limits
    likeliest = np.where(is_likely, probabilities, -1).argmax(axis=1)
    recall = np.diag(predictions.counts) / np.maximum(1, predictions.support)
    is_candidate = (is_likely.any(axis=1) & (likeliest != y) & ~predictions.is_right
                    & (recall[y] >= MIN_RECALL))
    margins = np.where(is_candidate, predictions.confidence - probabilities[range(len(y)), y], 0)
    is_doubtful = np.zeros(len(y), bool)
    is_doubtful[np.argsort(-margins, kind="stable")[:round(margins.sum())]] = True
    return is_doubtful


def choose_mistakes(mistakes):
    """Choose at most MAX_CARDS mistakes for the page, of as many pairs of classes as possible.

    The most confident of each pair come before the second ones, and so on. Returns the chosen in
    the order of `mistakes`.
    """
    counts = Counter()
    ranks = []  # within the pair
    for mistake in mistakes:
        pair = mistake.label, mistake.predicted
        ranks.append(counts[pair])
        counts[pair] += 1
    chosen = np.argsort(ranks, kind="stable")[:MAX_CARDS]
    return [mistakes[i] for i in sorted(chosen)]


def list_examples(predictions, mistakes):
    """List the names of the most confident correct predictions, to compare with `mistakes`.

    There are at most N_EXAMPLES of each class of the mistakes, or of all classes if there are no
    mistakes, and at most MAX_CARDS in all.
    """
    classes = predictions.classes
    wanted = {mistake.label for mistake in mistakes} | {mistake.predicted for mistake in mistakes}
    wanted = wanted or set(classes)
    n = int(np.clip(MAX_CARDS // len(wanted), 1, N_EXAMPLES))
    examples = {}
    for i in order_by_confidence(predictions, np.flatnonzero(predictions.is_right)):
        of_class = examples.setdefault(predictions.y[i], [])
        if classes[predictions.y[i]] in wanted and len(of_class) < n:
            of_class.append(predictions.names[i])
    return [name for k in sorted(examples) for name in examples[k]][:MAX_CARDS]


# ---------------------------------------------------------------- print and save

def format_decimals(value):
    """Format a score with four decimals; NaN as "none"."""
    return "none" if math.isnan(value) else f"{value:.4f}"


def print_report(report, mistakes):
    """Print the scores of each class, the first mistakes, and the overall scores."""
    import models
    width = max(len(name) for name in ("Class", *report["classes"]))
    say("", f"{'Class':{width}}  sounds  recall  precision     AUC")
    for name, n in report["support"].items():
        recall, precision, auc = [format_decimals(report[key][name])
                                  for key in ("recall", "precision", "auc")]
        note = "  background" if utils.is_background(name) else ""
        note += "" if n else "  no test sounds: left out of the means"
        say(f"{name:{width}}  {n:6}  {recall:>6}  {precision:>9}  {auc:>6}{note}")
    order = ", most confident first" if mistakes else ""
    say("", f"Mistakes: {len(mistakes)}{order}")
    for mistake in mistakes[:MAX_LISTED]:
        say(f"  {mistake.file}: {mistake.kind}predicted {mistake.predicted} "
            f"({mistake.confidence:.3f})")
    if len(mistakes) > MAX_LISTED:
        say(f"  and {len(mistakes) - MAX_LISTED} more in mistakes.csv")
    if any(map(utils.is_background, report["classes"])):
        kinds = Counter(mistake.kind for mistake in mistakes)
        say(f"Background: {kinds['missed, ']} sounds of the classes are predicted as background, "
            f"{kinds['false alarm, ']} of background as a class")
    if n_doubtful := sum(mistake.is_doubtful for mistake in mistakes):
        say(f"Labels in doubt: {n_doubtful}, marked in mistakes.csv")
    if report["folds"]:
        print_folds(report["folds"])
    else:
        n = report["n_validation"]
        if report["threshold"]:
            values = map(format_decimals, report["threshold"].values())
            origin = f"chosen for {models.TARGET} % accuracy on {n} validation sounds"
            say("", "Threshold  coverage  accuracy",
                "{:>9}  {:>8}  {:>8}  {}".format(*values, origin))
        else:
            say("", f"No threshold for {models.TARGET} %: {report['no_threshold']}")
    print_groups(report["groups"])
    low, high = report["accuracy_95"]
    noun = "sound" if report["n_test"] == 1 else "sounds"
    basis = f" over {report['n_groups']} groups" if report["n_groups"] < report["n_test"] else ""
    say("", f"Accuracy {report['accuracy']:.4f} (95 % interval {low:.4f} to {high:.4f}{basis}), "
            f"balanced accuracy {format_decimals(report['balanced_accuracy'])}, "
            f"macro AUC {format_decimals(report['macro_auc'])} on {report['n_test']} {noun}",
        f"Calibration error {report['calibration_error']:.4f}, before calibration "
        f"{report['uncalibrated']['calibration_error']:.4f}")
    if report["log_loss"] > report["uncalibrated"]["log_loss"]:
        say(f"Calibration raised the log loss to {report['log_loss']:.4f}, from "
            f"{report['uncalibrated']['log_loss']:.4f}")


def print_groups(groups):
    """Print the groups of the lowest accuracy. groups: as from measure_groups."""
    if not groups:
        return
    width = max(len(name) for name in ("Group", *(row["group"] for row in groups[:MAX_GROUPS])))
    say("", f"{'Group':{width}}  sounds  accuracy, lowest first")
    for row in groups[:MAX_GROUPS]:
        say(f"{row['group']:{width}}  {row['sounds']:6}  {row['accuracy']:8.4f}")
    if len(groups) > MAX_GROUPS:
        say(f"and {len(groups) - MAX_GROUPS} more in metrics.json")


def print_folds(folds):
    """Print the scores of each fold of cross-validation, their mean and standard deviation."""
    keys = "accuracy", "balanced_accuracy", "macro_auc"
    rows = np.array([[fold[key] for key in keys] for fold in folds], float)
    say("", "Fold      sounds  accuracy  balanced  macro AUC")
    for k, (row, fold) in enumerate(zip(rows, folds), 1):
        say(f"{k:<8}  {fold['n_test']:6}" + "  {:>8}  {:>8}  {:>9}".format(
            *map(format_decimals, row)))
    with warnings.catch_warnings(action="ignore"):  # of no fold at all
        summary = {"mean": np.nanmean(rows, axis=0), "std": np.nanstd(rows, axis=0, ddof=1)}
    for name, row in summary.items():
        say(f"{name:16}" + "  {:>8}  {:>8}  {:>9}".format(*map(format_decimals, row)))
    if n_none := int(np.isnan(rows).any(axis=1).sum()):
        say(f"Folds without a macro AUC, for they test one class only: {n_none}. They do not count "
            "in its mean and std")


def list_scores(predictions):
    """Yield the rows of scores.csv, one at a time: together they may exceed the memory."""
    classes = predictions.classes
    yield ["file", "class", "predicted", *classes]
    for name, k, row in zip(predictions.names, predictions.y, predictions.probabilities):
        yield [name, classes[k], classes[row.argmax()], *(f"{p:.6f}" for p in row)]


# ---------------------------------------------------------------- plot

def escape_math(name):
    """Escape a name for Matplotlib, where $ begins a formula."""
    return shown(name).replace("$", r"\$")


def round_score(value, n):
    """Format a score of n sounds in as many digits as n supports: 2 for 3 sounds, 4 from 1000."""
    n_digits = int(np.clip(math.ceil(math.log10(n + 1)), 2, 4))
    return "none" if math.isnan(value) else f"{value:.{n_digits}f}"


def trace_curves(predictions, trace):
    """Trace a curve for each class, by its index, and the micro average. Returns a dict of them."""
    positive = predictions.is_of_class
    curves = {}
    for k in np.flatnonzero(positive.any(axis=0) & ~positive.all(axis=0)):
        curves[k] = trace(positive[:, k], predictions.probabilities[:, k])[:2]
    curves["micro"] = trace(positive.ravel(), predictions.probabilities.ravel())[:2]
    return curves


def plot_roc(path, predictions, report):
    """Draw the ROC curves of the classes and their averages, on a linear and a log axis."""
    from sklearn.metrics import roc_curve
    curves = trace_curves(predictions, roc_curve)  # false and true positive rates
    macro = average_curves([curves[k] for k in curves if k != "micro"] or [curves["micro"]])
    n_test = report["n_test"]
    auc = round_score(report["macro_auc"], n_test)
    with utils.new_figure(path, 12.5, 5) as figure:
        panels = figure.subplots(1, 2)
        for panel in panels:
            draw_curves(panel, predictions, curves, report["auc"], report["micro_auc"])
            panel.plot(*macro, color="0.5", lw=2.5, label=f"{auc}  macro average")
            panel.set(xlabel="False positive rate", ylabel="True positive rate")
        panels[0].plot([0, 1], [0, 1], color="0.8", lw=1, label="0.5  chance")
        panels[0].set(title=f"ROC, {n_test} test sounds, macro AUC {auc}")
        panels[1].set(title="The same for few false positives",
                      xscale="log", xlim=(0.3 / n_test, 1))
        figure.legend(*panels[0].get_legend_handles_labels(), title="AUC  class (sounds)",
                      loc="outside right upper", fontsize=8)


def average_curves(curves):
    """Average ROC curves at all their false positive rates, just before and after each rise."""
    rates = np.unique(np.concatenate([x for x, _ in curves]))
    rates = np.sort(np.concatenate([np.nextafter(rates, -1), rates]))
    return rates, np.mean([np.interp(rates, x, height) for x, height in curves], axis=0)


def plot_precision_recall(path, predictions, report):
    """Draw the precision-recall curves of the classes and their micro average."""
    from sklearn.metrics import precision_recall_curve
    curves = trace_curves(predictions, partial(precision_recall_curve, drop_intermediate=True))
    curves = {k: (recall, precision) for k, (precision, recall) in curves.items()}
    mean = round_score(report["macro_average_precision"], report["n_test"])
    with utils.new_figure(path, 8, 5) as figure:
        panel = figure.subplots()
        draw_curves(panel, predictions, curves, report["average_precision"],
                    report["micro_average_precision"], drawstyle="steps-post")
        panel.set(xlabel="Recall", ylabel="Precision",
                  title=f"{report['n_test']} test sounds, mean average precision {mean}")
        figure.legend(title="AP  class (sounds)", loc="outside right upper", fontsize=8)


def draw_curves(panel, predictions, curves, class_scores, micro_score, **style):
    """Draw curves with their scores. If there are many, only the worst are coloured.

    class_scores: dict from class to score. micro_score: that of the micro average.
    """
    classes = predictions.classes
    support = predictions.support
    n_test = len(predictions.y)
    scores = {k: class_scores[classes[k]] for k in curves if k != "micro"}
    worst = sorted(sorted(scores, key=scores.get)[:MAX_CURVES])
    others = [k for k in scores if k not in worst]
    for k in others:
        panel.plot(*curves[k], color="0.85", lw=0.7, **style)
    if others:
        lowest = round_score(min(scores[k] for k in others), n_test)
        panel.lines[0].set_label(f"{len(others)} others, at least {lowest}")
    for i, k in enumerate(worst):
        score = round_score(scores[k], support[k])
        panel.plot(*curves[k], color=COLORS[i % 7], ls=DASHES[i // 7], lw=1.4,
                   label=f"{score}  {escape_math(classes[k])} ({support[k]})", **style)
    panel.plot(*curves["micro"], color="0.5", lw=2.5, ls=":",
               label=f"{round_score(micro_score, n_test)}  micro average", **style)
    panel.set(ylim=(-0.02, 1.02))
    panel.grid(color="0.92")


def plot_confusion(path, predictions):
    """Draw the confusion matrix: a row for each class, with counts and shares of the class."""
    n = len(predictions.classes)
    counts = predictions.counts
    totals = counts.sum(axis=1, keepdims=True)
    shares = counts / np.maximum(1, totals)
    names = [escape_math(name) for name in predictions.classes]
    with utils.new_figure(path, min(41, 4 + 0.5 * n), min(40, 3 + 0.5 * n)) as figure:  # inches
        axes = figure.subplots()
        # imshow would take ten times as much memory.
        image = axes.pcolormesh(range(n), range(n), shares, cmap="Blues", vmin=0, vmax=1,
                                rasterized=True)
        axes.set_aspect("equal")
        axes.invert_yaxis()
        figure.colorbar(image, cax=axes.inset_axes((1.03, 0, 0.04, 1)), label="Share of the class")
        for row, column in np.argwhere(counts) if n <= MAX_CELLS else []:
            share = shares[row, column]
            axes.text(column, row, f"{counts[row, column]}\n{share:.0%}", ha="center",
                      va="center", fontsize=7, color="white" if share > 0.5 else "black")
        axes.set_xticks(range(n), names, rotation="vertical")
        for k in np.flatnonzero(totals == 0):
            axes.axhspan(k - 0.5, k + 0.5, facecolor="none", edgecolor="0.8", hatch="///", lw=0)
            names[k] += " (no test sounds)"
        axes.set_yticks(range(n), names)
        axes.tick_params(labelsize=min(10, 2000 / n))
        axes.set(title=f"{np.trace(counts)} of {counts.sum()} right", xlabel="Predicted",
                 ylabel="True class")


def plot_reliability(path, predictions, report):
    """Draw how often predictions are right at each confidence, before and after calibration.

    Few sounds get few bins. A deviation within a point's interval may be chance. The intervals
    take the sounds as independent: a bin holds too few of a group to measure more.
    """
    y = predictions.y
    n_bins = int(np.clip(len(y) // 20, 3, N_BINS))
    with utils.new_figure(path, 6, 6) as figure:
        above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
        above.plot([0, 1], [0, 1], color="0.8", label="perfect calibration")
        for name, p, scores, color in (
                ("before", predictions.raw, report["uncalibrated"], COLORS[1]),
                ("after", predictions.probabilities, report, COLORS[0])):
            counts, confidence, n_right = bin_predictions(y, p, n_bins)
            accuracy = n_right / counts
            bounds = np.stack(wilson_interval(accuracy, counts))
            error = round_score(scores["calibration_error"], len(y))
            above.errorbar(confidence, accuracy, np.abs(bounds - accuracy), color=color, marker="o",
                           capsize=3, lw=1.4, elinewidth=0.7,
                           label=f"{name}: calibration error {error}")
            below.hist(p.max(axis=1), n_bins, range=(0, 1), histtype="step", color=color)
        above.set(ylabel="Accuracy (95 % interval of independent sounds)", ylim=(-0.02, 1.02),
                  title=f"Calibration by temperature {report['temperature']:.2f}, "
                        f"{len(y)} test sounds")
        above.legend(fontsize=8)
        below.set(xlabel="Confidence", ylabel="Sounds", xlim=(0, 1))


def plot_coverage(path, predictions, threshold):
    """Draw how many sounds reach each threshold, and the accuracy on them.

    threshold: that of the weights, or None.
    """
    import models
    thresholds, coverage, accuracy = models.measure_coverage(
        predictions.y, predictions.probabilities)
    # No sound reaches a threshold of 1, and every sound reaches 0. The axis holds neither.
    thresholds = np.clip([1, *thresholds, 0], 1e-12, 1 - 1e-12)
    coverage = [0, *coverage, 1]
    accuracy = [math.nan, *accuracy, accuracy[-1]]
    ticks = [0.1, 0.5, 0.9, 0.99, 0.999, 0.9999]
    with utils.new_figure(path, 7, 5) as figure:
        panel = figure.subplots()
        panel.step(thresholds, coverage, color=COLORS[1], where="post", label="coverage: share of "
                   "the sounds at or above the threshold")
        panel.step(thresholds, accuracy, color=COLORS[0], where="post", label="accuracy on these")
        if threshold is not None:
            panel.axvline(threshold, color="0.4", ls="--", label=f"{threshold:.4f}: chosen for "
                          f"{models.TARGET} % accuracy on validation sounds")
        panel.set_xscale("logit")
        panel.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        panel.set_xticks([], minor=True)
        panel.set(title=f"Coverage and accuracy, {len(predictions.y)} test sounds",
                  xlabel="Threshold: the least confidence", ylabel="Share of the sounds",
                  xlim=(ticks[0], ticks[-1]), ylim=(-0.02, 1.02))
        panel.grid(color="0.92")
        panel.legend(fontsize=8)


def find_loudest(image):
    """Find the level of the brightest colour in a picture of decibels. Silence stays dark."""
    return max(image.max(), 10 * math.log10(AMIN) + TOP_DB)


# ---------------------------------------------------------------- the page

def save_page(path, predictions, report, mistakes, pictures, source, samples):
    """Write the page: the scores, and the mistakes with spectrograms and players.

    pictures: paths of the plots. source: of the spectrograms. samples: the folder of the sounds.
    """
    import jinja2
    classes = predictions.classes
    chosen = choose_mistakes(mistakes)
    names = [mistake.file for mistake in chosen] + list_examples(predictions, chosen)
    cards = []
    for name in names:
        spectrogram = source.read(name, folder=source.folder, settings=source.settings)
        cards.append({"file": shown(name), "label": classes.index(utils.class_of(name)),
                      "seconds": utils.count_seconds(spectrogram, source.settings),
                      "image": embed_spectrogram(spectrogram)})
    playable, max_seconds = choose_playback(source.settings, len(names))
    embed = partial(embed_sound, folder=samples, settings=source.settings, playable=playable,
                    seconds=max_seconds)
    total = sum(min(card["seconds"], max_seconds) for card in cards)
    jobs = 0 if total < MIN_SHARED else None
    sounds, _ = utils.map_files(embed, names, "Writing the page", jobs, folder=samples)
    for name, card in zip(names, cards):
        card["audio"] = sounds.get(name)
    for card, mistake in zip(cards, chosen):
        card["predicted"] = classes.index(mistake.predicted)
        card["confidence"] = mistake.confidence
        card["is_doubtful"] = mistake.is_doubtful
    environment = jinja2.Environment(  # values are escaped: names cannot run code
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True,
        lstrip_blocks=True, undefined=jinja2.StrictUndefined)
    page = environment.get_template("report_template.html").render(
        report=report, samples=samples, max_seconds=max_seconds,
        classes=[shown(name) for name in classes],
        matrix=predictions.counts.tolist() if len(classes) <= MAX_CELLS else [],
        mistakes=cards[:len(chosen)], examples=cards[len(chosen):], n_mistakes=len(mistakes),
        pairs={(mistake.label, mistake.predicted) for mistake in chosen},
        files=[(mistake.file, mistake.label) for mistake in chosen], round_score=round_score,
        ticks=librosa.mel_frequencies(4, fmin=source.settings.fmin, fmax=source.settings.highest),
        plots={picture.name: embed_picture(picture) for picture in pictures})
    utils.save_text(path, page)


def embed_spectrogram(spectrogram):
    """Make a data URI of a spectrogram's picture, at most MAX_COLUMNS wide."""
    from matplotlib import colormaps
    from PIL import Image
    image = spectrogram.reshape(-1, *spectrogram.shape[-2:]).mean(axis=0)  # (n_mels, n_frames)
    size = math.ceil(image.shape[1] / MAX_COLUMNS)  # frames in a column, which shows the loudest
    columns = np.maximum.reduceat(image, range(0, image.shape[1], size), axis=1)
    loudness = 1 + (columns - find_loudest(image)) / TOP_DB  # 0 to 1
    colors = colormaps["magma"](loudness[::-1], bytes=True)[..., :3]
    data = io.BytesIO()
    Image.fromarray(colors).save(data, "WEBP", quality=70)
    return f"data:image/webp;base64,{base64.b64encode(data.getvalue()).decode()}"


def embed_picture(path):
    """Make a data URI of a picture file. Returns None for PDF, which a page cannot show."""
    kind = {".png": "png", ".svg": "svg+xml"}.get(path.suffix)
    return kind and f"data:image/{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"


def choose_playback(settings, n_sounds):
    """Choose how n_sounds sounds are played on the page.

    Returns FeatureSettings, with a rate of MP3 and at most two channels, and how many seconds of
    each sound fit.
    """
    higher = [rate for rate in MP3_RATES if rate >= settings.sample_rate]
    sample_rate = min(higher, default=MP3_RATES[-1])
    n_channels = min(settings.channels, 2)
    playable = dataclasses.replace(settings, sample_rate=sample_rate, channels=n_channels, fmin=0,
                                   fmax=None)
    n_bytes = sample_rate * n_channels * MP3_BITS / 8 * 4 / 3  # in a second; base64 adds a third
    seconds = MAX_SOUND_BYTES / (n_bytes * n_sounds)
    return playable, min(MAX_SECONDS, math.floor(10 * seconds) / 10)


def embed_sound(name, folder, settings, playable, seconds):
    """Make a data URI of the beginning of a sound as the network hears it. Raises UserError.

    Frequencies outside of fmin to fmax stay. playable, seconds: as choose_playback returns them.
    """
    path = Path(folder, name)
    heard = utils.convert_blocks(utils.read_blocks(path), settings)
    blocks = ((y.T, settings.sample_rate) for y in heard if y.size)
    n = math.ceil(seconds * playable.sample_rate)
    parts = []
    for y in utils.convert_blocks(blocks, playable):  # (channels, n_samples)
        parts.append(y)
        if sum(part.shape[1] for part in parts) >= n:
            break
    if not any(y.size for y in parts):  # resampling may leave nothing
        raise UserError(f"{path}: too short to be played")
    y = np.clip(np.concatenate(parts, axis=1)[:, :n].T, -1, 1)  # the encoder ends the process else
    data = utils.encode_sound(y, playable.sample_rate, "MP3", "MPEG_LAYER_III")
    return f"data:audio/mpeg;base64,{base64.b64encode(data).decode()}"


# ---------------------------------------------------------------- classify new sounds

def list_sounds(paths):
    """List sounds, and those in folders, once each. Returns them and a dict of UserErrors."""
    sounds = {}
    errors = {}
    for path in paths:
        found = [path]
        if path.is_dir():
            found = list(map(Path, utils.walk_sounds(path)))
        if not found:
            errors[path] = UserError(f"{path}: holds no sounds; name another folder")
        sounds |= dict.fromkeys(found)
    return list(sounds), errors


def read_sounds(paths, settings, errors):
    """Yield (path, spectrogram) of each sound in order. Adds UserErrors to the dict `errors`."""
    read = partial(utils.sound_to_spectrogram, folder="", settings=settings)
    for path, spectrogram, error in utils.map_in_workers(read, paths, jobs=1):
        if error:
            errors[path] = error
        else:
            yield path, spectrogram


def copy_sound(path, folder):
    """Copy a sound into a folder without replacing another one. Returns the path of the copy.

    If its name is taken, the names of the folders above come before it, and then a number behind.
    A copy of an earlier run stays.
    """
    numbered = (f"{path.stem}_{k}{path.suffix}" for k in range(2, MAX_COPIES))
    for name in itertools.chain([path.name, flatten_path(path)], numbered):
        target = folder / name
        if not target.exists():
            with utils.whole_file(target) as temporary:
                shutil.copy2(path, temporary)
            return target
        if filecmp.cmp(path, target, shallow=False):
            return target
    raise UserError(f"{path}: {MAX_COPIES} others in {folder} have its name; rename it")


def classify(places, weights, threshold, csv, copy_to=None):
    """Print the classes of new sounds. Returns how many were skipped.

    places: paths of sounds, and of folders of them. threshold: the confidence below which a sound
    is unknown, or "auto". csv: path of a table for the probabilities, or None. copy_to: a folder
    for copies of the sounds, in subfolders named by their classes, or None.
    """
    for place in places if copy_to else ():
        if place.is_dir():
            utils.check_outside("--copy-to", copy_to, place)
    utils.check_weights_path(weights)
    import models  # loads Keras
    paths, errors = list_sounds(places)
    classifier = models.Classifier(weights, threshold)
    classes = classifier.classes
    has_unknown = classifier.threshold or any(map(utils.is_background, classes))
    if has_unknown and models.UNKNOWN in classes:
        raise UserError(f"{weights}: has a class named {models.UNKNOWN}, which sounds of low "
                        "confidence and of background would join; rename its folder and train "
                        "again")
    path_width = max((len(str(path)) for path in paths), default=0)
    class_width = max(map(len, classes))
    rows = [["file", "predicted", *classes, *(["copy"] if copy_to else [])]]
    sounds = read_sounds(paths, classifier.training.features, errors)
    try:
        for path, p in classifier.score(sounds):
            first, second = np.argsort(-p)[:2]
            predicted = classifier.name(p)
            note = "" if predicted == classes[first] else f"  {predicted}"
            say(f"{path!s:{path_width}}  {classes[first]:{class_width}} {p[first]:.4f}"
                f"  {classes[second]:{class_width}} {p[second]:.4f}{note}")
            rows.append([path, predicted, *(f"{value:.6f}" for value in p)])
            if copy_to:
                rows[-1].append(copy_sound(path, copy_to / predicted))
    finally:  # after Ctrl-C too
        if csv:
            utils.save_csv(csv, rows)
    n = len(rows) - 1
    if n > 1:
        counts = Counter(row[1] for row in rows[1:]).most_common()
        note = f" at threshold {classifier.threshold:g}" if classifier.threshold else ""
        say("", f"Predicted for {n} sounds{note}: "
                + ", ".join(f"{name} ({count})" for name, count in counts))
    if copy_to and n:
        say(f"Copied into {copy_to}")
    return utils.name_skipped(errors)


def flatten_path(path):
    """Join the parts of a path into one name ("a/b.wav" -> "a_b.wav")."""
    parts = [part for part in path.parts if part != path.anchor and part.strip(".")]
    return "_".join(parts) or Path(os.path.abspath(path)).name or "root"


# ---------------------------------------------------------------- the command

def describe_training(training):
    """Describe the calibration and the numbers of sounds of a Training, for metrics.json."""
    split = training.split
    return {"temperature": training.temperature,
            "n_train": len({*split.train, *split.validation}),  # sounds and copies
            "n_validation": len(split.validation),
            "no_threshold": None if training.threshold else training.explain_no_threshold()}


def describe_run(training, weights, samples):
    """Describe the network, the data and the package versions, for metrics.json."""
    import models
    packages = "keras", models.keras.backend.backend(), "numpy", "sklearn", "soxr"
    versions = {name: sys.modules[name].__version__ for name in packages}
    return {"weights": str(weights), "network": training.network,
            "features": dataclasses.asdict(training.features),
            "hyperparameters": dataclasses.asdict(training.hyperparameters),
            "epochs": training.epochs, "flags": training.flags, "seed": training.seed,
            "data": str(samples), "date": time.strftime("%Y-%m-%d %H:%M"),
            "versions": {"python": platform.python_version(), **versions}}


def main():
    """Classify new sounds, or evaluate on test sounds. Returns how many were skipped."""
    args = parse_args()
    if args.sounds:
        return classify(args.sounds, args.weights, args.threshold, args.csv, args.copy_to)
    samples = args.data or args.samples
    preproc = args.data or args.preproc
    results = args.results / flatten_path(args.data) if args.data else args.results
    places = {"samples": samples, "preproc": preproc, "results": results}

    # Score the test sounds: once, or for each fold.
    utils.check_weights_path(utils.fold_path(args.weights, 1) if args.folds else args.weights)
    import models  # loads Keras
    scored = []  # pairs of a Training and its Predictions
    n_skipped = 0
    for path in list_fold_weights(args.weights) if args.folds else [args.weights]:
        network, training = models.load_network(path)
        if training.is_mean and not args.data:
            raise UserError(f"{path}: learned from all sounds, and none are left to test it; "
                            "--folds tests the networks that it is the mean of")
        source = utils.find_source(samples, preproc, training.features)
        check_known_classes(source, training, path, None if args.data else places)
        if args.data:
            names = utils.originals(source.names, source.copies)
        else:
            names = select_test_sounds(source, training.split)
        spectrograms, n_unread = utils.read_spectrograms(source, names)
        note_known_sounds(source.folder, spectrograms, training.split)
        if not spectrograms:
            raise UserError(f"{source.folder}: no test sound of {path} can be read; name another "
                            "labelled folder with --data")
        scored.append((training, score_sounds(network, training, spectrograms)))
        n_skipped += n_unread

    # Measure and print.
    threshold = None if args.folds else scored[0][0].threshold  # folds have none
    if args.folds:
        predictions = pool_folds([some for _, some in scored])
        folds = [measure_scores(some) | describe_training(training) for training, some in scored]
        keys = ("accuracy", "balanced_accuracy", "macro_auc", "n_test", "n_train", "n_validation",
                "temperature")
        report = measure_scores(predictions) | {
            "temperature": float(np.mean([fold["temperature"] for fold in folds])),
            "threshold": None, "folds": [{key: fold[key] for key in keys} for fold in folds]}
    else:
        training, predictions = scored[0]
        report = measure_scores(predictions) | describe_training(training) | {
            "threshold": None if threshold is None else measure_threshold(predictions, threshold),
            "folds": []}
    weights = utils.fold_path(args.weights, "*") if args.folds else args.weights
    report |= describe_run(training, weights, samples)
    mistakes = list_mistakes(predictions)
    report["groups"] = measure_groups(predictions) if "--groups" in training.flags else []
    print_report(report, mistakes)

    # Write tables, pictures and the page.
    utils.save_json(results / "metrics.json", report)
    utils.save_csv(results / "scores.csv", list_scores(predictions))
    columns = ["file", "class", "predicted", "probability", "probability_of_class",
               "label_in_doubt"]
    marked = [[*mistake[:-1], "yes" if mistake.is_doubtful else "no"] for mistake in mistakes]
    utils.save_csv(results / "mistakes.csv", [columns, *marked])
    pictures = [results / f"{name}.{args.format}" for name in PLOTS]
    plot_roc(pictures[0], predictions, report)
    plot_precision_recall(pictures[1], predictions, report)
    plot_confusion(pictures[2], predictions)
    plot_reliability(pictures[3], predictions, report)
    plot_coverage(pictures[4], predictions, threshold)
    save_page(results / "report.html", predictions, report, mistakes, pictures, source, samples)
    say(f"Wrote {results}: metrics.json, scores.csv, mistakes.csv and the .{args.format} pictures",
        f"To see and hear the mistakes, open {results / 'report.html'} in a browser")
    return n_skipped


if __name__ == "__main__":
    utils.run(main)
