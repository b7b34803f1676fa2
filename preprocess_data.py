"""Turn sounds into log-mel spectrograms.

Reads Samples/<class>/<name>.<ext>. Writes Preproc/<class>/<name>.<ext>.npy, float32
(n_mels, n_frames) in dB. settings.json holds the settings, skipped.csv lists the sounds that could
not be read, and suspicious.csv lists those that may be wrong. A second run processes only new or
changed sounds. If a run is stopped, the same command resumes it.

    python preprocess_data.py
"""
import contextlib
import dataclasses
import math
import os
import shlex
import time
from collections import Counter
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import scipy

import augment_data
import utils
from utils import DISK_FULL, SETTINGS_FILE, SKIPPED_FILE, SUSPICIOUS_FILE, UserError, say

SILENT = 1e-3  # the largest sample of a silent sound; full scale is 1
CANCELLED = 0.1  # the sum of the channels has less than this share of their peak
TOO_LOUD = 4  # the largest sample of a sound that is in other units; full scale is 1
CLIPPED_SHARE = 5e-3  # a clipped sound has a larger share of samples at its peak
TELLING_AUC = 0.99  # of a property that gives a class away
MIN_CLASS_SIZE = 5  # sounds; in a smaller class, a property may give it away by chance


# ---------------------------------------------------------------- one spectrogram

def compute_spectrogram(name, samples, settings, seed, deformations):
    """The spectrogram of a sound, or of an altered copy that has no file. Raises UserError."""
    origin, k = utils.find_origin(name, samples)
    if k == 0:
        return utils.sound_to_spectrogram(name, samples, settings)
    path = samples / origin
    y, sample_rate = augment_data.decode_sound(path)
    copy = augment_data.make_copy(y, sample_rate, path, k, seed, deformations)
    blocks = utils.convert_blocks([(copy, sample_rate)], settings)
    return utils.log_mel_spectrogram(blocks, settings)


def write_spectrogram(name, samples, preproc, settings, seed, deformations):
    """Write the spectrogram of one sound. Returns its length in seconds. Raises UserError.

    The key of the sound stands behind the values, where readers of .npy files do not look.
    """
    target = Path(preproc, f"{name}.npy")
    origin, _ = utils.find_origin(name, samples)
    with utils.reading(samples / origin):  # before it is read: a later change is seen next time
        key = utils.make_key(samples / origin)
    spectrogram = compute_spectrogram(name, samples, settings, seed, deformations)
    header = np.lib.format.header_data_from_array_1_0(spectrogram)
    try:
        with utils.whole_file(target) as temporary, open(temporary, "wb") as file:
            np.lib.format.write_array_header_1_0(file, header)
            file.write(spectrogram.data)  # np.save does not report a full disk
            file.write(key)
    except OSError as error:
        if error.errno in DISK_FULL:  # the others would fail too
            raise
        raise UserError(f"{target}: cannot be written: {error.strerror}; rename the sound, or "
                        "make the folder writable") from None
    return utils.count_seconds(spectrogram, settings)


# ---------------------------------------------------------------- the folder of spectrograms

def remove_stale(args, names, saved, made_with):
    """Remove spectrograms that do not belong to `names`, or are not up to date.

    saved, made_with: the content of settings.json, before and from now on. If the features differ,
    all spectrograms are stale. If the settings of copies differ, those of copies without a file
    are. Returns how many were removed. Raises UserError for .npy files that preprocessing did not
    write.
    """
    found = utils.list_spectrograms(args.preproc)
    if found and not Path(args.preproc, SETTINGS_FILE).exists():
        raise UserError(f"{args.preproc}: holds {len(found)} .npy files but no {SETTINGS_FILE}, so "
                        "preprocessing did not write them; name another folder with --preproc")
    keeps_features = saved.get("features") == made_with["features"]
    keeps_copies = saved.get("copies") == made_with["copies"]
    wanted = set(names)
    stale = []
    for name in found:
        is_virtual = utils.find_origin(name, args.samples)[1] > 0
        is_valid = (keeps_features and name in wanted and (keeps_copies or not is_virtual)
                    and utils.is_up_to_date(name, args.samples, args.preproc))
        if not is_valid:
            stale.append(name)
    if stale and saved:  # a run that is stopped from here on leaves only some of the spectrograms
        utils.save_json(args.preproc / SETTINGS_FILE, saved | {"finished": False})
    if stale:
        (args.preproc / SUSPICIOUS_FILE).unlink(missing_ok=True)
    for name in stale:
        Path(args.preproc, f"{name}.npy").unlink()
    remove_leftovers(args.preproc)
    return len(set(stale) - wanted)


def remove_leftovers(preproc):
    """Remove what killed runs left in `preproc`, and empty folders."""
    for folder, subfolders, files in os.walk(preproc, topdown=False):
        for name in filter(utils.TEMPORARY.fullmatch, files):
            Path(folder, name).unlink()
        for name in subfolders:
            with contextlib.suppress(OSError):  # it is not empty
                os.rmdir(Path(folder, name))


def note_changes(args, saved, made_with):
    """Print which features changed since the spectrograms in `preproc` were made."""
    before = saved.get("features")
    now = made_with["features"]
    if before and before != now:
        changes = [f"{key} {before.get(key)} -> {now[key]}" for key in now
                   if before.get(key) != now[key]]
        say(f"{args.preproc}: settings changed ({', '.join(changes)}): all spectrograms are made "
            "again")


def update_folder(args, names, settings, deformations):
    """Bring `preproc` up to date: it then holds the spectrograms of `names` and no others.

    Returns two dicts and two counts: from each written name to its length in seconds, from each
    unreadable sound to its UserError, how many were removed, and how many were up to date.
    """
    made_with = {"features": dataclasses.asdict(settings),
                 "copies": {"seed": args.seed, "deformations": list(deformations)}}
    saved = utils.read_saved(args.preproc)
    note_changes(args, saved, made_with)
    n_removed = remove_stale(args, names, saved, made_with)
    to_do = [name for name in names if not os.path.isfile(f"{args.preproc}/{name}.npy")]
    was_finished = saved == made_with | {"finished": True}
    if to_do or not was_finished:
        utils.save_json(args.preproc / SETTINGS_FILE, made_with | {"finished": False})
    write = partial(write_spectrogram, samples=args.samples, preproc=args.preproc,
                    settings=settings, seed=args.seed, deformations=deformations)
    written, errors = utils.map_files(write, to_do, "Preprocessing", args.jobs, args.dask,
                                      args.strict, args.samples)
    if args.dask:
        remove_leftovers(args.preproc)  # a lost worker may have left a temporary file
    # A sound and its copies count once.
    errors = {utils.find_origin(name, args.samples)[0]: error for name, error in errors.items()}
    save_skipped(args, errors)
    if written or not was_finished:
        (args.preproc / SUSPICIOUS_FILE).unlink(missing_ok=True)
    if written or len(to_do) < len(names):
        utils.save_json(args.preproc / SETTINGS_FILE, made_with | {"finished": True})
    return written, errors, n_removed, len(names) - len(to_do)


def save_skipped(args, errors):
    """Write skipped.csv, or remove it if nothing was skipped."""
    path = args.preproc / SKIPPED_FILE
    if not errors:
        path.unlink(missing_ok=True)
        return
    rows = [(name, str(error).removeprefix(f"{args.samples / name}: "))
            for name, error in errors.items()]
    utils.save_csv(path, [("file", "reason"), *rows])


# ---------------------------------------------------------------- check the sounds

class Measures(NamedTuple):
    """Properties of a sound that the check compares."""

    sample_rate: int  # Hz
    channels: int
    seconds: float
    peak: float  # the largest sample; full scale is 1
    heard: float  # the largest sample of what the network hears, such as the mean of the channels
    clipped: float  # the share of the samples that repeat a peak value
    content: str  # from utils.hash_content
    fingerprint: np.ndarray  # from utils.take_fingerprint


def measure_sound(name, samples, preproc, settings):
    """Measure a sound and its spectrogram. Returns Measures. Raises UserError."""
    peaks = [0.0, 0.0]  # upwards and downwards
    n_clipped = [0, 0]
    n_samples = 0
    heard = 0.0
    for block, sample_rate in utils.read_blocks(Path(samples, name)):  # noqa: B007
        for side, y in enumerate((block, -block)):
            if y.max() > peaks[side]:
                peaks[side] = float(y.max())
                n_clipped[side] = 0
            is_peak = y == peaks[side]  # a crest that is not clipped has one or two
            n_clipped[side] += int((is_peak[1:] & is_peak[:-1]).sum())
        n_samples += len(block)
        heard = max(heard, float(np.abs(utils.choose_channels(block, settings.channels)).max()))
    spectrogram = utils.load_spectrogram(name, preproc, settings, mmap_mode="r")
    channels = block.shape[1]
    # Full scale may differ by a step: 32767 upwards, 32768 downwards. A lower side is not clipped.
    share = sum(n for n, peak in zip(n_clipped, peaks) if peak > 0.95 * max(peaks))
    share /= n_samples * channels
    return Measures(sample_rate, channels, n_samples / sample_rate, max(peaks), heard, share,
                    utils.hash_content(spectrogram), utils.take_fingerprint(spectrogram))


def find_faults(found):
    """Find what may be wrong with one sound, by its Measures. Returns (kind, detail), or None."""
    if found.peak <= SILENT:
        return "silent", f"the largest sample is {found.peak:.6f}"
    if found.peak > TOO_LOUD:
        return "beyond full scale", (f"the largest sample is {found.peak:.0f} times full scale; "
                                     "divide the samples, such as by 32768")
    if found.channels * found.heard < CANCELLED * found.peak:
        return "channels cancel", (f"the network hears at most {found.heard:.4f}, a channel has "
                                   f"{found.peak:.4f}; invert a channel, or use more --channels")
    if found.clipped > CLIPPED_SHARE:
        return "clipped", f"{found.clipped:.1%} of the samples are at {found.peak:.3f}"
    return None


def find_odd_lengths(measures):
    """Find sounds far longer or shorter than the others, and than the others of their class.

    Returns a dict from name to a text.
    """
    by_class = {}
    for name in measures:
        by_class.setdefault(utils.class_of(name), []).append(name)
    lengths = {name: found.seconds for name, found in measures.items()}
    odd = list_outliers(lengths)
    texts = {}
    for names in by_class.values():
        of_class = {name: lengths[name] for name in names}
        usual = np.median(list(of_class.values()))
        texts |= {name: f"{lengths[name]:.2f} s, the median of its class is {usual:.2f} s"
                  for name in odd & list_outliers(of_class)}
    return dict(sorted(texts.items()))


def list_outliers(lengths):
    """List the lengths that are far from the median. Returns a set of their names."""
    logs = np.log(list(lengths.values()))
    deviations = np.abs(logs - np.median(logs))
    limit = max(math.log(4), 6 * np.median(deviations))
    return {name for name, deviation in zip(lengths, deviations) if deviation > limit}


def find_clues(measures):
    """Find classes that one property of the recording gives away.

    Returns pairs of a class and a text that names the property and its AUC.
    """
    classes, labels = np.unique([utils.class_of(name) for name in measures], return_inverse=True)
    n = np.bincount(labels)
    n_others = len(labels) - n
    is_large = np.minimum(n, n_others) >= MIN_CLASS_SIZE
    clues = []
    for key in ("sample_rate", "channels", "seconds", "peak"):
        values = [getattr(found, key) for found in measures.values()]
        ranks = np.bincount(labels, scipy.stats.rankdata(values))  # the sum of each class
        auc = (ranks - n * (n + 1) / 2) / np.maximum(1, n * n_others)
        for k in np.flatnonzero(is_large & (np.maximum(auc, 1 - auc) >= TELLING_AUC)):
            comparison = "higher" if auc[k] > 0.5 else "lower"
            clues.append((str(classes[k]), f"{key} is {comparison} than elsewhere "
                          f"(AUC {max(auc[k], 1 - auc[k]):.3f})"))
    return clues


def list_twins(measures, preproc):
    """List the sounds that hold the recording of an earlier one, as rows of find_suspicious."""
    loud = {name: found for name, found in measures.items() if found.heard > SILENT}
    pairs = utils.find_alike(
        {name: found.content for name, found in loud.items()},
        lambda name: loud[name].fingerprint,
        lambda name: np.load(f"{preproc}/{name}.npy", mmap_mode="r"))
    rows = {}
    for difference, earlier, later in pairs:
        is_same = loud[earlier].content == loud[later].content
        kind = "identical" if is_same else "nearly identical"
        if utils.class_of(earlier) != utils.class_of(later):
            kind += ", in two classes"
        rows.setdefault(later, (kind, later, f"{earlier}, {difference:.2f} dB"))
    return list(rows.values())


def find_suspicious(measures, preproc):
    """Find what may be wrong with the sounds.

    Returns rows (kind, class, file, detail). The file is empty where a whole class is meant.
    """
    if not measures:
        return []
    rows = list_twins(measures, preproc)
    for name, found in measures.items():
        if fault := find_faults(found):
            kind, detail = fault
            rows.append((kind, name, detail))
    rows += [("odd length", *pair) for pair in find_odd_lengths(measures).items()]
    rows = [(kind, utils.class_of(name), name, detail) for kind, name, detail in rows]
    return rows + [("class given away", name, "", detail) for name, detail in find_clues(measures)]


def check_sounds(args, names, settings):
    """Print what may be wrong with the sounds, a line for each kind, and list it in a table."""
    measure = partial(measure_sound, samples=args.samples, preproc=args.preproc, settings=settings)
    measures, errors = utils.map_files(measure, names, "Checking", args.jobs, args.dask,
                                       folder=args.samples)
    rows = [("unreadable", utils.class_of(name), name, str(error))
            for name, error in errors.items()]
    rows += find_suspicious(measures, args.preproc)
    path = args.preproc / SUSPICIOUS_FILE
    utils.save_csv(path, [("kind", "class", "file", "detail"), *rows])
    for kind, n in Counter(kind for kind, *_ in rows).items():
        class_name, file, detail = next(row[1:] for row in rows if row[0] == kind)
        say(f"Suspicious, {kind}: {n}, such as {file or class_name} ({detail})")
    if rows:
        say(f"{path}: lists all suspicious sounds")


# ---------------------------------------------------------------- the command

def parse_args():
    """Read the command line."""
    parser = utils.Parser(__doc__, places=("samples", "preproc"))
    add = parser.add_argument
    count = utils.number(int, 1, high=2**20)
    add("--sample-rate", type=utils.number(int, 100, high=2**20), metavar="HZ",
        help="resample every sound to this rate (default: the rate that most files have)")
    add("--channels", type=utils.number(int, 1, high=1025), default=1, metavar="N",
        help="1: average all channels (default); more: keep this many, and repeat the last channel "
        "of sounds that have fewer")
    add("--n-mels", type=utils.number(int, 1, high=4097), metavar="N",
        help="mel bands (default: 96)")
    add("--n-fft", type=utils.number(int, 2, high=2**20), metavar="N",
        help="samples in a frame (default: 2048 at 44.1 kHz)")
    add("--hop-length", type=count, metavar="N",
        help="samples between frames (default: 512 at 44.1 kHz)")
    add("--augment", type=utils.number(int, 0, high=10**5), default=0, metavar="N",
        help="also make the spectrograms of N copies of each sound, like those of augment_data.py, "
        "without writing sound files")
    augment_data.add_choice(parser)
    add("--jobs", type=count, metavar="N", help="processes (default: one for each core)")
    add("--dask", metavar="ADDRESS",
        help="scheduler of a Dask cluster that does the work instead; all workers must see the "
        "same folders (pip install distributed; dask scheduler; dask worker "
        "tcp://SCHEDULER:8786 --nworkers -1 --nthreads 1)")
    add("--strict", action="store_true", help="stop at the first sound that cannot be read")
    args = parser.parse_args()
    if not args.augment and (args.only or args.without):
        parser.error("--only and --without: there are no copies to alter; add --augment N")
    return args


def describe_classes(samples, sounds):
    """How many classes there are and their sizes, in words."""
    counts = Counter(utils.class_of(name) for name in sounds)
    if len(counts) == 1:
        return describe_one_class(samples, sounds)
    least = min(counts, key=counts.get)
    most = max(counts, key=counts.get)
    if counts[least] == counts[most]:
        return f"{len(counts)} classes, {counts[least]} each"
    return f"{len(counts)} classes, {counts[least]} ({least}) to {counts[most]} ({most})"


def describe_one_class(samples, sounds):
    """A single class in words, and how its subfolders become classes."""
    name = utils.class_of(sounds[0])
    subfolders = {sound.split("/")[1] for sound in sounds if sound.count("/") > 1}
    if not subfolders:
        return f"1 class, {name}"
    folder = shlex.quote(str(Path(samples, name)))
    return (f"1 class, {name}; if its {len(subfolders)} subfolders are the classes, use --samples "
            f"{folder}")


def list_wanted(args, sounds):
    """The names of the spectrograms to make: of sounds, and of copies without a file."""
    copies = utils.find_copies(sounds, args.samples)
    virtual = [augment_data.copy_name(name, k) for name in sounds if name not in copies
               for k in range(1, args.augment + 1)]
    return sorted({*sounds, *virtual})


def print_summary(args, written, n_kept, n_removed, n_bad, n_others, took):
    """Print what was done, and the command to run next."""
    if written:
        seconds = sum(written.values())
        say(f"{seconds:.0f} s of sound in {took:.1f} s, {seconds / took:.0f} times real time")
    say(f"{args.preproc}: {len(written)} spectrograms written, {n_kept} kept, {n_removed} removed, "
        f"{n_bad} sounds skipped; {n_others} other files left alone")
    utils.say_next("train_network.py", samples=args.samples, preproc=args.preproc)


def main():
    """Bring Preproc/ up to date with Samples/. Returns how many sounds were skipped."""
    args = parse_args()
    deformations = augment_data.choose_deformations(args.only, args.without, args.augment)
    utils.check_outside("--preproc", args.preproc, args.samples)
    utils.check_outside("--samples", args.samples, args.preproc)
    if args.dask:  # its workers may run in other folders
        args.samples = args.samples.resolve()
        args.preproc = args.preproc.resolve()
        with utils.connect_dask(args.dask):  # a wrong address is found before anything changes
            pass
    sounds, others = utils.find_sounds(args.samples)
    utils.check_filled(args.samples, sounds)
    say(f"{args.samples}: {len(sounds)} sounds in {describe_classes(args.samples, sounds)}")
    settings = utils.choose_settings(args.samples, sounds, args.sample_rate, n_mels=args.n_mels,
                                     n_fft=args.n_fft, hop_length=args.hop_length,
                                     channels=args.channels)
    say(f"Features: {settings}")
    began = time.perf_counter()
    args.preproc.mkdir(parents=True, exist_ok=True)
    message = f"{args.preproc}: another run is at work there; waiting for its end"
    with utils.folder_lock(args.preproc, message):
        names = list_wanted(args, sounds)
        written, errors, n_removed, n_kept = update_folder(args, names, settings, deformations)
        took = time.perf_counter() - began
        if not (args.preproc / SUSPICIOUS_FILE).exists():  # removed with each change
            copies = utils.find_copies(sounds, args.samples)
            readable = [name for name in sounds if name not in copies and name not in errors]
            check_sounds(args, readable, settings)
    listed = f", all in {args.preproc}/{SKIPPED_FILE}"
    n_bad = utils.name_skipped(errors, listed)
    if not written and not n_kept:
        raise UserError(f"{args.samples}: none of its {n_bad} sound files can be read; "
                        "replace them")
    utils.check_filled(args.samples, set(sounds) - set(errors))  # training would stop there
    print_summary(args, written, n_kept, n_removed, n_bad, len(others), took)
    return n_bad


if __name__ == "__main__":
    utils.run(main)
