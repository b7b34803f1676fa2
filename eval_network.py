"""Score the trained network on the sounds that training never saw.

Reads the weights, and the test sounds from Preproc/ or Samples/. Writes to Results/: roc_curves.png,
confusion_matrix.png, scores.csv (a line a sound) and metrics.json.

    python eval_network.py
"""
import math
from collections import Counter

import numpy as np

import utils
from preprocess_data import FeatureSettings
from train_network import SIDES, find_source, read_spectrograms
from utils import UserError

MOST_LINES = 40  # of the table of classes
RESULTS = "roc_curves.png", "confusion_matrix.png", "scores.csv", "metrics.json"


def parse_args():
    return utils.Parser(__doc__, places=("samples", "preproc", "results", "weights")).parse_args()


def read_test_sounds(args, info):
    """The spectrograms of the test sounds that the weights name, computed as in training, and how many are bad.

    Raises UserError where the classes are not those of the weights, or no test sound is left.
    """
    source = find_source(args.samples, args.preproc, FeatureSettings(**info["features"]))
    if source.classes != info["classes"]:
        raise UserError(f"{args.weights}: expected weights for the classes in {source.folder}/, "
                        f"{', '.join(source.classes)}; found weights for {', '.join(info['classes'])}")
    names = sorted(set(source.names) & set(info["test"]))
    if len(names) < len(info["test"]):
        print(f"{source.folder}: {len(info['test']) - len(names)} of {len(info['test'])} test sounds are not there")
    spectrograms, n_bad = read_spectrograms(source, names)
    if not spectrograms:
        raise UserError(f"{source.folder}: expected the test sounds of {args.weights}, found none that can be read")
    return spectrograms, n_bad


# ---------------------------------------------------------------- numbers

def measure(y, scores, info):
    """The metrics of class indices y [shape=(n,)] and probabilities [shape=(n, n_classes)], as a dict for JSON."""
    from sklearn import metrics
    guesses, classes = scores.argmax(axis=1), info["classes"]
    auc = {c: float(metrics.roc_auc_score(y == k, scores[:, k])) if 0 < (y == k).sum() < len(y) else None
           for k, c in enumerate(classes)}  # one side alone has no curve
    known = [value for value in auc.values() if value is not None]
    return {
        "accuracy": metrics.accuracy_score(y, guesses),
        "balanced_accuracy": metrics.recall_score(y, guesses, labels=np.unique(y), average="macro"),
        "macro_auc": float(np.mean(known)) if known else None,
        "auc": auc,
        "n_test": len(y),
        "n_train": len(info["train"]) + len(info["validation"]),  # sounds and copies that training used
        "n_validation": len(info["validation"]),  # those of them that chose the weights
        "classes": classes,
        "features": info["features"], "network": info["network"], "seed": info["seed"],
    }


def validate(network, spectrograms, info):
    """Loss, its standard error, and accuracy on the validation sounds, scored as in evaluation."""
    import models
    if not info["validation"]:
        return {}
    scores = models.predict(network, (spectrograms[name] for name in info["validation"]))
    truth = models.one_hot(info["validation"], info["classes"]).astype(bool)  # (n_sounds, n_classes)
    losses = -np.log(np.maximum(scores[truth], 1e-7))
    return {"val_loss": losses.mean(), "val_accuracy": (scores.argmax(axis=1) == truth.argmax(axis=1)).mean(),
            "val_error": losses.std() / math.sqrt(len(losses))}


def write_scores(path, names, y, scores, classes):
    """A line a sound: name, class, guess, and the probability of each class."""
    rows = ([name, classes[k], classes[row.argmax()], *(f"{p:.6f}" for p in row)]
            for name, k, row in zip(names, y, scores))
    utils.save_csv(path, [["file", "class", "guess", *classes], *rows])


# ---------------------------------------------------------------- pictures

def new_figure(width, height):
    """A figure that needs no display."""
    from matplotlib.figure import Figure
    return Figure(figsize=(width, height), layout="constrained")


def save_figure(figure, path):
    with utils.whole_file(path) as temporary:
        figure.savefig(temporary, dpi=120)


def plain(name):
    """A class name as Matplotlib shows it to the letter: $ would begin a formula."""
    return name.replace("$", r"\$")


def plot_roc(path, y, scores, report):
    """ROC curves of each class against the rest, whole and near the corner where good ones differ."""
    from matplotlib import colormaps
    from sklearn.metrics import roc_curve
    n_columns = 1 + len(report["classes"]) // 25  # of the legend
    figure = new_figure(9 + 2 * n_columns, 5.2)
    axes = figure.subplots(1, 2)
    for k, (name, auc) in enumerate(report["auc"].items()):
        if auc is None:
            continue
        false_positives, true_positives, _ = roc_curve(y == k, scores[:, k], drop_intermediate=False)
        style = dict(color=colormaps["turbo"]((k + 0.5) / len(report["classes"])), lw=1.5,
                     ls=("-", "--", "-.", ":")[k % 4])  # not by colour alone
        for panel in axes:
            panel.plot(false_positives, true_positives, label=f"{auc:.4f}  {plain(name)}", **style)
    axes[0].plot([0, 1], [0, 1], color="0.7", lw=1, label="0.5  chance")
    axes[0].set(title=f"ROC, {report['n_test']} test sounds, macro AUC {text_of(report['macro_auc'])}")
    axes[1].set(title="The same near the corner", xlim=(-0.002, 0.1), ylim=(0.9, 1.002))
    for panel in axes:
        panel.set(xlabel="False positive rate", ylabel="True positive rate")
        panel.grid(color="0.92")
    figure.legend(*axes[0].get_legend_handles_labels(), title="AUC  class", loc="outside right upper",
                  fontsize=8, ncols=n_columns)
    save_figure(figure, path)


def plot_confusion(path, y, scores, classes):
    """The confusion matrix: a row a true class, shaded by its share and labelled with counts."""
    from sklearn.metrics import ConfusionMatrixDisplay, confusion_matrix
    counts = confusion_matrix(y, scores.argmax(axis=1), labels=range(len(classes)))
    size = min(40, 2.5 + 0.42 * len(classes))  # inches
    figure = new_figure(size + 1, size)
    axes = figure.subplots()
    shares = counts / np.maximum(1, counts.sum(axis=1, keepdims=True))
    display = ConfusionMatrixDisplay(shares, display_labels=[plain(name) for name in classes])
    display.plot(ax=axes, cmap="Blues", xticks_rotation="vertical", include_values=False, im_kw=dict(vmin=0, vmax=1))
    for (row, column), count in np.ndenumerate(counts):
        if count:
            axes.text(column, row, count, ha="center", va="center", fontsize=8,
                      color="white" if shares[row, column] > 0.5 else "black")
    display.im_.colorbar.set_label("share of the true class")
    axes.set(title=f"{np.trace(counts)} of {counts.sum()} right", xlabel="Guess", ylabel="True class")
    save_figure(figure, path)


# ---------------------------------------------------------------- what training says and draws

def describe(info, n_weights, device):
    """Print the classes with their sounds on each side, and what is trained on what."""
    sides = [Counter(map(utils.class_of, info[side])) for side in SIDES]
    rows = [(name, *(side[name] for side in sides)) for name in info["classes"]]
    rows = [("Class", *SIDES), *rows[:MOST_LINES], *[("...",)] * (len(rows) > MOST_LINES),
            ("all", *(side.total() for side in sides))]
    width = max(len(row[0]) for row in rows)
    for name, *counts in rows:
        print(f"{name:{width}}" + "".join(f"{n:>12}" for n in counts))
    seconds = info["n_frames"] * info["features"]["hop_length"] / info["features"]["sample_rate"]
    print(f"Network: {info['network']}, {n_weights} weights, window {info['n_frames']} frames ({seconds:.2f} s), "
          f"{device}")
    print("Recipe: " + ", ".join(f"{key} {value}" for key, value in info["recipe"].items()), flush=True)


def scores_of(row):
    keys = [key for key in ("loss", "accuracy", "val_loss", "val_accuracy") if key in row]
    return "  ".join(f"{key.replace('val_', 'validation ')} {row[key]:.4f}" for key in keys)


def plot_curves(path, history, kept):
    """Loss and accuracy of training and validation in each epoch, and which epoch is kept."""
    figure = new_figure(10, 4)
    epochs = [row["epoch"] for row in history]
    for panel, key in zip(figure.subplots(1, 2), ("loss", "accuracy")):
        panel.plot(epochs, [row[key] for row in history], color="C0", ls="--", label="training, on varied windows")
        if f"val_{key}" in history[0]:
            panel.plot(epochs, [row[f"val_{key}"] for row in history], color="C1", label="validation")
        panel.axvline(kept, color="0.6", lw=1, label=f"kept: epoch {kept}")
        panel.set(xlabel="Epoch", ylabel=key.capitalize())
        panel.grid(color="0.92")
        panel.legend(fontsize=8)
    save_figure(figure, path)


# ---------------------------------------------------------------- the command

def text_of(value):
    """A score as text; none where it is not defined."""
    return "none" if value is None else f"{value:.4f}"


def tell(report, names, y, scores):
    """Print what the numbers say: each class's AUC, and the mistakes by name, the surest first."""
    classes, guesses = report["classes"], scores.argmax(axis=1)
    width = max(map(len, classes))
    print(f"\n{'Class':{width}}  sounds  right     AUC")
    for k, name in enumerate(classes):
        mine = y == k
        print(f"{name:{width}}  {mine.sum():6}  {(guesses[mine] == k).sum():5}  {text_of(report['auc'][name]):>6}"
              + ("" if mine.any() else "  no test sound: counts in no mean"))
    wrong = [i for i in np.argsort(-scores.max(axis=1)) if guesses[i] != y[i]]
    print(f"\nMistakes: {len(wrong)}" + (", the surest first" if wrong else ""))
    for i in wrong[:20]:
        print(f"  {names[i]}: taken for {classes[guesses[i]]} ({scores[i].max():.3f})")
    if len(wrong) > 20:
        print(f"  and {len(wrong) - 20} more in scores.csv")
    print(f"\nAccuracy {text_of(report['accuracy'])}, balanced accuracy {text_of(report['balanced_accuracy'])}, "
          f"macro AUC {text_of(report['macro_auc'])} on {report['n_test']} sounds that training never saw")


def main():
    args = parse_args()
    import models
    network, info = models.load(args.weights)
    spectrograms, n_bad = read_test_sounds(args, info)
    names, classes = list(spectrograms), info["classes"]
    scores = models.predict(network, (spectrograms[name] for name in names))  # (n_test, n_classes)
    y = models.one_hot(names, classes).argmax(axis=1)  # (n_test,)
    report = measure(y, scores, info)
    tell(report, names, y, scores)
    roc, confusion, table, numbers = written = [args.results / name for name in RESULTS]
    utils.save_json(numbers, report)
    write_scores(table, names, y, scores, classes)
    plot_roc(roc, y, scores, report)
    plot_confusion(confusion, y, scores, classes)
    print("Wrote " + ", ".join(map(str, written)))
    return n_bad


if __name__ == "__main__":
    utils.run(main)
