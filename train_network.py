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
import re
import shlex
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
from utils import UserError, class_of, say

TEST_SHARE, VALIDATION_SHARE = 0.2, 0.15  # the latter of the sounds that are not for testing
SIDES = "train", "validation", "test"
MIN_PROGRESS = 1e-3  # of a loss: one near zero can fall by 5 % for ever
LOG, CURVES = "training_log.csv", "training_curves.png"


# ---------------------------------------------------------------- where spectrograms come from: Preproc/ or Samples/

class Source(NamedTuple):
    folder: Path  # Preproc/, or Samples/
    names: list  # of the sounds there, sorted
    copies: dict  # those of them that are copies, each with its source
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
        copies = utils.find_copies(names, samples)
        return Source(preproc, names, copies, utils.list_classes(preproc), kept, load_spectrogram, lock)
    if kept is not None and samples == preproc:
        raise UserError(f"{preproc}: expected spectrograms made with {settings}, found {kept}")
    if kept is not None:
        say(f"{preproc}: made with other settings than the weights; reading {samples} instead")
    names, _ = utils.find_sounds(samples)
    settings = settings or preprocess_data.choose_settings(samples, names)
    copies = utils.find_copies(names, samples)
    return Source(samples, names, copies, utils.list_classes(samples), settings, sound_to_spectrogram, lock)


class Streamed(dict):
    """Spectrograms by name that do not fit into memory together: each is mapped by read(name) when it is asked for."""

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
    hold more than `memory` bytes, each is read once now to find the bad ones. After that each is memory-mapped when it
    is asked for, so that only the frames that a window shows are read.
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
        + ("" if held else f"; {n_bytes / 1e9:.1f} GB do not fit into memory and are memory-mapped"))
    if not held:
        read = partial(preprocess_data.map_spectrogram, folder=source.folder, settings=source.settings)
        found = Streamed(found, read, source.lock)
    return found, utils.name_skipped(errors)


# ---------------------------------------------------------------- the split

def group_of(name, groups=None, copies=None):
    """What must stay on one side of a split: sounds whose paths below the class folder share the part that matches.

    The part is the first capture group of the expression `groups`, or the whole match. Else the group is the sound
    with its copies, and with other formats of it: "x.wav" and "x.mp3" are one recording.
    """
    source = (copies or {}).get(name, name)
    path = source.split("/", 1)[1]
    match = groups and groups.search(path)
    if not match:
        return utils.stem_of(source)
    part = 1 if groups.groups and match[1] is not None else 0
    return match[part] if match.end(part) < len(path) else utils.stem_of(match[part])  # the format does not count


def hold_out(groups, copies, share, seed):
    """Choose about `share` of each class, whole groups of sounds, in an order that only their names decide.

    groups: dict from each sound to its group. An order by hash, not by shuffle: a sound that is added moves few
    others. A group is taken if that reduces the total deviation from the share of each class, and leaves each class an
    original. Returns the names, copies included.
    """
    members = {}
    for name, group in groups.items():
        members.setdefault(group, []).append(name)
    left = count_recordings(groups, copies)
    room = {c: min(max(1, round(share * n)), n - 1) for c, n in left.items()}  # wanted and not yet held out
    held_out, spare = set(), []
    for group in sorted(members, key=lambda group: hashlib.sha256(os.fsencode(f"{seed}/{group}")).digest()):
        counts = count_recordings(members[group], copies)
        if not counts or any(n >= left[c] for c, n in counts.items()):
            continue
        if sum(abs(room[c]) - abs(room[c] - n) for c, n in counts.items()) > 0:
            held_out.update(members[group])
            room.update({c: room[c] - n for c, n in counts.items()})
            left.subtract(counts)
        else:
            spare.append(group)
    return held_out or set(members[spare[0]] if spare else ())  # of few large groups one is too much, none too little


def count_recordings(names, copies):
    """How many sounds of each class there are, without copies; one in two formats counts once. Returns a Counter."""
    return Counter(map(class_of, {utils.stem_of(name) for name in names if name not in copies}))


def split(names, seed, test=None, groups=None, copies=None):
    """Split sounds into training, validation and test: 68, 12 and 20 in 100 of each class.

    test: regular expression; the sounds whose name it matches are the test set instead.
    groups: regular expression; sounds that share the part of their path that it matches, such as a
    speaker, stay on one side, as a sound and its copies always do.
    copies: dict from the copies among them to their sources; by default those whose source is among them.
    Returns three sorted lists of names, copies of sounds in the last two left out: only training uses them.
    Raises UserError for a `test` that matches nothing, or that leaves a class without a training sound.
    """
    copies = utils.find_copies(names) if copies is None else copies
    group = {name: group_of(name, groups, copies) for name in names}
    check_groups(group, groups, copies)
    if test:
        matched = {group[name] for name in names if test.search(copies.get(name, name))}
        held_out = {name for name in names if group[name] in matched}
    else:
        held_out = hold_out(group, copies, TEST_SHARE, f"{seed} test")
    rest = [name for name in names if name not in held_out]
    if test and not held_out:
        raise UserError(f"--test {test.pattern}: expected to match names such as {names[0]}, found none that it does")
    if bare := sorted(set(map(class_of, names)) - set(map(class_of, rest))):
        raise UserError(f"--test {test.pattern}: expected a sound left to train on in every class, "
                        f"found none in {', '.join(bare)}")
    validation = hold_out({name: group[name] for name in rest}, copies, VALIDATION_SHARE, f"{seed} validation")
    return sorted(set(rest) - validation), originals(validation, copies), originals(held_out, copies)


def check_groups(group, groups, copies):
    """Raise UserError where the expression `groups` matches nothing, or leaves a class of one group."""
    if not groups:
        return
    if all(group[name] == group_of(name, None, copies) for name in group):
        raise UserError(f"--groups {groups.pattern}: no path below a class folder matches, "
                        f"not even {next(iter(group)).split('/', 1)[1]}")
    pairs = {(class_of(name), group[name]) for name in group if name not in copies}
    n_groups = Counter(class_name for class_name, _ in pairs)
    if lonely := sorted(class_name for class_name, n in n_groups.items() if n < 2):
        raise UserError(f"--groups {groups.pattern}: expected two groups or more in every class, one to train on and "
                        f"one to test, found one in {', '.join(lonely)}")


def originals(names, copies):
    """Sorted names of the sounds that are no copies."""
    return sorted(name for name in names if name not in copies)


def leave_out_twins(sides, spectrograms):
    """Leave out of a split what is identical to a sound of another side: a file under two names.

    Held-out sounds stay, and their twins are not trained on. Where a class would lose all its training sounds, its
    twins that are held out go instead. What earlier training has seen is not held out in any case. Returns the sides.
    Raises UserError where no test sound is left.
    """
    keys = content_keys(spectrograms)
    seen, learned = ({keys[name] for name in sides.get(key, ()) if name in keys} for key in ("seen", "learned"))
    test = without(sides["test"], keys, seen)
    validation = without(sides["validation"], keys, learned | {keys[name] for name in test})
    train = without(sides["train"], keys, {keys[name] for name in test + validation})
    if bare := set(map(class_of, sides["train"])) - set(map(class_of, train)):
        train = sorted({*train, *(name for name in sides["train"] if class_of(name) in bare)})
        trained = {keys[name] for name in train}
        test, validation = (without(names, keys, trained) for names in (test, validation))
    found = {"train": train, "validation": validation, "test": test}
    twins = sorted(name for side in SIDES for name in set(sides[side]) - set(found[side]))
    if twins:
        sounds = f"{len(twins)} sound" + ("s" if len(twins) > 1 else "")
        say(f"Left out {sounds}, such as {twins[0]}: identical to a sound on another side of the split")
    if sides["test"] and not test:
        raise UserError("no test sounds are left, because they are identical to training sounds; add other recordings")
    return sides | found


def without(names, keys, others):
    """The names whose keys are not among others."""
    return [name for name in names if keys[name] not in others]


def content_keys(spectrograms):
    """A key for each sound, the same for identical spectrograms alone.

    Their middle frames tell most apart. The others are read whole.
    """
    keys = {}
    for name in spectrograms:
        spectrogram = spectrograms[name]
        middle = spectrogram[..., spectrogram.shape[-1] // 2]
        keys[name] = spectrogram.shape, middle.tobytes()
    counts = Counter(keys.values())
    for name in [name for name, key in keys.items() if counts[key] > 1]:
        keys[name] = hashlib.sha256(np.ascontiguousarray(spectrograms[name])).digest()
    return keys


def suggest_groups(names):
    """Suggest a --groups for originals whose paths share a part, such as a kit or a speaker; None where none do.

    Such a part takes several values in each class, and several sounds have each. The last part of a file name is
    taken for a running number. The part with the most values is suggested.
    """
    suggested, most = None, 1
    for separator in "/-_ ":
        for position in range(4):
            skipped = f"[^{separator}]+{separator}" * position
            pattern = f"^{skipped}([^{separator}]+){separator}"
            n_values = count_groups(names, re.compile(pattern))
            if n_values > most:
                suggested, most = pattern, n_values
    return suggested


def count_groups(names, pattern):
    """Count the values of a pattern that may be groups: most sounds match, and several share each value. Else 0.

    Numbers that do not come again within a class are running numbers.
    """
    values = {name: match[1] for name in names if (match := pattern.search(name.split("/", 1)[1]))}
    pairs = {(class_of(name), value) for name, value in values.items()}
    n_values, n_of_class = len(set(values.values())), Counter(class_name for class_name, _ in pairs)
    n_shared = len(pairs) if all(map(str.isdecimal, values.values())) else n_values
    if len(values) < 0.9 * len(names) or len(values) < 1.5 * n_shared or min(n_of_class.values(), default=0) < 2:
        return 0
    return n_values


def check_classes(names, classes, folder, copies):
    """Raise UserError unless there are two classes, each with two sounds that are no copies."""
    if len(classes) < 2:
        raise UserError(f"{folder}: expected at least 2 classes (folders), found {len(classes)}: {', '.join(classes)}")
    counts = count_recordings(names, copies)
    n_copies = Counter(map(class_of, names)) - Counter(map(class_of, originals(names, copies)))
    if small := [name for name in classes if counts[name] < 2]:
        name, others = small[0], ", ".join(small[1:11]) + f" and {len(small) - 11} more" * (len(small) > 11)
        raise UserError(f"{folder}/{name}: expected at least 2 sounds, found {counts[name]} and "
                        f"{n_copies[name]} copies (_augN)"
                        + f"; too few in {others} too" * bool(others))


# ---------------------------------------------------------------- how long, at which rate, and which epoch is best

def plan(history, recipe):
    """The epoch from which the learning rate falls and the one before which training ends, as known by now.

    The rate is held while there is progress: a validation loss 5 % and MIN_PROGRESS below the best so far or, with
    annealing to come, such a training loss; a small set's validation is often unlucky for many epochs. After `patience`
    epochs without, the rate falls for a third as long as it was held; at the latest it falls in time to end with the
    last epoch allowed. Without `anneal` the rate stays, and training stops there.
    """
    epochs, best, last_progress = recipe["epochs"], {}, 1
    latest = epochs - math.ceil(epochs / 3)
    for epoch, row in enumerate(history, 1):
        for key in ("val_loss", "loss") if recipe["anneal"] or "val_loss" not in row else ("val_loss",):
            former = best.get(key, math.inf)
            if row.get(key, math.inf) < min(0.95 * former, former - MIN_PROGRESS):
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

def train(spectrograms, info, args):
    """Train a network on info["train"], choose its weights by info["validation"], save them with info.

    Goes on where a training of the same info was stopped. Raises UserError; what is saved is whole at every moment.
    """
    import eval_network  # not above: it imports this module
    import models
    recipe, began = info["recipe"], time.monotonic()
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
        try:
            with scope():
                history.append(train_epoch(network, batches, spectrograms, info, history))
        except KeyboardInterrupt:
            raise KeyboardInterrupt(f"in epoch {len(history) + 1}") from None
        if not np.isfinite([history[-1][key] for key in ("loss", "val_loss") if key in history[-1]]).all():
            raise UserError(f"{args.save}: expected a finite loss, found none; take a lower --learning-rate")
        if host == 0:
            keep(network, info, history, args)
        if board:
            board.on_epoch_end(len(history) - 1, history[-1])
    if host == 0:  # again, where a kill after the last epoch left it undone
        finish(history, info, args)
        say(f"Training took {time.monotonic() - began:.0f} s")


def train_epoch(network, batches, spectrograms, info, history):
    """Train for the epoch after those of history, and validate. Returns its scores, a row of the training log."""
    import eval_network
    import models
    rate = network.optimizer.learning_rate = rate_of(history, info["recipe"])
    row = {"epoch": len(history) + 1, "learning_rate": rate} | models.fit_epoch(network, batches, len(history))
    return row | eval_network.validate(network, spectrograms, info)


def finish(history, info, args):
    """Draw the curves of a training that has ended, remove its state, and say which epoch is kept, and why."""
    import eval_network
    import models
    best = chosen(history, info["recipe"])
    eval_network.plot_curves(args.results / CURVES, history, best + 1)
    models.state_path(args.save).unlink(missing_ok=True)
    say(f"{args.save}: holds epoch {best + 1}, {eval_network.scores_of(history[best])}")
    lowest = min(range(len(history)), key=lambda epoch: history[epoch].get("val_loss", history[epoch]["loss"]))
    if lowest != best:
        say(f"Epoch {lowest + 1} had a lower loss, perhaps by chance. Among the epochs since the learning rate fell, "
            "the last one within two standard errors of the lowest loss is kept")


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
        say(f"Goes on after epoch {len(history)} of the training that was stopped, with epoch {len(history) + 1}")
        return history
    return []


def refuse_other(path, found, info):
    """Raise UserError unless the training found in `path` is the one that info tells of."""
    sounds = added_and_removed(found, info)
    found, info = ({**i, **i["features"], **i.get("recipe", {"recipe": None})} for i in (found, info))
    keys = [key for key in info if key not in ("features", "recipe") and found.get(key) != info[key]]
    if not keys:
        return
    if set(keys) <= {*SIDES, "classes", "unused", "n_frames"}:
        reason = f"{sounds} since this training" if sounds else "this training split the sounds in another way"
    else:
        other = [f"{key} ({found.get(key)}, now {info[key]})" if isinstance(info[key], (int, float)) else key
                 for key in keys if key not in (*SIDES, "unused")]  # from what differs, the split follows
        reason = f"is of a training with other {', '.join(other)}"
    raise UserError(f"{path}: {reason}; --fresh trains again, --save with a --results of its own keeps both")


def added_and_removed(found, info):
    """Say how many sounds and which classes were added and removed between two trainings; "" where none were."""
    before, now = ({name for side in (*SIDES, "unused") for name in i[side]} for i in (found, info))
    parts = []
    for word, some, classes in (("added", now - before, set(info["classes"]) - set(found["classes"])),
                                ("removed", before - now, set(found["classes"]) - set(info["classes"]))):
        if some:
            where = f" (class {', '.join(sorted(classes))})" if classes else ""
            parts.append(f"{len(some)} {'sound was' if len(some) == 1 else 'sounds were'} {word}{where}")
    return " and ".join(parts)


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
         "spectrograms beyond this are memory-mapped (default: half of the memory)"),
        ("devices", count, None, "N", "GPUs to train on at once, with KERAS_BACKEND=jax (default: 1); on several hosts "
         "that share the folder, start the same command on each, with Keras's KERAS_DISTRIBUTION_... variables"),
        ("tensorboard", Path, None, "DIR", "write the scores for TensorBoard too"))
    args = parser.parse_args()
    if args.save.suffix != ".keras":
        parser.error(f"--save {args.save}: expected a name that ends in .keras")
    if args.weights and args.weights.resolve() == args.save.resolve():
        parser.error(f"--weights {args.weights}: expected another file than the one that is saved; name one by --save")
    if args.weights and (args.network != "default" or args.layers or args.filters):
        parser.error("--weights: expected no --network, --layers or --filters beside it, they are the file's")
    return args


def forget_seen(sides, earlier, groups, copies):
    """Keep what earlier training has seen out of the sides that judge. Returns the sides and what has been seen.

    No sound, or group of sounds, that earlier training used in any way is tested. None that it learned from validates:
    it is trained on. What only validated then may validate again.
    """
    learned = {*earlier["train"], *earlier.get("learned", [])}
    seen = {*learned, *earlier["validation"], *earlier.get("seen", [])}
    seen_groups, learned_groups = ({group_of(name, groups, copies) for name in names} for names in (seen, learned))
    test = [name for name in sides["test"] if group_of(name, groups, copies) not in seen_groups]
    validation = [name for name in sides["validation"] if group_of(name, groups, copies) not in learned_groups]
    if n_seen := len(sides["test"]) - len(test):
        say(f"{n_seen} of {len(sides['test'])} test sounds are left out: the earlier training learned from them")
    if n_seen := len(sides["validation"]) - len(validation):
        say(f"{n_seen} of {len(sides['validation'])} validation sounds are trained on: the earlier training learned "
            "from them")
    train = sorted({*sides["train"], *sides["validation"]} - set(validation))
    return {"train": train, "validation": validation, "test": test, "seen": sorted(seen), "learned": sorted(learned)}


def note_other_sounds(source, samples):
    """Say which sounds in `samples` are not in `source`. Raises UserError for a class folder without a sound."""
    if source.folder == samples or not samples.is_dir():
        return
    found = set(filter(utils.is_sound, utils.list_files(samples)))
    if bare := sorted(set(utils.list_classes(samples)) - set(map(class_of, found)) - set(map(class_of, source.names))):
        raise UserError(f"{samples}/{bare[0]}: no sounds there; add at least 2, or remove the folder")
    skipped = {row.get("file") for row in utils.read_csv(source.folder / utils.SKIPPED_FILE)}
    if new := found - set(source.names):
        say(f"{samples}: {len(new)} sounds are not in {source.folder}: new, or unreadable; "
            "preprocess_data.py adds new ones")
    for unknown in sorted(set(map(class_of, new)) - set(source.classes)):
        if all(name in skipped for name in new if class_of(name) == unknown):
            raise UserError(f"{samples}/{unknown}: none of its sounds can be read; mend them, or remove the folder")
        say(f"{source.folder}: has no class {unknown}")


def split_sounds(source, spectrograms, args):
    """Split the sounds of a source as the flags say, and say what is left out. Returns the sides as a dict."""
    copies = source.copies
    sides = dict(zip(SIDES, split(list(spectrograms), args.seed, args.test, args.groups, copies)))
    if loose := args.groups and [name for name in spectrograms if group_of(name, args.groups, copies)
                                 == group_of(name, None, copies)]:
        say(f"--groups matches no part of {len(loose)} names, as {loose[0]}: each is a group of its own")
    if n_unused := len(spectrograms) - sum(map(len, sides.values())):
        say(f"{n_unused} copies of validation and test sounds stay unused")
    names = originals(spectrograms, copies)
    if not (args.groups or args.test) and (pattern := suggest_groups(names)):
        part = re.match(pattern, names[0].split("/", 1)[1])
        example = f", such as {part[1]}" if part else ""
        say(f"File names share parts{example}: if each is a speaker, kit or recording, this split is too easy; "
            f"{shlex.join(['--groups', pattern])} keeps each on one side")
    return sides


def main():
    args = parse_args()
    if args.weights:
        utils.check_weights_path(args.weights)
    source = find_source(args.samples, args.preproc)
    note_other_sounds(source, args.samples)
    check_classes(source.names, source.classes, source.folder, source.copies)
    began = time.perf_counter()
    spectrograms, n_bad = read_spectrograms(source, source.names, args.memory and args.memory * 1e9)
    check_classes(spectrograms, source.classes, source.folder, source.copies)  # again: some may be unreadable
    if source.folder == args.samples:
        say(f"Computed in {time.perf_counter() - began:.1f} s; {utils.command('preprocess_data.py')} keeps them")
    sides = split_sounds(source, spectrograms, args)
    if args.weights:
        import models
        earlier = models.load(args.weights, models.load_info)
        args.network, shape = earlier["network"], earlier.get("recipe", {})
        args.layers, args.filters = shape.get("layers"), shape.get("filters")
        sides = forget_seen(sides, earlier, args.groups, source.copies)
    sides = leave_out_twins(sides, spectrograms)
    used = {name for side in SIDES for name in sides[side]}
    import models  # not before the user's mistakes are found: Keras takes seconds to load
    info = {"network": args.network, "seed": args.seed, "classes": source.classes,
            "features": dataclasses.asdict(source.settings), "recipe": models.recipe_of(args),
            "weights": args.weights and hashlib.sha256(args.weights.read_bytes()).hexdigest(),
            "--groups": args.groups and args.groups.pattern, "--test": args.test and args.test.pattern,
            "seen": [], "learned": [], **sides, "unused": sorted(set(spectrograms) - used)}
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
