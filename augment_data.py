"""Write altered copies of sounds beside them, name_aug1.wav to name_augN.wav, for more to train on.

Each copy gets one or more of these deformations, and a line in augmentations.csv beside it that says how much:

    speed_with_pitch  0.9 to 1.1 times as fast and as high, as a tape
    pitch             up to two semitones up or down
    speed             0.9 to 1.1 times as fast at the same pitch
    dynamics          a compressor, by one of six presets
    gain              1 to 20 dB softer
    noise             white, pink or brown noise, 15 to 40 dB below the sound
    shift             up to a tenth of its length later
    polarity          turned upside down

A copy has the length of its sound. It depends on the seed, the sound's file name and its number alone. Training keeps
a sound and its copies on one side of the split. A copy must still belong to its class:

    classes that differ in effects (reverb, tremolo, distortion):  --only noise,shift,polarity
    in pitch (notes, keys, high and low drums):                     --without pitch,speed_with_pitch
    in loudness (soft and hard strokes):                            --without dynamics,gain

    python augment_data.py 3 Samples
"""
import argparse
import contextlib
import csv
import errno
import glob
import hashlib
import io
import os
import sys
from functools import partial
from pathlib import Path

import numpy as np

import utils
from utils import AUGMENTATIONS, UserError

# ---------------------------------------------------------------- what a copy gets, drawn before anything is altered

def between(low, high):
    return lambda u: low + (high - low) * u  # u in [0, 1)


def one_of(*values):
    return lambda u: values[int(u * len(values))]


# The presets of muda (McFee, Humphrey and Bello, "A software framework for musical data augmentation", ISMIR 2015),
# made for SoX's compand: a radio's, and Dolby's.
PRESETS = {  # seconds of attack, of release; dB that go in, dB that come out
    "radio": (0.01, 1.0, (-90, -70, -60, 0), (-95, -75, -25, -5)),
    "film standard": (0.1, 0.3, (-90, -70, -43, -31, -21, 0), (-90, -64, -37, -31, -21, -20)),
    "film light": (0.1, 0.3, (-90, -70, -53, -41, -21, 0), (-90, -64, -47, -41, -21, -20)),
    "music standard": (0.1, 0.3, (-90, -70, -55, -31, -21, 0), (-90, -58, -43, -31, -21, -20)),
    "music light": (0.1, 0.3, (-90, -70, -65, -41, -21, 0), (-90, -58, -53, -41, -21, -11)),
    "speech": (0.1, 0.3, (-90, -70, -50, -31, -21, 0), (-90, -55, -35, -31, -21, -20)),
}
FALL = {"white": 0, "pink": 0.5, "brown": 1}  # amplitude falls as this power of the frequency
DEFORMATIONS = {
    "speed_with_pitch": {"speed_with_pitch_ratio": between(0.9, 1.1)},
    "pitch": {"pitch_semitones": between(-2, 2)},
    "speed": {"speed_ratio": between(0.9, 1.1)},
    "dynamics": {"compression": one_of(*PRESETS), "compression_share": between(0.5, 1)},
    "gain": {"gain_db": between(-20, -1)},  # louder would meet full scale, be scaled back, and be the original again
    "noise": {"noise": one_of(*FALL), "snr_db": between(15, 40)},
    "shift": {"shift_share": between(0, 0.1), "shift_fill": one_of("silence", "rotation")},  # sooner, hits fall off
    "polarity": {"polarity": one_of(-1)},
}
PARAMETERS = [parameter for parameters in DEFORMATIONS.values() for parameter in parameters]
STEPS = np.sqrt([2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31])  # whose multiples, modulo 1, keep apart


def generator(seed, name, use):
    """Random numbers for the sound whose file is called `name`, others for each use."""
    return np.random.default_rng(list(hashlib.sha256(os.fsencode(f"{seed}/{name}/{use}")).digest()))


def draw(seed, name, k, names):
    """The parameters of copy k of a sound, units in their names: those of one or more of the deformations `names`.

    A sound's copies go through the non-empty subsets of `names` in a random order of its own, and through the range of
    each parameter from a random start in even steps. So all subsets and all values are equally likely for a copy, and
    no two copies are the same: independent draws would meet within some hundred copies. Polarity alone has nothing to
    draw: after the first round all of `names` take its place.
    """
    rng, n_subsets = generator(seed, name, "draw"), 2 ** len(names) - 1
    u = dict(zip(PARAMETERS, (rng.random(len(STEPS)) + k * STEPS) % 1, strict=True))
    cycle, place = divmod(k - 1, n_subsets)
    choice = 1 + rng.permutation(n_subsets)[place]  # bit i: names[i]
    drawn = [names[i] for i in range(len(names)) if choice >> i & 1]
    if cycle and drawn == ["polarity"]:
        drawn = names
    return {parameter: value(float(u[parameter])) for name in drawn for parameter, value in DEFORMATIONS[name].items()}


# ---------------------------------------------------------------- deformations: (n_samples, n_channels) -> likewise

def stretch(y, sample_rate, speed):
    """Play y at `speed` times its speed and keep its pitch. [shape=(round(n_samples / speed), n_channels)]

    Signalsmith Stretch, its cheaper preset: nearly the sound of the other one in six tenths of the time.
    """
    from python_stretch import Signalsmith
    stretcher = Signalsmith.Stretch(0)  # the seed of its random phases
    stretcher.preset(y.shape[1], np.clip(sample_rate, 100, 10**6), cheaper=True)  # at 8 Hz it crashes
    stretcher.timeFactor = speed
    margin = stretcher.blockSamples() // 2  # else the first and last half block are too soft
    padded = np.zeros((y.shape[1], len(y) + 2 * margin), np.float32)  # (n_channels, n_samples)
    padded[:, margin:margin + len(y)] = y.T
    start = round(margin / speed)
    return stretcher.process(padded).T[start:start + round(len(y) / speed)]


def warp(y, sample_rate, speed_with_pitch_ratio=1, pitch_semitones=0, speed_ratio=1):
    """Change speed and pitch together, as a tape does, and each alone: one stretch and one resampling do all three.

    Pitch alone is a stretch to that many times the length, played that many times as fast: on low tones it is exact
    where the stretcher's own pitch shift is up to 29 cents off. Returns y cut or padded with silence to its length.
    """
    pitch = 2 ** (pitch_semitones / 12)
    copy = stretch(y, sample_rate, speed_ratio / pitch) if speed_ratio != pitch else y
    if pitch * speed_with_pitch_ratio != 1:
        import soxr
        copy = soxr.resample(copy, sample_rate * pitch * speed_with_pitch_ratio, sample_rate)
    return np.pad(copy[:len(y)], ((0, max(0, len(y) - len(copy))), (0, 0)))


def compress(y, sample_rate, preset, share=1):
    """Compress the dynamic range by the static curve of a preset, or by a share of it, all channels alike.

    0 dB is the sound's own peak: a quiet recording is compressed as a loud one. The level is that of the peaks of each
    millisecond: it falls as the release lets it, is smoothed over the attack, and is looked up that much ahead (the
    Dolby presets' own delay), lest the boost of a silence meets the hit after it.
    """
    from scipy.signal import lfilter
    attack, release, level_in, level_out = PRESETS[preset]
    step = max(1, round(sample_rate / 1000))  # samples
    loudest = np.pad(np.abs(y).max(axis=1), (0, -len(y) % step)).reshape(-1, step).max(axis=1)  # (n_steps,)
    level = 20 * np.log10(np.maximum(loudest / max(loudest.max(), 1e-30), 1e-5))  # dB
    fall = np.arange(len(level)) * step / sample_rate / release * 20 * np.log10(np.e)  # dB, since the start
    level = np.maximum.accumulate(level + fall) - fall
    decay = np.exp(-step / sample_rate / attack)
    amplitude = 10 ** (level / 20)
    amplitude, _ = lfilter([1 - decay], [1, -decay], amplitude, zi=[decay * amplitude[0]])
    gain = share * np.interp(20 * np.log10(amplitude), level_in, np.subtract(level_out, level_in))  # dB
    ahead = attack * sample_rate / step
    when = np.arange(len(y)) / step + ahead  # in steps
    return y * (10 ** (np.interp(when, np.arange(len(gain)), gain) / 20)).astype(np.float32)[:, None]


def shift(y, share, fill):
    """Move y later by a share of its length, at least a sample.

    What falls off comes in at the start (rotation), or silence does, but where nothing would be left to hear.
    """
    n = max(1, round(share * len(y)))
    copy = np.roll(y, n, axis=0)
    if fill == "silence" and y[:-n].any():
        copy[:n] = 0
    return copy


def noise_like(y, sample_rate, color, rng):
    """Noise of y's shape, root mean square 1: white, or from 20 Hz on, where it begins, pink or brown.

    Each octave is 3 or 6 dB softer than the one below. Further down, half of the power of brown noise would be unheard.
    """
    import scipy.fft
    n = scipy.fft.next_fast_len(len(y), real=True)
    noise = rng.standard_normal((n, y.shape[1]), dtype=np.float32)
    if FALL[color]:
        spectrum = scipy.fft.rfft(noise, axis=0)  # (1 + n // 2, n_channels)
        hertz = scipy.fft.rfftfreq(n, 1 / sample_rate)
        spectrum[(hertz < 20) & (hertz < hertz[-1])] = 0
        noise = scipy.fft.irfft(spectrum * (np.maximum(20, hertz) ** -FALL[color]).astype(np.float32)[:, None], n, 0)
    return noise[:len(y)] / np.float32(rms(noise[:len(y)]))


def rms(y):
    return np.sqrt(np.mean(np.square(y), dtype=float))


def deform(y, sample_rate, parameters, rng):
    """Alter a sound by the parameters that `draw` gave, noise last: the ratio to it is the copy's.

    y: float32 [shape=(n_samples, n_channels)], left as it is. Returns float32 of the same shape.
    """
    p = parameters
    copy = warp(y, sample_rate, p.get("speed_with_pitch_ratio", 1), p.get("pitch_semitones", 0),
                p.get("speed_ratio", 1))
    if "compression" in p:
        copy = compress(copy, sample_rate, p["compression"], p["compression_share"])
    if "shift_share" in p:
        copy = shift(copy, p["shift_share"], p["shift_fill"])
    copy = copy * np.float32(p.get("polarity", 1) * 10 ** (p.get("gain_db", 0) / 20))
    if "noise" in p:
        copy += noise_like(copy, sample_rate, p["noise"], rng) * np.float32(10 ** (-p["snr_db"] / 20) * rms(copy))
    return copy


def copy_name(name, k):
    """The name of a sound's copy number k ("a/x.wav", 2 -> "a/x_aug2.wav")."""
    stem, extension = os.path.splitext(name)
    return f"{stem}_aug{k}{extension}"


def decode_sound(path):
    """A whole sound file as float32 [shape=(n_samples, n_channels)], and its sample rate in Hz. Raises UserError."""
    blocks, rates = zip(*utils.read_blocks(path))
    return np.concatenate(blocks), rates[0]


def make_copy(y, sample_rate, path, k, seed=0, names=tuple(DEFORMATIONS)):
    """Copy k of the sound in the file at `path`, of whose name it depends, by one or more of the deformations `names`.

    y: float32 [shape=(n_samples, n_channels)], left as it is. Returns float32 of the same shape within full scale, and
    its parameters, with the scale that this took. Raises UserError where it would be the sound itself.
    """
    name = os.path.basename(path)
    parameters = draw(seed, name, k, names)
    copy = deform(y, sample_rate, parameters, generator(seed, name, f"{k} noise"))
    scale = 1 / max(1, y.max(), -y.min())  # of floats beyond full scale: else their gain would be undone
    scale /= max(1, scale * copy.max(), scale * -copy.min())
    copy *= np.float32(scale)
    if np.array_equal(copy, y):
        raise UserError(f"{path}: expected a sound of which a copy can differ, found "
                        + (f"{len(y)} samples that are all alike" if y.any() else "silence"))
    return copy, {**parameters, "scale": float(scale)}


# ---------------------------------------------------------------- the command

def subset(text):
    """The argparse type of names of deformations, in their own order."""
    found = [name.strip() for name in text.split(",")]
    if unknown := [name for name in found if name not in DEFORMATIONS]:
        raise argparse.ArgumentTypeError(f"expected names out of {','.join(DEFORMATIONS)}, found {unknown[0]!r}")
    return tuple(name for name in DEFORMATIONS if name in found)


def add_choice(parser):
    """The flags that choose deformations, for this script and for preprocessing."""
    group = parser.add_mutually_exclusive_group()
    group.add_argument("--only", type=subset, metavar="NAMES", help="alter copies by these alone, such as pitch,noise")
    group.add_argument("--without", type=subset, metavar="NAMES", default=(), help="by all but these")
    parser.add_argument("--seed", type=utils.number(int, 0), default=0, help="another seed, other copies (default: 0)")


def chosen(args, n):
    """The deformations that the flags leave, for n copies of a sound. Raises UserError."""
    names = args.only or tuple(name for name in DEFORMATIONS if name not in args.without)
    if not names:
        raise UserError("--without: expected to leave a deformation, found none left")
    if names == ("polarity",) and n > 1:
        raise UserError(f"--only polarity: expected one copy, as all would be the same, found N = {n}")
    return names


def parse_args():
    parser = utils.Parser(__doc__)
    parser.add_argument("n", type=utils.number(int, 1, high=10**5), metavar="N", help="copies of each sound")
    parser.add_argument("files", nargs="+", metavar="FILE", help="sounds, folders or patterns, such as Samples; "
                        "- reads names, one a line, from standard input (or ended by NUL, as find -print0 does)")
    add_choice(parser)
    parser.add_argument("--overwrite", action="store_true", help="make copies again that are there")
    parser.add_argument("--jobs", type=utils.number(int, 1), help="processes (default: one a core)")
    return parser.parse_args()


def read_names(arguments):
    """The paths that are named, each once, those of standard input in the place of "-"; and how many are not sources.

    Not sources: copies, their list and hidden files, which patterns catch too.
    """
    names = []
    for argument in arguments:
        if argument == "-":
            text = os.fsdecode(sys.stdin.buffer.read())
            names += filter(None, text.split("\0") if "\0" in text else text.replace("\r\n", "\n").split("\n"))
        else:
            names += expand(argument)
    paths = list(dict.fromkeys(map(Path, names)))
    copies = find_copies(paths)
    sources = [path for path in paths
               if str(path) not in copies and path.name != AUGMENTATIONS and not path.name.startswith(".")]
    return sources, len(paths) - len(sources)


def expand(argument):
    """Return the sounds in a folder and below, the files that match a pattern, or else the argument itself.

    Windows does not expand patterns, nor does any shell between quotes.
    """
    if os.path.isdir(argument):
        return sorted(filter(utils.is_sound, utils.walk(argument, argument, ()))) or [argument]
    if os.path.lexists(argument) or not glob.has_magic(argument):
        return [argument]
    matches = sorted(glob.glob(argument, recursive=True))
    return [name for match in matches for name in expand(match)] or [argument]


def find_copies(paths):
    """Find the copies among paths, whose sources may be on the disk alone. Returns a dict as utils.find_copies does."""
    names = [str(path) for path in paths]
    beside = set()
    for folder in {os.path.dirname(name) for name in names if utils.COPY.search(name)}:
        with contextlib.suppress(OSError):  # a name without a file is found when it is read
            beside.update(os.path.join(folder, name) for name in filter(utils.is_sound, os.listdir(folder or ".")))
    return utils.find_copies({*names, *beside}, samples="")


def encoded(y, info):
    """The bytes of a file that holds y [shape=(n_samples, n_channels)] in the format of `info`. Raises UserError.

    In memory: of a disk that is full, libsndfile says nothing that helps. A second at a time: libsndfile 1.2.2 crashes
    where it is given a minute of Ogg Vorbis at once.
    """
    import soundfile
    try:
        with soundfile.SoundFile(data := io.BytesIO(), "w", info.samplerate, info.channels,
                                 info.subtype, info.endian, info.format) as file:
            for start in range(0, len(y), info.samplerate):
                file.write(y[start:start + info.samplerate])
        return data.getbuffer()
    except (soundfile.SoundFileError, ValueError) as error:
        raise UserError(f"{os.fsdecode(info.name)}: expected to write a copy of its format ({info.subtype_info}) "
                        f"beside it, found: {error}") from None


def targets(path, n, overwrite):
    """The copies of a sound that are to be written, by number."""
    copies = {k: Path(copy_name(str(path), k)) for k in range(1, n + 1)}
    return {k: copy for k, copy in copies.items() if overwrite or not os.path.lexists(copy)}


def write_copies(path, n, seed, names, overwrite):
    """Write the copies of one sound that are not there, in its own format. Returns how many. Raises UserError."""
    y, sample_rate = decode_sound(path)  # (n_samples, n_channels)
    info = utils.open_sound(path)
    info.close()  # what it is remains known
    copies = targets(path, n, overwrite)
    try:
        for k, target in copies.items():
            copy, parameters = make_copy(y, sample_rate, path, k, seed, names)
            with utils.whole_file(target) as temporary:
                temporary.write_bytes(encoded(copy, info))
                note(path, k, {"seed": seed, "only": ",".join(names), **parameters})  # first: no copy lacks its line
    except OSError as error:
        if error.errno in utils.DISK_FULL:  # so it will be for the others
            raise
        raise UserError(f"{path}: expected to write a copy and its line beside it, found: {error.strerror}") from None
    return len(copies)


# ---------------------------------------------------------------- augmentations.csv

COLUMNS = ["file", "copy", "seed", "only", *PARAMETERS, "scale"]
HEADER = ",".join(COLUMNS)


def note(path, k, parameters):
    """Add the line of a copy. Raises UserError where the file is another's."""
    log, line = path.parent / AUGMENTATIONS, io.StringIO()
    csv.DictWriter(line, COLUMNS, lineterminator="\n").writerow(
        {"file": utils.file_cell(path.name), "copy": k, **parameters})
    with utils.alone_in(path.parent), open(log, "ab+", buffering=0) as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(0)
        found = os.fsdecode(file.readline()).strip()
        if found not in (HEADER, ""):
            raise UserError(f"{path}: expected {AUGMENTATIONS} beside it to be of copies, found other columns: "
                            "move it away")
        data = os.fsencode(f"{'' if found else HEADER}\n{line.getvalue()}")
        try:
            if file.write(data) < len(data):  # a full disk takes half a line
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError:
            file.truncate(size)
            raise


def tidy(log):
    """Sort the lines of copies, and keep the last of each: of those made again, or left by killed runs."""
    utils.sweep(log.parent)
    with utils.alone_in(log.parent):
        header, _, text = os.fsdecode(log.read_bytes()).partition("\n")
        rows = {(row[0], len(row[1]), row[1]) if len(row) == len(COLUMNS) else (line, 0, ""): line  # strange ones stay
                for line in text.split("\n") for row in csv.reader([line]) if row}
        tidied = os.fsencode("\n".join([HEADER, *(rows[key] for key in sorted(rows)), ""]))
        if header.strip() == HEADER and tidied != log.read_bytes():
            with utils.whole_file(log) as temporary:
                temporary.write_bytes(tidied)


def main():
    args = parse_args()
    names = chosen(args, args.n)
    sources, n_passed = read_names(args.files)
    if n_passed:
        utils.say(f"{n_passed} files are copies themselves, their list, or hidden: passed over")
    elif not sources:
        raise UserError("-: expected names of sounds on standard input, found none")
    to_do = {path: missing for path in sources
             if (missing := targets(path, args.n, args.overwrite)) or not os.path.isfile(path)}
    function = partial(write_copies, n=args.n, seed=args.seed, names=names, overwrite=args.overwrite)
    try:
        written, errors = utils.for_each(function, list(to_do), "Augmenting", "", args.jobs)
    finally:
        for log in {path.parent / AUGMENTATIONS for path in sources}:
            with contextlib.suppress(OSError, csv.Error):  # no copy there, or a folder that was made read-only
                tidy(log)
    n_there = len(sources) * args.n - sum(map(len, to_do.values()))
    n_bad = utils.name_skipped(errors)
    utils.say(f"{sum(written.values())} copies written, {n_there} were there and stay as they are, "
              f"{n_bad} files skipped")
    if written or n_there:
        utils.say_next("preprocess_data.py")
    return n_bad


if __name__ == "__main__":
    import augment_data  # by this name, not as __main__, its processes find what they run
    utils.run(augment_data.main)
