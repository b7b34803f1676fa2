"""Write altered copies of sounds, to have more to train on.

Reads sounds. Writes name_aug1.wav to name_augN.wav beside each name.wav, in its format, and
augmentations.csv, a table of them. The table comes first: after a stop, the same command makes
the copies that are missing.

    python augment_data.py 3 Samples

A copy gets one or more of these deformations, and keeps the length of its sound:

    speed_with_pitch  0.9 to 1.1 times the speed and the pitch, like a tape
    pitch             up to two semitones up or down
    speed             0.9 to 1.1 times as fast at the same pitch
    dynamics          a compressor with one of six presets
    gain              1 to 20 dB softer
    noise             white, pink or brown noise, 15 to 40 dB below the sound
    shift             moved later by up to a tenth of its length
    polarity          inverted

A copy depends on the seed, the file name of its sound, its number and the deformations allowed.
Training keeps a sound and its copies in one subset. A copy must still belong to its
class. Use these flags if classes differ:

    in effects (reverb, tremolo, distortion):      --only noise,shift,polarity
    in pitch (notes, keys, high and low drums):    --without pitch,speed_with_pitch
    in loudness (soft and hard strokes):           --without dynamics,gain
"""
import argparse
import contextlib
import glob
import hashlib
import os
from functools import partial
from pathlib import Path

import numpy as np
import python_stretch
import scipy
import soundfile
import soxr

import utils
from utils import AUGMENTATIONS, UserError

# Compressors of muda (McFee, Humphrey and Bello, "A software framework for musical data
# augmentation", ISMIR 2015): one of a radio station, the others Dolby's.
PRESETS = {  # attack in seconds, release in seconds, input levels in dB, output levels in dB
    "radio": (0.01, 1.0, (-90, -70, -60, 0), (-95, -75, -25, -5)),
    "film standard": (0.1, 0.3, (-90, -70, -43, -31, -21, 0), (-90, -64, -37, -31, -21, -20)),
    "film light": (0.1, 0.3, (-90, -70, -53, -41, -21, 0), (-90, -64, -47, -41, -21, -20)),
    "music standard": (0.1, 0.3, (-90, -70, -55, -31, -21, 0), (-90, -58, -43, -31, -21, -20)),
    "music light": (0.1, 0.3, (-90, -70, -65, -41, -21, 0), (-90, -58, -53, -41, -21, -11)),
    "speech": (0.1, 0.3, (-90, -70, -50, -31, -21, 0), (-90, -55, -35, -31, -21, -20)),
}
NOISE_SLOPES = {"white": 0, "pink": 0.5, "brown": 1}  # amplitude ~ frequency ** -slope
LOWEST_NOISE = 20  # Hz; half of the power of brown noise would lie below and not be heard
DEFORMATIONS = {  # parameters: a tuple is a range, a list is a choice
    "speed_with_pitch": {"speed_with_pitch_ratio": (0.9, 1.1)},
    "pitch": {"pitch_semitones": (-2, 2)},
    "speed": {"speed_ratio": (0.9, 1.1)},
    "dynamics": {"compression": list(PRESETS), "compression_share": (0.5, 1)},
    "gain": {"gain_db": (-20, -1)},  # a louder copy would be scaled back to its sound's level
    "noise": {"noise": list(NOISE_SLOPES), "snr_db": (15, 40)},
    # A shift is always later, so that a hit at the start is not cut off.
    "shift": {"shift_share": (0, 0.1), "shift_fill": ["silence", "rotation"]},
    "polarity": {"polarity": [-1]},
}
PARAMETERS = [name for parameters in DEFORMATIONS.values() for name in parameters]
# A step for each parameter. The multiples of these roots, modulo 1, stay apart from one another.
STEPS = np.sqrt([2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31])
COLUMNS = ["file", "copy", "seed", "only", *PARAMETERS]  # of augmentations.csv


# ---------------------------------------------------------------- command line

def parse_deformations(text):
    """The argparse type of names of deformations. Returns them in the order of DEFORMATIONS."""
    found = [name.strip() for name in text.split(",")]
    for name in found:
        if name not in DEFORMATIONS:
            raise argparse.ArgumentTypeError(
                f"expected names from {','.join(DEFORMATIONS)}, found {name!r}")
    return tuple(name for name in DEFORMATIONS if name in found)


def add_choice(parser):
    """Add the flags that choose deformations, for this script and for preprocessing."""
    group = parser.add_mutually_exclusive_group()
    group.add_argument("--only", type=parse_deformations, metavar="NAMES",
                       help="use only these deformations, such as pitch,noise")
    group.add_argument("--without", type=parse_deformations, metavar="NAMES", default=(),
                       help="use all deformations but these")
    parser.add_argument("--seed", type=utils.number(int, 0), default=0,
                        help="another seed makes other copies (default: 0)")


def choose_deformations(only, without, n):
    """Choose deformations by the flags --only and --without, for n copies of a sound.

    only: names, or None. without: names. Returns a tuple of names. Raises UserError.
    """
    names = only or tuple(name for name in DEFORMATIONS if name not in without)
    if not names:
        raise UserError("--without: no deformation is left; name fewer")
    if names == ("polarity",) and n > 1:
        raise UserError(f"--only polarity: {n} copies would be the same; make one copy, or add a "
                        "deformation")
    return names


def parse_args():
    """Parse the command line."""
    parser = utils.Parser(__doc__)
    parser.add_argument("n", type=utils.number(int, 1, high=10**5), metavar="N",
                        help="copies of each sound")
    parser.add_argument("files", nargs="+", metavar="FILE",
                        help="sounds, folders or patterns, such as Samples")
    add_choice(parser)
    parser.add_argument("--overwrite", action="store_true", help="make existing copies again")
    parser.add_argument("--jobs", type=utils.number(int, 1),
                        help="worker processes (default: one for each core)")
    return parser.parse_args()


# ---------------------------------------------------------------- names of sounds and copies

def list_sources(arguments):
    """List the sounds that the command line names: files, sounds in folders, matches of patterns.

    Returns their paths, each once, and how many paths were passed over: patterns also match
    copies, augmentations.csv and hidden files, which are not sources. Raises UserError for a
    folder that cannot be read.
    """
    paths = {}  # in the order of the command line
    for argument in arguments:
        matches = []
        if glob.has_magic(argument) and not os.path.lexists(argument):  # as on Windows, in quotes
            matches = sorted(glob.glob(argument, recursive=True))
        for match in matches or [argument]:
            sounds = utils.walk_sounds(match) if os.path.isdir(match) else []
            paths.update((Path(name), None) for name in sounds or [match])
    names = {str(path) for path in paths}
    for folder in {os.path.dirname(name) for name in names if utils.COPY.search(name)}:
        with contextlib.suppress(OSError):  # a missing file is reported when it is read
            beside = filter(utils.is_sound, os.listdir(folder or "."))
            names.update(os.path.join(folder, name) for name in beside)
    copies = utils.find_copies(names, samples="")
    sources = [path for path in paths if str(path) not in copies
               and path.name != AUGMENTATIONS and not path.name.startswith(".")]
    return sources, len(paths) - len(sources)


def copy_name(name, k):
    """Return the name of a sound's copy number k: "a/x.wav", 2 -> "a/x_aug2.wav"."""
    stem, extension = os.path.splitext(name)
    return f"{stem}_aug{k}{extension}"


def missing_copies(path, n, overwrite):
    """Return a dict from number to path of the copies that are to be written, out of 1 to n."""
    copies = {k: Path(copy_name(str(path), k)) for k in range(1, n + 1)}
    return {k: copy for k, copy in copies.items() if overwrite or not os.path.lexists(copy)}


# ---------------------------------------------------------------- parameters of a copy

def make_generator(seed, name, use):
    """Make a random generator for the sound with the file name `name`, and for one use of it."""
    digest = hashlib.sha256(os.fsencode(f"{seed}/{name}/{use}")).digest()
    return np.random.default_rng(np.frombuffer(digest, np.uint32))


def draw_parameters(seed, name, k, names):
    """Draw the parameters of copy k of the sound with the file name `name`.

    names: deformations, of which the copy gets one or more. Returns a dict from parameter to value.

    Each parameter goes through its range in equal steps from a random start, so that no two copies
    get the same values. Independent draws would repeat within some hundred copies. Copies may get
    the same deformations, but polarity, which has one value, only beside another.
    """
    subset = make_generator(seed, name, f"{k} subset").integers(1, 2 ** len(names))
    drawn = [names[i] for i in range(len(names)) if subset >> i & 1]  # bit i stands for names[i]
    if drawn == ["polarity"]:
        drawn = names
    start = make_generator(seed, name, "draw").random(len(STEPS))
    u = dict(zip(PARAMETERS, (start + k * STEPS) % 1, strict=True))  # in [0, 1)
    parameters = {}
    for deformation in drawn:
        for parameter, values in DEFORMATIONS[deformation].items():
            if isinstance(values, tuple):
                low, high = values
                parameters[parameter] = float(low + (high - low) * u[parameter])
            else:
                parameters[parameter] = values[int(u[parameter] * len(values))]
    return parameters


# ---------------------------------------------------------------- deformations
# A sound y is float32 [shape=(n_samples, n_channels)], which no function changes.

def stretch_sound(y, sample_rate, speed):
    """Play y at `speed` times its speed and keep its pitch.

    Returns float32 [shape=(round(n_samples / speed), n_channels)]. The cheaper preset of
    Signalsmith Stretch sounds nearly like the default one, in 0.6 of the time.
    """
    stretcher = python_stretch.Signalsmith.Stretch(0)  # the seed of its random phases
    usable_rate = np.clip(sample_rate, 100, 10**6)  # at 8 Hz the stretcher crashes
    stretcher.preset(y.shape[1], usable_rate, cheaper=True)
    stretcher.timeFactor = speed
    margin = stretcher.blockSamples() // 2  # without it the first and last half block are too soft
    padded = np.zeros((y.shape[1], len(y) + 2 * margin), np.float32)  # (n_channels, n_samples)
    padded[:, margin:margin + len(y)] = y.T
    start = round(margin / speed)
    stop = start + round(len(y) / speed)
    return stretcher.process(padded).T[start:stop]


def warp_sound(y, sample_rate, speed_with_pitch_ratio=1, pitch_semitones=0, speed_ratio=1):
    """Change speed and pitch together, as a tape does, and each of them alone.

    One stretch and one resampling do all three: a higher pitch is a longer sound played faster.
    The stretcher's own pitch shift is up to 29 cents off on low tones. Returns float32 of y's
    shape, cut or padded with silence.
    """
    pitch = 2 ** (pitch_semitones / 12)
    copy = y
    if speed_ratio != pitch:
        copy = stretch_sound(y, sample_rate, speed_ratio / pitch)
    if pitch * speed_with_pitch_ratio != 1:
        copy = soxr.resample(copy, sample_rate * pitch * speed_with_pitch_ratio, sample_rate)
    n_missing = max(0, len(y) - len(copy))
    return np.pad(copy[:len(y)], ((0, n_missing), (0, 0)))


def compress_sound(y, sample_rate, preset, share=1):
    """Compress the dynamic range by the static curve of a preset, or by a share of it.

    All channels get the same gain, which follows the level one attack time ahead. Dolby's presets
    have this lookahead: without it, the boost of a silence would reach into the next hit.
    """
    attack, release, level_in, level_out = PRESETS[preset]
    step = max(1, round(sample_rate / 1000))  # samples
    peaks = np.abs(y).max(axis=1)  # (n_samples,)
    peaks = np.pad(peaks, (0, -len(y) % step)).reshape(-1, step).max(axis=1)  # (n_steps,)
    # 0 dB is the sound's own peak, so that a quiet recording is compressed just like a loud one.
    level = 20 * np.log10(np.maximum(peaks / max(peaks.max(), 1e-30), 1e-5))
    # Let the level rise within the attack and fall within the release.
    fall = np.arange(len(level)) * step / sample_rate / release * 20 * np.log10(np.e)  # dB
    level = np.maximum.accumulate(level + fall) - fall
    decay = np.exp(-step / sample_rate / attack)
    amplitude = 10 ** (level / 20)
    start = [decay * amplitude[0]]
    amplitude, _ = scipy.signal.lfilter([1 - decay], [1, -decay], amplitude, zi=start)
    level = 20 * np.log10(amplitude)
    change = np.subtract(level_out, level_in)
    gain = share * np.interp(level, level_in, change)  # dB, (n_steps,)
    places = np.arange(len(y)) / step + attack * sample_rate / step  # in steps
    gain = np.interp(places, np.arange(len(gain)), gain)  # dB, (n_samples,)
    return y * (10 ** (gain / 20)).astype(np.float32)[:, None]


def shift_sound(y, share, fill):
    """Move y later by a share of its length, by at least one sample.

    fill: "rotation" moves the end of the sound to its start; "silence" drops it, unless the rest
    is silent.
    """
    n = max(1, round(share * len(y)))
    copy = np.roll(y, n, axis=0)
    if fill == "silence" and y[:-n].any():
        copy[:n] = 0
    return copy


def make_noise(shape, sample_rate, color, rng):
    """Make noise with a root mean square of 1: white, pink or brown.

    shape: (n_samples, n_channels). Returns float32 of this shape. Above LOWEST_NOISE, pink
    noise falls by 3 dB an octave and brown noise by 6 dB.
    """
    n_samples, n_channels = shape
    n = scipy.fft.next_fast_len(n_samples, real=True)
    noise = rng.standard_normal((n, n_channels), dtype=np.float32)
    slope = NOISE_SLOPES[color]
    if slope:
        spectrum = scipy.fft.rfft(noise, axis=0)  # (1 + n // 2, n_channels)
        hertz = scipy.fft.rfftfreq(n, 1 / sample_rate)
        is_too_low = (hertz < LOWEST_NOISE) & (hertz < hertz[-1])  # the last one always stays
        spectrum[is_too_low] = 0
        weights = (np.maximum(LOWEST_NOISE, hertz) ** -slope).astype(np.float32)
        noise = scipy.fft.irfft(spectrum * weights[:, None], n, axis=0)
    noise = noise[:n_samples]
    return noise / np.float32(measure_rms(noise))


def measure_rms(y):
    """Return the root mean square of all samples."""
    return np.sqrt(np.mean(np.square(y), dtype=float))


def deform_sound(y, sample_rate, parameters, rng):
    """Alter a sound by parameters from draw_parameters. Returns float32 of the same shape.

    rng: for the noise. The noise is added last, so that its level is relative to the copy.
    """
    copy = warp_sound(y, sample_rate, parameters.get("speed_with_pitch_ratio", 1),
                      parameters.get("pitch_semitones", 0), parameters.get("speed_ratio", 1))
    if "compression" in parameters:
        copy = compress_sound(copy, sample_rate, parameters["compression"],
                              parameters["compression_share"])
    if "shift_share" in parameters:
        copy = shift_sound(copy, parameters["shift_share"], parameters["shift_fill"])
    gain = 10 ** (parameters.get("gain_db", 0) / 20)
    copy = copy * np.float32(parameters.get("polarity", 1) * gain)
    if "noise" in parameters:
        level = 10 ** (-parameters["snr_db"] / 20) * measure_rms(copy)
        noise = make_noise(copy.shape, sample_rate, parameters["noise"], rng)
        copy = copy + noise * np.float32(level)
    return copy


def make_copy(y, sample_rate, path, k, seed=0, names=tuple(DEFORMATIONS)):
    """Make copy k of the sound y, read from `path`. The file name determines the copy.

    names: deformations, of which the copy gets one or more. Returns float32 of y's shape within
    -1 and 1. Raises UserError if the copy would equal y.
    """
    if not y.any():
        raise UserError(f"{path}: is silent, and so would its copies be; remove it")
    name = os.path.basename(path)
    rng = make_generator(seed, name, f"{k} noise")
    copy = deform_sound(y, sample_rate, draw_parameters(seed, name, k, names), rng)
    # Scale by the peak of the sound first: a float file beyond full scale must not undo the gain.
    scale = 1 / max(1, y.max(), -y.min())
    scale /= max(1, scale * copy.max(), scale * -copy.min())
    copy *= np.float32(scale)
    if np.array_equal(copy, y):
        raise UserError(f"{path}: a copy would equal it; remove it, or choose other deformations")
    return copy


# ---------------------------------------------------------------- files

def decode_sound(path):
    """Read a sound file. Returns float32 [shape=(n_samples, n_channels)] and its rate in Hz.

    Raises UserError.
    """
    blocks = list(utils.read_blocks(path))
    _, sample_rate = blocks[0]
    return np.concatenate([y for y, _ in blocks]), sample_rate


def write_copies(path, n, seed, names, overwrite):
    """Write the missing copies of one sound beside it, in its format. Returns how many.

    Raises UserError, or OSError if the disk is full, since no other copy can be written then.
    """
    y, sample_rate = decode_sound(path)  # (n_samples, n_channels)
    info = utils.open_sound(path)
    info.close()  # its attributes stay
    copies = missing_copies(path, n, overwrite)
    try:
        for k, target in copies.items():
            copy = make_copy(y, sample_rate, path, k, seed, names)
            data = utils.encode_sound(copy, info.samplerate, info.format, info.subtype, info.endian)
            with utils.whole_file(target) as temporary:
                temporary.write_bytes(data)
    except (soundfile.SoundFileError, ValueError) as error:
        raise UserError(f"{path}: its format ({info.subtype_info}) cannot be written "
                        f"({utils.reason_of(error)}); {utils.conversion_hint(path)}") from None
    except OSError as error:
        if error.errno in utils.DISK_FULL:
            raise
        raise UserError(f"{path}: a copy cannot be written beside it: {error.strerror}; "
                        "rename it, or move it to another folder") from None
    return len(copies)


def save_plan(folder, rows):
    """Add rows of copies that are to be made to augmentations.csv in a folder.

    rows: dicts with the keys COLUMNS. Rows of other copies stay. Raises UserError, or OSError if
    the disk is full.
    """
    table = folder / AUGMENTATIONS
    merged = {}
    with utils.folder_lock(folder):
        utils.remove_temporary(folder)
        listed = utils.read_csv(table)
        is_foreign = table.exists() and not listed  # such as a damaged table
        for row in [*listed, *rows]:
            if is_foreign or not row.keys() >= set(COLUMNS):
                raise UserError(f"{table}: is not from this script; move it away")
            copy = str(row["copy"])
            cells = [row[column] for column in COLUMNS]
            merged[row["file"], len(copy), copy] = cells  # copy 10 comes after copy 9
        try:
            utils.save_csv(table, [COLUMNS, *(merged[key] for key in sorted(merged))])
        except OSError as error:
            if error.errno in utils.DISK_FULL:
                raise
            raise UserError(f"{table}: cannot be written: {error.strerror}; make the folder "
                            "writable") from None


def main():
    """Write the copies. Returns how many files were skipped."""
    args = parse_args()
    names = choose_deformations(args.only, args.without, args.n)
    sources, n_passed = list_sources(args.files)
    if n_passed:
        utils.say(f"{n_passed} files passed over: copies, lists of copies, or hidden files")
    to_do = []
    n_existing = 0
    plans = {}  # from each folder to the rows of the copies that are to be made there
    for path in sources:
        numbers = missing_copies(path, args.n, args.overwrite)
        n_existing += args.n - len(numbers)
        is_file = os.path.isfile(path)
        if numbers or not is_file:  # to read what is no file raises the error
            to_do.append(path)
        for k in numbers if is_file else []:
            row = {"file": path.name, "copy": k, "seed": args.seed, "only": ",".join(names)}
            row |= draw_parameters(args.seed, path.name, k, names)
            plans.setdefault(path.parent, []).append(dict.fromkeys(COLUMNS, "") | row)
    refused = {}  # folders in which no copies can be listed
    for folder, rows in plans.items():
        try:
            save_plan(folder, rows)
        except UserError as error:
            refused[folder] = error
    to_do = [path for path in to_do if path.parent not in refused]
    write = partial(write_copies, n=args.n, seed=args.seed, names=names, overwrite=args.overwrite)
    written, errors = utils.map_files(write, to_do, "Augmenting", args.jobs)
    n_skipped = utils.name_skipped(refused | errors)
    utils.say(f"{sum(written.values())} copies written, {n_existing} existing copies kept, "
              f"{n_skipped} files skipped")
    if written or n_existing:
        utils.say_next("preprocess_data.py")
    return n_skipped


if __name__ == "__main__":
    utils.run(main)
