"""Train a network to tell the classes of sounds apart.

Reads Preproc/, or Samples/ if Preproc/ is empty. Writes the weights, with all that is needed to use
them, and Results/training_log.csv and training_curves.png. One sound in five of each class is kept
for eval_network.py. If training is stopped, the same command resumes it.

With --folds, the weights are the mean of several networks, for new sounds.

    python train_network.py
    python train_network.py --folds 5
"""
import contextlib
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
from utils import SUBSETS, Hyperparameters, Split, UserError, class_of, originals, say, stem_of

TEST_SHARE = 0.2  # of the sounds of each class
VALIDATION_SHARE = 0.15  # of the sounds that are not for testing
N_DRAWS = 32  # splits that are tried
MAX_DEVIATION = 0.35  # of the numbers of sounds from those wanted, as a share of these
MAX_FOLDS = 1000
ENOUGH_GROUPS = 10  # to split well: two of them are for testing
MAX_TWINS = 12  # spectrograms taken for one recording; in a large class, a quarter of it
MAX_LINES = 40  # of the table of classes
LOG = "training_log.csv"
CURVES = "training_curves.png"


# ---------------------------------------------------------------- load

def load_training_set(samples, preproc):
    """Find and read the spectrograms, and check that there is enough to train on.

    Returns a Source, a mapping from name to spectrogram, and how many could not be read.
    Raises UserError.
    """
    began = time.perf_counter()
    source = utils.find_source(samples, preproc)
    note_other_sounds(source, samples)
    check_classes(source.names, source)
    spectrograms, n_bad = utils.read_spectrograms(source, source.names)
    check_classes(spectrograms, source)  # again, for some may be unreadable
    if source.folder == samples:
        seconds = time.perf_counter() - began
        following = utils.command("preprocess_data.py", samples=samples, preproc=preproc)
        say(f"Computed in {seconds:.1f} s; to keep them, run {following}")
    return source, spectrograms, n_bad


def load_earlier(weights, settings):
    """Load the Training of earlier weights. Raises UserError unless they take these features."""
    import models
    earlier = models.load_training(weights)
    if earlier.features != settings:
        raise UserError(f"--weights {weights}: expected spectrograms made with {earlier.features}, "
                        f"found {settings}; preprocess with the settings of the weights")
    if earlier.is_mean:
        raise UserError(f"--weights {weights}: is the mean of several networks; name one of them, "
                        f"such as {utils.fold_path(weights, 1)}")
    return earlier


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
    if all(map(utils.is_background, source.classes)):
        raise UserError(f"{folder}: holds only background ({', '.join(source.classes)}); add a "
                        "folder without a leading underscore for each class")
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
    seen: set  # keys of the groups that hold a sound which earlier weights used
    learned: set  # keys of those that hold a sound which they learned from


def group_sounds(contents, spectrograms, copies, pattern=None, earlier=None):
    """Group the sounds that must stay together, for whatever reason.

    A sound stays with its copies, its other formats, those that hold the same recording, and those
    whose paths share the part that `pattern` matches. contents: dict from each sound to the hash of
    its spectrogram. copies: dict from each copy to its source. earlier: the Training of earlier
    weights, whose sounds may join these. Returns Groups.
    """
    learned, seen = list_used(earlier) if earlier else ([], [])
    sets = DisjointSet()
    group = {}

    def join(*members):
        for member in members:
            sets.add(member)
        sets.merge(*members)

    for name, content in [*contents.items(), *seen]:
        group[name] = utils.find_group(copies.get(name, name), pattern)
        join(name, ("group", group[name]))
        join(name, ("content", content))
    for pair in find_twins(contents, spectrograms, copies):
        join(*(("content", content) for content in pair))
    keys = {}
    for name in sorted(group, key=lambda name: (name not in contents, name)):
        keys.setdefault(sets[name], group[name])
    return Groups({name: keys[sets[name]] for name in contents},
                  {keys[sets[name]] for name, _ in seen},
                  {keys[sets[name]] for name, _ in learned})


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
    Returns three sorted lists: training, validation and test sounds. Copies of validation and test
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
    validation = hold_out(rest, copies, VALIDATION_SHARE, f"{seed} validation", least=0)
    train = sorted(set(rest) - validation)
    return train, originals(validation, copies), originals(held_out, copies)


def split_folds(group, copies, seed, n_folds=None, pattern=None):
    """Split sounds into n_folds folds, or those that `pattern` names, for cross-validation.

    Returns a list of sets of names. Groups and copies stay whole. Raises UserError.
    """
    if pattern:
        folds = match_folds(group, pattern, copies)
        flag = f"--folds-by {pattern.pattern}"
    else:
        folds = draw_folds(group, n_folds, seed, copies)
        flag = f"--folds {n_folds}"
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


def hold_out(group, copies, share, salt, least=1):
    """Choose about `share` of each class, and at least `least`, in whole groups.

    group: dict from each sound to its group. Returns a set of names. The first of N_DRAWS draws is
    taken that has sounds of each class, and numbers near the shares. If there is none, the best is.
    A new sound moves few others, because the first draw is nearly always good.
    """
    sizes = count_recordings(group, copies)
    wanted = {name: min(max(least, round(share * n)), n - 1) for name, n in sizes.items()}
    pairs = {(class_of(name), key) for name, key in group.items()}
    n_groups = Counter(name for name, _ in pairs)
    best = len(wanted) + 1, True  # worse than any draw
    for k in range(N_DRAWS):
        drawn = draw_groups(group, copies, wanted, f"{salt}/{k}" if k else salt)
        counts = count_recordings(drawn, copies)
        deviation = sum(abs(counts[name] - n) for name, n in wanted.items())
        is_far = deviation > MAX_DEVIATION * sum(wanted.values())
        n_bare = sum(not counts[name] for name, n in wanted.items() if n and n_groups[name] > 1)
        if (n_bare, is_far) < best:
            best = n_bare, is_far
            held_out = drawn
        if best == (0, False):
            break
    return held_out


def draw_groups(group, copies, wanted, salt):
    """Draw about the wanted number of recordings of each class, in whole groups.

    wanted: dict from class to number. Returns a set of names. The groups are ordered by a hash of
    their names. A group is taken if that brings the classes closer to the numbers, and leaves at
    least one recording in each class.
    """
    members = {}
    for name, key in group.items():
        members.setdefault(key, []).append(name)
    left = count_recordings(group, copies)
    wanted = dict(wanted)
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


def suggest_groups(group, copies):
    """Suggest a --groups if the names of sounds share a part, such as a kit or a speaker.

    group: dict from each sound to its group without the flag. The first pattern that makes groups
    is taken. If it makes few, such as folds or batches, a later one that makes more replaces it.
    But if two parts occur in all combinations, as speakers and sentences do, the first stays.
    After a part that would separate twins, the last part is no group: it may number the takes.
    Returns the pattern, or None, and the sorted groups.
    """
    stems = {name: stem_of(name).split("/", 1)[1] for name in originals(group, copies)}
    suggested = None
    best = {}  # from each name to its part
    n_best = 0  # parts, counted in each class
    found = set()
    is_refused = False
    for pattern in list_patterns(stems.values()):
        parts = find_parts(stems, pattern, group)
        is_refused |= parts is None
        if not parts or (is_refused and pattern.endswith("$")):
            continue
        n_of_class = len({(class_of(name), part) for name, part in parts.items()})
        pairs = {(best.get(name), part.removeprefix(best.get(name, "")))
                 for name, part in parts.items()}
        n_combinations = len(found) * len({rest for _, rest in pairs})
        if n_of_class > n_best and (not best or len(pairs) < n_combinations / 2):
            suggested = pattern
            best = parts
            n_best = n_of_class
            found = set(best.values())
        if len(found) >= ENOUGH_GROUPS:
            break
    return suggested, sorted(found)


def list_patterns(stems):
    """List what to try as --groups: parts from the left, letters and digits, then the last part."""
    parts = {separator: f"[^{separator[0]}]+" for separator in ("/", "-", "__", "_", " ")
             if sum(separator in stem for stem in stems) >= 0.9 * len(stems)}
    yield from (f"^{part}" for part in parts.values())
    for separator, part in sorted(parts.items(), key=lambda item: min(stems).find(item[0])):
        yield from (f"^{f'{part}{separator}' * n}({other}){end}"
                    for n in range(1, 5) for end, other in parts.items())
    yield from (r"^[A-Za-z]+\d+", "^[A-Za-z]+", r"^\d+")
    yield from (f"{part}$" for part in parts.values())


def find_parts(stems, pattern, group):
    """Find the part of each name that `pattern` matches. Returns {} if the parts are no groups.

    They are groups if most names match, recordings share a part within their class, and each class
    has two parts. A first part that is no number, such as a kit, may be shared by classes alone.
    Two numbers are conditions. Returns None if the parts would separate a group, such as twins.
    """
    matches = zip(stems, map(re.compile(pattern).search, stems.values()))
    parts = {name: match[match.lastindex or 0] for name, match in matches
             if match and match[0] != stems[name]}
    shared = set(parts.values())
    of_class = {(class_of(name), part) for name, part in parts.items()}
    counts = Counter(name for name, _ in of_class)
    are_numbers = all(map(str.isdecimal, shared))
    if (len(parts) < 0.9 * len(stems) or min(counts.values(), default=0) < 2
            or (are_numbers and len(shared) == 2)):
        return {}
    is_first = pattern.startswith("^") and "(" not in pattern
    recordings = {group[name] for name in parts}
    is_rare = len(recordings) < 1.5 * len(shared if is_first and not are_numbers else of_class)
    is_class = all(class_of(name) in re.split("[-/_ ]", part) for name, part in parts.items())
    parts_groups = len({(group[name], part) for name, part in parts.items()}) > len(recordings)
    if is_rare or is_class:
        return {}
    return None if parts_groups else parts


def list_used(training):
    """List the sounds that a training run and the earlier ones used, as sorted [name, hash] pairs.

    Returns those that it learned from, and those that it learned from or validated on.
    """
    split = training.split
    learned = {*map(tuple, split.learned), *((name, split.contents[name]) for name in split.train)}
    validated = {(name, split.contents[name]) for name in split.validation}
    seen = learned | validated | set(map(tuple, split.seen))
    return list(map(list, sorted(learned))), list(map(list, sorted(seen)))


def leave_out_seen(train, validation, test, groups):
    """Keep sounds that earlier weights used out of the validation and test subsets.

    A sound that stays together with one that they used is not tested. If they learned from that
    one, the sound is not used for validation either, but trained on. Returns the three lists.
    """
    unseen = [name for name in test if groups.of[name] not in groups.seen]
    unlearned = [name for name in validation if groups.of[name] not in groups.learned]
    if n_test := len(test) - len(unseen):
        say(f"{n_test} of {len(test)} test sounds are left out: the earlier training used them, or "
            "sounds that they stay with")
    if n_validation := len(validation) - len(unlearned):
        say(f"{n_validation} of {len(validation)} validation sounds become training sounds: the "
            "earlier training learned from them, or from sounds that they stay with")
    return sorted({*train, *validation} - set(unlearned)), unlearned, unseen


def choose_split(groups, contents, copies, seed, test=None, held_out=None, earlier=None):
    """Split the sounds, and print what is left out. Returns a Split.

    test, held_out: as in split_sounds. earlier: the Training of earlier weights. Fewer than
    MIN_VALIDATION sounds are trained on instead: the usual temperature does as well as one that so
    few would choose. So are those of a fold, for the test sounds of all folds calibrate the mean.
    """
    train, validation, tested = split_sounds(groups.of, copies, seed, test, held_out)
    learned, seen = [], []
    if earlier:
        train, validation, tested = leave_out_seen(train, validation, tested, groups)
        learned, seen = list_used(earlier)
        if held_out and not tested:
            raise UserError("a fold has no test sounds left, for --weights was trained on them; "
                            "use other folds, or leave out --weights")
    if held_out or len(validation) < utils.MIN_VALIDATION:
        sources = {*train, *validation}
        train = sorted(name for name in groups.of if copies.get(name, name) in sources)
        validation = []
    unused = sorted(set(groups.of) - {*train, *validation, *tested})
    if n_copies := len(copies.keys() & unused):
        say(f"{n_copies} copies of validation and test sounds stay unused")
    held = {name: groups.of[name] for name in (*validation, *tested)}
    return Split(train, validation, tested, unused, held, contents, seen, learned)


def join_splits(splits):
    """Join the Splits of all folds. The tested sounds become validation sounds."""
    train = sorted({name for split in splits for name in split.train})
    tested = sorted({name for split in splits for name in split.test})
    unused = sorted(splits[0].contents.keys() - {*train, *tested})
    groups = {name: key for split in splits for name, key in split.groups.items()}
    return dataclasses.replace(splits[0], train=train, validation=tested, test=[], unused=unused,
                               groups=groups)


def note_suggested_groups(group, copies):
    """Print a --groups that the names of the sounds suggest, if there is one."""
    pattern, found = suggest_groups(group, copies)
    if pattern:
        flag = shlex.join(["--fresh", "--groups", pattern])
        say(f"File names share parts, such as {found[0]} and {found[1]}. If each is a speaker, kit "
            f"or recording, this split is too easy; {flag} keeps each in one subset")


# ---------------------------------------------------------------- continue, or start again

class Places(NamedTuple):
    """Where a training run writes."""

    save: Path  # the weights
    results: Path  # a folder
    tensorboard: Path | None  # a folder

    @property
    def checkpoint(self):
        """The weights of an unfinished training run."""
        return self.save.with_name(f"{self.save.stem}.unfinished.keras")

    def of_fold(self, k):
        """The Places of fold k."""
        return Places(utils.fold_path(self.save, k), self.results / f"fold{k}",
                      self.tensorboard and self.tensorboard / f"fold{k}")


def list_written(places, has_folds):
    """List the paths of the weights and checkpoints that a training run writes."""
    folds = [places.of_fold(k) for k in range(1, MAX_FOLDS + 1)] if has_folds else []
    return [path for some in (places, *folds) for path in (some.save, some.checkpoint)]


def describe_changes(earlier, training):
    """Describe in words how two training runs differ; "" if they do not."""
    old = earlier.split.contents
    new = training.split.contents
    n_added = len(new.keys() - old.keys())
    n_removed = len(old.keys() - new.keys())
    n_changed = sum(old[name] != new[name] for name in old.keys() & new.keys())
    if earlier.features != training.features:
        n_changed = 0  # other features make other spectrograms of the same sounds
    if n_added or n_removed or n_changed:
        return (f"{n_added} sounds were added, {n_removed} removed and {n_changed} changed since "
                "training")
    before = earlier.settings()
    now = training.settings()
    has_other_split = any(getattr(earlier.split, subset) != getattr(training.split, subset)
                          for subset in SUBSETS)
    if has_other_split or earlier.features != training.features:
        for key in ("epochs", "n_frames"):  # they follow from the lengths of the sounds, in frames
            now.pop(key)
    elif earlier.split.groups == training.split.groups:
        now["--groups"] = before["--groups"]  # the patterns make the same groups
    texts = []
    for key, value in now.items():
        if isinstance(value, (int, float)) and before[key] not in (None, value):
            texts.append(f"{key} ({before[key]}, now {value})")
        elif value != before[key]:
            texts.append(key)
    if not texts and has_other_split:
        texts.append("split")
    return f"differs from this training in {', '.join(texts)}" if texts else ""


# ---------------------------------------------------------------- build

def build_network(spectrograms, training, weights=None):
    """Build the network to train, and compile it. Raises UserError.

    weights: path of earlier weights, whose network it then is.
    """
    import models
    if weights is None:
        sounds = (spectrograms[name] for name in training.split.train)
        network = models.build_network(training.network, training.hyperparameters, sounds,
                                       len(training.classes), training.n_frames)
    else:
        network, earlier = models.load_network(weights)
        if earlier.classes == training.classes:
            say(f"Starts from {weights}, which has the same classes")
        else:
            n = len(training.classes)
            say(f"Starts from {weights}; the last layer is new for these {n} classes")
            network = models.extend_network(network, n)
    models.compile_network(network, training)
    return network


def print_training(training, network, device):
    """Print the sounds of each class in each subset, the network and the hyperparameters."""
    counts = [Counter(map(class_of, getattr(training.split, subset))) for subset in SUBSETS]
    width = max(len(name) for name in ("Class", *training.classes))
    say(f"{'Class':{width}}" + "".join(f"{subset:>12}" for subset in SUBSETS))
    for name in training.classes[:MAX_LINES]:
        say(f"{name:{width}}" + "".join(f"{of_class[name]:>12}" for of_class in counts))
    if len(training.classes) > MAX_LINES:
        say("...")
    say(f"{'all':{width}}" + "".join(f"{of_class.total():>12}" for of_class in counts))
    if not training.split.validation:
        say("No validation sounds: the temperature that calibrates is the usual one, "
            f"{training.temperature}")
    if not training.split.test:
        say("No test sounds: evaluation needs another folder, --data")
    for subset, of_class in zip(SUBSETS, counts):
        bare = [name for name in training.classes if not of_class[name]]
        if bare and of_class:
            has_remedy = subset == "test" and {*training.flags} == {"--groups"}
            remedy = "; --folds tests all sounds" if has_remedy else ""
            say(f"No {subset} sound in {', '.join(bare)}{remedy}")
    if n_background := sum(utils.is_background(class_of(name)) for name in training.split.train):
        say(f"Background: {n_background} sounds; training windows get some at random levels")
    seconds = training.n_frames * training.features.hop_length / training.features.sample_rate
    say(f"Network: {training.network}, {network.count_params()} weights, window "
        f"{training.n_frames} frames ({seconds:.2f} s), {device}")
    values = dataclasses.asdict(training.hyperparameters) | {"epochs": training.epochs}
    say("Hyperparameters: " + ", ".join(f"{key} {value}" for key, value in values.items()))


# ---------------------------------------------------------------- fit

def train_network(training, spectrograms, places, weights=None, n_devices=1, is_fresh=False):
    """Train a network, and save it with all that is needed to use it.

    Continues a stopped run of the same training, unless `is_fresh`. weights: path of earlier
    weights to start from. Raises UserError.
    """
    import models
    began = time.monotonic()
    scope = models.choose_devices(n_devices, training.hyperparameters.batch_size)
    models.use_seed(training.seed)
    with scope, utils.claim_file(places.save), utils.claim_file(places.results / LOG):
        for folder in {places.save.parent, places.results}:
            utils.remove_temporary(folder)
        if is_fresh:
            places.checkpoint.unlink(missing_ok=True)
        if places.checkpoint.exists():
            network, training = models.load_network(places.checkpoint, compile=True)
            say(f"Continues after epoch {len(training.history)} of a training run that was stopped")
        else:
            network = build_network(spectrograms, training, weights)
        print_training(training, network, models.describe_device(network))
        fit_network(network, training, spectrograms, places)
        plot_curves(places.results / CURVES, training.history)
        models.save_network(network, training, places.save)
        places.checkpoint.unlink(missing_ok=True)
    say(f"{places.save}: {format_scores(training.history[-1])}",
        f"Training took {time.monotonic() - began:.0f} s")


def train_folds(training, splits, spectrograms, places, weights=None, n_devices=1):
    """Train a network for each split, and save the mean of them, with the Training of all.

    The mean is calibrated by the test sounds of each network. Other arguments: see train_network.
    """
    import models
    networks = []
    rows = []  # the last epoch of each network
    predicted = []  # pairs of a name and its probabilities
    for k, split in enumerate(splits, 1):
        say("", f"Fold {k} of {len(splits)}")
        fold = dataclasses.replace(training, fold=[k, len(splits)], split=split, history=[])
        own = places.of_fold(k)
        if not is_finished(own, fold):
            train_network(fold, spectrograms, own, weights, n_devices)
        models.keras.utils.clear_session()  # frees the network
    for k, split in enumerate(splits, 1):
        network, fold = models.load_network(places.of_fold(k).save)
        networks.append(network)
        rows.append({**fold.history[-1], "seconds": sum(row["seconds"] for row in fold.history)})
        sounds = ((name, spectrograms[name]) for name in split.test)
        predicted += utils.show_progress(models.predict_sounds(network, sounds), len(split.test),
                                         f"Scoring fold {k}")
    names, probabilities = zip(*predicted)
    scores = models.calibrate(names, np.stack(probabilities), training)
    means = {key: float(np.mean([row[key] for row in rows])) for key in ("loss", "accuracy")}
    training.history.append(means | {"seconds": sum(row["seconds"] for row in rows)} | scores)
    models.save_network(models.average_networks(networks), training, places.save)
    if training.threshold is None:
        note = f"no threshold: {training.explain_no_threshold()}"
    else:
        note = f"threshold {training.threshold:.4f} for {models.TARGET} %"
    say("", f"{places.save}: the mean of these {len(splits)} networks, for new sounds; {note}")


def is_finished(places, training):
    """Whether a training run is finished. Raises UserError if another one is saved there."""
    import models
    path = places.checkpoint if places.checkpoint.exists() else places.save
    if not path.exists():
        return False
    if changes := describe_changes(models.load_training(path), training):
        raise UserError(f"{path}: {changes}; use --fresh to train again, or another --save and "
                        "--results to keep both")
    if path == places.checkpoint:
        return False
    say(f"{path}: training on these sounds is finished; --fresh trains again")
    return True


def fit_network(network, training, spectrograms, places):
    """Train the epochs that are left. After each, validate and save a checkpoint."""
    import keras

    import models
    batches = models.Batches(spectrograms, training, models.band_means(network))
    n_steps = training.n_steps
    n_done = len(training.history)
    n_left = (training.epochs - n_done) * n_steps
    with utils.progress_bar("Training", n_left, transient=True) as move_bar:
        callbacks = [keras.callbacks.LambdaCallback(on_train_batch_end=lambda step, logs: move_bar(
            (len(training.history) - n_done) * n_steps + step + 1,
            f"epoch {len(training.history) + 1}"))]
        if places.tensorboard:
            board = keras.callbacks.TensorBoard(places.tensorboard, write_graph=False)
            board.set_model(network)
        for epoch in range(n_done, training.epochs):
            began = time.perf_counter()
            batches.start_epoch(epoch)
            models.seed_dropout(network, training.seed, epoch)
            fitted = network.fit(batches, initial_epoch=epoch, epochs=epoch + 1, verbose=0,
                                 shuffle=False, callbacks=callbacks)
            scores = {key: values[-1] for key, values in fitted.history.items()}
            seconds = time.perf_counter() - began
            scores |= models.validate_network(network, spectrograms, training)
            if places.tensorboard:
                board.on_epoch_end(epoch, scores)  # not in fit, which has no validation scores
            add_epoch(training, scores, float(network.optimizer.learning_rate), seconds)
            save_checkpoint(network, training, places)


def add_epoch(training, scores, learning_rate, seconds):
    """Add an epoch to the history. Raises UserError for a loss that is not finite."""
    if not np.isfinite([scores["loss"], scores.get("val_loss", 0)]).all():
        raise UserError("the loss is not finite; lower --learning-rate")
    n_windows = training.n_steps * training.hyperparameters.batch_size
    training.history.append({
        "epoch": len(training.history) + 1,
        **{key: float(value) for key, value in scores.items()}, "learning_rate": learning_rate,
        "seconds": seconds, "windows_per_second": n_windows / seconds})


def save_checkpoint(network, training, places):
    """Save an unfinished training run, its log and its curves, and print its last epoch."""
    import models
    history = training.history
    row = history[-1]
    models.save_network(network, training, places.checkpoint)
    columns = list(dict.fromkeys(key for r in history for key in r))  # some have no threshold
    utils.save_csv(places.results / LOG,
                   [columns, *([r.get(key) for key in columns] for r in history)])
    left = (training.epochs - len(history)) * np.mean([r["seconds"] for r in history])
    say(f"epoch {row['epoch']:4}  {format_scores(row)}  {row['windows_per_second']:.0f} "
        f"windows/s  {utils.format_clock(left)} left")
    if len(history) % 5 == 1 or row["seconds"] > 10:  # drawing takes half a second
        plot_curves(places.results / CURVES, history)


def format_scores(row):
    """The loss and accuracy of an epoch as text."""
    keys = [key for key in ("loss", "accuracy", "val_loss", "val_accuracy") if key in row]
    return "  ".join(f"{key.replace('val_', 'validation ')} {row[key]:.4f}" for key in keys)


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
    """Read the command line. Ends with one line where flags contradict one another."""
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
        help="cross-validation: train K networks, each tested on another fold of the sounds, and "
        "save the mean of them for new sounds")
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
    group = parser.add_argument_group(
        "hyperparameters", "--mixup, --masks, --warp and --eq become weaker in the second half of "
        "the epochs.")
    group.add_argument("--network", choices=("default", "original"), default="default",
                       help="original: the network of 2017")
    group.add_argument("--epochs", type=count, metavar="N",
                       help="number of epochs (default: depends on the sounds and their lengths)")
    for field in dataclasses.fields(Hyperparameters):
        original = field.metadata["original"]
        kind = {"choices": (field.default, original)}
        if field.type is not str:
            kind = {"type": utils.number(field.type, field.metadata["low"], field.metadata["high"]),
                    "metavar": "N" if field.type is int else "X"}
        group.add_argument(f"--{field.name.replace('_', '-')}", **kind, help=
                           f"{field.metadata['help']} (default: {field.default}; original: "
                           f"{original})")
    args = parser.parse_args()
    if sum(map(bool, (args.test, args.folds, args.folds_by))) > 1:
        parser.error("--test, --folds and --folds-by exclude each other; use one of them")
    if args.save.suffix != ".keras":
        parser.error(f"--save {args.save}: use a name that ends in .keras")
    places = Places(args.save, args.results, args.tensorboard)
    written = list_written(places, args.folds or args.folds_by)
    if args.weights and args.weights.resolve() in [path.resolve() for path in written]:
        parser.error(f"--weights {args.weights}: would be replaced; name another file with --save")
    if args.weights and (args.network != "default" or args.layers or args.filters):
        parser.error("--weights: brings its own network; leave out --network, --layers, --filters")
    if args.tensorboard and not find_spec("tensorboard"):
        parser.error("--tensorboard: the package is missing: pip install tensorboard")
    return args


def main():
    """Load, split, train and save. Returns how many sounds could not be read."""
    args = parse_args()
    utils.check_outside("--results", args.results, args.samples)
    if args.weights:
        utils.check_weights_path(args.weights)
    source, spectrograms, n_bad = load_training_set(args.samples, args.preproc)
    copies = source.copies
    earlier = load_earlier(args.weights, source.settings) if args.weights else None

    # Split the sounds, in groups of those that must stay together: once, or for each fold.
    contents = {name: utils.hash_content(s) for name, s in spectrograms.items()}
    groups = group_sounds(contents, spectrograms, copies, args.groups, earlier)
    if args.groups:
        check_groups(groups.of, args.groups, copies)
    elif not (args.test or args.folds_by):
        note_suggested_groups(groups.of, copies)
    has_folds = bool(args.folds or args.folds_by)
    if has_folds:
        folds = split_folds(groups.of, copies, args.seed, args.folds, args.folds_by)
    else:
        folds = [None]
    splits = [choose_split(groups, contents, copies, args.seed, args.test, fold, earlier)
              for fold in folds]

    # Train a network for each split.
    import models  # it loads Keras, which takes seconds: mistakes are found before
    network = earlier.network if earlier else args.network
    defaults = earlier.hyperparameters if earlier else Hyperparameters.of_network(network)
    given = {name: value for name, value in vars(args).items()
             if hasattr(defaults, name) and value is not None}
    hyperparameters = dataclasses.replace(defaults, **given)
    patterns = {"--groups": args.groups, "--test": args.test, "--folds": args.folds,
                "--folds-by": args.folds_by}
    flags = {flag: getattr(value, "pattern", value) for flag, value in patterns.items() if value}
    weights_hash = args.weights and hashlib.sha256(args.weights.read_bytes()).hexdigest()
    whole = join_splits(splits) if has_folds else splits[0]
    # The networks of folds get windows of one length. It follows from the lengths of all sounds.
    lengths = [spectrograms[name].shape[-1] for name in whole.train
               if not utils.is_background(class_of(name))]  # background may be long
    n_frames = earlier.n_frames if earlier else models.choose_n_frames(lengths)
    epochs = args.epochs or max(models.choose_epochs(
        [spectrograms[name].shape[-1] for name in split.train], hyperparameters.batch_size)
        for split in splits)
    training = models.Training(source.classes, source.settings, network, hyperparameters, n_frames,
                               args.seed, epochs, flags, None, weights_hash, whole)
    places = Places(args.save, args.results, args.tensorboard)
    with utils.claim_file(args.save) if has_folds else contextlib.nullcontext():
        models.choose_devices(args.devices, hyperparameters.batch_size)  # before any file is lost
        if has_folds and args.fresh:  # all at once: the same command without --fresh continues
            for path in list_written(places, has_folds):
                path.unlink(missing_ok=True)
        if args.fresh or not is_finished(places, training):
            with models.explain_errors(hyperparameters.batch_size):
                if has_folds:
                    train_folds(training, splits, spectrograms, places, args.weights, args.devices)
                else:
                    train_network(training, spectrograms, places, args.weights, args.devices,
                                  args.fresh)
    utils.say_next("eval_network.py", *(["--folds"] if has_folds else []), samples=args.samples,
                   preproc=args.preproc, results=args.results, weights=args.save)
    return n_bad


if __name__ == "__main__":
    utils.run(main)
