"""Code that the four scripts share: command line, names, sounds, features, spectrograms, workers.

Nothing here loads Keras, so that augmenting, preprocessing and every --help start at once.
The name of a sound is its path below Samples/, such as "kick/deep.wav".
"""
import argparse
import contextlib
import csv
import ctypes
import dataclasses
import errno
import hashlib
import io
import itertools
import json
import math
import mmap
import multiprocessing
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
import unicodedata
import uuid
import warnings
import zlib
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent import futures
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import NamedTuple

import librosa
import numpy as np
import rich.progress
import scipy
import soundfile
import soxr

try:
    import fcntl
except ImportError:  # Windows has no file locks of this kind
    fcntl = None

READABLE = frozenset(  # libsndfile reads these
    ".wav .flac .ogg .oga .opus .aif .aiff .aifc .mp3 .mp2 .au .snd .caf .w64 .rf64 .sph .nist "
    ".voc".split())
TO_CONVERT = frozenset(  # ffmpeg makes WAV files of these
    ".m4a .m4b .m4r .mp4 .m4v .mov .3gp .3g2 .aac .ac3 .eac3 .dts .wma .wmv .asf .amr .webm .weba "
    ".mka .mkv .avi .flv .mpg .mpeg .ogv .spx .ape .wv .tta .mpc .dsf .dff .ra .rm".split())
SUBSETS = "train", "validation", "test"  # of a split
# Fewer validation sounds confirm no threshold, even if all are right (models.choose_threshold).
MIN_VALIDATION = 95
SETTINGS_FILE = "settings.json"
SKIPPED_FILE = "skipped.csv"
SUSPICIOUS_FILE = "suspicious.csv"
AUGMENTATIONS = "augmentations.csv"  # lists the copies in a folder
COPY = re.compile(r"_aug(\d+)(?=(\.[^./]*)?$)")  # the mark of a copy, before the extension
TEMPORARY = re.compile(r"\.[0-9a-f]{12}(\.\w+)?")  # a file that was being written
DISK_FULL = errno.ENOSPC, errno.EFBIG, errno.EDQUOT
MIN_RATE = 100  # Hz; a damaged header may claim any rate
MAX_RATE = 10**7  # Hz
KEY_SIZE = 16  # bytes behind the values of a spectrogram, see make_key
KEY_PART = 8192  # bytes of a sound file
READ_SAMPLES = 2**18  # of all channels, read at a time
AMIN = 1e-10  # the lowest power, as in librosa
TOP_DB = 80.0  # the range below the loudest bin, as in librosa
MAX_DB = 1000.0  # a file with larger values does not hold decibels
BLOCK = 64  # frames that are transformed at a time, few enough for the CPU cache
CONTINUES = "augment_data.py", "preprocess_data.py", "train_network.py"  # after a stop
MAX_NAMED = 20  # skipped files that are named on the screen
N_PARTS = 8  # parts of a sound in its fingerprint
MAX_COMPARED = 5000  # frames of a sound, a minute at 44.1 kHz, so that an hour takes little memory
MAX_SHIFT = 4  # frames by which one of two equal sounds may be late
BLUR = 5  # frames
FLOOR = 40  # dB below the loudest value; quieter values count as equal, and ends of them are cut
LOUD = 25  # dB below the loudest value; these values are compared
N_AXES = 8  # dimensions in which similar fingerprints are searched
MAX_DISTANCE = 0.3  # between the fingerprints of one recording
N_NEAREST = 9  # a sound is compared with itself and the 8 most similar ones
MAX_PAIRS = 10_000  # are compared, for a comparison takes about a millisecond
MAX_DIFFERENCE = 1  # dB between two versions of one recording
STEADY = 0.2  # dB; a sound that varies less has no details to compare
MIN_AGREEMENT = 0.6  # correlation of the details of two versions of one recording
CHUNK = 16  # files that a worker gets at a time
SLICE = 4  # chunks for each worker before the next ones are given out


# ---------------------------------------------------------------- command line and messages

class UserError(Exception):
    """An error that the user can mend, told in one line: the path, the problem, the remedy."""


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that shows a script's docstring as help and a mistake as one line."""

    PLACES = {"samples": ("Samples", "folder of sounds, one subfolder for each class"),
              "preproc": ("Preproc", "folder of spectrograms"),
              "results": ("Results", "folder for figures and scores"),
              "weights": ("weights.keras", "the trained network")}

    def __init__(self, doc, places=()):
        super().__init__(description=doc, allow_abbrev=False,
                         formatter_class=argparse.RawDescriptionHelpFormatter)
        for place in places:
            default, text = self.PLACES[place]
            self.add_argument(f"--{place}", type=Path, default=Path(default), metavar="PATH",
                              help=f"{text} (default: {default})")

    def error(self, message):
        self.exit(2, shown(f"{self.prog}: {message} (--help shows the usage)") + "\n")


def number(kind, low, high=2**32):
    """The argparse type of an int or float from `low`, below `high`."""
    def parse(text):
        with contextlib.suppress(ValueError):
            value = kind(text)
            if low <= value < high:
                return value
        name = "a whole number" if kind is int else "a number"
        raise argparse.ArgumentTypeError(
            f"expected {name}, at least {low} and below {high}, found {text!r}")
    return parse


def regex(text):
    """The argparse type of a regular expression."""
    try:
        return re.compile(text)
    except re.error as error:
        raise argparse.ArgumentTypeError(
            f"expected a regular expression, found {text}: {error}") from None


def run(main):
    """Call main() and end the process. An error prints one line to stderr and exits with 1.

    main: returns how many files were skipped, or None. The exit status is 1 for skipped files too.
    """
    keep_freed_memory()
    script = Path(sys.argv[0]).name
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # a name may not fit the terminal's encoding
    try:
        n_skipped = main()
    except UserError as error:
        sys.exit(shown(f"{script}: {error}"))
    except MemoryError:
        sys.exit(f"{script}: out of memory; files already written are complete; close other "
                 "programs, and run the same command again")
    except OSError as error:
        if not isinstance(error, BrokenPipeError):  # as of | head
            print(shown(f"{script}: {error.filename or 'file'}: {error.strerror or error}; check "
                        "the disk, the path and its permissions, and run again"), file=sys.stderr)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # else Python fails again when it exits
        sys.exit(1)
    except KeyboardInterrupt:
        again = "; the same command continues" if script in CONTINUES else ""
        again += " (without --fresh)" if "--fresh" in sys.argv else ""
        print(f"\n{script}: stopped; files already written are complete{again}", file=sys.stderr)
        sys.exit(130)
    if n_skipped:
        noun = "file" if n_skipped == 1 else "files"
        which = "named above" if n_skipped <= MAX_NAMED else "some of them named above"
        sys.exit(f"{script}: {n_skipped} {noun} skipped, {which}")


def keep_freed_memory():
    """Tell glibc not to return freed memory to the system.

    Getting it back costs a page fault for each page. That is half of the time of a short sound,
    and on some machines half of the time of training.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if mallopt:
        mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD, bytes
        mallopt(-2, 2**26)  # M_TOP_PAD: the heaps of threads have this size, and stay
        mallopt(-3, 2**25)  # M_MMAP_THRESHOLD: the most that glibc takes


def fold_path(weights, k):
    """Make the path of the weights of fold k, such as weights-fold1.keras."""
    return weights.with_name(f"{weights.stem}-fold{k}{weights.suffix}")


def check_weights_path(path):
    """Raise UserError unless `path` can be a weights file. Runs before the slow import of Keras."""
    if not Path(path).is_file():
        found = "a folder" if Path(path).is_dir() else "nothing there"
        raise UserError(f"{path}: expected the weights that train_network.py saves, found {found}; "
                        "train first, or name other weights")
    if Path(path).suffix != ".keras":  # Keras would read another format without any check
        raise UserError(f"{path}: is not named .keras; rename it if train_network.py saved it")


def shown(text):
    """Text as a terminal can show it: control characters are escaped as in Python."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode()
                   for c in str(text))


def say(*lines, file=None):
    """Print lines at once, with control characters escaped."""
    for line in lines:
        print(shown(line), file=file, flush=True)


def command(script, *flags, **places):
    """A command for the user to run, quoted for a shell, with the places that are not defaults."""
    path = os.path.normpath(os.path.join(os.path.dirname(sys.argv[0]), script))
    words = ["python", path, *map(str, flags)]
    for name, path in places.items():
        if str(path) != Parser.PLACES[name][0]:
            words += [f"--{name}", str(path)]
    return subprocess.list2cmdline(words) if os.name == "nt" else shlex.join(words)


def say_next(script, *flags, **places):
    """Print the command to run next."""
    say(f"Next: {command(script, *flags, **places)}")


def name_skipped(errors, listed=""):
    """Print the UserErrors of skipped files to stderr. Returns how many there are.

    errors: dict from each file to its UserError. listed: says where all of them are listed.
    """
    for error in list(errors.values())[:MAX_NAMED]:
        say(f"skipped {error}", file=sys.stderr)
    if len(errors) > MAX_NAMED:
        say(f"and {len(errors) - MAX_NAMED} more{listed}", file=sys.stderr)
    return len(errors)


# ---------------------------------------------------------------- names: sounds, classes, copies

def class_of(name):
    """The class of a sound: the first folder of its name."""
    return name.split("/", 1)[0]


def is_background(class_name):
    """Whether a class holds background: sounds of no other class, in a folder named _..."""
    return class_name.startswith("_")


def stem_of(name):
    """The name of a sound without its extension."""
    return os.path.splitext(name)[0]


def choose_part(match):
    """Choose the part of a match that counts: 1, the capture group, or 0, the whole match."""
    return 1 if match.re.groups and match[1] is not None else 0


def find_group(name, pattern=None):
    """The group that the name of a sound stands for.

    pattern: regular expression. The group is its first capture group in the path below the class
    folder, or else the whole match. Without a match the group is the name without its extension.
    """
    path = name.split("/", 1)[1]
    match = pattern and pattern.search(path)
    if not match:
        return stem_of(name)
    part = choose_part(match)
    is_at_end = match.end(part) == len(path)
    return stem_of(match[part]) if is_at_end else match[part]  # the extension does not count


def is_sound(name):
    """Whether a file has the extension of a sound and is not hidden."""
    stem, extension = os.path.splitext(os.path.basename(name))
    return extension.lower() in READABLE | TO_CONVERT and not stem.startswith(".")


def list_classes(root):
    """Sorted names of the class folders in `root`. Raises UserError if `root` is not a folder."""
    root = Path(root)
    if not root.is_dir():
        found = "a file" if root.exists() else "nothing there"
        raise UserError(f"{root}: expected a folder with a subfolder for each class, found "
                        f"{found}; correct the path")
    entries = [entry for entry in root.iterdir() if not entry.name.startswith(".")]
    if lost := [entry for entry in entries if not entry.exists() and not is_sound(entry.name)]:
        raise UserError(f"{lost[0]}: is a broken link; mount the drive it points to, or remove it")
    names = sorted(entry.name for entry in entries if entry.is_dir())
    by_look = {}
    for name in names:
        twin = by_look.setdefault(unicodedata.normalize("NFC", name), name)
        if twin != name:
            raise UserError(f"{root}: two folders are named {name}, in different Unicode forms "
                            f"({twin!a} and {name!a}); move the sounds into one of them")
    return names


def walk_files(folder, above=()):
    """Yield the paths of the files in `folder` and below, as strings with "/".

    Links are followed, except those back to a folder above. Hidden folders are skipped. Raises
    UserError for a folder that cannot be read.
    """
    here = os.path.realpath(folder)
    if here in above:
        return
    try:
        names = sorted(os.listdir(folder))
    except OSError as error:
        raise UserError(f"{folder}: {error.strerror}; make the folder readable") from None
    for name in names:
        path = f"{folder}/{name}"
        if not os.path.isdir(path):
            yield path
        elif not name.startswith("."):
            yield from walk_files(path, (*above, here))


def walk_sounds(folder):
    """Sorted paths of the sounds in `folder` and below, as strings with "/". Raises UserError."""
    return sorted(path for path in walk_files(folder) if is_sound(path))


def list_files(root):
    """Sorted names of all files in the class folders of `root` and below."""
    here = Path(os.path.realpath(root))
    above = (*map(str, here.parents), str(here))
    paths = [path for name in list_classes(root) for path in walk_files(f"{root}/{name}", above)]
    return sorted(path[len(f"{root}/"):] for path in paths)


def find_sounds(samples):
    """Sorted names of the sounds in `samples`, and of the other files. Raises UserError."""
    files = list_files(samples)
    sounds = [name for name in files if is_sound(name)]
    loose = sorted(name for name in os.listdir(samples) if is_sound(name))
    if not sounds:
        found = f"{len(loose)} outside of them" if loose else f"none among {len(files)} files"
        raise UserError(f"{samples}: expected sounds in a subfolder for each class, found {found}; "
                        "add sounds, or correct the path")
    return sounds, loose + [name for name in files if not is_sound(name)]


def check_filled(samples, sounds):
    """Raise UserError for a class folder in `samples` that has none of the readable sounds."""
    filled = set(map(class_of, sounds))
    root = os.path.realpath(samples)
    for name in list_classes(samples):
        is_above = root.startswith(os.path.realpath(f"{samples}/{name}"))  # a link back
        if name not in filled and not is_above:
            raise UserError(f"{samples}/{name}: no sounds there that can be read; add at least 2, "
                            "or remove the folder")


def check_outside(flag, folder, other):
    """Raise UserError if a folder, which `flag` names, is another one or in it."""
    if folder.resolve().is_relative_to(other.resolve()):
        raise UserError(f"{flag} {folder}: is {other}, or a folder in it; name another one")


def list_spectrograms(preproc):
    """Sorted names of the sounds whose spectrograms are in `preproc`."""
    names = [name.removesuffix(".npy") for name in list_files(preproc) if name.endswith(".npy")]
    return [name for name in names if is_sound(name)]


def find_copies(names, samples=None):
    """Find the copies among sounds. Returns a dict from the name of each copy to its source.

    A name such as x_aug1.wav is not enough: it may be an original, named after August. A sound is
    a copy if its source, with any extension, is among `names`. It is also a copy if
    augmentations.csv beside it in `samples` lists it.
    """
    names = sorted(names)
    by_stem = {stem_of(name): name for name in names}
    listed = list_augmentations(names, samples) if samples is not None else set()
    copies = {}
    for name in filter(COPY.search, names):
        copy = name
        while found := COPY.search(copy):  # a copy of a copy has several marks
            source = COPY.sub("", copy)
            if stem_of(source) in by_stem or (source, found[1]) in listed:
                copies[name] = by_stem.get(stem_of(source), source)
            copy = source
    return copies


def list_augmentations(names, samples):
    """Read augmentations.csv in the folders of `names`. Returns a set of (source, number)."""
    listed = set()
    for folder in {name[:-len(os.path.basename(name))] for name in names if COPY.search(name)}:
        for row in read_csv(Path(samples, folder, AUGMENTATIONS)):
            listed.add((folder + row.get("file", ""), row.get("copy")))
    return listed


def find_origin(name, samples):
    """The sound that a spectrogram is made from, and the number of the copy, 0 for the sound."""
    copy = COPY.search(name)
    if copy is None or os.path.lexists(f"{samples}/{name}"):
        return name, 0
    return COPY.sub("", name), int(copy[1])


def originals(names, copies):
    """Sorted names of the sounds that are not copies."""
    return sorted(name for name in names if name not in copies)


# ---------------------------------------------------------------- sound files

@contextlib.contextmanager
def reading(path):
    """Turn an error of libsndfile about the file at `path` into a UserError."""
    try:
        yield
    except (soundfile.SoundFileError, OSError, TypeError, ValueError) as error:
        raise UserError(f"{path}: expected a sound, found {describe_file(path, error)}") from None


def describe_file(path, error):
    """Describe in words the file at `path`, which soundfile failed to read with `error`."""
    if os.path.isdir(path):
        return "a folder; name a file"
    if not os.path.isfile(path):
        if os.path.exists(path):
            return "a pipe or device; name a file"
        return "nothing there; correct the path"
    if isinstance(error, PermissionError) or not os.access(path, os.R_OK):
        return "a file without read permission; make it readable"
    start = b"\0"  # if it cannot be read
    with contextlib.suppress(OSError), open(path, "rb") as file:
        blocks = (block.lstrip(b"\0") for block in iter(partial(file.read, 2**20), b""))
        start = next(filter(None, blocks), b"")  # from the first byte that is not zero
    if not start:
        return "an empty file, or one of zeros; replace it"
    if start.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer; run git lfs pull"
    if not re.search(rb"[\0-\x08\x0e-\x1f]", start):  # text has no such control characters
        is_page = start.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"<")
        return "an HTML page; download the file again" if is_page else "a text file; replace it"
    return f"a file that libsndfile cannot read ({reason_of(error)}); {conversion_hint(path)}"


def reason_of(error):
    """The reason of an error of soundfile in libsndfile's words, without a full stop."""
    reason = str(getattr(error, "error_string", error)).rstrip(".")
    if reason.startswith("File does not exist"):  # libsndfile says so of any bad file named .mp3
        return "no MPEG audio found"
    return reason


def conversion_hint(path):
    """The remedy for a file that libsndfile cannot read or write: a command of ffmpeg."""
    target = Path(path).with_name(f"{Path(path).stem}.converted.wav")
    ffmpeg = shlex.join(["ffmpeg", "-i", str(path), str(target)])
    return f"convert it and remove the original, or replace it if that fails: {ffmpeg}"


class SoundFile(soundfile.SoundFile):
    """A soundfile.SoundFile that is read from start to end.

    soundfile seeks after each read of a seekable file. An MP3 decoder then lacks the bits that
    earlier frames hold for later ones, and returns garbage. soundfile would also ask for no more
    samples than the header announces, and fail if that number is unknown.
    """

    def seekable(self):
        return False


def check_is_file(path):
    """Raise FileNotFoundError unless `path` is a file. To open a pipe would wait for its writer."""
    if not os.path.isfile(path):
        raise FileNotFoundError(path)


def open_sound(path):
    """Open a sound file as a SoundFile. Raises UserError for an impossible rate."""
    check_is_file(path)
    file = None
    if os.name == "posix":  # a descriptor tells find_rest how far a file was read
        with contextlib.suppress(soundfile.LibsndfileError):
            file = SoundFile(os.open(path, os.O_RDONLY))
    if file is None:
        file = SoundFile(os.fspath(path))
    if MIN_RATE <= file.samplerate <= MAX_RATE:
        return file
    raise UserError(f"{path}: expected a sample rate of {MIN_RATE} to {MAX_RATE} Hz, "
                    f"found {file.samplerate}; replace the file")


def read_rate(name, folder):
    """The sample rate of one sound in `folder`, in Hz. Raises UserError."""
    path = Path(folder, name)
    with reading(path), open_sound(path) as file:
        return file.samplerate


def read_blocks(path):
    """Yield a sound in blocks of a few seconds, each with the sample rate in Hz.

    Blocks: float32 [shape=(n_samples, n_channels)], full scale 1. An hour takes no more memory
    than a block. If the header announces far too little, as after a crash of the recorder, all
    that is there is read. Raises UserError if the file is not a sound, is empty, holds NaN or
    infinity, or holds much more than can be read.
    """
    n_samples = 0
    with reading(path), open_sound(path) as file:
        for y in decode_blocks(file, path):
            n_samples += len(y)
            yield y, file.samplerate
        has_rest = find_rest(file, path)
    if has_rest:
        n_known = n_samples
        with reading(path), open_to_the_end(path) as file:
            for y in decode_blocks(file, path):
                if len(y) > n_known:
                    n_samples += len(y) - n_known
                    yield y[n_known:], file.samplerate
                n_known = max(0, n_known - len(y))
    if not n_samples:
        raise UserError(f"{path}: expected a sound, found one without samples; replace the file")


def decode_blocks(file, path):
    """Yield the blocks of an open SoundFile, as read_blocks does. Raises UserError."""
    n_samples = 0
    is_dense = file.format in ("FLAC", "OGG", "MP3") or file.subtype.startswith(("ALAC", "MPEG"))
    # Other decoders may make up the samples that a damaged header claims.
    limit = math.inf if is_dense else 16 * os.path.getsize(path)
    # Scaling 16-bit samples here takes a third of libsndfile's time.
    is_plain = file.subtype == "PCM_16" and file.format in ("WAV", "WAVEX", "AIFF", "FLAC")
    kind = "int16" if is_plain else "float32"
    at_once = READ_SAMPLES // file.channels
    # libsndfile would read more bytes than announced and drop them; find_rest needs the true place.
    while len(y := file.read(min(at_once, file.frames - n_samples), kind, always_2d=True)):
        n_samples += len(y)
        if n_samples > limit:
            raise UserError(f"{path}: its header claims {file.frames} samples in "
                            f"{os.path.getsize(path)} bytes; replace the damaged file")
        if kind == "int16":
            y = y * np.float32(2**-15)
        elif not np.abs(y).max() < 1e9:  # the power of larger samples could overflow
            raise UserError(f"{path}: expected samples between -1 and 1, found NaN, infinity "
                            "or values beyond 1e9; replace the file")
        yield y


def find_rest(file, path):
    """Whether a sound file goes on for long behind the samples that its header announces.

    file: a SoundFile that was read to its end.
    """
    if isinstance(file.name, str):  # opened by name, on Windows
        return False
    size = os.path.getsize(path)
    end = os.lseek(file.name, 0, os.SEEK_CUR)
    if size == end:
        return False
    with open(path, "rb") as again:
        data = mmap.mmap(again.fileno(), 0, access=mmap.ACCESS_READ)
    is_tag = data.find(b"APETAGEX", end - 64, end + 64) >= 0  # of an MP3, often with a picture
    if is_tag or not re.compile(rb"[^\0]").search(data, end):  # some recorders reserve space
        return False
    chunk = find_chunk(data)
    if not chunk:
        return size - end > max(size / 4, 4096)
    start, length, order = chunk
    has_next = any(is_chunk(data, start + length + n_padding, order) for n_padding in (0, 1))
    is_long = size - end > max(size / 20, 1000) or not length
    return is_long and not has_next


def is_chunk(data, start, order):
    """Whether a chunk of a WAV or AIFF file begins there: four letters and a length."""
    mark = data[start:start + 4]
    length = int.from_bytes(data[start + 4:start + 8], order)
    return mark.isascii() and mark.decode().isprintable() and start + length < len(data)


def find_chunk(data):
    """Find the samples in the bytes of a WAV or AIFF file.

    Returns their start, the length that the header gives, and its byte order; or None.
    """
    order = {b"RIFF": "little", b"FORM": "big"}.get(data[:4])
    start = 12
    while order and start + 8 <= len(data):
        length = int.from_bytes(data[start + 4:start + 8], order)
        if data[start:start + 4] in (b"data", b"SSND"):
            return start + 8, length, order
        start += 8 + length + length % 2
    return None


def open_to_the_end(path):
    """Open a sound file as if its header announced all that is there.

    Raises UserError for the formats in which that cannot be done.
    """
    with open(path, "rb") as file:
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)  # the file is not changed
    chunk = find_chunk(data)
    if chunk and len(data) - chunk[0] < 2**32:
        start, _, order = chunk
        length = (len(data) - start) // 2 * 2
        data[start - 4:start] = length.to_bytes(4, order)
    elif data[:4] == b"fLaC":
        data[21:26] = bytes([data[21] & 0xF0, 0, 0, 0, 0])  # an unknown number of samples
    elif data[:4] == b".snd":  # AU
        data[8:12] = b"\xff" * 4
    else:
        raise UserError(f"{path}: is much longer than its header says; {conversion_hint(path)}")
    return SoundFile(data)


def encode_sound(y, sample_rate, file_format, subtype, endian=None):
    """Encode y, float32 [shape=(n_samples, n_channels)], as a sound file.

    Returns its bytes, because libsndfile does not report a full disk. Raises errors of soundfile.
    """
    data = io.BytesIO()
    with soundfile.SoundFile(data, "w", sample_rate, y.shape[1], subtype, endian,
                             file_format) as file:
        # libsndfile 1.2.2 crashes when it gets a minute of Ogg Vorbis at once.
        for start in range(0, len(y), sample_rate):
            file.write(y[start:start + sample_rate])
    return data.getbuffer()


# ---------------------------------------------------------------- features: log-mel spectrograms

@dataclasses.dataclass(frozen=True)
class FeatureSettings:
    """The settings that turn a sound into a spectrogram. Preproc/ and the weights store them."""

    sample_rate: int  # Hz; every sound is resampled to it
    n_mels: int  # mel bands
    n_fft: int  # samples in a frame
    hop_length: int  # samples from one frame to the next
    channels: int = 1  # 1: the mean of all channels; more: how many are kept
    fmin: int = 0  # Hz; the mel bands begin here
    fmax: int | None = None  # Hz; they end here. None: at sample_rate / 2

    def __post_init__(self):
        for name, value in dataclasses.asdict(self).items():
            low = 0 if name == "fmin" else 1
            is_valid = type(value) is int and low <= value <= 2**20
            if not is_valid and (name, value) != ("fmax", None):
                raise ValueError(f"{name} {value!r}")
        if not self.fmin < self.highest <= self.sample_rate / 2:
            raise ValueError(f"fmin {self.fmin}, fmax {self.fmax}")

    @property
    def highest(self):
        """The frequency at which the mel bands end, in Hz."""
        return self.fmax or self.sample_rate / 2

    @cached_property
    def filters(self):
        """librosa's mel filters. Sparse [shape=(n_mels, 1 + n_fft // 2), float32]"""
        with warnings.catch_warnings(action="ignore"):  # default_settings reports empty filters
            dense = librosa.filters.mel(sr=self.sample_rate, n_fft=self.n_fft, n_mels=self.n_mels,
                                        fmin=self.fmin, fmax=self.fmax)
        return scipy.sparse.csr_array(dense)  # 98 in 100 weights are zero

    def __str__(self):
        text = (f"{self.sample_rate} Hz, {self.n_mels} mels, n_fft {self.n_fft}, "
                f"hop_length {self.hop_length}")
        if self.channels > 1:
            text += f", {self.channels} channels"
        if self.fmin or self.fmax:
            text += f", {self.fmin} to {self.highest:g} Hz"
        return text


def default_settings(sample_rate, n_mels=None, n_fft=None, hop_length=None, channels=1, fmin=0,
                     fmax=None):
    """The given settings, and defaults for the others.

    Defaults: 96 mel bands; n_fft 2048 and hop_length 512 at 44.1 kHz, scaled by a power of two to
    about the same duration at other rates. n_fft is doubled until no mel filter is empty. Raises
    UserError if a given n_fft leaves a filter empty, a given hop_length skips samples, or fmin and
    fmax are no range below half of the sample rate.
    """
    half = sample_rate / 2  # Hz
    if fmax and fmax > half:
        raise UserError(f"--fmax {fmax}: above {half:g} Hz, half of the sample rate; use a lower "
                        "--fmax or a higher --sample-rate (default: the most frequent one)")
    if fmin >= (fmax or half):
        raise UserError(f"--fmin {fmin}: not below {fmax or half:g} Hz, where the mel bands end; "
                        "use a lower --fmin")
    scale = 2.0 ** round(np.log2(sample_rate / 44100))
    n_mels = n_mels or 96
    hop_length = hop_length or max(1, round(512 * scale))
    first_n_fft = n_fft or max(16, round(2048 * scale))
    settings = FeatureSettings(sample_rate, n_mels, first_n_fft, hop_length, channels, fmin, fmax)
    while n_fft is None and count_empty_filters(settings) and settings.n_fft < sample_rate:
        settings = dataclasses.replace(settings, n_fft=2 * settings.n_fft)
    if n_empty := count_empty_filters(settings):
        raise UserError(f"--n-fft {settings.n_fft} at {sample_rate} Hz: {n_empty} of {n_mels} mel "
                        "filters are empty; use a larger --n-fft or a smaller --n-mels, or leave "
                        "out low frequencies with --fmin")
    if hop_length > settings.n_fft:
        raise UserError(f"--hop-length {hop_length}: longer than n_fft, {settings.n_fft} "
                        "samples; use a smaller --hop-length")
    return settings


def count_empty_filters(settings):
    """How many mel filters lie between two FFT bins and would always be silent."""
    return int((settings.filters.max(axis=1).toarray() == 0).sum())


def choose_settings(samples, names, sample_rate=None, **given):
    """Settings for sounds: default_settings at their most frequent rate.

    sample_rate: Hz, used instead if given. Raises UserError if no sound can be read.
    """
    by_hash = sorted(names, key=lambda name: zlib.crc32(os.fsencode(name)))
    found, _ = map_files(partial(read_rate, folder=samples), by_hash[:1000], jobs=1)
    if not found:
        raise UserError(f"{samples}: none of its {len(names)} sound files can be read, such as "
                        f"{names[0]}; replace them")
    if sample_rate is None:
        counts = Counter(min(rate, 2**20) for rate in found.values())
        sample_rate = max(counts, key=lambda rate: (counts[rate], rate))
    return default_settings(sample_rate, **given)


def check_samples(y, sample_rate):
    """Check samples from a program. Returns float32 [shape=(n_samples, n_channels)], full scale 1.

    y: float, or integers of 16 or 32 bits [shape=(n_samples,), (n_samples, n_channels) as from
    soundfile, or (n_channels, n_samples) as from librosa]. The longer axis is time. sample_rate:
    Hz. Raises ValueError.
    """
    y = np.asarray(y)
    if y.dtype.kind not in "fi" or y.ndim not in (1, 2):
        raise ValueError(f"expected samples (n,), (n, channels) or (channels, n), as floats or "
                         f"signed integers, found {y.dtype} of shape {y.shape}")
    if not y.size:
        raise ValueError(f"no samples: the shape is {y.shape}")
    if y.ndim == 1:
        y = y[:, None]
    elif len(y) < y.shape[1]:
        y = y.T
    elif len(y) == y.shape[1] > 1:
        raise ValueError(f"shape {y.shape}: either axis may be time; give more samples")
    if not sample_rate or not MIN_RATE <= sample_rate <= MAX_RATE:
        raise ValueError(f"expected a sample rate of {MIN_RATE} to {MAX_RATE} Hz, found "
                         f"{sample_rate}")
    scale = 2.0 ** (1 - 8 * y.itemsize) if y.dtype.kind == "i" else 1
    y = np.asarray(y * np.float32(scale), np.float32)
    if not np.abs(y).max() < 1e9:
        raise ValueError("samples hold NaN, infinity or values beyond 1e9")
    return y


def choose_channels(y, channels):
    """Average the channels of a sound, or keep several of them.

    y: float32 [shape=(n_samples, n_channels)]. Returns [shape=(n_samples, channels)]. The last
    channel is repeated if there are fewer.
    """
    n_channels = y.shape[1]
    if channels > 1:
        return y[:, np.minimum(range(channels), n_channels - 1)]
    if n_channels > 1:
        return (sum(y.T) / np.float32(n_channels))[:, None]  # ten times as fast as y.mean(axis=1)
    return y


def convert_blocks(blocks, settings):
    """Yield a sound at the sample rate and with the channels of `settings`.

    blocks: pairs of float32 [shape=(n_samples, n_channels)] and a rate in Hz, as from read_blocks.
    Yields float32 [shape=(channels, n_samples)].
    """
    resampler = None
    for y, sample_rate in blocks:
        y = choose_channels(y, settings.channels)
        if sample_rate == settings.sample_rate:
            yield y.T
            continue
        if resampler is None:
            resampler = soxr.ResampleStream(sample_rate, settings.sample_rate, settings.channels)
        n_parts = math.ceil(len(y) * settings.sample_rate / sample_rate / READ_SAMPLES)
        for part in np.array_split(y, n_parts):  # upsampling from a low rate gives many samples
            yield resampler.resample_chunk(part).T
    if resampler is not None:
        yield resampler.resample_chunk(y[:0], last=True).T


def log_mel_spectrogram(blocks, settings):
    """Log-mel spectrogram of a sound, as power_to_db(melspectrogram(...)) of librosa.

    blocks: float32 [shape=(channels, n_samples)], one after the other.
    Returns float32 in dB [shape=(n_mels, n_frames), or (channels, n_mels, n_frames) for several
    channels]. No value is below -100 dB, or more than 80 dB below the loudest bin. For an even
    n_fft, n_frames = 1 + n_samples // hop_length. Equal to librosa within 0.003 dB, or 0.2 dB where
    sound outside of fmin to fmax is more than 80 dB louder.
    """
    db = np.concatenate(list(iterate_decibels(blocks, settings)), axis=2)
    db = np.ascontiguousarray(db)  # with several channels it has another order
    np.maximum(db, db.max() - np.float32(TOP_DB), out=db)
    return db if settings.channels > 1 else db[0]


def iterate_decibels(blocks, settings):
    """Yield a spectrogram in blocks of frames. [shape=(channels, n_mels, n), float32, dB]

    Frame t is centred on sample t * hop_length, with silence before and after the sound.
    """
    n_fft = settings.n_fft
    hop_length = settings.hop_length
    margin = np.zeros((settings.channels, n_fft // 2), np.float32)
    rest = margin  # samples that later frames still need
    n_done = 0
    for y in itertools.chain(blocks, [margin]):
        rest = np.concatenate([rest, y], axis=1)  # (channels, n)
        is_last = y is margin
        n_frames = max(0, 1 + (rest.shape[1] - n_fft) // hop_length)
        if not is_last:
            n_frames -= n_frames % BLOCK  # the result must not depend on the blocks read
        elif n_frames + n_done == 0:  # resampling may leave no sample of a very short sound
            rest = np.zeros((settings.channels, n_fft), np.float32)
            n_frames = 1
        for start in range(0, n_frames, BLOCK):
            stop = min(start + BLOCK, n_frames)
            samples = rest[:, start * hop_length:(stop - 1) * hop_length + n_fft]
            yield transform_frames(samples, settings)
        rest = rest[:, n_frames * hop_length:]
        n_done += n_frames


@lru_cache(maxsize=8)
def hann_window(n_fft):
    """The periodic Hann window. [shape=(n_fft,), float32]"""
    return scipy.signal.get_window("hann", n_fft).astype(np.float32)


def transform_frames(y, settings):
    """The frames of samples [shape=(channels, n)] in dB. [shape=(channels, n_mels, n_frames)]"""
    n_fft = settings.n_fft
    frames = np.lib.stride_tricks.sliding_window_view(y, n_fft, axis=1)[:, ::settings.hop_length]
    frames = (frames * hann_window(n_fft)).reshape(-1, n_fft)  # (channels * n_frames, n_fft)
    spectrum = scipy.fft.rfft(frames.T, axis=0)  # (1 + n_fft // 2, channels * n_frames)
    power = np.square(spectrum.real) + np.square(spectrum.imag)
    mel = settings.filters @ power  # (n_mels, channels * n_frames)
    db = 10 * np.log10(np.maximum(mel, np.float32(AMIN)))
    return db.reshape(settings.n_mels, settings.channels, -1).swapaxes(0, 1)


def sound_to_spectrogram(name, folder, settings):
    """The log-mel spectrogram of one sound in `folder`. Raises UserError."""
    blocks = read_blocks(Path(folder, name))
    return log_mel_spectrogram(convert_blocks(blocks, settings), settings)


def count_seconds(spectrogram, settings):
    """The length of a sound with a spectrogram [shape=(..., n_mels, n_frames)], in seconds."""
    return (spectrogram.shape[-1] - 1) * settings.hop_length / settings.sample_rate


# ---------------------------------------------------------------- settings of a training run

def hyperparameter(default, original, text, low=0.0, high=1.0):
    """A field of Hyperparameters: its defaults, a help text, and its range, without `high`.

    original: the default of the network of 2017. The values of a text field are its two defaults.
    """
    return dataclasses.field(default=default, metadata={
        "original": original, "help": text, "low": low, "high": high})


@dataclasses.dataclass(frozen=True)
class Hyperparameters:
    """How a network is built and trained. Each field is also a flag of train_network.py."""

    layers: int = hyperparameter(3, 4, "blocks of the network", 1, 11)
    filters: int = hyperparameter(16, 32, "filters of the first block", 1, 2**32)
    batch_size: int = hyperparameter(16, 128, "windows in a step", 1, 2**16)
    learning_rate: float = hyperparameter(5e-3, 1.0, "peak learning rate", 1e-9, 1e38)
    mixup: float = hyperparameter(0.3, 0, "strength of mixup; 0 turns it off", 0, 2**32)
    masks: int = hyperparameter(
        2, 0, "masks on bands, and masks on times, in each window", 0, 100)
    shift: float = hyperparameter(0.1, 0, "shift windows by up to this share of their length")
    warp: float = hyperparameter(0.1, 0, "change speed and pitch by up to this share")
    eq: float = hyperparameter(
        10.0, 0, "change the level of windows by up to so many dB, and ranges of bands by up to as "
        "many more", 0, 100)
    class_weights: str = hyperparameter(
        "balanced", "none", "balanced: rare classes count as much as frequent ones")
    smoothing: float = hyperparameter(
        0.05, 0, "share of each label that is spread over all classes")

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.type is str:
                is_valid = value in (field.default, field.metadata["original"])
            else:
                is_valid = (type(value) in (int, field.type)
                            and field.metadata["low"] <= value < field.metadata["high"])
            if not is_valid:
                raise ValueError(f"{field.name} {value!r}")

    @classmethod
    def of_network(cls, network):
        """The defaults of a network: "default", or "original", the one of 2017."""
        if network == "default":
            return cls()
        return cls(**{field.name: field.metadata["original"] for field in dataclasses.fields(cls)})


def check_types(record):
    """Raise ValueError, which names the field, unless a dataclass holds the types it declares."""
    for field in dataclasses.fields(record):
        value = getattr(record, field.name)
        if not isinstance(value, field.type):
            raise ValueError(f"{field.name} {value!r:.40}")
        if field.type is list and not all(isinstance(item, (str, list, dict)) for item in value):
            raise ValueError(f"{field.name} {value!r:.40}")


@dataclasses.dataclass(frozen=True)
class Split:
    """The sounds of a training run."""

    train: list  # names, sorted, also of copies
    validation: list  # names of originals
    test: list
    unused: list  # copies of validation and test sounds, and what earlier weights used
    groups: dict  # from each validation and test sound to its group
    contents: dict  # from the name of each sound to the hash of its spectrogram
    seen: list  # [name, hash] of the sounds that earlier weights learned from or validated on
    learned: list  # [name, hash] of those that they learned from

    def __post_init__(self):
        check_types(self)
        names = {*self.train, *self.validation, *self.test, *self.unused}
        if names != self.contents.keys() or {*self.validation, *self.test} != self.groups.keys():
            raise ValueError("split: its lists contradict one another")


# ---------------------------------------------------------------- sounds that are alike

def to_power(decibels):
    """Turn decibels into power, faster than 10 ** (decibels / 10)."""
    return np.exp(decibels * np.float32(math.log(10) / 10))


def take_beginning(spectrogram):
    """The first minute or so of a spectrogram, the mean of its channels. [shape=(n_mels, n)]"""
    beginning = spectrogram[..., :MAX_COMPARED]
    return beginning.reshape(-1, *beginning.shape[-2:]).mean(axis=0)


def take_fingerprint(spectrogram):
    """Describe how the power of a sound is spread over the bands, in N_PARTS parts of equal power.

    The level, silence around the sound and its file format change a fingerprint little. Returns
    square roots of shares [shape=(N_PARTS * n_mels / 2,), float32], whose squares add up to 1.
    """
    x = take_beginning(spectrogram)
    power = to_power(x - x.max())
    power[power < 10 ** (-FLOOR / 10)] = 0
    power = power[:, power.any(axis=0)]  # (n_mels, n_frames)
    power = np.add.reduceat(power, range(0, len(power), 2))  # (n_mels / 2, n_frames)
    frames = power.sum(axis=0)
    sums = np.concatenate([[0], np.cumsum(frames, dtype=float)])
    # How much of the power of each frame belongs to each part.
    edges = np.clip(N_PARTS * sums / sums[-1] - np.arange(N_PARTS)[:, None], 0, 1)
    parts = np.diff(edges, axis=1) / N_PARTS  # (N_PARTS, n_frames)
    shares = parts @ (power / frames).T  # (N_PARTS, n_mels / 2)
    return np.sqrt(shares).astype(np.float32).ravel()


def trim_spectrogram(spectrogram):
    """Cut silence from both ends of a spectrogram, and blur it over time.

    Blurred, a sound is nearly the same wherever the frames lie. Returns dB below the loudest value
    [shape=(n_mels, n_frames), range=[-FLOOR, 0]].
    """
    x = take_beginning(spectrogram)
    power = np.pad(to_power(x - x.max()), [(0, 0), (BLUR, BLUR)])
    power = scipy.ndimage.uniform_filter1d(power, BLUR)
    x = 10 * np.log10(np.maximum(power / power.max(), 10 ** (-FLOOR / 10)))
    loud = np.flatnonzero(x.max(axis=0) > -FLOOR)
    return x[:, loud[0]:loud[-1] + 1]


def compare_sounds(a, b):
    """Compute the difference of two trimmed spectrograms in dB, apart from their level.

    It is the median over the loud values: coding changes the quiet ones, and loses high bands.
    Returns infinity if the lengths differ, or if the details do not agree: two stretches of the
    same steady noise differ by about a dB, but are not one recording.
    """
    if abs(a.shape[1] - b.shape[1]) > 2 * MAX_SHIFT:
        return math.inf
    n_frames = min(a.shape[1], b.shape[1]) + 2 * MAX_SHIFT
    a, b = (np.pad(x, [(0, 0), (MAX_SHIFT, 3 * MAX_SHIFT)], constant_values=-FLOOR)[:, :n_frames]
            for x in (a, b))
    shifts = range(-MAX_SHIFT, MAX_SHIFT + 1)
    levels = a.mean(axis=0)
    misfits = [np.abs(levels - np.roll(b.mean(axis=0), shift)).sum() for shift in shifts]
    b = np.roll(b, shifts[np.argmin(misfits)], axis=1)
    if np.abs(a - b)[a > -LOUD].mean() > 6 * MAX_DIFFERENCE:  # most pairs end here
        return math.inf
    louder = np.maximum(a, b)
    details = []  # without the mean spectrum and the course of the level
    for x in (a, b):
        x = x - x.mean(axis=1, keepdims=True) - x.mean(axis=0) + x.mean()
        details.append(x[louder > -FLOOR])
    spread = np.sqrt(np.mean(np.square(details), axis=1))
    agreement = np.mean(details[0] * details[1]) / max(np.prod(spread), 1e-9)
    if max(spread) > STEADY and agreement < MIN_AGREEMENT:
        return math.inf
    differences = (a - b)[louder > -LOUD]
    return float(np.median(np.abs(differences - np.median(differences))))


def list_similar(fingerprints):
    """List the pairs of similar fingerprints, at most MAX_PAIRS, nearest first.

    fingerprints: [shape=(n, n_values)]. Returns pairs of indices [shape=(n_pairs, 2)].
    """
    # A tree is slow in many dimensions. In a projection, no distance is longer.
    x = fingerprints - fingerprints.mean(axis=0)
    axes = np.linalg.svd(x[::1 + len(x) // 500], full_matrices=False)[2][:N_AXES]
    points = x @ axes.T
    k = min(N_NEAREST, len(x))
    _, nearest = scipy.spatial.cKDTree(points).query(points, k=[*range(1, k + 1)],
                                                     distance_upper_bound=MAX_DISTANCE)
    found = np.stack([np.repeat(np.arange(len(x)), k), nearest.ravel()], axis=1)
    found = found[found[:, 1] < len(x)]  # else there is no k-th neighbour
    pairs = np.unique(np.sort(found[found[:, 0] != found[:, 1]], axis=1), axis=0)
    distances = np.array([np.linalg.norm(x[i] - x[j]) for i, j in pairs])
    order = np.argsort(distances, kind="stable")
    order = order[distances[order] < MAX_DISTANCE]
    if len(order) > MAX_PAIRS:
        say(f"{len(order)} pairs of sounds are similar; the {MAX_PAIRS} most similar are compared")
    return pairs[order[:MAX_PAIRS]]


def hash_content(spectrogram):
    """A short hash; identical spectrograms, and no others, share it."""
    whole = np.ascontiguousarray(spectrogram)
    return hashlib.blake2b(whole, digest_size=8, person=str(whole.shape).encode()[:16]).hexdigest()


def find_alike(contents, get_fingerprint, load):
    """Find the sounds that hold the same recording, at any level and in any format.

    contents: dict from name to hash. get_fingerprint, load: functions from name to fingerprint, and
    to spectrogram. Returns a list of (difference in dB, earlier name, later name), smallest
    difference first. Of identical sounds, each is listed with the first one only.
    """
    first = {}
    found = []
    for name, content in contents.items():
        earlier = first.setdefault(content, name)
        if earlier != name:
            found.append((0.0, earlier, name))
    names = list(first.values())
    trim = lru_cache(maxsize=200)(lambda i: trim_spectrogram(load(names[i])))
    if len(names) > 1:
        for i, j in list_similar(np.stack([get_fingerprint(name) for name in names])):
            difference = compare_sounds(trim(i), trim(j))
            if difference < MAX_DIFFERENCE:
                found.append((difference, names[i], names[j]))
    return sorted(found)


# ---------------------------------------------------------------- reading Preproc/ or Samples/

def make_key(path):
    """Make the key of a sound file, which changes with the file. Returns KEY_SIZE bytes.

    It is a hash of the size, the modification time and the middle of the file. The time alone would
    miss two files that were swapped, or one that was replaced at once.
    """
    check_is_file(path)
    with open(path, "rb", buffering=0) as file:
        status = os.fstat(file.fileno())
        file.seek(max(0, status.st_size - KEY_PART) // 2)
        middle = file.read(KEY_PART)
    stamp = f"{status.st_size} {status.st_mtime_ns}".encode()
    return hashlib.blake2b(stamp + middle, digest_size=KEY_SIZE).digest()


def is_up_to_date(name, samples, preproc):
    """Whether a spectrogram is there, and ends with the key of its sound."""
    origin, _ = find_origin(name, samples)
    try:
        with open(f"{preproc}/{name}.npy", "rb", buffering=0) as file:
            file.seek(-KEY_SIZE, os.SEEK_END)
            return file.read() == make_key(f"{samples}/{origin}")
    except OSError:
        return False


class Source(NamedTuple):
    """Where spectrograms come from, and the sounds there."""

    folder: Path  # Preproc/, or Samples/
    names: list  # of its sounds, sorted
    copies: dict  # from each copy among them to its source
    classes: list  # names of its class folders, sorted
    settings: FeatureSettings
    read: Callable  # load_spectrogram, or sound_to_spectrogram: (name, folder, settings)


def read_saved(preproc):
    """Read settings.json in `preproc`. Returns {} if it is missing or damaged."""
    try:
        saved = json.loads(Path(preproc, SETTINGS_FILE).read_text())
        features = FeatureSettings(**saved["features"])  # older files lack some of the fields
        return {"features": dataclasses.asdict(features), "copies": dict(saved["copies"]),
                "finished": saved["finished"] is True}
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return {}


def load_settings(preproc):
    """The settings of the spectrograms in `preproc`; None if there are none. Raises UserError."""
    path = Path(preproc, SETTINGS_FILE)
    if not Path(preproc).is_dir() or not (path.exists() or list_spectrograms(preproc)):
        return None
    saved = read_saved(preproc)
    if saved.get("finished"):
        return FeatureSettings(**saved["features"])
    raise UserError(f"{path}: preprocessing is not finished; run preprocess_data.py again")


def find_source(samples, preproc, settings=None):
    """Choose `preproc`, or `samples` if `preproc` is empty or made with other settings.

    Returns a Source. Raises UserError.
    """
    saved = load_settings(preproc)
    if saved is not None and settings in (None, saved):
        names = list_spectrograms(preproc)
        copies = find_copies(names, samples)
        return Source(preproc, names, copies, list_classes(preproc), saved, load_spectrogram)
    if saved is not None and samples == preproc:
        raise UserError(f"{preproc}: expected spectrograms made with {settings}, found {saved}; "
                        "preprocess with the settings of the weights")
    if saved is not None:
        say(f"{preproc}: made with other settings than the weights; reading {samples} instead")
    names, _ = find_sounds(samples)
    settings = settings or choose_settings(samples, names)
    copies = find_copies(names, samples)
    return Source(samples, names, copies, list_classes(samples), settings, sound_to_spectrogram)


def load_spectrogram(name, folder, settings, mmap_mode=None):
    """The spectrogram of one sound in `folder`. [shape=(..., n_mels, n_frames), float32, dB]

    mmap_mode: "r" leaves it on the disk. Raises UserError if the file is not a spectrogram.
    """
    path = f"{folder}/{name}.npy"
    remedy = "remove it and preprocess again"
    try:
        array = np.load(path, "r", allow_pickle=False)  # mapped: a header may claim any size
        low = array.min()
        high = array.max()
    except Exception as error:  # NumPy raises errors of many kinds for damaged files
        raise UserError(f"{path}: expected a spectrogram, found {error}; {remedy}") from None
    shape = (settings.channels, settings.n_mels) if settings.channels > 1 else (settings.n_mels,)
    if array.dtype != np.float32 or array.shape[:-1] != shape:
        raise UserError(f"{path}: expected {settings.n_mels} mel bands of float32, found "
                        f"{array.dtype} of shape {array.shape}; {remedy}")
    if not max(high, -low) < MAX_DB:
        raise UserError(f"{path}: expected decibels, found NaN or values beyond {MAX_DB:.0f}; "
                        f"{remedy}")
    return array if mmap_mode else np.array(array)


class MappedSpectrograms(Mapping):
    """Spectrograms on the disk, by name: only the frames that are looked at are read."""

    def __init__(self, folder, names):
        self.folder = folder
        self.names = names

    def __getitem__(self, name):
        path = f"{self.folder}/{name}.npy"
        try:
            return np.asarray(np.load(path, "r"))
        except (OSError, ValueError) as error:
            raise UserError(f"{path}: changed since it was checked: {error}; run the same "
                            "command again") from None

    def __iter__(self):
        return iter(self.names)

    def __len__(self):
        return len(self.names)


def check_spectrogram(name, folder, settings):
    """Raise UserError unless load_spectrogram can load a spectrogram."""
    load_spectrogram(name, folder, settings, mmap_mode="r")


def read_spectrograms(source, names):
    """Read or compute the spectrograms of `names`. [shape=(..., n_mels, n_frames), float32, dB]

    Files in Preproc/ that hold more than half of the machine's memory stay there and are
    memory-mapped. Returns a mapping from name to spectrogram in the order of names, and how many
    could not be read.
    """
    is_preprocessed = source.read is load_spectrogram
    files = [f"{source.folder}/{name}.npy" for name in names] if is_preprocessed else []
    n_bytes = sum(os.path.getsize(path) for path in files if os.path.isfile(path))
    is_mapped = n_bytes > half_of_memory()
    read = partial(check_spectrogram if is_mapped else source.read,
                   folder=source.folder, settings=source.settings)
    jobs = 0 if is_preprocessed else None
    found, errors = map_files(read, names, f"Reading {source.folder}", jobs, folder=source.folder)
    note = f"; {n_bytes / 1e9:.1f} GB are memory-mapped" if is_mapped else ""
    say(f"{source.folder}: {len(found)} spectrograms, {source.settings}{note}")
    return (MappedSpectrograms(source.folder, list(found)) if is_mapped else found,
            name_skipped(errors))


def half_of_memory():
    """Half of the memory that this process may use, in bytes."""
    limit = 2**33  # where the system does not tell
    with contextlib.suppress(AttributeError, ValueError, OSError):
        limit = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        limit = min(limit, int(Path("/sys/fs/cgroup/memory.max").read_text()))  # of a container
    return limit // 2


# ---------------------------------------------------------------- writing files

@contextlib.contextmanager
def whole_file(path):
    """Yield a temporary path beside `path` that replaces it on success: a file is never partial."""
    path = Path(path)
    if path.exists() and not (path.is_file() or path.is_dir()):  # root could replace /dev/null
        raise UserError(f"{path}: is a device or pipe; name a file")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{uuid.uuid4().hex[:12]}{path.suffix}")
    try:
        yield temporary
        os.replace(temporary, path)
    except OSError as error:  # the error of a full disk names no file
        if error.filename in (None, str(temporary), temporary):
            error.filename = str(path)
        raise
    finally:
        temporary.unlink(missing_ok=True)


def remove_temporary(folder):
    """Remove what killed runs left in a folder: temporary files that are older than an hour."""
    for path in Path(folder).glob(".*"):
        with contextlib.suppress(FileNotFoundError):
            if TEMPORARY.fullmatch(path.name) and time.time() - path.stat().st_mtime > 3600:
                path.unlink()


@contextlib.contextmanager
def folder_lock(folder, message=None):
    """Lock a folder. If another process holds the lock, print `message` and wait.

    Nothing is locked if there is no folder, on Windows, and on some network drives.
    """
    if fcntl is None or not os.path.isdir(folder):
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if message:
                say(message)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        except OSError:  # a network drive without locks
            pass
        yield
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def claim_file(path):
    """Let no other process write the file at `path` meanwhile. Raises UserError if one does.

    Makes its folder. Raises OSError at once if nothing can be written there.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if fcntl is None:
        yield
        return
    lock = path.with_name(f".{path.name}.lock")
    with open(lock, "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{path}: another training is writing it; wait for its end, or use "
                            "another --save and --results") from None
        except OSError:  # a network drive without locks
            pass
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)


def save_text(path, text):
    """Write text in UTF-8."""
    with whole_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def save_json(path, value):
    """Write a value as JSON; NaN becomes null."""
    value = json.loads(json.dumps(value), parse_constant=lambda _: None)
    save_text(path, json.dumps(value, indent=1) + "\n")


def save_csv(path, rows):
    """Write rows as a table, one at a time: they may come from a generator."""
    with whole_file(path) as temporary:
        with open(temporary, "w", newline="", encoding="utf-8", errors="backslashreplace") as file:
            csv.writer(file).writerows(rows)


def read_csv(path):
    """Read a table of one of the scripts as a list of dicts; empty if there is none."""
    rows = []
    with contextlib.suppress(OSError, csv.Error):
        with open(path, newline="", encoding="utf-8", errors="surrogateescape") as file:
            for row in csv.DictReader(file):
                rows.append({key: cell for key, cell in row.items() if isinstance(cell, str)})
    return rows


@contextlib.contextmanager
def new_figure(path, width, height):
    """Yield a Matplotlib figure of width x height inches, then save it to `path`."""
    from matplotlib.figure import Figure  # slow to load
    figure = Figure(figsize=(width, height), layout="constrained")
    yield figure
    with whole_file(path) as temporary:
        with warnings.catch_warnings(action="ignore"):  # of letters that the font lacks
            figure.savefig(temporary, dpi=120)


# ---------------------------------------------------------------- progress and worker processes

def format_clock(seconds):
    """Seconds as "minutes:seconds"."""
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes}:{seconds:02}"


@contextlib.contextmanager
def progress_bar(description, total, transient=False):
    """Show a progress bar on the terminal. Yields a function that moves it to n, with a note."""
    columns = [rich.progress.TextColumn("{task.description}", markup=False),
               rich.progress.BarColumn(20), rich.progress.MofNCompleteColumn(),
               rich.progress.TextColumn("{task.fields[note]}", markup=False)]
    with rich.progress.Progress(*columns, transient=transient,
                                disable=not sys.stdout.isatty()) as bar:
        task = bar.add_task(shown(description), total=total, note="")
        yield lambda n, note="": bar.update(task, completed=n, note=shown(note))


def show_progress(results, total, description):
    """Yield from `results` and show a bar or, if not on a terminal, a line every 10 seconds."""
    began = said = time.perf_counter()
    with progress_bar(description, total) as move_bar:
        for n, result in enumerate(results, 1):
            yield result
            now = time.perf_counter()
            rate = n / (now - began)
            note = f"{rate:.0f} sounds/s"
            if n < total:
                note += f", {format_clock((total - n) / rate)} left"
            move_bar(n, note)
            if not sys.stdout.isatty() and (n == total or now - said > 10):
                said = now
                say(f"{description}: {n} of {total}, {note}")


def map_files(function, names, description=None, jobs=None, dask=None, strict=False, folder=""):
    """Call function(name) for each file, in worker processes, with a progress bar.

    folder: where the files are, for messages.
    jobs: how many processes; one for each core by default; 0 for this process.
    dask: address of a Dask scheduler, whose workers are used instead.
    Returns two dicts in the order of names: name to result, and name to UserError. If `strict`,
    raises the first error instead.
    """
    results = {}
    errors = {}
    found = map_in_workers(function, names, jobs, dask, folder)
    if description and names:
        found = show_progress(found, len(names), description)
    with contextlib.closing(found):
        for name, result, error in found:
            if error and strict:
                raise error
            if error:
                errors[name] = error
            else:
                results[name] = result
    return results, errors


def map_in_workers(function, names, jobs=None, dask=None, folder=""):
    """Yield (name, result, None) or (name, None, UserError) for each file, in order.

    The arguments are those of map_files. Few files are in progress at once, so memory stays
    bounded. A damaged sound can crash its decoder and the worker with it. The files in progress
    then run again, each in a worker of its own, to find the one that crashes.
    """
    call = partial(attempt, function, folder)
    if jobs == 0:
        yield from map(call, names)
        return
    n_workers = min(jobs or count_cores(), 60)  # Windows allows 61 at most
    size = max(1, min(CHUNK, len(names) // (16 * n_workers)))
    chunks = [names[start:start + size] for start in range(0, len(names), size)]
    n_at_once = SLICE * n_workers
    n_done = 0
    while n_done < len(chunks):
        try:
            with open_workers(n_workers, dask) as executor:
                for start in range(n_done, len(chunks), n_at_once):
                    some = chunks[start:start + n_at_once]
                    for results in executor.map(partial(call_each, call), some):
                        n_done += 1
                        yield from results
        except Exception as error:
            is_lost_dask_worker = type(error).__name__ == "KilledWorker"
            if not (isinstance(error, futures.BrokenExecutor) or is_lost_dask_worker):
                raise
            some = chunks[n_done:n_done + n_at_once]
            n_done += len(some)
            for name in itertools.chain(*some):
                yield run_alone(call, folder, name)


def call_each(call, chunk):
    """Call call(name) for each name of a chunk. Dask would take long for a task for each name."""
    return [call(name) for name in chunk]


def attempt(function, folder, name):
    """Call function(name). Returns (name, result, None), or (name, None, UserError)."""
    try:
        return name, function(name), None
    except MemoryError:
        return name, None, UserError(f"{Path(folder, name)}: out of memory; close other programs, "
                                     "or remove the file")
    except UserError as error:
        return name, None, error


def run_alone(call, folder, name):
    """Call call(name) in a worker of its own. Returns its result, as attempt does."""
    with open_workers(1) as executor:
        try:
            return executor.submit(call, name).result()
        except futures.BrokenExecutor:
            return name, None, UserError(f"{Path(folder, name)}: crashes its decoder, or needs "
                                         "more memory than there is; remove the file, or convert "
                                         "it")


@contextlib.contextmanager
def open_workers(n_workers, dask=None):
    """Yield an executor of n_workers processes, or of the Dask scheduler at the address `dask`."""
    if dask:
        with connect_dask(dask) as client:
            yield client.get_executor(pure=False)
        return
    # A fork starts sooner, but is unsafe beside the threads of Keras, and on macOS.
    is_forked = sys.platform == "linux" and "keras" not in sys.modules
    context = multiprocessing.get_context("fork" if is_forked else "spawn")
    executor = futures.ProcessPoolExecutor(n_workers, context, start_worker)
    try:
        yield executor
    finally:
        executor.shutdown(cancel_futures=True)


def start_worker():
    """Prepare a worker: Ctrl-C is for the main process, and decoders' chatter is dropped."""
    keep_freed_memory()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    threading.Thread(target=exit_with_parent, daemon=True).start()


def exit_with_parent():
    """End this worker when the main process ends, even if that was killed."""
    multiprocessing.parent_process().join()
    os._exit(1)


@contextlib.contextmanager
def connect_dask(address):
    """Yield a client of the Dask scheduler at `address`. Raises UserError if no worker answers."""
    try:
        from distributed import Client
    except ImportError:
        raise UserError("--dask: the package distributed is missing: "
                        "pip install distributed") from None
    with contextlib.ExitStack() as stack:
        try:
            client = stack.enter_context(Client(address, timeout=10))
            client.wait_for_workers(1, timeout=10)
            for module in ("utils.py", "augment_data.py"):  # in the order of their imports
                client.upload_file(str(Path(__file__).with_name(module)))
        except (OSError, ValueError, TypeError) as error:
            raise UserError(f"--dask {address}: no scheduler with workers answers there; start "
                            f"one, or correct the address, tcp://HOST:8786 ({error})") from None
        try:
            yield client
        except futures.CancelledError as error:
            raise UserError(f"--dask {address}: the scheduler ended; start it again, and the same "
                            f"command continues ({error})") from None


def count_cores():
    """How many processor cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count()
