"""Train a network to tell the classes of sounds apart.

Reads Preproc/, or where that is empty Samples/. Writes the weights, with all that is needed to use them, and to
Results/: training_log.csv and training_curves.png. One sound in five of each class is kept for eval_network.py and
never looked at. Stopped at any moment, the same command goes on from the last epoch.

    python train_network.py
"""
import contextlib
import dataclasses
import hashlib
import math
import os
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

import preprocess_data
import utils
from preprocess_data import FeatureSettings, load_settings, load_spectrogram, sound_to_spectrogram
from utils import UserError, class_of, say, source_of

TEST_SHARE, VALIDATION_SHARE = 0.2, 0.15  # the latter of the sounds that are not for testing
SIDES = "train", "validation", "test"
LOG, CURVES = "training_log.csv", "training_curves.png"


# ---------------------------------------------------------------- where spectrograms come from: Preproc/ or Samples/

class Source(NamedTuple):
    folder: Path  # Preproc/, or Samples/
    names: list  # of the sounds there, sorted
    classes: list  # names of the class folders, sorted
    settings: FeatureSettings
    read: Callable  # (name, folder, settings) -> spectrogram
    lock: contextlib.ExitStack  # while it is open, preprocessing waits


def find_source(samples, preproc, settings=None):
    """`preproc`, or where it is empty, or made with other than the given settings, `samples`. Raises UserError."""
    lock = contextlib.ExitStack()
    waiting = f"{preproc}: preprocessing is at work there; waiting for its end"
    lock.enter_context(utils.alone_in(preproc, waiting, shared=True))
    kept = load_settings(preproc)
    if kept is not None and settings in (None, kept):
        names = utils.list_spectrograms(preproc)
        return Source(preproc, names, utils.list_classes(preproc), kept, load_spectrogram, lock)
    if kept is not None and samples == preproc:
        raise UserError(f"{preproc}: expected spectrograms made with {settings}, found {kept}")
    if kept is not None:
        say(f"{preproc}: made with other settings than the weights; reading {samples} instead")
    names, _ = utils.find_sounds(samples)
    settings = settings or preprocess_data.default_settings(preprocess_data.rate_of_most(samples, names))
    return Source(samples, names, utils.list_classes(samples), settings, sound_to_spectrogram, lock)


class Streamed(dict):
    """Spectrograms by name that do not fit into memory together: each is read by read(name) when it is asked for."""

    def __init__(self, names, read, lock):
        super().__init__(names)
        self.read, self.lock = read, lock

    def __getitem__(self, name):
        return self.read(name)


def half_of_memory():
    """Half of the memory that this process may use, in bytes."""
    limit = 2**33  # where it cannot be known
    with contextlib.suppress(AttributeError, ValueError, OSError):  # Windows
        limit = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        limit = min(limit, int(Path("/sys/fs/cgroup/memory.max").read_text()))  # a container's
    return limit // 2


def read_spectrograms(source, names, memory=None):
    """Read or compute the spectrograms of `names`. [shape=(n_mels, n_frames), float32, dB]

    Returns a mapping from name to spectrogram in the order of names, and how many could not be read. Where the files
    hold more than `memory` bytes, each is read once now to find the bad ones, and again whenever it is asked for.
    """
    read = partial(source.read, folder=source.folder, settings=source.settings)
    files = [f"{source.folder}/{name}.npy" for name in names if source.read is load_spectrogram]
    n_bytes = sum(map(os.path.getsize, filter(os.path.isfile, files)))
    held = n_bytes <= (memory or half_of_memory())
    found, errors = utils.for_each(read if held else lambda name: read(name).shape, names, f"Reading {source.folder}",
                                   source.folder, jobs=0 if files else None)
    if held:
        source.lock.close()
    say(f"{source.folder}: {len(found)} spectrograms, {source.settings}"
        + ("" if held else f"; {n_bytes / 1e9:.1f} GB do not fit into memory and are read anew each epoch"))
    return found if held else Streamed(found, read, source.lock), utils.name_skipped(errors)


# ---------------------------------------------------------------- the split

def group_of(name, groups=None):
    """What must stay on one side of a split: the matched part of the file's name, else the sound's source."""
    match = groups and groups.search(source_of(name).rsplit("/", 1)[1])
    return match.group() if match else source_of(name)


def hold_out(names, share, seed, groups=None):
    """Choose about `share` of each class, whole groups of sounds, in an order that only their names decide.

    An order by hash, not by shuffle: a sound that is added moves few others. A group is taken if that brings the
    classes nearer to their shares on the whole, and leaves each an original. Returns the names, copies included.
    """
    members = {}
    for name in names:
        members.setdefault(group_of(name, groups), []).append(name)
    left = Counter(map(class_of, originals(names)))
    room = {c: min(max(1, round(share * n)), n - 1) for c, n in left.items()}  # wanted and not yet held out
    held_out, spare = set(), []
    for group in sorted(members, key=lambda group: hashlib.sha256(os.fsencode(f"{seed}/{group}")).digest()):
        counts = Counter(map(class_of, originals(members[group])))
        if not counts or any(n >= left[c] for c, n in counts.items()):
            continue
        if sum(abs(room[c]) - abs(room[c] - n) for c, n in counts.items()) > 0:
            held_out.update(members[group])
            room.update({c: room[c] - n for c, n in counts.items()})
            left.subtract(counts)
        else:
            spare.append(group)
    return held_out or set(members[spare[0]] if spare else ())  # of few large groups one is too much, none too little


def split(names, seed, test=None, groups=None):
    """Split sounds into training, validation and test: 68, 12 and 20 in 100 of each class.

    test: regular expression; the sounds whose name it matches are the test set instead.
    groups: regular expression; sounds that share the part of their file's name that it matches, such as a
    speaker, stay on one side, as a sound and its copies always do.
    Returns three sorted lists of names, copies of sounds in the last two left out: only training uses them.
    Raises UserError for a `test` that matches nothing, or that leaves a class without a training sound.
    """
    if groups and all(group_of(name, groups) == source_of(name) for name in names):
        raise UserError(f"--groups {groups.pattern}: expected to match file names, found none such as {names[0]}")
    if groups and (lonely := [c for c, n in Counter(c for c, _ in {
            (class_of(name), group_of(name, groups)) for name in originals(names)}).items() if n < 2]):
        raise UserError(f"--groups {groups.pattern}: expected two groups or more in every class, one to train on and "
                        f"one to test, found one in {', '.join(sorted(lonely))}")
    if test:
        matched = {group_of(name, groups) for name in names if test.search(source_of(name))}
        held_out = {name for name in names if group_of(name, groups) in matched}
    else:
        held_out = hold_out(names, TEST_SHARE, f"{seed} test", groups)
    rest = [name for name in names if name not in held_out]
    if test and not held_out:
        raise UserError(f"--test {test.pattern}: expected to match names such as {names[0]}, found none that it does")
    if bare := sorted(set(map(class_of, names)) - set(map(class_of, rest))):
        raise UserError(f"--test {test.pattern}: expected a sound left to train on in every class, "
                        f"found none in {', '.join(bare)}")
    validation = hold_out(rest, VALIDATION_SHARE, f"{seed} validation", groups)
    return sorted(set(rest) - validation), originals(validation), originals(held_out)


def originals(names):
    """Sorted names of the sounds that are no copies."""
    return sorted(name for name in names if name == source_of(name))


def check_classes(names, classes, folder):
    """Raise UserError unless there are two classes, each with two sounds that are no copies."""
    if len(classes) < 2:
        raise UserError(f"{folder}: expected at least 2 classes (folders), found {len(classes)}: {', '.join(classes)}")
    counts, all_counts = (Counter(map(class_of, some)) for some in (originals(names), names))
    if small := [name for name in classes if counts[name] < 2]:
        name, others = small[0], ", ".join(small[1:11]) + f" and {len(small) - 11} more" * (len(small) > 11)
        raise UserError(f"{folder}/{name}: expected at least 2 sounds, found {counts[name]} and "
                        f"{all_counts[name] - counts[name]} copies (_augN)"
                        + f"; too few in {others} too" * bool(others))


# ---------------------------------------------------------------- how long, at which rate, and which epoch is best

def plan(history, recipe):
    """The epoch from which the learning rate falls and the one before which training ends, as known by now.

    The rate is held while there is progress: a validation loss 5 % below the best so far or, with annealing to come,
    such a training loss; a small set's validation is often unlucky for many epochs. After `patience` epochs without,
    the rate falls for a third as long as it was held; at the latest it falls in time to end with the last epoch
    allowed. Without `anneal` the rate stays, and training stops there.
    """
    epochs, best, last_progress = recipe["epochs"], {}, 1
    latest = epochs - math.ceil(epochs / 3)
    for epoch, row in enumerate(history, 1):
        for key in ("val_loss", "loss") if recipe["anneal"] or "val_loss" not in row else ("val_loss",):
            if row.get(key, math.inf) < 0.95 * best.get(key, math.inf):
                best[key], last_progress = row[key], epoch
        if epoch - last_progress >= recipe["patience"] and epoch < latest:
            return epoch, min(epochs, epoch + max(5, epoch // 3)) if recipe["anneal"] else epoch
    return latest, epochs


def rate_of(history, recipe):
    """The learning rate of the next epoch: a gentle start, held, then a straight fall to zero."""
    epoch, (first, end) = len(history), plan(history, recipe)
    if not recipe["anneal"]:
        return recipe["learning_rate"]
    falling = 1 - (epoch - first + 0.5) / (end - first) if epoch >= first else 1
    return recipe["learning_rate"] * (0.25 if epoch == 0 else falling)


def chosen(history, recipe):
    """Which epoch's weights are kept: by the lowest validation loss, but late rather than lucky.

    Once the rate falls, only epochs since then compete, and the last wins whose loss is within two standard errors of
    the lowest: validation cannot tell these apart. A set too small for validation is judged by the training loss.
    """
    losses = np.array([row.get("val_loss", row["loss"]) for row in history])
    first = plan(history, recipe)[0]
    if not recipe["anneal"] or first >= len(history):
        return int(losses.argmin())
    best = first + losses[first:].argmin()
    return int(np.flatnonzero(losses <= losses[best] + 2 * history[best].get("val_error", 0)).max())


# ---------------------------------------------------------------- training, epoch by epoch

def class_weights(info):
    """What a sound of each class counts in the loss, by index: all classes alike, or None for all sounds alike."""
    from sklearn.utils.class_weight import compute_class_weight
    y = [info["classes"].index(class_of(name)) for name in info["train"]]
    weights = compute_class_weight("balanced", classes=np.unique(y), y=y)
    return None if info["recipe"]["class_weights"] == "none" else dict(enumerate(weights))


def train(spectrograms, info, args):
    """Train a network on info["train"], choose its weights by info["validation"], save them with info.

    Goes on where a training of the same info was stopped. Raises UserError; what is saved is whole at every moment.
    """
    import eval_network  # not above: it imports this module
    import models
    recipe, weights, began = info["recipe"], class_weights(info), time.monotonic()
    scope, (host, n_hosts) = models.devices(args.devices, recipe["batch_size"])
    models.use_seed(info["seed"])
    with scope():
        network = models.new_network(spectrograms, info, args.weights)
    info = info | {"n_frames": network.input_shape[-1]}
    batches = models.Batches(spectrograms, info, models.band_means(network), (host, n_hosts))
    history = resume(network, info, args)
    board = models.tensorboard(args.tensorboard, network) if args.tensorboard and host == 0 else None
    if host == 0:
        for folder in {args.save.parent, args.results}:
            utils.sweep(folder)
        eval_network.describe(info, network.count_params(), models.backend_and_device(network))
        models.save_state(args.save, network, info, history)
    while len(history) < plan(history, recipe)[1]:
        rate = network.optimizer.learning_rate = rate_of(history, recipe)
        with scope():
            row = models.fit_epoch(network, batches, len(history), weights)
        row = {"epoch": len(history) + 1, "learning_rate": rate} | row
        history.append(row | eval_network.validate(network, spectrograms, info))
        if not np.isfinite([history[-1][key] for key in ("loss", "val_loss") if key in history[-1]]).all():
            raise UserError(f"{args.save}: expected a finite loss, found none; take a lower --learning-rate")
        if host == 0:
            keep(network, info, history, args)
        if board:
            board.on_epoch_end(len(history) - 1, history[-1])
    if host == 0:  # again, where a kill after the last epoch left it undone
        best = chosen(history, recipe)
        eval_network.plot_curves(args.results / CURVES, history, best + 1)
        models.state_path(args.save).unlink(missing_ok=True)
        say(f"{args.save}: holds epoch {best + 1}, {eval_network.scores_of(history[best])}",
            f"Training took {time.monotonic() - began:.0f} s")


def resume(network, info, args):
    """Bring network to where the training was that was stopped; its epochs. Raises UserError for another training."""
    import models
    if args.fresh or not models.state_path(args.save).exists():
        return []
    found, history, variables = models.load_state(args.save)
    if history:
        refuse_other(models.state_path(args.save), found, info)
    elif args.save.exists():  # stopped in its first epoch; these are of the same training or of an earlier one
        refuse_other(args.save, models.load(args.save, models.load_info), info)
    if history and args.save.exists():
        try:
            models.assign(network, variables)
        except ValueError as error:
            raise UserError(f"{models.state_path(args.save)}: expected a training to go on with, found {error}; "
                            "--fresh starts again") from None
        say(f"Goes on after epoch {len(history)} of the training that was stopped")
        return history
    return []


def refuse_other(path, found, info):
    """Raise UserError unless the training found in `path` is the one that info tells of."""
    found, info = ({**i, **i["features"], **i.get("recipe", {"recipe": None})} for i in (found, info))
    keys = [key for key in info if key not in ("features", "recipe") and found.get(key) != info[key]]
    other = [f"{key} ({found.get(key)}, now {info[key]})" if isinstance(info[key], (int, float)) else key
             for key in [key for key in keys if key not in SIDES] or keys]  # from what differs, the split follows
    if other:
        raise UserError(f"{path}: expected to be of this training, found it of one with other {', '.join(other)}; "
                        "--fresh replaces it, --save with a --results of its own keeps both")


def keep(network, info, history, args):
    """Save the network if it is the one to keep, and the state of training; say and draw how far it is."""
    import eval_network
    import models
    row, kept, end = history[-1], chosen(history, info["recipe"]), plan(history, info["recipe"])[1]
    if is_kept := kept == len(history) - 1:
        models.save(network, info | {"temperature": row.get("temperature", 1)}, args.save)
    utils.save_csv(args.results / LOG, [row, *(r.values() for r in history)])  # its columns named as Keras names them
    models.save_state(args.save, network, info, history)
    left = (end - len(history)) * sum(r["seconds"] for r in history) / len(history)
    say(f"epoch {row['epoch']:4d}  {eval_network.scores_of(row)}  {row['clips_per_second']:.0f} clips/s  at most "
        f"{utils.clock(left)} left{'  saved' * is_kept}")
    if row["epoch"] % 5 == 1 or row["seconds"] > 10:  # a drawing takes half a second
        eval_network.plot_curves(args.results / CURVES, history, kept + 1)


# ---------------------------------------------------------------- the command

def parse_args():
    parser = utils.Parser(__doc__, places=("samples", "preproc", "results"))
    count = utils.number(int, 1)
    parser.add_argument("--fresh", action="store_true", help="start again, and replace what earlier training saved")
    parser.add_argument("--network", choices=("default", "original"), default="default", help="that of 2017: original")
    parser.add_argument("--class-weights", choices=("balanced", "none"),
                        help="balanced: a rare class counts as much as a frequent one (the default; original: none)")
    parser.add_flags(
        ("save", Path, Path("weights.keras"), "PATH", "the trained network (default: weights.keras)"),
        ("weights", Path, None, "PATH", "start from these earlier ones; with other classes, the last layer is new"),
        ("test", utils.regex, None, "REGEX", "the sounds whose class/name matches are the test set"),
        ("groups", utils.regex, None, "REGEX",
         "sounds whose file names share the matched part (a speaker, a note) stay on one side of the split"),
        ("seed", utils.number(int, 0), 0, "N", "of the split, the weights and the order (default: 0)"),
        ("epochs", count, 200, "N", "at most; training stops by itself, often within 50 (default: 200)"),
        ("layers", count, None, "N", "blocks of the network (default: 3; original: 4)"),
        ("filters", count, None, "N", "filters of the first block (default: 16; original: 32)"),
        ("batch-size", count, None, "N", "windows a step (default: 32; original: 128)"),
        ("learning-rate", utils.number(float, 1e-9, high=float("inf")), None, "RATE",
         "the highest (default: 0.002; original: 1)"),
        ("mixup", utils.number(float, 0), None, "ALPHA",
         "how much windows are mixed with one another, 0: not (default: 0.3; original: 0)"),
        ("masks", utils.number(int, 0, high=100), None, "N",
         "bands and times that are masked in each window (default: 2 of each; original: 0)"),
        ("shift", utils.number(float, 0, high=1), None, "SHARE",
         "windows are shifted by up to this share of their length (default: 0.1; original: 0)"),
        ("memory", utils.number(float, 1e-6), None, "GB",
         "spectrograms beyond this are read anew each epoch (default: half of the memory)"),
        ("devices", count, None, "N", "GPUs to train on at once, with KERAS_BACKEND=jax (default: 1)"),
        ("tensorboard", Path, None, "DIR", "write the scores for TensorBoard too"))
    args = parser.parse_args()
    if args.save.suffix != ".keras":
        parser.error(f"--save {args.save}: expected a name that ends in .keras")
    if args.weights and args.weights.resolve() == args.save.resolve():
        parser.error(f"--weights {args.weights}: expected another file than the one that is saved; name one by --save")
    if args.weights and (args.network != "default" or args.layers or args.filters):
        parser.error("--weights: expected no --network, --layers or --filters beside it, they are the file's")
    return args


def forget_seen(sides, earlier, groups):
    """The sides of a split without the test sounds that earlier training learned from, and with what it has seen."""
    seen = {*earlier["train"], *earlier["validation"], *earlier.get("seen", [])}
    known = {group_of(name, groups) for name in seen}
    unseen = [name for name in sides["test"] if group_of(name, groups) not in known]
    if n_seen := len(sides["test"]) - len(unseen):
        say(f"{n_seen} of {len(sides['test'])} test sounds are left out: the earlier training learned from them")
    return sides | {"test": unseen, "seen": sorted(seen)}


def main():
    args = parse_args()
    source = find_source(args.samples, args.preproc)
    check_classes(source.names, source.classes, source.folder)
    began = time.perf_counter()
    spectrograms, n_bad = read_spectrograms(source, source.names, args.memory and args.memory * 1e9)
    check_classes(spectrograms, source.classes, source.folder)  # again: some may be unreadable
    if source.folder == args.samples:
        say(f"Computed in {time.perf_counter() - began:.1f} s; python preprocess_data.py keeps them")
    elif args.samples.is_dir():
        new = set(filter(utils.is_sound, utils.list_files(args.samples))) - set(source.names)
        if new:
            say(f"{args.samples}: {len(new)} sounds are not in {source.folder}: new, or unreadable; "
                "preprocess_data.py adds new ones")
    sides = dict(zip(SIDES, split(list(spectrograms), args.seed, args.test, args.groups)))
    if loose := args.groups and [name for name in spectrograms if group_of(name, args.groups) == source_of(name)]:
        say(f"--groups matches no part of {len(loose)} names, as {loose[0]}: each is a group of its own")
    if n_unused := len(spectrograms) - sum(map(len, sides.values())):
        say(f"{n_unused} copies of validation and test sounds stay unused")
    import models  # not before the user's mistakes are found: Keras takes seconds to load
    if args.weights:
        earlier = models.load(args.weights, models.load_info)
        args.network, shape = earlier["network"], earlier.get("recipe", {})
        args.layers, args.filters = shape.get("layers"), shape.get("filters")
        sides = forget_seen(sides, earlier, args.groups)
    info = {"network": args.network, "seed": args.seed, "classes": source.classes,
            "features": dataclasses.asdict(source.settings), "recipe": models.recipe_of(args),
            "weights": args.weights and hashlib.sha256(args.weights.read_bytes()).hexdigest(),
            "seen": [], **sides}
    if args.save.exists() and not args.fresh and not models.state_path(args.save).exists():
        refuse_other(args.save, models.load(args.save, models.load_info), info)
        say(f"{args.save}: finished training of these sounds in this way; --fresh trains again")
    else:
        with models.naming_memory(info["recipe"]["batch_size"]):
            train(spectrograms, info, args)
    utils.say_next("eval_network.py", samples=args.samples, preproc=args.preproc, results=args.results,
                   weights=args.save)
    return n_bad


if __name__ == "__main__":
    utils.run(main)
