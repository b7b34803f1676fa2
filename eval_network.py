"""Evaluate the trained network on the test sounds, or classify new sounds.

Reads weights.keras, and the test sounds from Preproc/ or Samples/. Writes to Results/:
report.html, a page to see and hear the mistakes; metrics.json; scores.csv with the probabilities of
each sound; mistakes.csv; and pictures of the curves, the confusion matrix and the calibration.

    python eval_network.py
    python eval_network.py --folds
    python eval_network.py kick.wav folder/
    python eval_network.py kick.wav folder/ --threshold auto
"""
import argparse
import base64
import copy
import dataclasses
import io
import math
import os
import platform
import re
import sys
import warnings
from collections import Counter
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import scipy

import utils
from utils import AMIN, TOP_DB, FeatureSettings, UserError, say, shown

# Of the sounds in one group, as long as a test set says nothing else. See benchmarks/README.md.
CORRELATION = 0.3
N_BINS = 15  # of confidence, for the calibration error of Guo 2017
MAX_LISTED = 20  # mistakes that are printed
PLOTS = "roc_curves", "precision_recall", "confusion_matrix", "reliability", "coverage"
MAX_CARDS = 300  # mistakes on the page, and correct examples; each takes 5 kB
N_EXAMPLES = 3  # of each class
MAX_COLUMNS = 200  # of a spectrogram on the page
MAX_SECONDS = 10  # of each sound on the page
MAX_SOUND_BYTES = 22e6  # of all sounds on the page, so that it can be mailed
MP3_RATES = 8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000  # Hz
MP3_BITS = 2.2  # for a sample of noise; other sounds take fewer
# Equal in the training runs of all folds of one cross-validation.
FOLD_KEYS = ("classes", "seed", "features", "network", "hyperparameters", "weights", "--groups",
             "--folds", "--folds-by")
MAX_CURVES = 21  # classes that colours and dashes can tell apart
MAX_CELLS = 72  # classes whose counts are legible in a confusion matrix
MAX_NAMES = 400  # classes whose names are legible there; of more, every second or third is named
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
    if args.csv and not args.sounds:
        parser.error("--csv: no new sounds given; name sounds or folders")
    if args.threshold and not args.sounds:
        parser.error("--threshold: no new sounds given; name sounds or folders")
    return args


# ---------------------------------------------------------------- load the test set

def load_test_set(args, info):
    """Load the test sounds that the weights name, or all sounds in --data.

    Returns their utils.Source, a mapping from name to spectrogram, and how many were skipped.
    """
    samples = args.data or args.samples
    preproc = args.data or args.preproc
    source = utils.find_source(samples, preproc, FeatureSettings(**info["features"]))
    check_known_classes(source, args, info)
    names = select_test_sounds(source, args, info)
    spectrograms, n_skipped = utils.read_spectrograms(source, names)
    note_known_sounds(source.folder, spectrograms, info)
    if not spectrograms:
        raise UserError(f"{source.folder}: no test sound of {args.weights} can be read; "
                        "name another labelled folder with --data")
    return source, spectrograms, n_skipped


def check_known_classes(source, args, info):
    """Raise UserError if there are classes that the weights do not know."""
    unknown = sorted(set(map(utils.class_of, source.names)) - set(info["classes"]))
    if not unknown:
        return
    save = args.weights
    if info.get("fold"):
        save = save.with_stem(re.sub(r"-fold\d+$", "", save.stem))
    flags = ["--fresh", "--save", save]
    for flag in ("--groups", "--test", "--folds", "--folds-by"):
        if info.get(flag):
            flags += [flag, info[flag]]
    training = utils.command("train_network.py", *flags, samples=args.samples,
                             preproc=args.preproc, results=args.results)
    remedy = f"to train with them: {training}"
    if args.data:
        remedy = f"rename its folders to classes of the weights: {', '.join(info['classes'])}"
    raise UserError(f"{source.folder}: holds classes that {args.weights} does not know, "
                    f"{', '.join(unknown)}; {remedy}")


def select_test_sounds(source, args, info):
    """Select the sounds to evaluate on, and print notes on them. Returns their names."""
    sounds = set(utils.originals(source.names, source.copies))
    used = {*info["train"], *info["validation"], *(name for name, _ in info["seen"])}
    if args.data:
        return sorted(sounds)
    test = set(info["test"])
    found = test & set(source.names)
    if n_missing := len(test) - len(found):
        say(f"{source.folder}: {n_missing} of {len(test)} test sounds missing")
    if n_new := len(sounds - used - test - set(info["unused"])):
        say(f"{source.folder}: {n_new} sounds are new since training and are not tested; "
            "train_network.py --fresh includes them")
    return sorted(found)


def note_known_sounds(folder, spectrograms, info):
    """Print how many of the sounds to test the training used, by their contents."""
    known = {info["contents"][name] for name in info["train"] + info["validation"]}
    known.update(content for _, content in info["seen"])
    n_known = sum(utils.hash_content(s) in known for s in spectrograms.values())
    if n_known:
        say(f"{folder}: training used {n_known} of these {len(spectrograms)} sounds; the scores on "
            "them say nothing about new ones")


def find_groups(names, info):
    """Find the group of each sound, a string: of test sounds as the split had it, else by name."""
    known = dict(zip(info["test"], info["test_groups"]))
    pattern = re.compile(info["--groups"]) if info.get("--groups") else None
    return [known.get(name) or utils.find_group(name, pattern) for name in names]


# ---------------------------------------------------------------- measure
# y: class indices [shape=(n,)]. probabilities: [shape=(n, n_classes)].

def measure_scores(y, probabilities, raw, info, groups=None):
    """Measure the scores on a test set, as a dict for JSON.

    raw: probabilities not calibrated. groups: the group of each sound, or None if each sound is
    one. The scores of a class without test sounds are NaN and left out of the macro averages.
    """
    from sklearn import metrics
    classes = info["classes"]
    indices = range(len(classes))
    is_right = probabilities.argmax(axis=1) == y
    groups = np.arange(len(y)) if groups is None else groups
    positive = y[:, None] == np.arange(len(classes))  # (n, n_classes)
    top_3 = math.nan
    if len(classes) > 3:
        top_3 = metrics.top_k_accuracy_score(y, probabilities, k=3, labels=indices)
    report = {
        "accuracy": float(is_right.mean()),
        "accuracy_95": compute_interval(is_right, groups),
        "n_groups": len(set(groups)),
        "top_3_accuracy": top_3,
        "micro_auc": metrics.roc_auc_score(positive, probabilities, average="micro"),
        "micro_average_precision": metrics.average_precision_score(
            positive, probabilities, average="micro"),
        **measure_calibration(y, probabilities),
        "uncalibrated": measure_calibration(y, raw),
        "temperature": info["temperature"],
        "classes": classes,
        "support": dict(zip(classes, np.bincount(y, minlength=len(classes)).tolist())),
        "n_test": len(y),
        "n_train": len(info["train"]) + len(info["validation"]),  # sounds and copies
        "n_validation": len(info["validation"]),
    }
    for key, values in measure_classes(y, probabilities).items():
        defined = values[np.isfinite(values)]
        report[f"macro_{key}"] = float(defined.mean()) if len(defined) else math.nan
        report[key] = dict(zip(classes, values.tolist()))
    report["balanced_accuracy"] = report["macro_recall"]
    return report


def measure_classes(y, probabilities):
    """Measure each class against the rest. Returns a dict from score to [shape=(n_classes,)]."""
    from sklearn import metrics
    n_classes = probabilities.shape[1]
    *rows, support = metrics.precision_recall_fscore_support(
        y, probabilities.argmax(axis=1), labels=range(n_classes), zero_division=0)
    precision, recall, f1 = np.where(support > 0, rows, np.nan)
    auc = np.full(n_classes, np.nan)
    average_precision = np.full(n_classes, np.nan)
    for k in np.flatnonzero((support > 0) & (support < len(y))):
        auc[k] = metrics.roc_auc_score(y == k, probabilities[:, k])
        average_precision[k] = metrics.average_precision_score(y == k, probabilities[:, k])
    return {"precision": precision, "recall": recall, "f1": f1, "auc": auc,
            "average_precision": average_precision}


def count_predictions(y, probabilities):
    """Count the predictions of each class. Returns [shape=(n_classes, n_classes)], rows true."""
    from sklearn.metrics import confusion_matrix
    labels = range(probabilities.shape[1])
    return confusion_matrix(y, probabilities.argmax(axis=1), labels=labels)


def compute_interval(is_right, groups):
    """Compute the 95 % interval of the accuracy on new groups. Returns [low, high].

    is_right: bool [shape=(n,)]. groups: the group of each sound. It is Wilson's interval for n /
    inflation independent sounds, with the t quantile of the number of groups. The inflation is how
    many times as much the number of right sounds varies as that of independent sounds would (the
    design effect of Kish 1965, never below 1). One more sound that varies by CORRELATION is
    counted in, for groups that are all right say nothing about it.
    """
    _, groups, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    n = len(is_right)
    n_groups = len(sizes)
    share = np.mean(is_right)
    if n_groups == n:
        return np.stack(wilson_interval(share, n)).tolist()
    deviations = np.bincount(groups, is_right) - share * sizes  # (n_groups,)
    variance = (deviations**2).sum() * n_groups / max(1, n_groups - 1)
    expected = 1 + CORRELATION * ((sizes**2).sum() / n - 1)
    inflation = max(1, (variance + expected) / (n * share * (1 - share) + 1))
    quantile = scipy.stats.t.ppf(0.975, max(1, n_groups - 1))
    return np.stack(wilson_interval(share, n / inflation, quantile)).tolist()


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


def score_thresholds(test):
    """Score the thresholds of the weights on the test sounds, for metrics.json."""
    import models
    is_right = test["probabilities"].argmax(axis=1) == test["y"]
    last = test["info"]["history"][-1]
    scores = {}
    for key in map("threshold_{}".format, models.TARGETS):
        if key in last:
            value = last[key]
            reached = test["probabilities"].max(axis=1) >= value
            accuracy = float(is_right[reached].mean()) if reached.any() else math.nan
            scores[key] = {"threshold": value, "coverage": float(reached.mean()),
                           "accuracy": accuracy}
    return scores


def order_by_confidence(rows, probabilities):
    """Order the indices of some predictions, most confident first."""
    return rows[np.argsort(-probabilities[rows].max(axis=1), kind="stable")]


class Mistake(NamedTuple):
    """A wrong prediction."""

    file: str
    label: str  # its class
    predicted: str
    confidence: float  # the probability of the predicted class
    probability: float  # of the class
    is_doubtful: bool  # whether the label may be wrong


def list_mistakes(test):
    """List the wrong predictions, most confident first. Returns a list of Mistake."""
    y = test["y"]
    probabilities = test["probabilities"]
    classes = test["info"]["classes"]
    predicted = probabilities.argmax(axis=1)
    is_doubtful = find_doubtful(y, probabilities)
    mistakes = []
    for i in order_by_confidence(np.flatnonzero(predicted != y), probabilities):
        row = probabilities[i]
        mistakes.append(Mistake(
            test["names"][i], classes[y[i]], classes[predicted[i]], round(row.max(), 6),
            round(row[y[i]], 6), bool(is_doubtful[i])))
    return mistakes


def find_doubtful(y, probabilities):
    """Find labels that may be wrong, by confident learning (Northcutt, Jiang and Chuang 2021).

    The limit of a class is its mean probability over the sounds with that label. A class is likely
    for a sound if its probability reaches the limit. A label is doubtful if the prediction is wrong
    and the most probable likely class is another one. The network must not have learned from the
    sounds. Returns bool [shape=(n_sounds,)].
    """
    limits = np.full(probabilities.shape[1], np.inf)  # of classes without sounds
    for k in np.unique(y):
        limits[k] = probabilities[y == k, k].mean()
    is_likely = probabilities >= limits
    likeliest = np.where(is_likely, probabilities, -1).argmax(axis=1)
    return is_likely.any(axis=1) & (likeliest != y) & (probabilities.argmax(axis=1) != y)


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


def list_examples(test, mistakes):
    """List the names of the most confident correct predictions, to compare with `mistakes`.

    There are at most N_EXAMPLES of each class of the mistakes, or of all classes if there are no
    mistakes, and at most MAX_CARDS in all.
    """
    y = test["y"]
    classes = test["info"]["classes"]
    wanted = {mistake.label for mistake in mistakes} | {mistake.predicted for mistake in mistakes}
    wanted = wanted or set(classes)
    n = int(np.clip(MAX_CARDS // len(wanted), 1, N_EXAMPLES))
    is_right = test["probabilities"].argmax(axis=1) == y
    examples = []
    for k in np.unique(y):
        if classes[k] in wanted:
            rows = np.flatnonzero((y == k) & is_right)
            rows = order_by_confidence(rows, test["probabilities"])
            examples += [test["names"][i] for i in rows[:n]]
    return examples[:MAX_CARDS]


# ---------------------------------------------------------------- print and save

def format_decimals(value):
    """Format a score with four decimals; NaN as "none"."""
    return "none" if math.isnan(value) else f"{value:.4f}"


def print_report(report, mistakes):
    """Print the scores of each class, the first mistakes, and the overall scores."""
    width = max(len(name) for name in ("Class", *report["classes"]))
    say("", f"{'Class':{width}}  sounds  recall  precision     AUC")
    for name, n in report["support"].items():
        recall, precision, auc = [format_decimals(report[key][name])
                                  for key in ("recall", "precision", "auc")]
        note = "" if n else "  no test sounds: left out of the means"
        say(f"{name:{width}}  {n:6}  {recall:>6}  {precision:>9}  {auc:>6}{note}")
    order = ", most confident first" if mistakes else ""
    say("", f"Mistakes: {len(mistakes)}{order}")
    for mistake in mistakes[:MAX_LISTED]:
        say(f"  {mistake.file}: predicted {mistake.predicted} ({mistake.confidence:.3f})")
    if len(mistakes) > MAX_LISTED:
        say(f"  and {len(mistakes) - MAX_LISTED} more in mistakes.csv")
    if n_doubtful := sum(mistake.is_doubtful for mistake in mistakes):
        say(f"Labels in doubt: {n_doubtful}, marked in mistakes.csv")
    print_thresholds(report)
    print_folds(report)
    low, high = report["accuracy_95"]
    noun = "sound" if report["n_test"] == 1 else "sounds"
    basis = f" over {report['n_groups']} groups" if report["n_groups"] < report["n_test"] else ""
    say("", f"Accuracy {report['accuracy']:.4f} (95 % interval {low:.4f} to {high:.4f}{basis}), "
            f"balanced accuracy {format_decimals(report['balanced_accuracy'])}, "
            f"macro AUC {format_decimals(report['macro_auc'])} on {report['n_test']} {noun}",
        f"Calibration error {report['calibration_error']:.4f}, before calibration "
        f"{report['uncalibrated']['calibration_error']:.4f}")


def print_thresholds(report):
    """Print what each threshold of the weights does to the test sounds, or why there is none."""
    import models
    if report["folds"]:
        return  # each fold has its own
    n = report["n_validation"]
    say("")
    if report["thresholds"]:
        say("Threshold  coverage  accuracy")
    for percent in models.TARGETS:
        if scores := report["thresholds"].get(f"threshold_{percent}"):
            values = map(format_decimals, scores.values())
            origin = f"chosen for {percent} % accuracy on {n} validation sounds"
            say("{:>9}  {:>8}  {:>8}  {}".format(*values, origin))
        else:
            say(f"No threshold for {percent} %: {models.explain_no_threshold(percent, n)}")


def print_folds(report):
    """Print the scores of each fold of cross-validation, their mean and standard deviation."""
    if not report["folds"]:
        return
    keys = "accuracy", "balanced_accuracy", "macro_auc"
    rows = np.array([[fold[key] for key in keys] for fold in report["folds"]], float)
    say("", "Fold      sounds  accuracy  balanced  macro AUC")
    for k, (row, fold) in enumerate(zip(rows, report["folds"]), 1):
        say(f"{k:<8}  {fold['n_test']:6}" + "  {:>8}  {:>8}  {:>9}".format(
            *map(format_decimals, row)))
    with warnings.catch_warnings(action="ignore"):  # of no fold at all
        summary = {"mean": np.nanmean(rows, axis=0), "std": np.nanstd(rows, axis=0, ddof=1)}
    for name, row in summary.items():
        say(f"{name:16}" + "  {:>8}  {:>8}  {:>9}".format(*map(format_decimals, row)))
    if n_none := int(np.isnan(rows).any(axis=1).sum()):
        say(f"Folds without a macro AUC, for they test one class only: {n_none}. They do not count "
            "in its mean and std")


def score_rows(names, y, probabilities, classes):
    """Yield the rows of scores.csv, one at a time: together they may exceed the memory."""
    yield ["file", "class", "predicted", *classes]
    for name, k, row in zip(names, y, probabilities):
        yield [name, classes[k], classes[row.argmax()], *(f"{p:.6f}" for p in row)]


# ---------------------------------------------------------------- plot

def escape_math(name):
    """Escape a name for Matplotlib, where $ begins a formula."""
    return shown(name).replace("$", r"\$")


def round_score(value, n):
    """Format a score of n sounds in as many digits as n supports: 2 for 3 sounds, 4 from 1000."""
    n_digits = int(np.clip(math.ceil(math.log10(n + 1)), 2, 4))
    return "none" if math.isnan(value) else f"{value:.{n_digits}f}"


def trace_curves(y, probabilities, trace):
    """Trace a curve for each class, by its index, and the micro average. Returns a dict of them."""
    positive = y[:, None] == np.arange(probabilities.shape[1])  # (n, n_classes)
    curves = {}
    for k in np.flatnonzero(positive.any(axis=0) & ~positive.all(axis=0)):
        curves[k] = trace(positive[:, k], probabilities[:, k])[:2]
    curves["micro"] = trace(positive.ravel(), probabilities.ravel())[:2]
    return curves


def plot_roc(path, y, probabilities, report):
    """Draw the ROC curves of the classes and their averages, on a linear and a log axis."""
    from sklearn.metrics import roc_curve
    curves = trace_curves(y, probabilities, roc_curve)  # false and true positive rates
    macro = average_curves([curves[k] for k in curves if k != "micro"] or [curves["micro"]])
    n_test = report["n_test"]
    auc = round_score(report["macro_auc"], n_test)
    with utils.new_figure(path, 12.5, 5) as figure:
        panels = figure.subplots(1, 2)
        for panel in panels:
            draw_curves(panel, curves, report, "auc")
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


def plot_precision_recall(path, y, probabilities, report):
    """Draw the precision-recall curves of the classes and their micro average."""
    from sklearn.metrics import precision_recall_curve
    curves = trace_curves(y, probabilities, partial(precision_recall_curve, drop_intermediate=True))
    curves = {k: (recall, precision) for k, (precision, recall) in curves.items()}
    mean = round_score(report["macro_average_precision"], report["n_test"])
    with utils.new_figure(path, 8, 5) as figure:
        panel = figure.subplots()
        draw_curves(panel, curves, report, "average_precision", drawstyle="steps-post")
        panel.set(xlabel="Recall", ylabel="Precision",
                  title=f"{report['n_test']} test sounds, mean average precision {mean}")
        figure.legend(title="AP  class (sounds)", loc="outside right upper", fontsize=8)


def draw_curves(panel, curves, report, key, **style):
    """Draw curves with the scores report[key]. If there are many, only the worst are coloured."""
    classes = report["classes"]
    scores = {k: report[key][classes[k]] for k in curves if k != "micro"}
    worst = sorted(sorted(scores, key=scores.get)[:MAX_CURVES])
    others = [k for k in scores if k not in worst]
    for k in others:
        panel.plot(*curves[k], color="0.85", lw=0.7, **style)
    if others:
        lowest = round_score(min(scores[k] for k in others), report["n_test"])
        panel.lines[0].set_label(f"{len(others)} others, at least {lowest}")
    for i, k in enumerate(worst):
        n = report["support"][classes[k]]
        panel.plot(*curves[k], color=COLORS[i % 7], ls=DASHES[i // 7], lw=1.4,
                   label=f"{round_score(scores[k], n)}  {escape_math(classes[k])} ({n})", **style)
    micro = round_score(report[f"micro_{key}"], report["n_test"])
    panel.plot(*curves["micro"], color="0.5", lw=2.5, ls=":", label=f"{micro}  micro average",
               **style)
    panel.set(ylim=(-0.02, 1.02))
    panel.grid(color="0.92")


def plot_confusion(path, y, probabilities, report):
    """Draw the confusion matrix: a row for each class, with counts and shares of the class."""
    n = len(report["classes"])
    counts = count_predictions(y, probabilities)
    totals = counts.sum(axis=1, keepdims=True)
    shares = counts / np.maximum(1, totals)
    names = [escape_math(name) for name in report["classes"]]
    with utils.new_figure(path, min(41, 4 + 0.5 * n), min(40, 3 + 0.5 * n)) as figure:  # inches
        axes = figure.subplots()
        # imshow would take ten times as much memory.
        image = axes.pcolormesh(range(n), range(n), shares, cmap="Blues", vmin=0, vmax=1,
                                rasterized=True)
        axes.set_aspect("equal")
        axes.invert_yaxis()
        figure.colorbar(image, cax=axes.inset_axes((1.03, 0, 0.04, 1)), label="Share of the class")
        if n <= MAX_CELLS:
            label_cells(axes, counts, shares)
        step = math.ceil(n / MAX_NAMES)
        axes.set_xticks(range(0, n, step), names[::step], rotation="vertical")
        for k in np.flatnonzero(totals == 0):
            axes.axhspan(k - 0.5, k + 0.5, facecolor="none", edgecolor="0.8", hatch="///", lw=0)
            names[k] += " (no test sounds)"
        axes.set_yticks(range(0, n, step), names[::step])
        axes.tick_params(labelsize=min(10, 2000 * step / n))
        axes.set(title=f"{np.trace(counts)} of {len(y)} right", xlabel="Predicted",
                 ylabel="True class")


def label_cells(axes, counts, shares):
    """Write the counts and shares into a confusion matrix."""
    for row, column in np.argwhere(counts):
        share = shares[row, column]
        axes.text(column, row, f"{counts[row, column]}\n{share:.0%}", ha="center", va="center",
                  fontsize=7, color="white" if share > 0.5 else "black")


def plot_reliability(path, y, probabilities, raw, report):
    """Draw how often predictions are right at each confidence, before and after calibration.

    Few sounds get few bins. A deviation within a point's interval may be chance. The intervals
    take the sounds as independent: a bin holds too few of a group to measure more.
    """
    n_bins = int(np.clip(len(y) // 20, 3, N_BINS))
    with utils.new_figure(path, 6, 6) as figure:
        above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
        above.plot([0, 1], [0, 1], color="0.8", label="perfect calibration")
        for name, p, scores, color in (("before", raw, report["uncalibrated"], COLORS[1]),
                                       ("after", probabilities, report, COLORS[0])):
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


def plot_coverage(path, y, probabilities, report):
    """Draw how many sounds reach each threshold, and the accuracy on them."""
    import models
    thresholds, coverage, accuracy = models.measure_coverage(y, probabilities)
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
        for (key, scores), dashes in zip(report["thresholds"].items(), ("--", ":")):
            origin = f"chosen for {key[-2:]} % accuracy on validation sounds"
            panel.axvline(scores["threshold"], color="0.4", ls=dashes,
                          label=f"{scores['threshold']:.4f}: {origin}")
        panel.set_xscale("logit")
        panel.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        panel.set_xticks([], minor=True)
        panel.set(xlabel="Threshold: the least confidence", xlim=(ticks[0], ticks[-1]),
                  ylim=(-0.02, 1.02), title=f"Coverage and accuracy, {len(y)} test sounds")
        panel.grid(color="0.92")
        panel.legend(fontsize=8)


def find_loudest(image):
    """Find the level of the brightest colour in a picture of decibels. Silence stays dark."""
    return max(image.max(), 10 * math.log10(AMIN) + TOP_DB)


# ---------------------------------------------------------------- the page

def save_page(args, folder, test, report, mistakes):
    """Write report.html: the scores, and the mistakes with spectrograms and players."""
    classes = report["classes"]
    counts = count_predictions(test["y"], test["probabilities"])
    chosen = choose_mistakes(mistakes)
    names = [mistake.file for mistake in chosen] + list_examples(test, chosen)
    samples = args.data or args.samples
    settings = test["source"].settings
    seconds = choose_seconds(len(names), settings)
    embed = partial(embed_sound, folder=samples, settings=settings, seconds=seconds)
    sounds, _ = utils.map_files(embed, names, "Writing the page", folder=samples)
    cards = [describe_sound(name, test) | {"audio": sounds.get(name)} for name in names]
    page = fill_template(
        "report_template.html", report=report, samples=samples, max_seconds=seconds,
        classes=[shown(name) for name in classes],
        matrix=counts.tolist() if len(classes) <= MAX_CELLS else [],
        mistakes=[card | describe_mistake(row, classes) for card, row in zip(cards, chosen)],
        pairs={(mistake.label, mistake.predicted) for mistake in chosen},
        examples=cards[len(chosen):], n_mistakes=len(mistakes),
        nyquist=report["features"]["sample_rate"] // 2,
        plots={f"{name}.{args.format}": embed_picture(folder / f"{name}.{args.format}")
               for name in PLOTS})
    utils.save_text(folder / "report.html", page)


def fill_template(name, **values):
    """Fill in a Jinja template beside this script. Values are escaped: names cannot run code."""
    import jinja2
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True,
        lstrip_blocks=True, undefined=jinja2.StrictUndefined)
    return environment.get_template(name).render(values)


def describe_sound(name, test):
    """Describe a test sound for the page: its class, its length and its picture."""
    source = test["source"]
    spectrogram = source.read(name, folder=source.folder, settings=source.settings)
    return {"file": shown(name), "label": test["info"]["classes"].index(utils.class_of(name)),
            "seconds": utils.count_seconds(spectrogram, source.settings),
            "image": embed_spectrogram(spectrogram)}


def describe_mistake(mistake, classes):
    """Describe the prediction of a Mistake for the page."""
    return {"predicted": classes.index(mistake.predicted), "confidence": mistake.confidence,
            "is_doubtful": mistake.is_doubtful}


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


def choose_seconds(n_sounds, settings):
    """Choose how many seconds of each sound fit into the page."""
    bytes_per_second = embedded_rate(settings) * min(settings.channels, 2) * MP3_BITS / 8 * 4 / 3
    seconds = MAX_SOUND_BYTES / (n_sounds * bytes_per_second)  # 4 / 3: of base64
    return min(MAX_SECONDS, math.floor(10 * seconds) / 10)


def embedded_rate(settings):
    """The rate in Hz of the sounds on the page: the least of MP3 that keeps what is heard."""
    return min((rate for rate in MP3_RATES if rate >= settings.sample_rate), default=MP3_RATES[-1])


def embed_sound(name, folder, settings, seconds):
    """Make a data URI of the beginning of a sound as the network hears it. Raises UserError."""
    playable = dataclasses.replace(settings, sample_rate=embedded_rate(settings),
                                   channels=min(settings.channels, 2))
    blocks = utils.convert_blocks(utils.read_blocks(Path(folder, name)), settings)
    blocks = utils.convert_blocks(((y.T, settings.sample_rate) for y in blocks), playable)
    n = math.ceil(seconds * playable.sample_rate)
    parts = []
    for y in blocks:  # (channels, n_samples)
        parts.append(y)
        if sum(part.shape[1] for part in parts) >= n:
            break
    y = np.concatenate(parts, axis=1)[:, :n].T
    with utils.reading(Path(folder, name)):  # MP3 cannot be empty
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


def print_predictions(paths, predictions, classes, threshold=0, csv=None):
    """Print a line for each sound: path, class, confidence, second class, its probability.

    predictions: (path, probabilities [shape=(n_classes,)]) pairs. threshold: the confidence below
    which the class is unknown. csv: path of a table, or None. Returns the predicted names.
    """
    import models
    path_width = max((len(str(path)) for path in paths), default=0)
    names = [*classes, models.UNKNOWN]  # of the indices of the classes, and of -1
    class_width = max(map(len, classes))
    rows = [["file", "predicted", *classes]]
    try:
        for path, probabilities in predictions:
            predicted = models.choose_classes(probabilities, threshold)
            first, second = np.argsort(-probabilities)[:2]
            note = f"  {models.UNKNOWN}" if predicted < 0 else ""
            say(f"{path!s:{path_width}}  {classes[first]:{class_width}} {probabilities[first]:.4f}"
                f"  {classes[second]:{class_width}} {probabilities[second]:.4f}{note}")
            rows.append([path, names[predicted], *(f"{p:.6f}" for p in probabilities)])
    finally:  # after Ctrl-C too
        if csv:
            utils.save_csv(csv, rows)
    return [row[1] for row in rows[1:]]


def print_counts(predicted, threshold):
    """Print how many sounds are predicted to be of each class. predicted: a name for each sound."""
    counts = ", ".join(f"{name} ({n})" for name, n in Counter(predicted).most_common())
    note = f" at threshold {threshold:g}" if threshold else ""
    say("", f"Predicted for {len(predicted)} sounds{note}: {counts}")


def flatten_path(path):
    """Join the parts of a path into one name ("a/b.wav" -> "a_b.wav")."""
    parts = [part for part in path.parts if part != path.anchor and part.strip(".")]
    return "_".join(parts) or Path(os.path.abspath(path)).name or "root"


# ---------------------------------------------------------------- the command

def describe_run(args, info, backend):
    """Describe the network, the data and the package versions, for metrics.json."""
    packages = "keras", backend, "numpy", "sklearn", "soxr"
    versions = {name: sys.modules[name].__version__ for name in packages}
    training = {key: info.get(key) for key in ("features", "network", "hyperparameters", "seed")}
    return training | {"versions": {"python": platform.python_version(), **versions},
                       "data": str(args.data or args.samples)}


def classify(args):
    """Classify the new sounds of the command line. Returns how many were skipped."""
    utils.check_weights_path(args.weights)
    import models  # loads Keras
    paths, errors = list_sounds(args.sounds)
    network, info = models.load_network(args.weights)
    sounds = read_sounds(paths, FeatureSettings(**info["features"]), errors)
    predictions = models.predict_sounds(network, sounds, info["temperature"])
    threshold = models.find_threshold(args.threshold, info)
    predicted = print_predictions(paths, predictions, info["classes"], threshold, args.csv)
    if len(predicted) > 1:
        print_counts(predicted, threshold)
    return utils.name_skipped(errors)


def list_weights(args):
    """List the weights to evaluate: one file, or one for each fold. Raises UserError."""
    if not args.folds:
        utils.check_weights_path(args.weights)
        return [args.weights]
    first = utils.fold_path(args.weights, 1)
    utils.check_weights_path(first)
    import models
    _, n_folds = models.load_info(first).get("fold") or (1, 1)
    paths = [utils.fold_path(args.weights, k) for k in range(1, n_folds + 1)]
    check_folds(paths, [models.load_info(path) for path in paths])
    return paths


def check_folds(paths, infos):
    """Raise UserError unless the weights are the folds of one cross-validation, in order."""
    tested = set()
    for k, (path, info) in enumerate(zip(paths, infos), 1):
        is_same = all(info.get(key) == infos[0].get(key) for key in FOLD_KEYS)
        has_same_sounds = list_known(info) == list_known(infos[0])
        is_fold = info.get("fold") == [k, len(paths)] and tested.isdisjoint(info["test"])
        if not (is_same and has_same_sounds and is_fold):
            raise UserError(f"{path}: is not fold {k} of one cross-validation; train again with "
                            "--folds and --fresh")
        tested.update(info["test"])


def list_known(info):
    """List the names of all sounds that a training run split, as a set."""
    return {name for subset in (*utils.SUBSETS, "unused") for name in info[subset]}


def score_test_set(weights, args):
    """Score the test sounds of a network.

    Returns a dict: info, the source of the spectrograms, names, groups, y [shape=(n_sounds,)], the
    probabilities [shape=(n_sounds, n_classes)], the same before calibration ("raw"), and how many
    sounds were skipped.
    """
    import models
    args = copy.copy(args)
    args.weights = weights  # which messages name
    network, info = models.load_network(weights)
    source, spectrograms, n_skipped = load_test_set(args, info)
    names = list(spectrograms)
    y = models.class_indices(names, info["classes"])
    predictions = models.predict_sounds(network, spectrograms.items())
    predictions = utils.show_progress(predictions, len(names), "Scoring")
    raw = np.stack([row for _, row in predictions])  # (n_sounds, n_classes)
    probabilities = models.apply_temperature(raw, info["temperature"])
    return {"info": info, "source": source, "names": names, "groups": find_groups(names, info),
            "y": y, "raw": raw, "probabilities": probabilities, "n_skipped": n_skipped}


def pool_folds(folds):
    """Join the scored test sets of all folds into one, a dict like each of them."""
    pooled = {key: np.concatenate([fold[key] for fold in folds])
              for key in ("y", "raw", "probabilities")}
    temperature = float(np.mean([fold["info"]["temperature"] for fold in folds]))
    return pooled | {"info": folds[0]["info"] | {"temperature": temperature},
                     "names": [name for fold in folds for name in fold["names"]],
                     "groups": [group for fold in folds for group in fold["groups"]],
                     "source": folds[0]["source"],
                     "n_skipped": sum(fold["n_skipped"] for fold in folds)}


def score_folds(tests):
    """Measure the scores of each fold, for metrics.json."""
    keys = ("accuracy", "balanced_accuracy", "macro_auc", "n_test", "n_train", "n_validation",
            "temperature")
    reports = [measure_scores(test["y"], test["probabilities"], test["raw"], test["info"])
               for test in tests]
    return [{key: report[key] for key in keys} for report in reports]


def evaluate(args):
    """Score the test sounds, and write the results. Returns how many sounds were skipped."""
    folder = args.results / flatten_path(args.data) if args.data else args.results
    paths = list_weights(args)
    with utils.lock_for_reading(args.data or args.preproc):
        tests = [score_test_set(path, args) for path in paths]
        test = pool_folds(tests) if args.folds else tests[0]
        report = make_report(args, test, tests)
        mistakes = list_mistakes(test)
        print_report(report, mistakes)
        save_results(args, folder, test, report, mistakes)
    return test["n_skipped"]


def make_report(args, test, tests):
    """Make the content of metrics.json. test: the test set, pooled from `tests` with --folds."""
    import models
    report = measure_scores(test["y"], test["probabilities"], test["raw"], test["info"],
                            test["groups"])
    report |= describe_run(args, test["info"], models.keras.backend.backend())
    if args.folds:
        del report["n_train"], report["n_validation"]  # each fold has its own
        return report | {"thresholds": {}, "folds": score_folds(tests)}
    return report | {"thresholds": score_thresholds(test), "folds": []}


def save_results(args, folder, test, report, mistakes):
    """Write the scores of a test set as tables, pictures and a page."""
    y = test["y"]
    probabilities = test["probabilities"]
    rows = score_rows(test["names"], y, probabilities, report["classes"])
    utils.save_json(folder / "metrics.json", report)
    utils.save_csv(folder / "scores.csv", rows)
    columns = ["file", "class", "predicted", "probability", "probability_of_class",
               "label_in_doubt"]
    marked = [[*mistake[:-1], "yes" if mistake.is_doubtful else "no"] for mistake in mistakes]
    utils.save_csv(folder / "mistakes.csv", [columns, *marked])
    plot_roc(folder / f"roc_curves.{args.format}", y, probabilities, report)
    plot_precision_recall(folder / f"precision_recall.{args.format}", y, probabilities, report)
    plot_confusion(folder / f"confusion_matrix.{args.format}", y, probabilities, report)
    plot_reliability(folder / f"reliability.{args.format}", y, probabilities, test["raw"], report)
    plot_coverage(folder / f"coverage.{args.format}", y, probabilities, report)
    save_page(args, folder, test, report, mistakes)
    say(f"Wrote {folder}: metrics.json, scores.csv, mistakes.csv and the .{args.format} pictures",
        f"To see and hear the mistakes, open {folder / 'report.html'} in a browser")


def main():
    """Classify new sounds, or evaluate on the test set. Returns how many were skipped."""
    args = parse_args()
    return classify(args) if args.sounds else evaluate(args)


if __name__ == "__main__":
    utils.run(main)
