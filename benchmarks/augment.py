"""Compare altered copies with those of 2017: their time, their look, and the accuracy they bring.

Without an argument: the time of a copy of a synthetic guitar note (2 s, 44.1 kHz, mono, one core).
The six deformations of 2017 through librosa.effects and those of augment_data.py run in turn.
Medians of five rounds are printed.

    python benchmarks/augment.py

With the name of a picture to write: what each deformation does to three notes.

    python benchmarks/augment.py examples/augmentations.png

With the folder of the Free Spoken Digit Dataset, one folder a digit: the accuracy of networks that
train on 20 sounds a digit, without copies and with four copies of each. Each of three seeds takes
other sounds. The accuracy is that on the official test set and, as 300 sounds decide little, that
on the 2,500 others that training does not see. Flags after the folder go to preprocessing.

    python benchmarks/augment.py FSDD
    python benchmarks/augment.py FSDD --without dynamics
"""
import argparse
import csv
import hashlib
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

if len(sys.argv) == 1:
    os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1")

import numpy as np

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "examples")]
import augment_data  # noqa: E402
import utils  # noqa: E402

ROUNDS, COPIES, RATE = 5, 40, 44100
OF_2017 = tuple(name for name in augment_data.DEFORMATIONS if name not in ("dynamics", "polarity"))


# ---------------------------------------------------------------- the six deformations of 2017

def speed_with_pitch(y, rng):
    return fit(np.interp(np.arange(0, len(y), rng.uniform(0.9, 1.1)), np.arange(len(y)), y), len(y))


def pitch(y, rng):
    import librosa
    return librosa.effects.pitch_shift(y, sr=RATE, n_steps=rng.uniform(-4, 4), bins_per_octave=24)


def speed(y, rng):
    import librosa
    return fit(librosa.effects.time_stretch(y, rate=rng.uniform(0.9, 1.1)), len(y))


def gain(y, rng):
    return y * rng.uniform(0.5, 1.1)


def noise(y, rng):
    return y + 0.005 * rng.uniform() * y.max() * rng.normal(size=len(y))


def shift(y, rng):
    n = int(len(y) * rng.uniform(-0.2, 0.2))
    return np.pad(y, (max(0, n), max(0, -n)))[max(0, -n):][:len(y)]


def fit(y, n):
    return np.pad(y[:n], (0, max(0, n - len(y)))).astype(np.float32)


LIBROSA = {"speed_with_pitch": speed_with_pitch, "pitch": pitch, "speed": speed, "gain": gain,
           "noise": noise, "shift": shift}


def copy_2017(y, k, names):
    """Each deformation with chance one half, one at least."""
    rng = np.random.default_rng(k)
    choice = rng.integers(1, 2 ** len(names))
    for i, name in enumerate(names):
        if choice >> i & 1:
            y = LIBROSA[name](y, rng)
    return y


# ---------------------------------------------------------------- time

def seconds_of(function):
    began = time.perf_counter()
    for k in range(1, COPIES + 1):
        function(k)
    return (time.perf_counter() - began) / COPIES


def compare_times():
    import guitar_effects
    y = guitar_effects.pluck(6, 1, 2, 5, np.random.default_rng(0)).astype(np.float32)

    def old(names):
        return lambda k: copy_2017(y, k, names)

    def new(names):
        return lambda k: augment_data.make_copy(y[:, None], RATE, "note.wav", k, names=names)

    def old_warp(k):
        return speed(pitch(y, np.random.default_rng(k)), np.random.default_rng(k))

    def new_warp(k):
        return augment_data.warp_sound(y[:, None], RATE, 1, 0.1 * k / COPIES, 1.05)

    ways = {"all, six of 2017 against the same six": (old(OF_2017), new(OF_2017)),
            "all, six of 2017 against eight": (old(OF_2017), new(tuple(augment_data.DEFORMATIONS))),
            "pitch and speed together": (old_warp, new_warp),
            **{name: (old((name,)), new((name,))) for name in OF_2017},
            "dynamics": (None, new(("dynamics",)))}
    print(f"ms a copy of a note of 2 s, medians of {ROUNDS} rounds of {COPIES} copies\n"
          f"{'':40} {'librosa':>8} {'here':>8} {'ratio':>8}")
    for label, way in ways.items():
        rounds = [[1e3 * seconds_of(function) if function else np.nan for function in way]
                  for _ in range(ROUNDS + 1)]
        old_ms, new_ms = np.transpose(rounds[1:])
        print(f"{label:40} {np.median(old_ms):8.2f} {np.median(new_ms):8.2f} "
              f"{np.median(old_ms / new_ms):8.2f}", flush=True)


# ---------------------------------------------------------------- sound

def sine(hertz):
    return 0.5 * np.sin(2 * np.pi * hertz * np.arange(2 * RATE) / RATE).astype(np.float32)


def cents_off(shift_pitch):
    """The worst deviation of the strongest partial, sines from 80 to 4000 Hz by four intervals."""
    worst = 0
    for hertz in (80, 110, 220, 440, 1000, 2000, 4000):
        for semitones in (-2, -0.5, 0.7, 1.5):
            copy = shift_pitch(sine(hertz), semitones)[RATE // 2:-RATE // 2]
            spectrum = np.abs(np.fft.rfft(copy * np.hanning(len(copy)), 2**21))
            found = np.argmax(spectrum) * RATE / 2**21
            worst = max(worst, abs(1200 * np.log2(found / hertz) - 100 * semitones))
    return worst


def click_kept(stretch):
    """The percentage of a click's energy within 2 ms of its place, at 0.9 times the speed."""
    y = np.zeros(2 * RATE, np.float32)
    y[RATE:RATE + 40] = np.hanning(40)
    copy, place, reach = stretch(y, 0.9), round((RATE + 20) / 0.9), RATE // 500
    return 100 * np.sum(copy[place - reach:place + reach] ** 2) / np.sum(copy**2)


def chord_off(stretch):
    """The difference of a stretched chord's spectrogram from that of the fast chord, in dB."""
    import librosa
    time = np.arange(2 * RATE) / RATE

    def chord(speed):
        notes = [np.sin(2 * np.pi * hertz * n * time + n) / n
                 for hertz in (110, 164.8, 220, 277.2, 329.6) for n in range(1, 11)]
        return np.sum(np.exp(-2 * time * speed) * notes, axis=0, dtype=np.float32)

    def magnitude(y):
        return np.abs(librosa.stft(y[:int(1.8 * RATE)], n_fft=1024))
    copy = magnitude(stretch(chord(1), 1.1))
    ideal = magnitude(chord(1.1))
    return 20 * np.log10(np.linalg.norm(copy - ideal) / np.linalg.norm(ideal))


def alias_of(speed_up):
    """The rest of a tone of 21.5 kHz that goes to 23.6 kHz, beyond half the rate, in dB."""
    y = sine(21500) * np.hanning(2 * RATE).astype(np.float32)
    return 20 * np.log10(np.linalg.norm(speed_up(y)) / np.linalg.norm(y) + 1e-10)


def compare_sound():
    import librosa

    def warp(y, *args, **options):
        return augment_data.warp_sound(y[:, None], RATE, *args, **options)[:, 0]

    def stretch(y, speed):
        return augment_data.stretch_sound(y[:, None], RATE, speed)[:, 0]

    def stretch_librosa(y, speed):
        return librosa.effects.time_stretch(y, rate=speed)
    rows = (("pitch, worst deviation on sines, cents", cents_off,
             lambda y, n: librosa.effects.pitch_shift(y, sr=RATE, n_steps=n),
             lambda y, n: warp(y, pitch_semitones=n)),
            ("a click's energy within 2 ms, percent", click_kept, stretch_librosa, stretch),
            ("a chord beside the ideal, dB", chord_off, stretch_librosa, stretch),
            ("alias, linear interpolation and here, dB", alias_of,
             lambda y: np.interp(np.arange(0, len(y), 1.1), np.arange(len(y)), y),
             lambda y: warp(y, 1.1)))
    for label, measure, old, new in rows:
        print(f"{label:40} {measure(old):8.2f} {measure(new):8.2f}", flush=True)


# ---------------------------------------------------------------- looks

def draw_deformations(path):
    import guitar_effects
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    rng = np.random.default_rng(0)
    y = np.zeros(2 * RATE, np.float32)
    for n, level in enumerate((0.9, 0.3, 0.05)):
        start = n * RATE // 2
        y[start:] += level * guitar_effects.pluck(6, 3, n, 5, rng)[:len(y) - start]
    y = 0.8 * y[:, None] / np.abs(y).max()
    settings = utils.default_settings(RATE)
    figure, axes = plt.subplots(3, 3, figsize=(10, 7), sharex=True, sharey=True,
                                layout="constrained")
    for axis, parameters in zip(axes.flat, SHOWN):
        copy = augment_data.deform_sound(y, RATE, parameters, np.random.default_rng(0))
        db = utils.log_mel_spectrogram([copy.T], settings)
        image = axis.imshow(db, origin="lower", aspect="auto", cmap="magma", vmin=-60, vmax=30,
                            extent=(0, 2, 0, 96))
        title = ", ".join(f"{name} {value}" for name, value in parameters.items())
        axis.set_title(title or "the sound", fontsize=9)
    figure.supxlabel("Time (s)")
    figure.supylabel("Mel band")
    figure.colorbar(image, ax=axes, label="dB")
    figure.savefig(path, dpi=72)


SHOWN = ({}, {"speed_with_pitch_ratio": 1.1}, {"pitch_semitones": 2.0}, {"speed_ratio": 1.1},
         {"compression": "speech", "compression_share": 1.0}, {"gain_db": -20.0},
         {"noise": "pink", "snr_db": 15.0}, {"shift_share": 0.1, "shift_fill": "silence"},
         {"shift_share": 0.1, "shift_fill": "rotation"})


# ---------------------------------------------------------------- use

def some_of(paths, n, seed):
    """n of the sounds of each digit, in an order that the seed decides."""
    chosen = {}

    def place(path):
        return hashlib.sha256(f"{seed}/{path.name}".encode()).digest()
    for path in sorted(paths, key=place):
        digit = chosen.setdefault(path.parent.name, [])
        if len(digit) < n:
            digit.append(path)
    return [path for digit in chosen.values() for path in digit]


def script(name, *args):
    command = [sys.executable, ROOT / name, *map(str, args)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def is_official(name):
    return re.search(r"_[0-4]\.wav$", name) is not None


def accuracy(paths, train, n_copies, seed, flags):
    """Run the scripts with their defaults, and train on the sounds `train`.

    Returns the accuracy in percent on the official test set and on all other sounds, and the
    seconds of training.
    """
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        for path in paths:
            mark = "train-" if path in train else ""
            link = Path("Samples", path.parent.name, mark + path.name)
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(path)
        script("preprocess_data.py", "--augment", n_copies, *flags)
        began = time.perf_counter()
        script("train_network.py", "--test", "/(?!train-)", "--seed", seed)
        seconds = time.perf_counter() - began
        script("eval_network.py")
        with open("Results/scores.csv", newline="") as file:
            rows = list(csv.DictReader(file))
        os.chdir(ROOT)
    official = [row["class"] == row["predicted"] for row in rows if is_official(row["file"])]
    others = [row["class"] == row["predicted"] for row in rows if not is_official(row["file"])]
    return 100 * np.mean(official), 100 * np.mean(others), seconds


def compare_accuracy(fsdd, flags):
    paths, found = sorted(fsdd.resolve().glob("*/*.wav")), []
    print("seed, copies: official test set, other sounds, seconds of training")
    for seed in range(3):
        train = set(some_of([path for path in paths if not is_official(path.name)], 20, seed))
        for n_copies in (0, 4):
            found.append(accuracy(paths, train, n_copies, seed, flags if n_copies else ()))
            print(seed, n_copies, *np.round(found[-1], 2), flush=True)
    for n_copies, rows in ((0, found[::2]), (4, found[1::2])):
        print("mean", n_copies, *np.round(np.mean(rows, axis=0), 2))


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", nargs="?", type=Path,
                        help="a picture to write, or the folder of digits")
    args, flags = parser.parse_known_args()
    if args.path is None:
        compare_times()
        compare_sound()
    elif args.path.suffix == ".png":
        draw_deformations(args.path)
    else:
        compare_accuracy(args.path, flags)


if __name__ == "__main__":
    main()
