"""Train a network to tell the classes of sounds apart.

Reads Preproc/, or where that is empty Samples/. Writes the weights, with all that is needed to use them.
One sound in five of each class is kept for eval_network.py and never looked at.

    python train_network.py
"""
import dataclasses
import hashlib
import io
import json
import os
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from functools import lru_cache, partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

import utils
from preprocess_data import FeatureSettings, default_settings, rate_of_most, sound_to_spectrogram
from utils import UserError, class_of, source_of

TEST_SHARE = 0.2
VALIDATION_SHARE = 0.15  # of the sounds that are not for testing


# ---------------------------------------------------------------- where spectrograms come from: Preproc/ or Samples/

def load_settings(preproc):
    """The settings that `preproc` was made with, None where it holds no spectrogram. Raises UserError."""
    path = Path(preproc, utils.SETTINGS_FILE)
    if not Path(preproc).is_dir() or not (path.exists() or utils.list_spectrograms(preproc)):
        return None
    try:
        return FeatureSettings(**json.loads(path.read_text()))
    except (OSError, ValueError, TypeError):
        raise UserError(f"{path}: expected the settings of finished preprocessing, found none that are whole; "
                        "run preprocess_data.py again") from None


@lru_cache(maxsize=4096)
def parse_header(head):
    """The shape, order, type and offset of an array from the first bytes of its .npy file: half the time of loading."""
    file = io.BytesIO(head)
    np.lib.format.read_magic(file)
    return *np.lib.format.read_array_header_1_0(file), file.tell()


def load_spectrogram(name, folder, settings):
    """The spectrogram of one sound from `folder`. Raises UserError for a file that is not one."""
    path = f"{folder}/{name}.npy"
    try:
        with open(path, "rb", buffering=0) as file:
            data = file.read()
        shape, by_columns, dtype, offset = parse_header(data[:128])
        array = np.frombuffer(data, dtype, offset=offset).reshape(shape, order="F" if by_columns else "C")
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{path}: expected a spectrogram, found {error}; remove it and preprocess again") from None
    expected = ((settings.channels,) if settings.channels > 1 else ()) + (settings.n_mels,)
    right = array.dtype == np.float32 and array.shape[:-1] == expected and array.size
    if not right or not np.isfinite(array).all():
        raise UserError(f"{path}: expected {settings.n_mels} mel bands of float32, found {array.dtype} of shape "
                        f"{array.shape}{' with NaN' if right else ''}; remove it and preprocess again")
    return array


class Source(NamedTuple):
    """Where spectrograms come from."""

    folder: Path  # Preproc/, or Samples/
    names: list  # of the sounds there, sorted
    classes: list  # names of the class folders, sorted
    settings: FeatureSettings
    read: Callable  # (name, folder, settings) -> spectrogram


def find_source(samples, preproc, settings=None):
    """`preproc`, or where it is empty, or made with other than the given settings, `samples`. Raises UserError."""
    kept = load_settings(preproc)
    if kept is not None and settings in (None, kept):
        names, classes = utils.list_spectrograms(preproc), utils.list_classes(preproc)
        return Source(preproc, names, classes, kept, load_spectrogram)
    if kept is not None:
        print(f"{preproc}: made with other settings than the weights; reading {samples} instead")
    names, _ = utils.find_sounds(samples)
    settings = settings or default_settings(rate_of_most(samples, names))
    return Source(samples, names, utils.list_classes(samples), settings, sound_to_spectrogram)


def read_spectrograms(source, names):
    """Read or compute the spectrograms of `names`. [shape=(n_mels, n_frames), float32, dB]

    Returns a dict from name to spectrogram in the order of names, and how many could not be read.
    """
    read = partial(source.read, folder=source.folder, settings=source.settings)
    jobs = utils.jobs_for(source.folder, names) if source.read is sound_to_spectrogram else 1
    found, errors = utils.for_each(read, names, f"Reading {source.folder}", jobs)
    print(f"{source.folder}: {len(found)} spectrograms, {source.settings}")
    return found, utils.name_skipped(errors)


# ---------------------------------------------------------------- the split

def group_of(name, groups=None):
    """What must stay on one side of a split: the matched part of the file's name, else the sound's source."""
    match = groups and groups.search(source_of(name).rsplit("/", 1)[1])
    return match.group() if match else source_of(name)


def hold_out(names, share, seed, groups=None):
    """Choose about `share` of each class, whole groups of sounds, in an order that only their names decide.

    An order by hash, not by shuffle: a sound that is added moves few others. A group is taken if that brings
    the classes nearer to their shares on the whole, and leaves each an original. Returns the set of names
    held out, copies included.
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
            for c, n in counts.items():
                room[c] -= n
                left[c] -= n
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
    if test:
        matched = {group_of(name, groups) for name in names if test.search(source_of(name))}
        held_out = {name for name in names if group_of(name, groups) in matched}
    else:
        held_out = hold_out(names, TEST_SHARE, f"{seed} test", groups)
    rest = [name for name in names if name not in held_out]
    if test and not held_out:
        raise UserError(f"--test {test.pattern}: expected to match names such as {names[0]}, found none that it does")
    if not held_out:
        raise UserError(f"--groups {groups.pattern}: expected two groups or more in some class, found one in each")
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
    counts, all_counts = Counter(map(class_of, originals(names))), Counter(map(class_of, names))
    for name in classes:
        if counts[name] < 2:
            raise UserError(f"{folder}/{name}: expected at least 2 sounds, found {counts[name]}"
                            f" and {all_counts[name] - counts[name]} copies (_augN)")


# ---------------------------------------------------------------- the command

def parse_args():
    parser = utils.Parser(__doc__, places=("samples", "preproc", "weights"))
    count, rate = utils.number(int, 1), utils.number(float, 0, high=float("inf"))
    parser.add_argument("--network", choices=("default", "original"), default="default",
                        help="original: the network of 2017")
    parser.add_argument("--epochs", type=count, default=2000,
                        help="at most so many; training stops by itself, often within 50 (default: 2000)")
    parser.add_argument("--layers", type=count, help="blocks of the network (default: 3; original: 4)")
    parser.add_argument("--filters", type=count, help="filters of the first block (default: 16; original: 32)")
    parser.add_argument("--batch-size", type=count, help="windows a step (default: 32; original: 128)")
    parser.add_argument("--learning-rate", type=rate, help="highest rate (default: 0.002; original: 1.0)")
    parser.add_argument("--seed", type=utils.number(int, 0), default=0,
                        help="of the split, the weights and the order (default: 0)")
    parser.add_argument("--test", type=utils.regex, metavar="REGEX",
                        help="the sounds whose class/name matches are the test set, for an official split")
    parser.add_argument("--groups", type=utils.regex, metavar="REGEX",
                        help="sounds whose file names share the matched part (a speaker, a note) stay on one side")
    args = parser.parse_args()
    if args.weights.suffix != ".keras":
        parser.error(f"--weights {args.weights}: expected a name that ends in .keras")
    return args


def say_what_preprocessing_saves(seconds, spectrograms, settings):
    """Say how much faster spectrograms that took `seconds` would load from files, measured on up to 50 of them."""
    arrays = list(spectrograms.values())[:50]
    with tempfile.TemporaryDirectory() as folder:
        for k, array in enumerate(arrays):
            np.save(f"{folder}/{k}.npy", array)
        began = time.perf_counter()
        for k in range(len(arrays)):
            load_spectrogram(str(k), folder, settings)
        loading = (time.perf_counter() - began) * len(spectrograms) / len(arrays)
    print(f"Computed in {seconds:.1f} s; after python preprocess_data.py they would load "
          f"{seconds / loading:.0f} times as fast")


def say_what_preprocessing_lacks(source, samples):
    """Say how many sounds in `samples` have no spectrogram."""
    if samples.is_dir() and (new := set(filter(utils.is_sound, utils.list_files(samples))) - set(source.names)):
        print(f"{samples}: {len(new)} sounds are not in {source.folder}: new, or unreadable; "
              "preprocess_data.py adds new ones")


def main():
    args = parse_args()
    source = find_source(args.samples, args.preproc)
    check_classes(source.names, source.classes, source.folder)
    began = time.perf_counter()
    spectrograms, n_bad = read_spectrograms(source, source.names)
    seconds = time.perf_counter() - began
    check_classes(spectrograms, source.classes, source.folder)  # again: some may be unreadable
    if source.folder == args.samples:
        say_what_preprocessing_saves(seconds, spectrograms, source.settings)
    else:
        say_what_preprocessing_lacks(source, args.samples)
    sides = dict(zip(("train", "validation", "test"), split(list(spectrograms), args.seed, args.test, args.groups)))
    counts = ", ".join(f"{len(names)} {side}" for side, names in sides.items())
    n_groups = len({group_of(name, args.groups) for name in spectrograms})
    print(f"Split: {counts}; {len(source.classes)} classes" + (f", {n_groups} groups" if args.groups else ""))
    if n_unused := len(spectrograms) - sum(map(len, sides.values())):
        print(f"{n_unused} copies of validation and test sounds stay unused")
    if untested := sorted(set(source.classes) - set(map(class_of, sides["test"]))):
        print(f"No test sound in: {', '.join(untested)}")
    if args.weights.exists():
        print(f"{args.weights}: there from earlier training, will be replaced")
    import models  # not before the user's mistakes are found: Keras takes seconds to load
    chosen = {key: value for key, value in vars(args).items() if value is not None}
    recipe = {key: chosen.get(key, value) for key, value in models.RECIPES[args.network].items()}
    info = {"network": args.network, "seed": args.seed, "classes": source.classes,
            "features": dataclasses.asdict(source.settings), **sides}
    models.train(recipe, spectrograms, info, args.epochs, args.weights)
    print("Next: python eval_network.py")
    return n_bad


if __name__ == "__main__":
    utils.run(main)
