"""Write altered copies of sounds beside them, name_aug1.wav to name_augN.wav, for more to train on.

Each copy gets a random choice of speed (with pitch), pitch, gain, noise and time shift. A copy depends on the
seed, the sound's name and its number alone. Training keeps a sound and its copies on one side of the split.
Leave out copies whose class depends on what was altered, such as pitch classes.

    python augment_data.py 3 Samples/*/*
"""
import hashlib
import os
import warnings
from functools import partial
from pathlib import Path

import numpy as np

import utils
from preprocess_data import window_and_hop

# ---------------------------------------------------------------- deformations: (n_samples, n_channels) -> likewise

def change_speed(y, sample_rate, rng):
    """Faster and higher or slower and lower, as a tape: 0.9 to 1.1 times its speed; of another length."""
    import soxr
    return soxr.resample(y, sample_rate * rng.uniform(0.9, 1.1), sample_rate)


def change_pitch(y, sample_rate, rng):
    """Up to two semitones up or down."""
    from librosa.effects import pitch_shift
    n_fft, _ = window_and_hop(sample_rate)
    padded = np.pad(y, ((0, max(0, n_fft - len(y))), (0, 0)))  # the phase vocoder wants a window at least
    with warnings.catch_warnings(action="ignore"):  # librosa 1.0 has some on its own inner calls
        return pitch_shift(padded.T, sr=sample_rate, n_steps=rng.uniform(-2, 2), n_fft=n_fft).T[:len(y)]


def change_gain(y, sample_rate, rng):
    """Up to 10 dB louder or softer."""
    return y * 10 ** (rng.uniform(-10, 10) / 20)


def add_noise(y, sample_rate, rng):
    """White noise, 15 to 40 dB below the sound."""
    level = np.sqrt(np.mean(y**2)) * 10 ** (-rng.uniform(15, 40) / 20)
    return y + rng.normal(0, 1, y.shape) * level


def shift_time(y, sample_rate, rng):
    """Later or sooner by up to a tenth of its length, silence in the gap."""
    late, soon = np.maximum(0, round(len(y) * rng.uniform(-0.1, 0.1)) * np.array([1, -1]))
    return np.pad(y, ((late, soon), (0, 0)))[soon:soon + len(y)]


DEFORMATIONS = change_speed, change_pitch, change_gain, add_noise, shift_time


def deform(y, sample_rate, rng):
    """A copy of a sound with one or more deformations, every non-empty choice of them equally likely.

    y: float32 [shape=(n_samples, n_channels)], left as it is. Returns float32 of the same shape, within full scale.
    """
    choice = rng.integers(1, 2 ** len(DEFORMATIONS))
    copy = y
    for k, deformation in enumerate(DEFORMATIONS):
        if choice >> k & 1:
            copy = deformation(copy, sample_rate, rng)
    copy = np.pad(copy, ((0, max(0, len(y) - len(copy))), (0, 0)))[:len(y)]
    return (copy / max(1, np.abs(copy).max())).astype(np.float32)


def generator(seed, name, k):
    """The random numbers of copy k of the sound whose file is called `name`."""
    return np.random.default_rng(list(hashlib.sha256(os.fsencode(f"{seed}/{name}/{k}")).digest()))


# ---------------------------------------------------------------- the command

def parse_args():
    parser = utils.Parser(__doc__)
    parser.add_argument("n", type=utils.number(int, 1), metavar="N", help="copies of each sound")
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="sounds, such as Samples/*/*")
    parser.add_argument("--seed", type=utils.number(int, 0), default=0, help="another seed, other copies (default: 0)")
    parser.add_argument("--jobs", type=utils.number(int, 1), help="processes (default: one a core, if worth it)")
    return parser.parse_args()


def write_sound(path, y, info):
    """Write y [shape=(n_samples, n_channels)] in the format of `info`, a second at a time. Raises UserError.

    libsndfile 1.2.2 crashes where it is given a minute of Ogg Vorbis at once.
    """
    import soundfile
    try:
        with soundfile.SoundFile(path, "w", info.samplerate, info.channels,
                                 info.subtype, info.endian, info.format) as file:
            for start in range(0, len(y), info.samplerate):
                file.write(y[start:start + info.samplerate])
    except (soundfile.SoundFileError, ValueError) as error:
        raise utils.UserError(f"{info.name}: expected a format that can be written, "
                              f"found {info.subtype_info}: {error}") from None


def write_copies(path, n, seed):
    """Write the copies of one sound that are not there yet, in its own format. Returns how many. Raises UserError."""
    import soundfile
    y, sample_rate = utils.decode_sound(path)  # (n_samples, n_channels)
    info = soundfile.info(path)
    targets = {k: path.with_name(utils.copy_name(path.name, k)) for k in range(1, n + 1)}
    missing = {k: target for k, target in targets.items() if not target.exists()}
    for k, target in missing.items():
        with utils.whole_file(target) as temporary:
            write_sound(temporary, deform(y, sample_rate, generator(seed, path.name, k)), info)
    return len(missing)


def main():
    args = parse_args()
    files = list(dict.fromkeys(args.files))
    sources = [path for path in files if utils.source_of(path.name) == path.name]
    if len(sources) < len(files):
        print(f"{len(files) - len(sources)} files are copies themselves: passed over")
    if not any(path.is_file() for path in files):
        raise utils.UserError(f"{files[0]}: expected sound files, found none")
    written, errors = utils.for_each(partial(write_copies, n=args.n, seed=args.seed), sources, "Augmenting",
                                     args.jobs or utils.jobs_for(".", sources))
    n_written, n_bad = sum(written.values()), utils.name_skipped(errors)
    print(f"{n_written} copies written, {len(written) * args.n - n_written} were there already, "
          f"{n_bad} files skipped\nNext: python preprocess_data.py")
    return n_bad


if __name__ == "__main__":
    import augment_data  # by this name, not as __main__, its processes find what they run
    utils.run(augment_data.main)
