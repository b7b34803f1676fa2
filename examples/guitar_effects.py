"""Synthesise a data set of twelve guitar effects: each plucked note goes through every effect.

Reads nothing. Writes 2-second WAV files (44.1 kHz, 16 bit, mono) to OUT/<effect>/. The classes,
settings and file names follow IDMT-SMT-Audio-Effects. The parts of G61-47202-3341-00017.wav are:

    G61    guitar and pickup 6, playing style 1
    47202  MIDI note 47, on string 2 at fret 02
    3341   effect group 3, type 34 (Tremolo), setting 1
    00017  running number

    python examples/guitar_effects.py demo/Samples --notes 20
"""

import argparse
from pathlib import Path

import numpy as np
import soundfile
from joblib import Parallel, delayed
from scipy.signal import butter, fftconvolve, lfilter, sosfilt

SAMPLE_RATE = 44100  # Hz
TIME = np.arange(2 * SAMPLE_RATE) / SAMPLE_RATE  # s
OPEN_STRINGS = 40, 45, 50, 55, 59, 64  # MIDI notes of a guitar in standard tuning
ALL_NOTES = [
    (guitar, style, string, fret)
    for guitar in (6, 7, 8, 9) for style in (1, 3) for string in range(6) for fret in range(13)
]  # 624 dry notes, as in the recorded set


# ---------------------------------------------------------------- the dry note


def pluck(guitar, style, string, fret, rng):
    """A Karplus-Strong string: noise through a tuned comb that damps high frequencies."""
    # In samples.
    period = SAMPLE_RATE / (440 * 2 ** ((OPEN_STRINGS[string] + fret - 69 + rng.normal(0, 0.03))
                                        / 12))
    burst = rng.normal(size=int(period)) * np.hanning(int(period))
    # Finger or plectrum.
    burst = lfilter(*butter(1, rng.uniform(0.06, 0.12) * (1 if style == 1 else 4)), burst)
    # Where the string is plucked, which acts as a comb filter.
    position = max(1, int(period * rng.uniform(0.1, 0.3)))
    excitation = np.zeros(len(TIME))
    onset = int(rng.uniform(0.005, 0.05) * SAMPLE_RATE)
    excitation[onset : onset + len(burst)] = burst
    excitation[onset + position : onset + position + len(burst)] -= burst
    whole, part = divmod(period - 0.5, 1)  # the two-tap damping filter delays by half a sample
    loop = np.zeros(int(whole) + 3)
    loop[0] = 1
    loop[-3:] = -np.convolve([0.5, 0.5], [1 - part, part]) * 0.001 ** (
        period / SAMPLE_RATE / rng.uniform(2, 5)
    )
    tone = lfilter(
        *butter(2, (80, 2500 + 700 * guitar), "bandpass", fs=SAMPLE_RATE),
        lfilter([1], loop, excitation),
    )
    return tone / np.abs(tone).max() + rng.normal(0, 10 ** (rng.uniform(-75, -60) / 20), len(TIME))


# ---------------------------------------------------------------- effects: (dry, values, rng)


def sweep(rate, rng):
    """A low-frequency sine of `rate` Hz between 0 and 1, from a random phase."""
    return 0.5 + 0.5 * np.sin(2 * np.pi * (rate * TIME + rng.random()))


def delayed_by(dry, seconds):
    """The note delayed by a time that may change with every sample, interpolated."""
    return np.interp(TIME - seconds, TIME, dry, left=0)


def no_fx(dry, _, rng):
    return dry


def eq(dry, values, rng):
    low, high, amount = values
    return dry + amount * sosfilt(
        butter(1, (low, high), "bandpass", fs=SAMPLE_RATE, output="sos"), dry
    )


def feedback_delay(dry, values, rng):
    seconds, feedback = values
    return sum(feedback**k * delayed_by(dry, k * seconds) for k in range(12))


def slapback_delay(dry, values, rng):
    seconds, amount = values
    return dry + amount * delayed_by(dry, seconds)


def reverb(dry, values, rng):
    seconds, amount = values  # until 60 dB down
    room = rng.normal(size=len(TIME)) * 10 ** (-3 * TIME / seconds)
    return dry + amount * fftconvolve(dry, room)[: len(TIME)] / np.sqrt((room**2).sum())


def chorus(dry, values, rng):
    rate, depth = values
    return dry + sum(0.5 * delayed_by(dry, 0.02 + depth * sweep(rate * k, rng)) for k in (1, 1.3))


def flanger(dry, values, rng):
    rate, feedback = values
    seconds = 0.0005 + 0.005 * sweep(rate, rng)
    out = dry
    for _ in range(5):  # the feedback loop, unrolled
        out = dry + feedback * delayed_by(out, seconds)
    return out


def phaser(dry, values, rng):
    rate, n_stages = values
    step = 64  # samples between changes of the allpass frequency, 1.5 ms
    tangent = np.tan(np.pi * 200 * 12 ** sweep(rate, rng)[::step] / SAMPLE_RATE)
    wet, state = np.empty_like(dry), np.zeros((n_stages, 2))
    for k, a in enumerate((tangent - 1) / (tangent + 1)):
        span = slice(k * step, (k + 1) * step)
        wet[span], state = sosfilt(np.tile([a, 1, 0, 1, a, 0], (n_stages, 1)), dry[span], zi=state)
    return dry + wet


def tremolo(dry, values, rng):
    rate, depth = values
    return dry * (1 - depth * sweep(rate, rng))


def vibrato(dry, values, rng):
    rate, depth = values
    return delayed_by(dry, 0.002 + depth * sweep(rate, rng))


def clip(dry, values, rng):
    drive, offset, cutoff = values  # an offset clips one side first and adds even harmonics
    shaped = np.tanh(drive * dry + offset) - np.tanh(offset)
    return lfilter(*butter(1, cutoff, fs=SAMPLE_RATE), shaped)


EFFECTS = {  # class: (IDMT's group and type, function, values of each setting)
    "NoFX": (11, no_fx, [()]),
    "EQ": (12, eq, [(100, 400, 2.5), (1500, 4000, 4.0)]),
    "FeedbackDelay": (21, feedback_delay, [(0.15, 0.6), (0.25, 0.5), (0.4, 0.55)]),
    "SlapbackDelay": (22, slapback_delay, [(0.06, 0.7), (0.1, 0.6), (0.14, 0.8)]),
    "Reverb": (23, reverb, [(0.6, 0.5), (1.2, 0.5), (2.5, 0.6)]),
    "Chorus": (31, chorus, [(0.6, 0.004), (1.1, 0.003), (2.0, 0.002)]),
    "Flanger": (32, flanger, [(0.3, 0.7), (0.7, 0.6), (1.5, 0.75)]),
    "Phaser": (33, phaser, [(0.4, 4), (0.9, 4), (1.6, 6)]),
    "Tremolo": (34, tremolo, [(3.5, 0.7), (5.5, 0.6), (8.0, 0.8)]),
    "Vibrato": (35, vibrato, [(4.0, 0.0012), (5.5, 0.0009), (7.0, 0.0007)]),
    "Distortion": (41, clip, [(20, 0.0, 5000), (40, 0.0, 4000), (80, 0.0, 6000)]),
    "Overdrive": (42, clip, [(3, 0.4, 5000), (5, 0.5, 4000), (8, 0.6, 6000)]),
}
N_SETTINGS = sum(len(settings) for _, _, settings in EFFECTS.values())  # 33: 20,592 files in all


def file_name(index, code, setting, number):
    """The name of dry note `index` of ALL_NOTES through an effect's setting."""
    guitar, style, string, fret = ALL_NOTES[index]
    note = f"{OPEN_STRINGS[string] + fret}{string + 1}{fret:02d}"
    return f"G{guitar}{style}-{note}-{code // 10}{code}{setting}-{number:05d}.wav"


def write_note(index, out, seed):
    """Write note `index` of ALL_NOTES through every setting. Only seed and index decide it."""
    rng = np.random.default_rng([seed, index])
    dry, number = pluck(*ALL_NOTES[index], rng), index * N_SETTINGS
    for effect, (code, function, settings) in EFFECTS.items():
        for setting, values in enumerate(settings, 1):
            number += 1
            sound = function(dry, values, rng)
            # A new array: dry itself stays as it is.
            sound = sound * 10 ** (rng.uniform(-12, -1) / 20) / np.abs(sound).max()
            path = out / effect / file_name(index, code, setting, number)
            soundfile.write(path, sound, SAMPLE_RATE, "PCM_16")


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder to write to, such as Samples")
    parser.add_argument(
        "--notes", type=int, default=20, choices=range(2, len(ALL_NOTES) + 1), metavar="N",
        help=f"dry notes, 2 to {len(ALL_NOTES)} (default: 20); each gives {N_SETTINGS} files")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    for effect in EFFECTS:
        (args.out / effect).mkdir(parents=True, exist_ok=True)
    notes = np.random.default_rng(args.seed).permutation(len(ALL_NOTES))[: args.notes]
    Parallel(n_jobs=-1)(delayed(write_note)(int(index), args.out, args.seed) for index in notes)
    print(f"{args.out}: {len(notes) * N_SETTINGS} sounds, {len(notes)} notes through "
          f"{N_SETTINGS} settings of {len(EFFECTS)} effects")


if __name__ == "__main__":
    main()
