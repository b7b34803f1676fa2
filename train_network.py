"""Train a network to tell the classes of sounds apart.

Reads Preproc/, or Samples/ if Preproc/ is empty. Writes the weights, with all that is needed to use
them, and Results/training_log.csv and training_curves.png. One sound in five of each class is kept
for eval_network.py. If training is stopped, the same command resumes it.

    python train_network.py
    python train_network.py --folds 5
"""
import copy
import dataclasses
import hashlib
import os
import re
import shlex
import time
import warnings
from collections import Counter
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy.cluster.hierarchy import DisjointSet

import utils
from utils import SUBSETS, UserError, class_of, originals, say, stem_of

TEST_SHARE = 0.2  # of the sounds of each class
VALIDATION_SHARE = 0.15  # of the sounds that are not for testing
MAX_FOLDS = 1000
MAX_TWINS = 12  # spectrograms that are taken for one recording
MAX_LINES = 40  # of the table of classes
LOG = "training_log.csv"
CURVES = "training_curves.png"


# ---------------------------------------------------------------- load

def load_training_set(args):
    """Find and read the spectrograms, and check that there is enough to train on.

    Returns a Source, a mapping from name to spectrogram, and how many could not be read.
    Raises UserError.
    """
    began = time.perf_counter()
    source = utils.find_source(args.samples, args.preproc)
    note_other_sounds(source, args.samples)
    check_classes(source.names, source)
    spectrograms, n_bad = utils.read_spectrograms(source, source.names)
    check_classes(spectrograms, source)  # again, for some may be unreadable
    if source.folder == args.samples:
        seconds = time.perf_counter() - began
        following = utils.command("preprocess_data.py", samples=args.samples, preproc=args.preproc)
        say(f"Computed in {seconds:.1f} s; to keep them, run {following}")
    return source, spectrograms, n_bad


def note_other_sounds(source, samples):
    """Print how the sounds in `samples` differ from those in Preproc/.

    Raises UserError for a class folder without a sound that can be read.
    """
    if source.folder == samples or not samples.is_dir():
        return
    sounds = {name for name in utils.list_files(samples) if utils.is_sound(name)}
    if not sounds:  # they may have been moved away to save space
        return
    skipped = {row.get("file") for row in utils.read_csv(source.folder / utils.SKIPPED_FILE)}
    utils.check_filled(samples, sounds - skipped)
    known = set(source.names)
    origins = {name: utils.find_origin(name, samples)[0] for name in known}
    gone = {name for name, origin in origins.items() if origin not in sounds}
    changed = {name for name in known - gone
               if not utils.is_up_to_date(name, samples, source.folder)}
    for kind, names in (("new", sounds - known - skipped), ("gone", gone),
                        ("of another time or content", changed)):
        if names:
            noun = "sound is" if len(names) == 1 else "sounds are"
            say(f"{samples}: {len(names)} {noun} {kind} since preprocessing, such as {min(names)}; "
                "preprocess_data.py brings them up to date")


def check_classes(names, source):
    """Raise UserError unless there are two classes or more, each with at least two originals."""
    folder = source.folder
    if len(source.classes) < 2:
        raise UserError(f"{folder}: expected at least 2 classes (folders), found "
                        f"{len(source.classes)}: {', '.join(source.classes)}; add a folder of "
                        "sounds for each class")
    counts = count_recordings(names, source.copies)
    small = [name for name in source.classes if counts[name] < 2]
    if small:
        n_copies = sum(name in source.copies and class_of(name) == small[0] for name in names)
        others = f"; also too few in {', '.join(small[1:11])}" if small[1:] else ""
        raise UserError(f"{folder}/{small[0]}: expected at least 2 sounds, found "
                        f"{counts[small[0]]} and {n_copies} copies (_augN){others}; add sounds, or "
                        "remove the folder")


def count_recordings(names, copies):
    """Count the sounds of each class, without copies; a sound in two formats counts once."""
    stems = {stem_of(name) for name in names if name not in copies}
    return Counter(class_of(stem) for stem in stems)


# ---------------------------------------------------------------- split

class Groups(NamedTuple):
    """The sounds that stay together in one subset of a split."""

    of: dict  # from each sound to the key of its group
    contents: dict  # from each sound to the hash of its spectrogram
    sets: DisjointSet  # of the sounds, those of an earlier training, and what joins them


def group_sounds(source, spectrograms, pattern=None, earlier=None):
    """Group the sounds that must stay together, for whatever reason.

    A sound stays with its copies, its other formats, those that hold the same recording, and those
    whose paths share the part that `pattern` matches. earlier: info of an earlier training, whose
    sounds may join them. Returns Groups.
    """
    contents = {name: utils.hash_content(s) for name, s in spectrograms.items()}
    used = list_used(earlier)[1] if earlier else []
    sets = DisjointSet()

    def join(*members):
        for member in members:
            sets.add(member)
        sets.merge(*members)

    group = {}
    for name, content in [*contents.items(), *used]:
        group[name] = utils.find_group(source.copies.get(name, name), pattern)
        join(name, ("group", group[name]))
        join(name, ("content", content))
    for pair in find_twins(contents, spectrograms, source.copies):
        join(*(("content", content) for content in pair))
    keys = {}
    for name in sorted(contents):
        keys.setdefault(sets[name], group[name])
    return Groups({name: keys[sets[name]] for name in contents}, contents, sets)


def find_twins(contents, spectrograms, copies):
    """Find different spectrograms of one recording, and print how many sounds they make.

    contents: dict from each sound to the hash of its spectrogram. At most MAX_TWINS spectrograms,
    or a quarter of a class, are taken for one recording: a class of steady sounds must not become
    a single group. Returns a list of pairs of hashes.
    """
    sounds = originals(contents, copies)
    sizes = Counter(map(class_of, sounds))
    sets = DisjointSet(contents[name] for name in sounds)
    pairs = []
    joined = {}
    n_apart = 0
    for difference, *names in utils.find_alike(
            {name: contents[name] for name in sounds},
            lambda name: utils.take_fingerprint(spectrograms[name]), spectrograms.__getitem__):
        pair = [contents[name] for name in names]
        limit = max(MAX_TWINS, min(sizes[class_of(name)] for name in names) // 4)
        if sets.connected(*pair) or sets.subset_size(pair[0]) + sets.subset_size(pair[1]) <= limit:
            sets.merge(*pair)
            pairs.append(pair)
            joined.setdefault(names[1], f"{names[0]} and {names[1]}, {difference:.2f} dB apart")
        else:
            n_apart += 1
    if joined:
        say(f"Sounds that hold the recording of another, and stay with it: {len(joined)}, such as "
            f"{next(iter(joined.values()))}")
    if n_apart:
        say(f"Too many sounds are alike to stay together: {n_apart} pairs may be parted")
    return pairs


def split_sounds(group, copies, seed, test=None, held_out=None):
    """Split sounds into 68 % for training, 12 % for validation and 20 % for testing.

    group: dict from each sound to its group, which stays in one subset. copies: dict from each copy
    to its source. test: regular expression; the groups of the sounds whose name it matches are the
    test sounds instead. held_out: set of the test sounds and their copies, instead of `test`.
    Returns a dict of sorted lists, "train", "validation" and "test". Copies of validation and test
    sounds are left out. Raises UserError if there are no test sounds, or if `test` leaves a class
    without sounds to train on.
    """
    if test:
        held_out = match_groups(group, test, copies)
    elif held_out is None:
        held_out = hold_out(group, copies, TEST_SHARE, f"{seed} test")
    if not held_out:
        raise UserError("no sounds are left to test on, for the sounds of each class hold the same "
                        "recording or are one group; add other recordings")
    rest = {name: group[name] for name in group if name not in held_out}
    validation = hold_out(rest, copies, VALIDATION_SHARE, f"{seed} validation")
    return {"train": sorted(set(rest) - validation), "validation": originals(validation, copies),
            "test": originals(held_out, copies)}


def split_folds(group, args, copies):
    """Split sounds into the folds of --folds or --folds-by, for cross-validation.

    Returns a list of sets of names. Groups and copies stay whole. Raises UserError.
    """
    if args.folds_by:
        folds = match_folds(group, args.folds_by, copies)
        flag = f"--folds-by {args.folds_by.pattern}"
    else:
        folds = draw_folds(group, args.folds, args.seed, copies)
        flag = f"--folds {args.folds}"
    classes = set(map(class_of, group))
    for fold in folds:
        if bare := classes.difference(class_of(name) for name in group if name not in fold):
            raise UserError(f"{flag}: all sounds of {', '.join(sorted(bare))} are in one fold; "
                            "add sounds or groups, or use other folds")
    return folds


def draw_folds(group, n_folds, seed, copies):
    """Draw folds of about the same number of sounds of each class, in whole groups."""
    from sklearn.model_selection import StratifiedGroupKFold
    sounds = originals(group, copies)
    splitter = StratifiedGroupKFold(n_folds, shuffle=True, random_state=seed)
    too_few = UserError(f"--folds {n_folds}: there are too few sounds, or groups of sounds; use a "
                        "smaller number")
    try:
        with warnings.catch_warnings(action="ignore"):  # some folds may lack a small class
            folds = list(splitter.split(sounds, [class_of(name) for name in sounds],
                                        [group[name] for name in sounds]))
    except ValueError:
        raise too_few from None
    if not all(len(test) for _, test in folds):
        raise too_few
    keys = [{group[sounds[i]] for i in test} for _, test in folds]
    return [{name for name in group if group[name] in some} for some in keys]


def match_folds(group, pattern, copies):
    """Sort sounds into folds by the text that `pattern` matches in their names.

    A group is in the fold of its first sound. Prints how many others that moves.
    """
    flag = f"--folds-by {pattern.pattern}"
    texts = {}
    for name in sorted(group):
        match = pattern.search(copies.get(name, name))
        if not match:
            raise UserError(f"{flag}: does not match {name}; use a pattern that matches every "
                            "class/name")
        texts[name] = match[utils.choose_part(match)]
    of_group = {}
    for name, text in texts.items():
        of_group.setdefault(group[name], text)
    if moved := [name for name, text in texts.items() if of_group[group[name]] != text]:
        say(f"{flag}: {len(moved)} sounds, such as {moved[0]}, are in the fold of the sounds that "
            "they stay with")
    folds = {}
    for name in texts:
        folds.setdefault(of_group[group[name]], set()).add(name)
    if len(folds) > MAX_FOLDS:
        raise UserError(f"{flag}: found {len(folds)} folds, expected {MAX_FOLDS} at most; use "
                        "another pattern")
    return [folds[text] for text in sorted(folds)]


def match_groups(group, test, copies):
    """The sounds whose group has a sound that `test` matches. Raises UserError for none or all."""
    found = {name for name in group if test.search(copies.get(name, name))}
    if not found:
        raise UserError(f"--test {test.pattern}: matches no sound; use a pattern that matches "
                        f"names such as {next(iter(group))}")
    matched = {group[name] for name in found}
    held_out = {name for name in group if group[name] in matched}
    left = {class_of(name) for name in group if name not in held_out}
    if bare := {class_of(name) for name in held_out} - left:
        raise UserError(f"--test {test.pattern}: leaves no sound to train on in "
                        f"{', '.join(sorted(bare))}; use a pattern that matches fewer")
    if more := originals(held_out - found, copies):
        say(f"--test {test.pattern}: {len(more)} more sounds, such as {more[0]}, are tested with "
            "the sounds that they stay with")
    return held_out


def hold_out(group, copies, share, salt):
    """Choose about `share` of each class, in whole groups. Returns a set of names.

    group: dict from each sound to its group. The groups are ordered by a hash of their names, so
    that a new sound moves few others. A group is taken if that brings the classes closer to the
    share, and leaves at least one recording in each class.
    """
    members = {}
    for name, key in group.items():
        members.setdefault(key, []).append(name)
    left = count_recordings(group, copies)
    wanted = {name: min(max(1, round(share * n)), n - 1) for name, n in left.items()}
    held_out = set()
    spare = []  # groups that are too large
    for key in sorted(members, key=lambda key: hash_text(f"{salt}/{key}")):
        counts = count_recordings(members[key], copies)
        if not counts or any(n >= left[name] for name, n in counts.items()):
            continue
        gain = sum(abs(wanted[name]) - abs(wanted[name] - n) for name, n in counts.items())
        if gain <= 0:
            spare.append(key)
            continue
        held_out.update(members[key])
        for name, n in counts.items():
            wanted[name] -= n
            left[name] -= n
    if not held_out and spare:  # too large a group is better than no sounds
        return set(members[spare[0]])
    return held_out


def hash_text(text):
    """The SHA-256 hash of a text."""
    return hashlib.sha256(os.fsencode(text)).digest()


def check_groups(group, pattern, copies):
    """Print how many groups --groups makes. Raises UserError for none, or one in a class."""
    of_name = {name: utils.find_group(copies.get(name, name), pattern) for name in group}
    loose = [name for name in group if of_name[name] == utils.find_group(copies.get(name, name))]
    if len(loose) == len(group):
        path = next(iter(group)).split("/", 1)[1]
        raise UserError(f"--groups {pattern.pattern}: matches no path below a class folder; use a "
                        f"pattern that matches paths such as {path}")
    pairs = {(class_of(name), group[name]) for name in originals(group, copies)}
    counts = Counter(name for name, _ in pairs)
    if lonely := sorted(name for name, n in counts.items() if n < 2):
        raise UserError(f"--groups {pattern.pattern}: expected at least 2 groups in every class, "
                        f"to train and to test on, found 1 in {', '.join(lonely)}; use another "
                        "pattern")
    found = sorted({group[name] for name in set(group).difference(loose)})
    say(f"Groups by --groups: {len(found)}, such as {found[0]}")
    if loose:
        say(f"--groups does not match {len(loose)} names, such as {loose[0]}: each is a group "
            "of its own")


def suggest_groups(names, group=None):
    """Suggest a --groups for originals whose names share a part, such as a kit or a speaker.

    group: dict from each sound to its group without the flag, if sounds stay together. The last
    part of a file name is taken for a running number. Returns the pattern of the part with the most
    values, or None.
    """
    group = group or {name: name for name in names}
    suggested = None
    most = 1
    for separator in "/-_ ":
        for position in range(4):
            skipped = f"[^{separator}]+{separator}" * position
            pattern = f"^{skipped}([^{separator}]+){separator}"
            n_values = count_groups(names, re.compile(pattern), group)
            if n_values > most:
                suggested = pattern
                most = n_values
    return suggested


def count_groups(names, pattern, group):
    """Count the values of a pattern, or 0 if they are no groups.

    They are groups if most sounds match, several sounds share a value, and each class has at least
    two values. Numbers that do not repeat within a class are running numbers. Values that would
    part a group, such as the formats of a recording, are no groups either.
    """
    values = {}
    for name in names:
        if match := pattern.search(name.split("/", 1)[1]):
            values[name] = match[1]
    pairs = {(class_of(name), value) for name, value in values.items()}
    n_of_class = Counter(name for name, _ in pairs)
    n_values = len(set(values.values()))
    are_numbers = all(value.isdecimal() for value in values.values())
    n_shared = len(pairs) if are_numbers else n_values
    is_rare = len(values) < 0.9 * len(names) or len(values) < 1.5 * n_shared
    parts_groups = len({(group[name], value) for name, value in values.items()}) > len(
        {group[name] for name in values})
    if is_rare or parts_groups or min(n_of_class.values(), default=0) < 2:
        return 0
    return n_values


def list_used(info):
    """List the sounds that a training and the earlier ones used, as (name, hash) pairs.

    Returns those that it learned from, and those that it learned from or validated on.
    """
    contents = info["contents"]
    learned = {*map(tuple, info["learned"]), *((name, contents[name]) for name in info["train"])}
    seen = {*map(tuple, info["seen"]), *((name, contents[name]) for name in info["validation"])}
    return sorted(learned), sorted(seen | learned)


def leave_out_seen(split, earlier, sets):
    """Keep sounds that an earlier training used out of the validation and test subsets.

    A sound that stays together with one that it used is not tested. If it learned from that one,
    the sound is not used for validation either, but trained on. sets: of Groups. Returns the split,
    with the "seen" and "learned" sounds.
    """
    learned, seen = list_used(earlier)
    seen_sets = {sets[name] for name, _ in seen}
    learned_sets = {sets[name] for name, _ in learned}
    test = [name for name in split["test"] if sets[name] not in seen_sets]
    validation = [name for name in split["validation"] if sets[name] not in learned_sets]
    n_test = len(split["test"]) - len(test)
    n_validation = len(split["validation"]) - len(validation)
    if n_test:
        say(f"{n_test} of {len(split['test'])} test sounds are left out: the earlier training "
            "used them, or sounds that they stay with")
    if n_validation:
        say(f"{n_validation} of {len(split['validation'])} validation sounds become training "
            "sounds: the earlier training learned from them, or from sounds that they stay with")
    train = sorted({*split["train"], *split["validation"]} - set(validation))
    return {"train": train, "validation": validation, "test": test, "seen": seen,
            "learned": learned}


def choose_subsets(groups, copies, args, earlier=None, held_out=None):
    """Split the sounds as the flags say, and print what is left out.

    earlier: info of the training that this one starts from. held_out: the test sounds of a fold.
    Returns a dict with "train", "validation", "test", "unused", "seen" and "learned", the groups
    of the test sounds, and the hashes of all spectrograms.
    """
    split = split_sounds(groups.of, copies, args.seed, args.test, held_out)
    n_unused = len(groups.of) - sum(len(some) for some in split.values())
    if n_unused:
        say(f"{n_unused} copies of validation and test sounds stay unused")
    split |= {"seen": [], "learned": []}
    if earlier:
        split = leave_out_seen(split, earlier, groups.sets)
    used = {name for subset in SUBSETS for name in split[subset]}
    return split | {"unused": sorted(set(groups.of) - used), "contents": groups.contents,
                    "test_groups": [groups.of[name] for name in split["test"]]}


def note_groups(groups, args, copies):
    """Print how many groups --groups makes, or suggest a --groups if none is given."""
    if args.groups:
        check_groups(groups.of, args.groups, copies)
    elif not (args.test or args.folds_by):
        sounds = originals(groups.of, copies)
        pattern = suggest_groups(sounds, groups.of)
        if pattern:
            part = re.match(pattern, sounds[0].split("/", 1)[1])
            example = f", such as {part[1]}" if part else ""
            flag = shlex.join(["--fresh", "--groups", pattern])
            say(f"File names share parts{example}. If each is a speaker, kit or recording, this "
                f"split is too easy; {flag} keeps each in one subset")


# ---------------------------------------------------------------- continue, or start again

def checkpoint_path(weights):
    """The path of the checkpoint of an unfinished training, beside its weights."""
    return weights.with_name(f"{weights.stem}.unfinished.keras")


def load_checkpoint(path, info):
    """The network and the info of a stopped training. Raises UserError for another training."""
    import models
    network, earlier = models.load_network(path, compile=True)
    check_same_training(path, earlier, info)
    say(f"Continues after epoch {len(earlier['history'])} of a training run that was stopped")
    return network, earlier


def check_same_training(path, earlier, info):
    """Raise UserError unless the training saved in `path` is the one that `info` describes."""
    if changes := describe_changes(earlier, info):
        raise UserError(f"{path}: {changes}; use --fresh to train again, or another --save and "
                        "--results to keep both")


def describe_changes(earlier, info):
    """Describe in words how two training runs differ; "" if they do not."""
    old = earlier["contents"]
    new = info["contents"]
    n_added = len(new.keys() - old.keys())
    n_removed = len(old.keys() - new.keys())
    n_changed = sum(old[name] != new[name] for name in old.keys() & new.keys())
    if earlier["features"] != info["features"]:
        n_changed = 0  # other features make other spectrograms of the same sounds
    if n_added or n_removed or n_changed:
        return (f"{n_added} sounds were added, {n_removed} removed and {n_changed} changed since "
                "training")
    before = {**earlier, **earlier["features"], **earlier["hyperparameters"]}
    now = {**info, **info["features"], **info["hyperparameters"]}
    has_other_split = any(earlier[subset] != info[subset] for subset in SUBSETS)
    if has_other_split:
        now.pop("epochs")  # their number follows from that of the sounds
    texts = []
    for key, value in now.items():
        if isinstance(value, (int, float)) and value != before.get(key):
            texts.append(f"{key} ({before.get(key)}, now {value})")
        elif not isinstance(value, (dict, list)) and value != before.get(key):
            texts.append(key)
    if not texts and has_other_split:
        texts.append("split")
    return f"differs from this training in {', '.join(texts)}" if texts else ""


def list_folds(save):
    """List the weights and checkpoints of all folds of an earlier cross-validation."""
    weights = [utils.fold_path(save, k) for k in range(1, MAX_FOLDS + 1)]
    paths = weights + [checkpoint_path(path) for path in weights]
    return [path for path in paths if path.exists()]


# ---------------------------------------------------------------- build

def prepare_network(spectrograms, info, args):
    """The network to train: continued, grown from --weights, or new. Returns it with its info."""
    import models
    path = checkpoint_path(args.save)
    if path.exists() and not args.fresh:
        return load_checkpoint(path, info)
    network = build_or_extend(spectrograms, info, args.weights)
    n_steps = info["epochs"] * models.count_steps(
        len(info["train"]), info["hyperparameters"]["batch_size"])
    models.compile_network(network, info["network"], info["hyperparameters"], n_steps)
    return network, info | {"n_frames": network.input_shape[-1], "history": [], "temperature": 1.0}


def build_or_extend(spectrograms, info, weights):
    """A new network, or that of the file `weights`, for the classes of info. Raises UserError."""
    import models
    if weights is None:
        n_frames = models.choose_n_frames(spectrograms[name] for name in info["train"])
        sounds = (spectrograms[name] for name in info["train"])
        return models.build_network(info["network"], info["hyperparameters"], sounds,
                                    len(info["classes"]), n_frames)
    network, earlier = models.load_network(weights)
    if earlier["features"] != info["features"]:
        raise UserError(f"--weights {weights}: expected spectrograms made with "
                        f"{earlier['features']}, found {info['features']}; preprocess with the "
                        "settings of the weights")
    if earlier["classes"] == info["classes"]:
        say(f"Starts from {weights}, which has the same classes")
        return network
    say(f"Starts from {weights}; the last layer is new for these {len(info['classes'])} classes")
    return models.extend_network(network, len(info["classes"]))


def print_training(info, network, device):
    """Print the sounds of each class in each subset, the network and the hyperparameters."""
    counts = {subset: Counter(class_of(name) for name in info[subset]) for subset in SUBSETS}
    width = max(len(name) for name in ("Class", *info["classes"]))
    say(f"{'Class':{width}}" + "".join(f"{subset:>12}" for subset in SUBSETS))
    for name in info["classes"][:MAX_LINES]:
        say(f"{name:{width}}" + "".join(f"{counts[subset][name]:>12}" for subset in SUBSETS))
    if len(info["classes"]) > MAX_LINES:
        say("...")
    say(f"{'all':{width}}" + "".join(f"{counts[subset].total():>12}" for subset in SUBSETS))
    note_empty_subsets(info, counts)
    seconds = info["n_frames"] * info["features"]["hop_length"] / info["features"]["sample_rate"]
    say(f"Network: {info['network']}, {network.count_params()} weights, window "
        f"{info['n_frames']} frames ({seconds:.2f} s), {device}")
    values = info["hyperparameters"] | {"epochs": info["epochs"]}
    say("Hyperparameters: " + ", ".join(f"{key} {value}" for key, value in values.items()))


def note_empty_subsets(info, counts):
    """Print which subsets, or classes in them, have no sound, and what follows from it."""
    if not info["validation"]:
        say("No validation sounds: probabilities are not calibrated")
    if not info["test"]:
        say("No test sounds: evaluation needs another folder, --data")
    for subset in SUBSETS:
        bare = [name for name in info["classes"] if not counts[subset][name]]
        if bare and info[subset]:
            is_chosen = info["fold"] or info["weights"] or (subset == "test" and info.get("--test"))
            remedy = "" if is_chosen else "; another --seed splits differently"
            say(f"No {subset} sound in {', '.join(bare)}{remedy}")


# ---------------------------------------------------------------- fit

def train_network(spectrograms, info, args):
    """Train on info["train"], and save the network with all that is needed to use it.

    Continues a stopped training run that has the same info. Raises UserError.
    """
    import models
    began = time.monotonic()
    scope = models.choose_devices(args.devices, info["hyperparameters"]["batch_size"])
    models.use_seed(info["seed"])
    for folder in {args.save.parent, args.results}:
        utils.remove_temporary(folder)
    with (scope, utils.claim_file(args.save), utils.claim_file(args.results / LOG)):
        network, info = prepare_network(spectrograms, info, args)
        batches = models.Batches(spectrograms, info, models.band_means(network))
        print_training(info, network, models.describe_device(network))
        fit_network(network, batches, spectrograms, info, args)
        finish_training(network, info, args)
    say(f"Training took {time.monotonic() - began:.0f} s")


def fit_network(network, batches, spectrograms, info, args):
    """Call network.fit. After each epoch, validate and save a checkpoint."""
    import keras

    import models
    began = time.perf_counter()  # of the epoch

    def begin_epoch(epoch, logs):
        nonlocal began
        began = time.perf_counter()
        batches.start_epoch(epoch)
        models.seed_dropout(network, info["seed"], epoch)

    def end_epoch(epoch, logs):
        seconds = time.perf_counter() - began
        logs.update(validate_network(network, spectrograms, info))
        add_epoch(network, batches, info, logs, seconds)
        save_checkpoint(network, info, args)

    n_done = len(info["history"])
    n_left = (info["epochs"] - n_done) * len(batches)
    with utils.progress_bar("Training", n_left, transient=True) as move_bar:
        def end_batch(batch, logs):
            n_epochs = len(info["history"]) - n_done
            move_bar(n_epochs * len(batches) + batch + 1, f"epoch {n_done + n_epochs + 1}")

        callbacks = [keras.callbacks.LambdaCallback(
            on_epoch_begin=begin_epoch, on_epoch_end=end_epoch, on_train_batch_end=end_batch)]
        if args.tensorboard:
            callbacks.append(keras.callbacks.TensorBoard(args.tensorboard, write_graph=False))
        network.fit(batches, initial_epoch=n_done, epochs=info["epochs"], verbose=0,
                    shuffle=False, callbacks=callbacks)


def validate_network(network, spectrograms, info):
    """Score whole validation sounds, and calibrate by them.

    Returns the loss, accuracy, temperature and thresholds, or {} if there are no such sounds.
    """
    import models
    if not info["validation"]:
        return {}
    sounds = ((name, spectrograms[name]) for name in info["validation"])
    probabilities = np.stack([row for _, row in models.predict_sounds(network, sounds)])
    labels = models.one_hot(info["validation"], info["classes"])  # (n_sounds, n_classes)
    y = labels.argmax(axis=1)
    losses = -np.log(np.maximum(probabilities[labels > 0], 1e-7))
    is_right = probabilities.argmax(axis=1) == y
    temperature = models.fit_temperature(labels, probabilities)
    calibrated = models.apply_temperature(probabilities, temperature)
    scores = {"val_loss": float(losses.mean()), "val_accuracy": float(is_right.mean()),
              "temperature": temperature}
    for percent in models.TARGETS:
        threshold = models.choose_threshold(y, calibrated, percent / 100)
        if threshold is not None:
            scores[f"threshold_{percent}"] = threshold
    return scores


def add_epoch(network, batches, info, logs, seconds):
    """Add an epoch to info["history"]. Raises UserError for a loss that is not finite."""
    if not np.isfinite([logs["loss"], logs.get("val_loss", 0)]).all():
        raise UserError("the loss is not finite; lower --learning-rate")
    n_windows = len(batches) * info["hyperparameters"]["batch_size"]
    scores = {key: float(value) for key, value in logs.items()}
    info["history"].append({
        "epoch": len(info["history"]) + 1, **scores,
        "learning_rate": float(network.optimizer.learning_rate),
        "seconds": seconds, "windows_per_second": n_windows / seconds})
    info["temperature"] = logs.get("temperature", 1.0)


def save_checkpoint(network, info, args):
    """Save an unfinished training, its log and its curves, and print its last epoch."""
    import models
    history = info["history"]
    row = history[-1]
    models.save_network(network, info, checkpoint_path(args.save))
    columns = list(dict.fromkeys(key for r in history for key in r))  # some have no threshold
    utils.save_csv(args.results / LOG, [columns, *([r.get(key) for key in columns]
                                                   for r in history)])
    left = (info["epochs"] - len(history)) * np.mean([r["seconds"] for r in history])
    say(f"epoch {row['epoch']:4}  {format_scores(row)}  {row['windows_per_second']:.0f} "
        f"windows/s  {utils.format_clock(left)} left")
    if len(history) % 5 == 1 or row["seconds"] > 10:  # drawing takes half a second
        plot_curves(args.results / CURVES, history)


def format_scores(row):
    """The loss and accuracy of an epoch as text."""
    keys = [key for key in ("loss", "accuracy", "val_loss", "val_accuracy") if key in row]
    return "  ".join(f"{key.replace('val_', 'validation ')} {row[key]:.4f}" for key in keys)


def finish_training(network, info, args):
    """Draw the curves, save the weights, and remove the checkpoint."""
    import models
    plot_curves(args.results / CURVES, info["history"])
    models.save_network(network, info, args.save)
    checkpoint_path(args.save).unlink(missing_ok=True)
    say(f"{args.save}: {format_scores(info['history'][-1])}")


def plot_curves(path, history):
    """Draw loss and accuracy of training and validation over the epochs."""
    epochs = [row["epoch"] for row in history]
    with utils.new_figure(path, 10, 4) as figure:
        for panel, key in zip(figure.subplots(1, 2), ("loss", "accuracy")):
            panel.plot(epochs, [row[key] for row in history], marker=".",
                       label="training, on random windows")
            if f"val_{key}" in history[0]:
                panel.plot(epochs, [row[f"val_{key}"] for row in history], marker=".",
                           label="validation, on whole sounds")
            panel.set(xlabel="Epoch", ylabel=key.capitalize())
            panel.xaxis.get_major_locator().set_params(integer=True)
            panel.grid(color="0.92")
            panel.legend(fontsize=8)


# ---------------------------------------------------------------- the command

def parse_args():
    """Read the command line."""
    parser = utils.Parser(__doc__, places=("samples", "preproc", "results"))
    add = parser.add_argument
    count = utils.number(int, 1)
    add("--fresh", action="store_true",
        help="start again, and replace what an earlier training saved")
    add("--save", type=Path, default=Path("weights.keras"), metavar="PATH",
        help="the trained network (default: weights.keras)")
    add("--weights", type=Path, metavar="PATH",
        help="start from these earlier weights; for other classes the last layer is new")
    add("--test", type=utils.regex, metavar="REGEX",
        help="the sounds whose class/name matches are the test sounds")
    add("--folds", type=utils.number(int, 2, high=MAX_FOLDS + 1), metavar="K",
        help="cross-validation: train K networks, each tested on another fold of the sounds")
    add("--folds-by", type=utils.regex, metavar="REGEX",
        help="cross-validation with a fold for each text that matches in class/name")
    add("--groups", type=utils.regex, metavar="REGEX",
        help="sounds whose paths below the class share the matched part (a speaker, a note) stay "
        "in one subset")
    add("--seed", type=utils.number(int, 0), default=0, metavar="N",
        help="seed of the split, the initial weights and the order of sounds (default: 0)")
    add("--devices", type=count, default=1, metavar="N",
        help="GPUs to train on at once, with KERAS_BACKEND=jax (default: 1)")
    add("--tensorboard", type=Path, metavar="DIR", help="write the scores for TensorBoard too")
    add_hyperparameters(parser.add_argument_group(
        "hyperparameters", "The first three quarters of the epochs use --mixup, --masks, --warp "
        "and --eq."), count)
    args = parser.parse_args()
    check_args(parser, args)
    return args


def add_hyperparameters(group, count):
    """Add the flags that change models.HYPERPARAMETERS."""
    add = group.add_argument
    add("--network", choices=("default", "original"), default="default",
        help="original: the network of 2017")
    add("--epochs", type=count, metavar="N",
        help="number of epochs (default: depends on the number of sounds)")
    add("--layers", type=utils.number(int, 1, high=11), metavar="N",
        help="blocks of the network (default: 3; original: 4)")
    add("--filters", type=count, metavar="N",
        help="filters of the first block (default: 16; original: 32)")
    add("--batch-size", type=count, metavar="N",
        help="windows in a step (default: 32; original: 128)")
    add("--learning-rate", type=utils.number(float, 1e-9, high=float("inf")), metavar="RATE",
        help="peak learning rate (default: 0.002; original: 1)")
    add("--mixup", type=utils.number(float, 0), metavar="ALPHA",
        help="strength of mixup; 0 turns it off (default: 0.3; original: 0)")
    add("--masks", type=utils.number(int, 0, high=100), metavar="N",
        help="masks on bands, and masks on times, in each window (default: 2; original: 0)")
    add("--shift", type=utils.number(float, 0, high=1), metavar="SHARE",
        help="shift windows by up to this share of their length (default: 0.1; original: 0)")
    add("--warp", type=utils.number(float, 0, high=1), metavar="SHARE",
        help="change speed and pitch by up to this share (default: 0.1; original: 0)")
    add("--eq", type=utils.number(float, 0, high=100), metavar="DB",
        help="change the level of windows by up to DB, and ranges of bands by up to DB more "
        "(default: 10; original: 0)")
    add("--class-weights", choices=("balanced", "none"),
        help="balanced: rare classes count as much as frequent ones (default; original: none)")


def check_args(parser, args):
    """End with one line where flags contradict one another."""
    if sum(map(bool, (args.test, args.folds, args.folds_by))) > 1:
        parser.error("--test, --folds and --folds-by exclude each other; use one of them")
    if args.save.suffix != ".keras":
        parser.error(f"--save {args.save}: use a name that ends in .keras")
    written = [args.save, checkpoint_path(args.save)]
    if args.folds or args.folds_by:
        written = list_folds(args.save)
    if args.weights and args.weights.resolve() in [path.resolve() for path in written]:
        parser.error(f"--weights {args.weights}: would be replaced; name another file with --save")
    if args.weights and (args.network != "default" or args.layers or args.filters):
        parser.error("--weights: brings its own network; leave out --network, --layers, --filters")
    if args.tensorboard and not find_spec("tensorboard"):
        parser.error("--tensorboard: the package is missing: pip install tensorboard")


def make_info(args, source, subsets, earlier=None, fold=None):
    """The info of a training run: all that determines it, and all that use of the network needs."""
    import models
    network = earlier["network"] if earlier else args.network
    hyperparameters = dict(models.HYPERPARAMETERS[network])
    if earlier:
        hyperparameters |= earlier["hyperparameters"]
    for key in hyperparameters:
        if getattr(args, key, None) is not None:  # smoothing has no flag
            hyperparameters[key] = getattr(args, key)
    weights = hashlib.sha256(args.weights.read_bytes()).hexdigest() if args.weights else None
    batch_size = hyperparameters["batch_size"]
    return {"network": network, "seed": args.seed, "classes": source.classes,
            "features": dataclasses.asdict(source.settings), "hyperparameters": hyperparameters,
            "epochs": args.epochs or models.choose_epochs(len(subsets["train"]), batch_size),
            "weights": weights, "--groups": args.groups and args.groups.pattern,
            "--test": args.test and args.test.pattern, "--folds": args.folds,
            "--folds-by": args.folds_by and args.folds_by.pattern, "fold": fold, **subsets}


def train_split(source, spectrograms, subsets, args, earlier=None, fold=None):
    """Train and save a network, unless that is done.

    subsets: from choose_subsets. earlier: info of the training that this one starts from.
    fold: in cross-validation, its number and the number of folds.
    """
    import models  # it loads Keras, which takes seconds: mistakes are found before
    info = make_info(args, source, subsets, earlier, fold)
    if args.save.exists() and not args.fresh and not checkpoint_path(args.save).exists():
        check_same_training(args.save, models.load_info(args.save), info)
        say(f"{args.save}: training on these sounds is finished; --fresh trains again")
    else:
        with models.explain_errors(info["hyperparameters"]["batch_size"]):
            train_network(spectrograms, info, args)


def train_folds(source, spectrograms, groups, args, earlier):
    """Train a network for each fold. Its files have the number of the fold in their names."""
    folds = choose_folds(groups, source.copies, args, earlier)
    with utils.claim_file(args.save):
        train_each_fold(source, spectrograms, folds, args, earlier)


def train_each_fold(source, spectrograms, folds, args, earlier):
    """Train the networks of train_folds, one after the other."""
    import models
    if args.fresh:  # all at once: after a stop, the same command without --fresh continues
        for path in list_folds(args.save):
            path.unlink()
    for k, subsets in enumerate(folds, 1):
        say("", f"Fold {k} of {len(folds)}")
        of_fold = copy.copy(args)
        of_fold.fresh = False
        of_fold.save = utils.fold_path(args.save, k)
        of_fold.results = args.results / f"fold{k}"
        of_fold.tensorboard = args.tensorboard and args.tensorboard / f"fold{k}"
        train_split(source, spectrograms, subsets, of_fold, earlier, [k, len(folds)])
        models.keras.utils.clear_session()  # frees the network


def choose_folds(groups, copies, args, earlier):
    """Choose the subsets of all folds. Raises UserError if one has no test sounds."""
    folds = []
    for k, held_out in enumerate(split_folds(groups.of, args, copies), 1):
        folds.append(choose_subsets(groups, copies, args, earlier, held_out))
        if not folds[-1]["test"]:
            raise UserError(f"fold {k}: has no test sounds, for --weights was trained on them; use "
                            "other folds, or leave out --weights")
    return folds


def main():
    """Load, split, train and save. Returns how many sounds could not be read."""
    args = parse_args()
    utils.check_outside("--results", args.results, args.samples)
    if args.weights:
        utils.check_weights_path(args.weights)
    source, spectrograms, n_bad = load_training_set(args)
    earlier = None
    if args.weights:
        import models
        earlier = models.load_info(args.weights)
    groups = group_sounds(source, spectrograms, args.groups, earlier)
    note_groups(groups, args, source.copies)
    flags = []
    if args.folds or args.folds_by:
        train_folds(source, spectrograms, groups, args, earlier)
        flags = ["--folds"]
    else:
        subsets = choose_subsets(groups, source.copies, args, earlier)
        train_split(source, spectrograms, subsets, args, earlier)
    utils.say_next("eval_network.py", *flags, samples=args.samples, preproc=args.preproc,
                   results=args.results, weights=args.save)
    return n_bad


if __name__ == "__main__":
    utils.run(main)
