"""Turn sounds into log-mel spectrograms.

Reads Samples/<class>/<name>.<ext>. Writes Preproc/<class>/<name>.<ext>.npy, float32 (n_mels, n_frames) in dB,
the settings that they were made with, settings.json, and what could not be read, skipped.csv. Run again, it does
what is new or was changed; stopped at any moment, it goes on from there.

    python preprocess_data.py
"""
import contextlib
import dataclasses
import hashlib
import io
import itertools
import json
import math
import os
import shlex
import threading
import time
import warnings
import zlib
from collections import Counter
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

import augment_data
import utils
from utils import (
    RATES,
    SETTINGS_FILE,
    SKIPPED_FILE,
    UserError,
    for_each,
    list_classes,
    list_spectrograms,
    name_skipped,
    say,
)

FEATURES = 1  # raise it when the arithmetic changes: spectrograms made before are then made again
AMIN, TOP_DB = 1e-10, 80.0  # librosa.power_to_db's floor, and its range below the loudest bin
MOST_DB = 1000.0  # of samples below 1e9 it is 540
MAX_RATE = 10**6  # Hz, of spectrograms
TELLING_SHARE = 0.5  # by which classes may differ in their share of low sample rates
PARSING = threading.Lock()  # of a spectrogram's header
BLOCK = 64  # frames transformed at a time: they fit the cache
# glibc hands memory back at each free above a threshold and pays for it anew, page by page, in half of the time of a
# short sound. A large block that is freed raises that threshold to its own size.
np.empty(2**24, np.uint8)


# ---------------------------------------------------------------- from samples to a spectrogram

@dataclasses.dataclass(frozen=True)
class FeatureSettings:
    """How a sound becomes a spectrogram; kept in Preproc/ and in the weights, so that no stage guesses."""

    sample_rate: int  # Hz; every sound is resampled to it
    n_mels: int  # mel bands from 0 Hz to sample_rate / 2
    n_fft: int  # samples in a window
    hop_length: int  # samples from one frame to the next
    channels: int = 1  # 1: their mean; more: so many are kept

    def __post_init__(self):
        for name, value in dataclasses.asdict(self).items():
            if type(value) is not int or not 1 <= value <= 2**20:
                raise ValueError(f"{name} {value!r}")

    @cached_property
    def filters(self):
        """librosa's mel filters, sparse because 98 in 100 weights are zero. [shape=(n_mels, 1 + n_fft // 2)]"""
        return mel_filters(self.sample_rate, self.n_mels, self.n_fft)

    def __getstate__(self):
        """What goes to another process: the filters too, so that it need not load librosa, which takes a second."""
        return {**dataclasses.asdict(self), "filters": self.filters}

    def __str__(self):
        return (f"{self.sample_rate} Hz, {self.n_mels} mels, n_fft {self.n_fft}, hop_length {self.hop_length}"
                + (f", {self.channels} channels" if self.channels > 1 else ""))


def default_settings(sample_rate, n_mels=None, n_fft=None, hop_length=None, channels=1):
    """Settings for a rate in Hz: those given, else 96 mels and, as long in time as at 44.1 kHz, n_fft 2048 and hop 512.

    The window grows until every mel filter holds an FFT bin. Raises UserError where a given n_fft leaves some empty,
    or a given hop_length leaves samples between windows.
    """
    scale = 2.0 ** round(np.log2(sample_rate / 44100))
    n_mels, hop_length = n_mels or 96, hop_length or max(1, round(512 * scale))
    settings = FeatureSettings(sample_rate, n_mels, n_fft or max(16, round(2048 * scale)), hop_length, channels)
    while n_fft is None and n_empty_filters(settings) and settings.n_fft < sample_rate:
        settings = dataclasses.replace(settings, n_fft=2 * settings.n_fft)
    if empty := n_empty_filters(settings):
        raise UserError(f"--n-fft {settings.n_fft} at {sample_rate} Hz: expected a bin in each of {n_mels} mel "
                        f"filters, found {empty} empty; take a larger --n-fft or a smaller --n-mels")
    if hop_length > settings.n_fft:
        raise UserError(f"--hop-length {hop_length}: expected at most the window, {settings.n_fft} samples; "
                        "those between windows would never be heard")
    return settings


@lru_cache(maxsize=8)
def mel_filters(sample_rate, n_mels, n_fft):
    """FeatureSettings.filters, made once for all settings that have the same."""
    import scipy.sparse
    from librosa.filters import mel
    with warnings.catch_warnings(action="ignore"):  # of empty filters, which default_settings counts
        filters = mel(sr=sample_rate, n_fft=n_fft, n_mels=n_mels, dtype=np.float64)
    return scipy.sparse.csr_array(filters)


def n_empty_filters(settings):
    """How many mel filters fall between two FFT bins and would be silent for ever."""
    return int((settings.filters.max(axis=1).toarray() == 0).sum())


def convert(blocks, settings):
    """Yield blocks with their rate [shape=(n_samples, n_channels)] at the rate and in the channels of `settings`.

    One channel: the mean of all. More: the first ones; of a sound with fewer the last is repeated.
    Yields float32 [shape=(channels, n_samples)].
    """
    resampler = None
    for y, sample_rate in blocks:
        n_channels = y.shape[1]
        if settings.channels > 1:
            y = y[:, np.minimum(range(settings.channels), n_channels - 1)]
        elif n_channels > 1:
            y = (sum(y.T) / np.float32(n_channels))[:, None]  # ten times as fast as y.mean(axis=1)
        if sample_rate != settings.sample_rate:
            import soxr
            resampler = resampler or soxr.ResampleStream(sample_rate, settings.sample_rate, settings.channels)
            n_parts = math.ceil(len(y) * settings.sample_rate / sample_rate / utils.READ_SAMPLES)  # of few Hz, many
            yield from (resampler.resample_chunk(part).T for part in np.array_split(y, n_parts))
        else:
            yield y.T
    if resampler:
        yield resampler.resample_chunk(y[:0], last=True).T


def log_mel_spectrogram(blocks, settings):
    """Log-mel spectrogram of a sound, librosa.power_to_db(librosa.feature.melspectrogram(...)) to 1e-4 dB.

    blocks: float32 [shape=(channels, n_samples)], one after the other. Returns float32 in dB
    [shape=(n_mels, n_frames), or (channels, n_mels, n_frames) for two or more], where
    n_frames = 1 + n_samples // hop_length for an even n_fft; at least -100 dB, at most 80 below the loudest bin.
    """
    db = np.concatenate(list(frames_in_db(blocks, settings)), axis=2)
    np.maximum(db, db.max() - np.float32(TOP_DB), out=db)
    return db if settings.channels > 1 else db[0]


def frames_in_db(blocks, settings):
    """Yield the frames of a sound, up to BLOCK at a time, however soft. [shape=(channels, n_mels, n), float32, dB]"""
    n_fft, hop_length = settings.n_fft, settings.hop_length
    margin = np.zeros((settings.channels, n_fft // 2))  # frame t is centred on sample t * hop_length
    rest, is_first = margin, True
    for y in itertools.chain(blocks, [None]):
        rest = np.concatenate([rest, margin if y is None else y], axis=1)  # (channels, n), float64
        n_frames = max(0, 1 + (rest.shape[1] - n_fft) // hop_length)
        if y is not None:
            n_frames -= n_frames % BLOCK  # the same blocks of frames however the sound was cut
        elif is_first and not n_frames:  # no sample was left of a short sound when it was resampled
            rest, n_frames = np.zeros((settings.channels, n_fft)), 1
        for start in range(0, n_frames, BLOCK):
            first, last = start * hop_length, (min(start + BLOCK, n_frames) - 1) * hop_length + n_fft
            yield block_in_db(rest[:, first:last], settings)
        rest, is_first = rest[:, n_frames * hop_length:], is_first and not n_frames


@lru_cache(maxsize=8)
def hann(n_fft):  # the periodic one, [shape=(n_fft,)]
    return 0.5 - 0.5 * np.cos(2 * np.pi / n_fft * np.arange(n_fft))


def block_in_db(y, settings):
    """The frames of some samples [shape=(channels, n)] in dB. [shape=(channels, n_mels, n_frames)]"""
    import scipy.fft
    n_fft = settings.n_fft
    frames = np.lib.stride_tricks.sliding_window_view(y, n_fft, axis=1)[:, ::settings.hop_length]
    frames = (frames * hann(n_fft)).reshape(-1, n_fft)  # (channels * n_frames, n_fft)
    # In float64: a float32 FFT strays from librosa by up to 1e-3 dB in the bins far below a tone.
    spectrum = scipy.fft.rfft(frames.T, axis=0)  # (1 + n_fft // 2, channels * n_frames)
    power = np.square(spectrum.real) + np.square(spectrum.imag)
    mel = settings.filters @ power  # (n_mels, channels * n_frames)
    db = 10 * np.log10(np.maximum(mel, AMIN))
    return db.astype(np.float32).reshape(settings.n_mels, settings.channels, -1).swapaxes(0, 1)


def spans(path, settings, length, step):
    """Yield ((start, end), spectrogram [shape=(..., n_mels, up to length)]) for each `step` frames of a long recording.

    The spectrogram is that of `length` frames with the step in their middle, fewer where the recording begins or ends,
    as of a sound of its own.
    """
    blocks = frames_in_db(convert(utils.read_blocks(path), settings), settings)
    rest, first = next(blocks), 0  # the frames from the first that is still needed
    for start in itertools.count(0, step):
        begin, end = max(0, start - (length - step) // 2), start - (length - step) // 2 + length
        rest, first = rest[..., begin - first:], begin
        while first + rest.shape[-1] <= end and (block := next(blocks, None)) is not None:
            rest = np.concatenate([rest, block], axis=-1)
        n_frames = first + rest.shape[-1]  # so far
        if start and start >= n_frames - 1:
            return
        span = rest[..., :end - begin]
        span = np.maximum(span, span.max() - np.float32(TOP_DB))
        yield (start, max(start + 1, min(start + step, n_frames - 1))), span if settings.channels > 1 else span[0]


def listen(path, settings, length, step):
    """Yield how many seconds a recording should last, then its `spans`. Raises UserError."""
    with utils.reading(path), utils.open_sound(path) as file:
        yield file.frames / file.samplerate
    yield from spans(path, settings, length, step)


def sound_to_spectrogram(name, folder, settings):
    """The spectrogram of one sound in `folder`. Raises UserError."""
    return log_mel_spectrogram(convert(utils.read_blocks(Path(folder, name)), settings), settings)


# ---------------------------------------------------------------- from files in Preproc/ back to spectrograms

def load_settings(preproc):
    """The settings that `preproc` was made with, None where it holds no spectrogram. Raises UserError."""
    path = Path(preproc, SETTINGS_FILE)
    if not Path(preproc).is_dir() or not (path.exists() or list_spectrograms(preproc)):
        return None
    try:
        return FeatureSettings(**json.loads(path.read_text()))
    except (OSError, ValueError, TypeError, RecursionError):
        raise UserError(f"{path}: expected settings of finished preprocessing, found none; preprocess again") from None


def map_spectrogram(name, folder, settings):
    """The spectrogram of one sound in `folder`, memory-mapped: frames that nobody looks at are not read.

    float32 [shape=(..., n_mels, n_frames)], read-only. Raises UserError for a file that is not one.
    """
    path = f"{folder}/{name}.npy"
    try:
        with PARSING:  # in Python 3.11, two threads that parse at once may fail
            array = np.lib.format.open_memmap(path, mode="r")  # this reader knows no pickles
    except Exception as error:  # a damaged header has many ways to be wrong
        raise UserError(f"{path}: expected a spectrogram, found {error}; remove it and preprocess again") from None
    expected = ((settings.channels,) if settings.channels > 1 else ()) + (settings.n_mels,)
    if array.dtype != np.float32 or array.shape[:-1] != expected or not array.size:
        raise UserError(f"{path}: expected {settings.n_mels} mel bands of float32, found {array.dtype} of shape "
                        f"{array.shape}; remove it and preprocess again")
    return np.asarray(array)


def load_spectrogram(name, folder, settings):
    """The whole spectrogram of one sound from `folder`, in memory. Raises UserError, for values that are no dB too."""
    array = np.array(map_spectrogram(name, folder, settings))
    if not max(array.max(), -array.min()) < MOST_DB:
        raise UserError(f"{folder}/{name}.npy: expected decibels, found NaN or values beyond them; "
                        "remove it and preprocess again")
    return array


# ---------------------------------------------------------------- the command

def choose_settings(samples, names, sample_rate=None, **given):
    """default_settings for a sample rate, or the one that most sounds in `samples` have; of equals the higher.

    Says so where the rate of a sound tells its class. Raises UserError where no sound can be read.
    """
    rates = read_rates(samples, names)
    if not rates:
        raise UserError(f"{samples}: expected sounds, found {len(names)} files that cannot be read, as {names[0]}")
    if sample_rate is None:
        counts = Counter(min(rate, MAX_RATE) for rate in rates.values())
        sample_rate = max(counts, key=lambda rate: (counts[rate], rate))
    note_telling_rates(rates, sample_rate)
    return default_settings(sample_rate, **given)


def read_rates(samples, names, n=1000):
    """The sample rates in Hz of sounds, or of n of them that their names choose. Returns a dict from name to rate."""
    looked_at = sorted(names, key=lambda name: zlib.crc32(os.fsencode(name)))[:n]  # one sound more moves one at most
    return dict(utils.done(partial(rate_of, samples), looked_at, {}))


def note_telling_rates(rates, sample_rate):
    """Say so where most sounds of one class, and few of another, were recorded below sample_rate, or up to it.

    Below it they lack the high frequencies that the others have; at it the others have the edge of the resampler. A
    network would learn the recorder, not the class. Nine tenths of the lowest usual rate has no edge of any of them.
    """
    by_class = {}
    for name, rate in rates.items():
        by_class.setdefault(utils.class_of(name), []).append(rate)
    for word, limit in (("below", sample_rate), ("at most at", sample_rate + 1)):
        low = {name: sum(rate < limit for rate in some) / len(some) for name, some in by_class.items()}
        most, least = (choose(sorted(low), key=low.get) for choose in (max, min))
        if low[most] - low[least] > TELLING_SHARE:
            usual = min(sorted(some)[len(some) // 2] for some in by_class.values())
            harmless = max(RATES[0], int(0.9 * usual) // 100 * 100)
            say(f"Sample rates may tell classes apart: {low[most]:.0%} of {most}, but {low[least]:.0%} of {least}, is "
                f"recorded {word} {sample_rate} Hz; preprocess_data.py --sample-rate {harmless} removes this clue")
            return


def rate_of(samples, name):
    path = Path(samples, name)
    with utils.reading(path), utils.open_sound(path) as file:
        return file.samplerate


def parse_args():
    parser = utils.Parser(__doc__, places=("samples", "preproc"))
    count = utils.number(int, 1, high=2**20)
    parser.add_flags(
        ("sample-rate", utils.number(int, 100, high=MAX_RATE + 1), None, "HZ",
         "resample every sound to it (default: the rate that most files have)"),
        ("channels", utils.number(int, 1, high=1025), 1, "N",
         "1: the mean of all (the default); more: so many are kept, the last repeated if need be"),
        ("n-mels", utils.number(int, 1, high=4097), None, "N", "mel bands (default: 96)"),
        ("n-fft", utils.number(int, 2, high=2**20), None, "N", "samples in a window (default: 2048 at 44.1 kHz)"),
        ("hop-length", count, None, "N", "samples between frames (default: 512 at 44.1 kHz)"),
        ("augment", utils.number(int, 0, high=10**5), 0, "N",
         "also N altered copies of each sound, those of augment_data.py, with no sound written"),
        ("jobs", count, None, "N", "processes (default: one a core)"),
        ("dask", str, None, "ADDRESS", "scheduler of a Dask cluster that does the work instead; all must see the same "
         "folders (pip install distributed; dask scheduler; dask worker tcp://SCHEDULER:8786 --nworkers -1 "
         "--nthreads 1)"))
    augment_data.add_choice(parser)
    parser.add_argument("--strict", action="store_true", help="stop at the first sound that cannot be read")
    args = parser.parse_args()
    if not args.augment and (args.only or args.without):
        parser.error("--only and --without choose what copies get: expected --augment N, found none")
    return args


def stamp(path, made):
    """The file time in ns that marks a spectrogram as made of the sound at `path`, as it is now, in the way `made`.

    Its second is that of the sound; its fraction is a digest, one in ten million, of the sound's size and time and of
    `made`. So one look at a file tells whether it is up to date, and there is no list that a crash could make wrong.
    """
    status = os.stat(path)
    digest = hashlib.sha256(f"{FEATURES} {made} {status.st_size} {status.st_mtime_ns}".encode()).digest()
    return status.st_mtime_ns // 10**9 * 10**9 + int.from_bytes(digest[:8], "big") % 10**7 * 100  # NTFS counts 100 ns


class Task(NamedTuple):
    """What makes the spectrograms of a run: where from, where to, how."""

    samples: Path
    preproc: Path
    settings: FeatureSettings
    seed: int = 0  # of the copies
    deformations: tuple = ()

    def origin(self, name):
        """The sound's name, and the number of the copy that is to be made of it: 0 for the sound itself."""
        copy = None if os.path.lexists(self.samples / name) else utils.COPY.search(name)
        return (utils.COPY.sub("", name), int(copy[1])) if copy else (name, 0)

    def target(self, name):
        return Path(self.preproc, name + ".npy")

    def stamp(self, name):
        source, k = self.origin(name)
        copy = f" copy {k}, seed {self.seed}, {self.deformations}" if k else ""
        return stamp(self.samples / source, f"{self.settings!r}{copy}")

    def is_done(self, name):
        with contextlib.suppress(OSError):
            found = os.stat(self.target(name))
            return found.st_mtime_ns == self.stamp(name) and found.st_size > 128  # a power cut may leave it empty
        return False

    def spectrogram(self, name):
        source, k = self.origin(name)
        if k == 0:
            return sound_to_spectrogram(name, self.samples, self.settings)
        y, sample_rate = augment_data.decode_sound(self.samples / source)
        copy, _ = augment_data.make_copy(y, sample_rate, self.samples / source, k, self.seed, self.deformations)
        return log_mel_spectrogram(convert([(copy, sample_rate)], self.settings), self.settings)

    def run(self, name):
        """Write the spectrogram of one sound. Returns how many seconds it lasts. Raises UserError."""
        target = self.target(name)
        if len(os.fsencode(target.name)) > 255:
            raise UserError(f"{target}: expected a name of at most 251 bytes before .npy, found more")
        with utils.reading(self.samples / self.origin(name)[0]):
            mark = self.stamp(name)  # before the sound is read: what changes meanwhile is seen by the next run
        spectrogram = self.spectrogram(name)
        np.save(data := io.BytesIO(), spectrogram)  # NumPy itself does not say that the disk is full
        try:
            with utils.whole_file(target) as path:
                path.write_bytes(data.getbuffer())
                os.utime(path, ns=(mark, mark))
        except (PermissionError, FileExistsError, IsADirectoryError, NotADirectoryError) as error:
            raise UserError(f"{target}: expected a place to write to, found: {error.strerror}") from None
        return (spectrogram.shape[-1] - 1) * self.settings.hop_length / self.settings.sample_rate


def tidy(preproc, wanted):
    """Remove spectrograms that are not wanted, what killed runs left, and empty folders. Returns how many of the first.

    Raises UserError where it holds .npy files that no preprocessing wrote: they may be dear to someone.
    """
    former = list_spectrograms(preproc)
    if former and not Path(preproc, SETTINGS_FILE).exists():
        raise UserError(f"{preproc}: expected an empty folder or one of earlier preprocessing, "
                        f"found {len(former)} .npy files without {SETTINGS_FILE}")
    locked = locked_folders(wanted)
    gone = [name for name in set(former) - set(wanted) if not name.startswith(locked)]
    for name in gone:
        Path(preproc, name + ".npy").unlink()
    for folder, subfolders, files in os.walk(preproc, topdown=False):
        for name in filter(utils.TEMPORARY.fullmatch, files):
            Path(folder, name).unlink()
        for name in subfolders:
            with contextlib.suppress(OSError):  # one that is not empty stays
                os.rmdir(Path(folder, name))
    return len(gone)


def locked_folders(names):
    """Those of the names, of sounds, that are of folders that may not be read: what is in them cannot be known."""
    return tuple(name for name in names if name.endswith("/"))


def make_spectrograms(task, names, args):
    """Bring `task.preproc` up to date: it then holds the spectrograms of `names` and no others.

    Returns a dict of those that were written and their seconds, one of the sounds that cannot be read and the
    UserErrors, how many spectrograms were removed, and how many were up to date.
    """
    mark, skipped = task.preproc / SETTINGS_FILE, task.preproc / SKIPPED_FILE
    n_removed = tidy(task.preproc, names)
    found, former, new = {}, {}, dataclasses.asdict(task.settings)
    with contextlib.suppress(Exception):  # of the last run, finished or not
        former = dict((found := json.loads(mark.read_text())).get("unfinished", found))
    to_do = [name for name in names if not task.is_done(name)]
    if former and former != new:
        changes = ", ".join(f"{key} {former.get(key)} -> {new[key]}" for key in new if former.get(key) != new[key])
        say(f"{task.preproc}: settings changed ({changes}): {len(to_do)} spectrograms are made again")
    if to_do or former != new:
        utils.save_json(mark, {"unfinished": new})
    skipped.unlink(missing_ok=True)
    done, errors = for_each(task.run, to_do, "Preprocessing", task.samples, args.jobs, args.dask, args.strict)
    for name in (name for name, error in errors.items() if not isinstance(error, utils.LockedError)):
        with contextlib.suppress(OSError):  # where nothing may be written, nothing may be removed
            task.target(name).unlink()
    locked, former = locked_folders(names), list_spectrograms(task.preproc) if errors else []
    left = [name for name in former if name in errors or name.startswith(locked)]
    if args.dask:
        tidy(task.preproc, names)  # a worker that was lost may have left a temporary file
    errors = {task.origin(name)[0]: error for name, error in errors.items()}  # a sound and its copies count once
    if left and found != new:
        say(f"{task.preproc}: {len(left)} spectrograms of other settings could not be replaced, as {left[0]}.npy; "
            "training refuses until they are, or are removed")
    elif done or len(to_do) < len(names):
        utils.save_json(mark, new)
    if errors:
        reasons = [(name, str(error).removeprefix(f"{task.samples / name}: ")) for name, error in errors.items()]
        utils.save_csv(skipped, [("file", "reason"), *reasons])
    return done, errors, n_removed, len(names) - len(to_do)


def describe_classes(samples, sounds):
    """How many classes there are, the smallest and the largest; what a single one, or one without sounds, may mean."""
    counts = Counter(map(utils.class_of, sounds))
    if len(counts) == 1:
        only, = counts
        deeper = len({name.split("/")[1] for name in sounds if name.count("/") > 1})
        text = f"1 class, {only}"
        if deeper:
            folder = shlex.quote(str(Path(samples, only)))
            text += f"; its {deeper} subfolders are no classes, --samples {folder} makes them so"
    else:
        least, most = min(counts, key=counts.get), max(counts, key=counts.get)
        sizes = f"{counts[least]} each"
        if counts[least] < counts[most]:
            sizes = f"{counts[least]} ({least}) to {counts[most]} ({most})"
        text = f"{len(counts)} classes, {sizes}"
    empty = [name for name in list_classes(samples) if name not in counts]
    return text + (f"; no sounds in {', '.join(empty)}" if empty else "")


def main():
    args = parse_args()
    deformations = augment_data.chosen(args, args.augment)
    if args.samples.resolve() == args.preproc.resolve():
        raise UserError(f"--preproc {args.preproc}: expected another folder than --samples, found the same")
    if args.dask:  # its workers may run in other folders
        utils.connect(args.dask).close()  # a wrong address is found before anything is changed
        args.samples, args.preproc = args.samples.resolve(), args.preproc.resolve()
    sounds, others = utils.find_sounds(args.samples)
    say(f"{args.samples}: {len(sounds)} sounds in {describe_classes(args.samples, sounds)}")
    settings = choose_settings(args.samples, sounds, args.sample_rate, n_mels=args.n_mels, n_fft=args.n_fft,
                               hop_length=args.hop_length, channels=args.channels)
    there = utils.find_copies(sounds, args.samples)
    copies = (augment_data.copy_name(name, k) for name in sounds if name not in there
              for k in range(1, args.augment + 1))
    say(f"Features: {settings}")
    began = time.perf_counter()
    args.preproc.mkdir(parents=True, exist_ok=True)
    with utils.alone_in(args.preproc, f"{args.preproc}: another run is at work there; waiting for its end"):
        task = Task(args.samples, args.preproc, settings, args.seed, deformations)
        done, errors, n_removed, n_kept = make_spectrograms(task, sorted({*sounds, *copies}), args)
    n_bad = name_skipped(errors, f", all in {args.preproc}/{SKIPPED_FILE}")
    if not done and not n_kept:
        raise UserError(f"{args.samples}: expected sounds, found {n_bad} files that cannot be read")
    seconds, took = sum(done.values()), time.perf_counter() - began
    if done:
        say(f"{seconds:.0f} s of sound in {took:.1f} s, {seconds / took:.0f} times real time")
    say(f"{args.preproc}: {len(done)} spectrograms written, {n_kept} kept, {n_removed} removed, "
        f"{n_bad} sounds skipped; {len(others)} other files left alone")
    with contextlib.suppress(UserError):  # of spectrograms that training would refuse
        load_settings(args.preproc)
        utils.say_next("train_network.py", samples=args.samples, preproc=args.preproc)
    return n_bad


if __name__ == "__main__":
    import preprocess_data  # by this name, not as __main__, its processes find what they run
    utils.run(preprocess_data.main)
