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
from utils import DISK_FULL, SETTINGS_FILE, SKIPPED_FILE, SUSPICIOUS_FILE, UserError, class_of, say

SILENT = 1e-3  # the largest sample of a silent sound; full scale is 1
CANCELLED = 0.1  # the sum of the channels has less than this share of their peak
TOO_LOUD = 4  # the largest sample of a sound that is in other units; full scale is 1
CLIPPED_SHARE = 5e-3  # a clipped sound has a larger share of samples at its peak
TELLING_AUC = 0.99  # of a property that gives a class away
TELLING_SHARE = 0.5  # two classes may differ by this in their share of low sample rates
MIN_CLASS_SIZE = 5  # sounds; in a smaller class, a property may give it away by chance


@dataclasses.dataclass(frozen=True)
class Plan:
    """Which spectrograms a run makes, how, and with how many processes."""

    samples: Path
    preproc: Path
    settings: utils.FeatureSettings
    seed: int = 0  # of copies without a file
    deformations: tuple = ()  # of copies without a file
    jobs: int | None = None  # processes; None for one on each core
    dask: str | None = None  # the address of a Dask scheduler
    strict: bool = False  # stop at the first sound that cannot be read


@dataclasses.dataclass
class Done:
    """What a run did."""

    written: dict  # from each new spectrogram to the length of its sound in seconds
    errors: dict  # from each sound that cannot be read to its UserError
    n_kept: int
    n_removed: int


# ---------------------------------------------------------------- one spectrogram

def compute_spectrogram(name, plan):
    """The spectrogram of a sound, or of an altered copy that has no file. Raises UserError."""
    origin, k = utils.find_origin(name, plan.samples)
    if k == 0:
        return utils.sound_to_spectrogram(name, plan.samples, plan.settings)
    path = plan.samples / origin
    y, sample_rate = augment_data.decode_sound(path)
    copy = augment_data.make_copy(y, sample_rate, path, k, plan.seed, plan.deformations)
    blocks = utils.convert_blocks([(copy, sample_rate)], plan.settings)
    return utils.log_mel_spectrogram(blocks, plan.settings)


def write_spectrogram(name, plan):
    """Write the spectrogram of one sound. Returns its length in seconds. Raises UserError.

    The key of the sound stands behind the values, where readers of .npy files do not look.
    """
    target = Path(plan.preproc, f"{name}.npy")
    origin = plan.samples / utils.find_origin(name, plan.samples)[0]
    with utils.reading(origin):  # before it is read: a later change is seen next time
        key = utils.make_key(origin)
    spectrogram = compute_spectrogram(name, plan)
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
    return utils.count_seconds(spectrogram, plan.settings)


# ---------------------------------------------------------------- the folder of spectrograms

def update_folder(plan, names):
    """Bring Preproc/ up to date: it then holds the spectrograms of `names` and no others.

    Returns Done. Raises UserError.
    """
    path = plan.preproc / SETTINGS_FILE
    made_with = {"features": dataclasses.asdict(plan.settings),
                 "copies": {"seed": plan.seed, "deformations": list(plan.deformations)}}
    saved = utils.read_saved(plan.preproc)
    before = saved.get("features", made_with["features"])
    changes = [f"{key} {before.get(key)} -> {value}" for key, value in made_with["features"].items()
               if before.get(key) != value]
    if changes:
        say(f"{plan.preproc}: settings changed ({', '.join(changes)}): all spectrograms are made "
            "again")
    n_removed = remove_stale(plan, names, saved, made_with)
    to_do = [name for name in names if not os.path.isfile(f"{plan.preproc}/{name}.npy")]
    was_finished = saved == made_with | {"finished": True}
    if to_do or not was_finished:
        utils.save_json(path, made_with | {"finished": False})
    written, errors = utils.map_files(partial(write_spectrogram, plan=plan), to_do, "Preprocessing",
                                      plan.jobs, plan.dask, plan.strict, plan.samples)
    if plan.dask:
        remove_leftovers(plan.preproc)  # a lost worker may have left a temporary file
    # A sound and its copies count once.
    errors = {utils.find_origin(name, plan.samples)[0]: error for name, error in errors.items()}
    (plan.preproc / SKIPPED_FILE).unlink(missing_ok=True)
    if errors:
        rows = [(name, str(error).removeprefix(f"{plan.samples / name}: "))
                for name, error in errors.items()]
        utils.save_csv(plan.preproc / SKIPPED_FILE, [("file", "reason"), *rows])
    if written or not was_finished:
        (plan.preproc / SUSPICIOUS_FILE).unlink(missing_ok=True)
    if written or len(to_do) < len(names):
        utils.save_json(path, made_with | {"finished": True})
    return Done(written, errors, len(names) - len(to_do), n_removed)


def remove_stale(plan, names, saved, made_with):
    """Remove spectrograms that do not belong to `names`, or are not up to date.

    saved, made_with: the content of settings.json, before and from now on. If the features differ,
    all spectrograms are stale. If the settings of copies differ, those of copies without a file
    are. Returns how many were removed. Raises UserError for .npy files that preprocessing did not
    write.
    """
    found = utils.list_spectrograms(plan.preproc)
    path = plan.preproc / SETTINGS_FILE
    if found and not path.exists():
        raise UserError(f"{plan.preproc}: holds {len(found)} .npy files but no {SETTINGS_FILE}, so "
                        "preprocessing did not write them; name another folder with --preproc")
    keeps_features = saved.get("features") == made_with["features"]
    keeps_copies = saved.get("copies") == made_with["copies"]
    wanted = set(names)
    stale = []
    for name in found:
        is_virtual = utils.find_origin(name, plan.samples)[1] > 0
        is_valid = (keeps_features and name in wanted and (keeps_copies or not is_virtual)
                    and utils.is_up_to_date(name, plan.samples, plan.preproc))
        if not is_valid:
            stale.append(name)
    if stale and saved:  # a run that is stopped from here on leaves only some of the spectrograms
        utils.save_json(path, saved | {"finished": False})
    if stale:
        (plan.preproc / SUSPICIOUS_FILE).unlink(missing_ok=True)
    for name in stale:
        Path(plan.preproc, f"{name}.npy").unlink()
    remove_leftovers(plan.preproc)
    return len(set(stale) - wanted)


def remove_leftovers(preproc):
    """Remove what killed runs left in `preproc`, and empty folders."""
    for folder, subfolders, files in os.walk(preproc, topdown=False):
        for name in filter(utils.TEMPORARY.fullmatch, files):
            Path(folder, name).unlink()
        for name in subfolders:
            with contextlib.suppress(OSError):  # it is not empty
                os.rmdir(Path(folder, name))


# ---------------------------------------------------------------- check the sounds

class Suspicion(NamedTuple):
    """A row of suspicious.csv."""

    kind: str
    class_name: str
    file: str = ""  # none where a whole class is meant
    other: str = ""  # an earlier file with the same recording
    difference: str = ""  # dB between the two
    detail: str = ""


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


def measure_sound(name, plan):
    """Measure a sound and its spectrogram. Returns Measures. Raises UserError."""
    peaks = [0.0, 0.0]  # upwards and downwards
    n_clipped = [0, 0]
    n_samples = 0
    heard = 0.0
    for block, sample_rate in utils.read_blocks(Path(plan.samples, name)):  # noqa: B007
        for side, y in enumerate((block, -block)):
            if y.max() > peaks[side]:
                peaks[side] = float(y.max())
                n_clipped[side] = 0
            is_peak = y == peaks[side]  # a crest that is not clipped has one or two
            n_clipped[side] += int((is_peak[1:] & is_peak[:-1]).sum())
        n_samples += len(block)
        y = utils.choose_channels(block, plan.settings.channels)
        heard = max(heard, float(np.abs(y).max()))
    spectrogram = utils.load_spectrogram(name, plan.preproc, plan.settings, mmap_mode="r")
    channels = block.shape[1]
    # Full scale may differ by a step: 32767 upwards, 32768 downwards. A lower side is not clipped.
    share = sum(n for n, peak in zip(n_clipped, peaks) if peak > 0.95 * max(peaks))
    share /= n_samples * channels
    return Measures(sample_rate, channels, n_samples / sample_rate, max(peaks), heard, share,
                    utils.hash_content(spectrogram), utils.take_fingerprint(spectrogram))


def find_fault(found):
    """Find what may be wrong with one sound, by its Measures. Returns a kind, or "", and a text."""
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
    return "", ""


def find_odd_lengths(measures):
    """Find sounds far longer or shorter than the others, and than the others of their class.

    Returns a dict from name to a text.
    """
    by_class = {}
    for name in measures:
        by_class.setdefault(class_of(name), []).append(name)
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


def find_low_rates(measures, highest):
    """Find a class of low sample rates beside one of higher rates. Returns pairs as find_clues.

    A network would learn that low rates lack high frequencies, or the cutoff of the resampler from
    higher rates. Below nine tenths of half the lowest usual rate, there is neither. highest: Hz,
    where the mel bands end.
    """
    by_class = {}
    for name, found in measures.items():
        by_class.setdefault(class_of(name), []).append(found.sample_rate)
    usual = min(sorted(rates)[len(rates) // 2] for rates in by_class.values())  # Hz
    fmax = max(utils.MIN_RATE, int(0.9 * usual) // 100 * 100) // 2  # Hz
    shares = {name: np.mean(np.array(rates) <= usual) for name, rates in by_class.items()}
    most = max(shares, key=shares.get)
    least = min(shares, key=shares.get)
    if highest <= fmax or shares[most] - shares[least] <= TELLING_SHARE:
        return []
    return [(most, f"{shares[most]:.0%} of it, but {shares[least]:.0%} of {least}, is recorded at "
             f"{usual} Hz or less; preprocess again with --fmax {fmax}, which leaves out all "
             "sound above it")]


def find_clues(measures):
    """Find classes that one property of the recording gives away.

    Returns pairs of a class and a text that names the property and its AUC.
    """
    classes, labels = np.unique([class_of(name) for name in measures], return_inverse=True)
    n = np.bincount(labels)
    n_others = len(labels) - n
    is_large = np.minimum(n, n_others) >= MIN_CLASS_SIZE
    clues = []
    for key in ("channels", "seconds", "peak"):
        values = [getattr(found, key) for found in measures.values()]
        ranks = np.bincount(labels, scipy.stats.rankdata(values))  # the sum of each class
        auc = (ranks - n * (n + 1) / 2) / np.maximum(1, n * n_others)
        for k in np.flatnonzero(is_large & (np.maximum(auc, 1 - auc) >= TELLING_AUC)):
            comparison = "higher" if auc[k] > 0.5 else "lower"
            clues.append((str(classes[k]), f"{key} is {comparison} than elsewhere "
                          f"(AUC {max(auc[k], 1 - auc[k]):.3f})"))
    return clues


def list_twins(measures, preproc):
    """List a Suspicion for each sound that holds the recording of an earlier one."""
    loud = {name: found for name, found in measures.items() if found.heard > SILENT}
    pairs = utils.find_alike(
        {name: found.content for name, found in loud.items()},
        lambda name: loud[name].fingerprint,
        lambda name: np.load(f"{preproc}/{name}.npy", mmap_mode="r"))
    rows = {}
    for difference, earlier, later in pairs:
        is_same = loud[earlier].content == loud[later].content
        kind = "identical" if is_same else "nearly identical"
        if class_of(earlier) != class_of(later):
            kind += ", in two classes"
        row = Suspicion(kind, class_of(later), later, earlier, f"{difference:.2f}")
        rows.setdefault(later, row)
    return list(rows.values())


def check_sounds(plan, names):
    """Print what may be wrong with the sounds, a line for each kind, and list it in a table."""
    measures, errors = utils.map_files(partial(measure_sound, plan=plan), names, "Checking",
                                       plan.jobs, plan.dask, folder=plan.samples)
    rows = [Suspicion("unreadable", class_of(name), name, detail=str(error))
            for name, error in errors.items()]
    if measures:
        rows += list_twins(measures, plan.preproc)
        faults = [(*find_fault(found), name) for name, found in measures.items()]
        faults += [("odd length", text, name) for name, text in find_odd_lengths(measures).items()]
        rows += [Suspicion(kind, class_of(name), name, detail=text)
                 for kind, text, name in faults if kind]
        clues = find_low_rates(measures, plan.settings.highest) + find_clues(measures)
        rows += [Suspicion("class given away", name, detail=text) for name, text in clues]
    path = plan.preproc / SUSPICIOUS_FILE
    utils.save_csv(path, [("kind", "class", "file", "other", "difference", "detail"), *rows])
    by_kind = {}
    for row in rows:
        by_kind.setdefault(row.kind, []).append(row)
    for kind, some in by_kind.items():
        row = some[0]
        detail = row.detail or f"{row.other}, {row.difference} dB"
        say(f"Suspicious, {kind}: {len(some)}, such as {row.file or row.class_name} ({detail})")
    if rows:
        say(f"{path}: lists all suspicious sounds")


# ---------------------------------------------------------------- the command

def parse_args():
    """Read the command line."""
    parser = utils.Parser(__doc__, places=("samples", "preproc"))
    add = parser.add_argument
    count = utils.number(int, 1, high=2**20)
    add("--sample-rate", type=utils.number(int, 100, high=2**20), metavar="HZ",
        help="resample every sound to this rate (default: the most frequent one)")
    add("--channels", type=utils.number(int, 1, high=1025), default=1, metavar="N",
        help="1: average all channels (default); more: keep this many, and repeat the last channel "
        "of sounds that have fewer")
    add("--n-mels", type=utils.number(int, 1, high=4097), metavar="N",
        help="mel bands (default: 96)")
    add("--n-fft", type=utils.number(int, 2, high=2**20), metavar="N",
        help="samples in a frame (default: 2048 at 44.1 kHz)")
    add("--hop-length", type=count, metavar="N",
        help="samples between frames (default: 512 at 44.1 kHz)")
    add("--fmin", type=utils.number(int, 0, high=2**20), default=0, metavar="HZ",
        help="lowest frequency of the mel bands (default: 0)")
    add("--fmax", type=count, metavar="HZ",
        help="highest frequency of the mel bands (default: half of the sample rate)")
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
    counts = Counter(map(class_of, sounds))
    least = min(counts, key=counts.get)
    most = max(counts, key=counts.get)
    subfolders = {sound.split("/")[1] for sound in sounds if sound.count("/") > 1}
    if len(counts) == 1 and subfolders:
        folder = shlex.quote(str(Path(samples, most)))
        return (f"1 class, {most}; if its {len(subfolders)} subfolders are the classes, use "
                f"--samples {folder}")
    if len(counts) == 1:
        return f"1 class, {most}"
    if counts[least] == counts[most]:
        return f"{len(counts)} classes, {counts[least]} each"
    return f"{len(counts)} classes, {counts[least]} ({least}) to {counts[most]} ({most})"


def main():
    """Bring Preproc/ up to date with Samples/. Returns how many sounds were skipped."""
    args = parse_args()
    samples = args.samples
    preproc = args.preproc
    deformations = augment_data.choose_deformations(args.only, args.without, args.augment)
    utils.check_outside("--preproc", preproc, samples)
    utils.check_outside("--samples", samples, preproc)
    if args.dask:  # its workers may run in other folders
        samples = samples.resolve()
        preproc = preproc.resolve()
        with utils.connect_dask(args.dask):  # a wrong address is found before anything changes
            pass

    sounds, others = utils.find_sounds(samples)
    utils.check_filled(samples, sounds)
    say(f"{samples}: {len(sounds)} sounds in {describe_classes(samples, sounds)}")
    settings = utils.choose_settings(samples, sounds, args.sample_rate, n_mels=args.n_mels,
                                     n_fft=args.n_fft, hop_length=args.hop_length,
                                     channels=args.channels, fmin=args.fmin, fmax=args.fmax)
    say(f"Features: {settings}")
    copies = utils.find_copies(sounds, samples)
    originals = utils.originals(sounds, copies)
    virtual = [augment_data.copy_name(name, k) for name in originals
               for k in range(1, args.augment + 1)]  # copies without a file
    names = sorted({*sounds, *virtual})
    plan = Plan(samples, preproc, settings, args.seed, deformations, args.jobs, args.dask,
                args.strict)

    began = time.perf_counter()
    preproc.mkdir(parents=True, exist_ok=True)
    message = f"{preproc}: another run is at work there; waiting for its end"
    with utils.folder_lock(preproc, message):
        done = update_folder(plan, names)
        took = time.perf_counter() - began
        if not (preproc / SUSPICIOUS_FILE).exists():  # removed with each change
            check_sounds(plan, [name for name in originals if name not in done.errors])

    n_bad = utils.name_skipped(done.errors, f", all in {preproc}/{SKIPPED_FILE}")
    if not done.written and not done.n_kept:
        raise UserError(f"{samples}: none of its {n_bad} sound files can be read; replace them")
    utils.check_filled(samples, set(sounds) - set(done.errors))  # training would stop there
    if done.written:
        seconds = sum(done.written.values())
        say(f"{seconds:.0f} s of sound in {took:.1f} s, {seconds / took:.0f} times real time")
    say(f"{preproc}: {len(done.written)} spectrograms written, {done.n_kept} kept, "
        f"{done.n_removed} removed, {n_bad} sounds skipped; {len(others)} other files left alone")
    utils.say_next("train_network.py", samples=samples, preproc=preproc)
    return n_bad


if __name__ == "__main__":
    utils.run(main)
