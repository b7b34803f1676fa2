"""What the four scripts share: the command line, files and names, sounds and spectrograms.

Nothing here loads Keras: augmenting, preprocessing and every --help start at once.
A sound's name, everywhere in this project, is its path below Samples/, "kick/deep.wav".
"""
import argparse
import contextlib
import dataclasses
import json
import os
import re
import sys
import uuid
from collections import Counter
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

SOUND_EXTENSIONS = frozenset(
    ".wav .flac .ogg .oga .opus .aif .aiff .aifc .mp3 .au .snd .caf .w64 .rf64"  # libsndfile reads these
    " .m4a .mp4 .aac .wma .amr".split())  # and not these: named as unreadable, never passed over in silence
SETTINGS_FILE = "settings.json"
COPY = re.compile(r"(_aug\d+)+(?=\.[^./]*$)")  # what augment_data.py puts before the extension
AMIN, TOP_DB = 1e-10, 80.0  # librosa.power_to_db's floor, and its range below the loudest bin
BLOCK = 32  # frames transformed at a time: fits the cache, and an hour needs no more memory than a second


# ---------------------------------------------------------------- the command line

class UserError(Exception):
    """A mistake that the user can mend: one line with the path, what was expected, what was found."""


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that shows a script's docstring as its help and errors as one line."""

    PLACES = {"samples": ("Samples", "folder of sounds, one folder a class"),
              "preproc": ("Preproc", "folder of spectrograms"),
              "results": ("Results", "folder for figures and scores"),
              "weights": ("weights.keras", "the trained network")}

    def __init__(self, doc, places=()):
        super().__init__(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
        for place in places:
            default, text = self.PLACES[place]
            self.add_argument(f"--{place}", type=Path, default=Path(default), metavar="PATH",
                              help=f"{text} (default: {default})")

    def error(self, message):
        self.exit(2, f"{self.prog}: {message} (--help shows the use)\n")


def number(kind, low, high=2**32):
    """The argparse type of an int from `low`, or of a float above it, that is below `high`."""
    def parse(text):
        with contextlib.suppress(ValueError):
            value = kind(text)
            if (low <= value if kind is int else low < value) and value < high:
                return value
        raise argparse.ArgumentTypeError(f"expected {'a whole number from' if kind is int else 'a number above'} "
                                         f"{low}, below {high}, found {text!r}")
    return parse


def regex(text):
    """The argparse type of a regular expression."""
    try:
        return re.compile(text)
    except re.error as error:
        raise argparse.ArgumentTypeError(f"expected a regular expression, found {text!r}: {error}") from None


def run(main):
    """Run main(), exit with status 1 if it returns a number of skipped files; mistakes become one line on stderr."""
    script = Path(sys.argv[0]).name
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # a name may hold what a terminal cannot show
    try:
        n_bad = main()
        if n_bad:
            print(f"{script}: {n_bad} files skipped, named above", file=sys.stderr)
        sys.exit(n_bad > 0)
    except UserError as error:
        sys.exit(f"{script}: {error}")
    except OSError as error:
        sys.exit(f"{script}: {error.filename or 'file'}: {error.strerror or error}")
    except KeyboardInterrupt:
        print(f"\n{script}: stopped; what is written is whole and stays", file=sys.stderr)
        sys.exit(130)


@contextlib.contextmanager
def quiet_stderr():
    """Drop what is written to stderr, by compiled code too."""
    sys.stderr.flush()
    kept = os.dup(2)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def for_each(function, items, description, jobs=1):
    """Call function on every item behind a progress bar; name what raises UserError and go on.

    Returns the results of those that worked, in the order of items, and how many did not.
    """
    from joblib import Parallel, delayed
    from rich.markup import escape
    from rich.progress import track

    def attempt(item):
        try:
            return function(item), None
        except UserError as error:
            return None, error

    results, n_bad = [], 0
    # Threads: decoding, FFT and the mel product all run outside the interpreter lock.
    tasks = Parallel(n_jobs=jobs, prefer="threads", return_as="generator")(map(delayed(attempt), items))
    for result, error in track(tasks, escape(description), total=len(items)):
        if error:
            print(f"skipped {error}", file=sys.stderr)
            n_bad += 1
        else:
            results.append(result)
    return results, n_bad


# ---------------------------------------------------------------- files

@contextlib.contextmanager
def whole_file(path):
    """Yield a temporary path beside `path` that replaces it on success: a file is whole or not there."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{uuid.uuid4().hex[:12]}{path.suffix}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def save_json(path, value):
    with whole_file(path) as temporary:
        temporary.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")


def class_of(name):
    """The class of a sound: the first folder of its name."""
    return name.split("/", 1)[0]


def source_of(name):
    """The sound that a copy was made from ("a/x_aug2.wav" -> "a/x.wav"); an original is its own."""
    return COPY.sub("", name)


def list_classes(root):
    """Sorted names of the class folders in `root`. Raises UserError where there is no such folder."""
    root = Path(root)
    if not root.is_dir():
        raise UserError(f"{root}: expected a folder with one folder a class, found "
                        + ("a file" if root.exists() else "nothing there"))
    return sorted(entry.name for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def list_files(root):
    """Sorted names of all files in the class folders of `root` and below; hidden ones are left out."""
    names = []
    for class_name in list_classes(root):
        for folder, subfolders, files in os.walk(Path(root, class_name)):
            subfolders[:] = [name for name in subfolders if not name.startswith(".")]
            names += [Path(folder, name).relative_to(root).as_posix() for name in files if not name.startswith(".")]
    return sorted(names)


def is_sound(name):
    """Whether the extension is a sound's; whether it lies shows when the file is read."""
    return Path(name).suffix.lower() in SOUND_EXTENSIONS


def find_sounds(samples):
    """Sorted names of the sounds in `samples` and of the other files there. Raises UserError for no sound."""
    files = list_files(samples)
    sounds = [name for name in files if is_sound(name)]
    if not sounds:
        loose = sum(map(is_sound, Path(samples).iterdir()))
        raise UserError(f"{samples}: expected sounds in one folder a class, found "
                        + (f"{loose} in no class folder" if loose else f"none among {len(files)} files"))
    return sounds, sorted(set(files) - set(sounds))


# ---------------------------------------------------------------- sounds and spectrograms

@dataclasses.dataclass(frozen=True)
class FeatureSettings:
    """How a sound becomes a spectrogram; kept in Preproc/ and in the weights, so that no stage guesses."""

    sample_rate: int  # Hz; every sound is resampled to it
    n_mels: int  # mel bands from 0 Hz to sample_rate / 2
    n_fft: int  # samples in a window
    hop_length: int  # samples from one frame to the next

    def __str__(self):
        return f"{self.sample_rate} Hz, {self.n_mels} mels, n_fft {self.n_fft}, hop_length {self.hop_length}"


def window_and_hop(sample_rate):
    """n_fft and hop_length at a rate in Hz: 2048 and 512 at 44.1 and 48 kHz, as long in time at others."""
    octaves = round(np.log2(sample_rate / 44100))
    return max(16, round(2048 * 2.0**octaves)), max(1, round(512 * 2.0**octaves))


def default_settings(sample_rate, n_mels=None, n_fft=None, hop_length=None):
    """Settings for a sample rate in Hz, the given ones kept: 96 mels, window_and_hop's lengths.

    The window grows until every mel filter holds an FFT bin. Raises UserError where a given n_fft leaves some empty.
    """
    window, hop = window_and_hop(sample_rate)
    n_mels, hop_length = n_mels or 96, hop_length or hop
    if n_fft is None:
        n_fft = window
        while n_empty_filters(sample_rate, n_mels, n_fft) and n_fft < sample_rate:
            n_fft *= 2
    if empty := n_empty_filters(sample_rate, n_mels, n_fft):
        raise UserError(f"--n-fft {n_fft} at {sample_rate} Hz: expected a bin in each of {n_mels} mel filters, "
                        f"found {empty} empty; take a larger --n-fft or a smaller --n-mels")
    return FeatureSettings(sample_rate, n_mels, n_fft, hop_length)


@lru_cache(maxsize=8)
def mel_filters(sample_rate, n_mels, n_fft):
    """librosa's mel filters, sparse because 98 in 100 weights are zero. [shape=(n_mels, 1 + n_fft // 2)]"""
    import warnings

    import librosa.filters
    import scipy.sparse
    with warnings.catch_warnings(action="ignore"):  # empty filters: default_settings has its own word on them
        return scipy.sparse.csr_array(librosa.filters.mel(sr=sample_rate, n_fft=n_fft, n_mels=n_mels))


def n_empty_filters(sample_rate, n_mels, n_fft):
    """How many mel filters fall between two FFT bins and would be silent for ever."""
    return int((mel_filters(sample_rate, n_mels, n_fft).max(axis=1).toarray() == 0).sum())


def decode_sound(path):
    """A sound file as float32 [shape=(n_samples, n_channels)], full scale 1, and its sample rate in Hz.

    Raises UserError for what is not a sound, holds no sample, or holds NaN or infinity.
    """
    import soundfile
    if not Path(path).is_file():
        raise UserError(f"{path}: expected a sound, found {'a folder' if Path(path).is_dir() else 'nothing there'}")
    try:
        y, sample_rate = soundfile.read(path, dtype="float32", always_2d=True)
    except (soundfile.SoundFileError, OSError, TypeError, ValueError) as error:  # .raw; a name not in UTF-8
        raise UserError(f"{path}: expected a sound, found what libsndfile cannot read "
                        f"({str(getattr(error, 'error_string', error)).rstrip('.')})") from None
    if not len(y):
        raise UserError(f"{path}: expected a sound, found one of no samples")
    if not np.isfinite(y).all():
        raise UserError(f"{path}: expected samples that are numbers, found NaN or infinity")
    return y, sample_rate


def read_sound(path, sample_rate):
    """A sound as mono float32 [shape=(n_samples,)] at `sample_rate`: channels averaged, resampled by soxr."""
    y, file_rate = decode_sound(path)
    y = y.mean(axis=1)
    if file_rate != sample_rate:
        import soxr
        y = soxr.resample(y, file_rate, sample_rate)
    return y


def log_mel_spectrogram(y, settings):
    """Log-mel spectrogram of a sound, librosa.power_to_db(librosa.feature.melspectrogram(...)) to 1e-4 dB.

    y: float32 [shape=(n_samples,)], at least one sample. Returns float32 [shape=(n_mels, n_frames)] in dB
    where n_frames = 1 + n_samples // hop_length for an even n_fft; at least -100 dB, and
    at most 80 below the loudest bin.
    """
    import scipy.fft
    import scipy.signal
    n_fft, hop_length = settings.n_fft, settings.hop_length
    filters = mel_filters(settings.sample_rate, settings.n_mels, n_fft)
    window = scipy.signal.get_window("hann", n_fft)
    y = np.pad(y, n_fft // 2)  # frame t is centred on sample t * hop_length
    frames = np.lib.stride_tricks.sliding_window_view(y, n_fft)[::hop_length]  # (n_frames, n_fft), no copy
    mel = np.empty((settings.n_mels, len(frames)))
    for start in range(0, len(frames), BLOCK):
        # In float64: a float32 FFT strays from librosa by up to 5e-4 dB in the bins 80 dB below a tone.
        spectrum = scipy.fft.rfft(frames[start:start + BLOCK] * window)  # (BLOCK, 1 + n_fft // 2)
        mel[:, start:start + BLOCK] = filters @ (spectrum.real**2 + spectrum.imag**2).T
    db = 10 * np.log10(np.maximum(mel, AMIN)).astype(np.float32)  # (n_mels, n_frames)
    return np.maximum(db, db.max() - np.float32(TOP_DB))


# ---------------------------------------------------------------- Preproc/ and Samples/ as one source

def load_settings(preproc):
    """The settings that `preproc` was made with, None where it holds no spectrogram. Raises UserError."""
    path = Path(preproc, SETTINGS_FILE)
    if not Path(preproc).is_dir() or not (path.exists() or list_spectrograms(preproc)):
        return None
    try:
        return FeatureSettings(**json.loads(path.read_text()))
    except (OSError, ValueError, TypeError):
        raise UserError(f"{path}: expected the settings of finished preprocessing, found none that are whole; "
                        "run preprocess_data.py again") from None


def rate_of_most(samples, names):
    """The sample rate in Hz that most of the sounds have; of equals the higher."""
    import soundfile
    rates = Counter()
    for name in names:
        with contextlib.suppress(soundfile.SoundFileError, OSError, ValueError):
            rates[soundfile.info(Path(samples, name)).samplerate] += 1
    if not rates:
        raise UserError(f"{samples}: expected sounds, found {len(names)} files that cannot be read, "
                        f"such as {names[0]}")
    return max(rates, key=lambda rate: (rates[rate], rate))


def sound_to_spectrogram(name, samples, settings):
    """The spectrogram of one sound in `samples`."""
    return log_mel_spectrogram(read_sound(Path(samples, name), settings.sample_rate), settings)


def list_spectrograms(preproc):
    """Sorted names of the sounds whose spectrograms are in `preproc`."""
    names = [name.removesuffix(".npy") for name in list_files(preproc) if name.endswith(".npy")]
    return [name for name in names if is_sound(name)]


def load_spectrogram(name, preproc, settings):
    """The spectrogram of one sound from `preproc`. Raises UserError for a file that is not one."""
    path = Path(preproc, name + ".npy")
    try:
        with open(path, "rb") as file:
            array = np.lib.format.read_array(file, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{path}: expected a spectrogram, found {error}") from None
    right = array.dtype == np.float32 and array.ndim == 2 and len(array) == settings.n_mels and array.size
    if not right or not np.isfinite(array).all():
        raise UserError(f"{path}: expected {settings.n_mels} mel bands of float32, found {array.dtype} of shape "
                        f"{array.shape}{' with NaN' if right else ''}; run preprocess_data.py again")
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
        return Source(preproc, list_spectrograms(preproc), list_classes(preproc), kept, load_spectrogram)
    if kept is not None:
        print(f"{preproc}: made with other settings than the weights; reading {samples} instead")
    names, _ = find_sounds(samples)
    settings = settings or default_settings(rate_of_most(samples, names))
    return Source(samples, names, list_classes(samples), settings, sound_to_spectrogram)


def read_spectrograms(source, names):
    """Read or compute the spectrograms of `names`. [shape=(n_mels, n_frames), float32, dB]

    Returns a dict from name to spectrogram in the order of names, and how many could not be read.
    """
    jobs = -1 if source.read is sound_to_spectrogram else 1
    found, n_bad = for_each(lambda name: (name, source.read(name, source.folder, source.settings)), names,
                            f"Reading {source.folder}", jobs)
    print(f"{source.folder}: {len(found)} spectrograms, {source.settings}")
    return dict(found), n_bad
