"""What preprocessing costs beside the plain loop of librosa calls, and where its time goes.

Makes some hundred guitar notes of 2 s (44.1 kHz, 16 bit, mono) in a temporary folder. Times each
way in a process of its own, five rounds of all ways in turn. Prints the median of the rounds and
the median ratio. torch.stft is timed where torch is installed.

    python benchmarks/preprocess.py
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np
import soundfile

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
import preprocess_data  # noqa: E402
import utils  # noqa: E402

ROUNDS = 5
SETTINGS = utils.FeatureSettings(sample_rate=44100, n_mels=96, n_fft=2048, hop_length=512)


# ---------------------------------------------------------------- ways: functions of a path


def loop_librosa(out):
    import librosa

    def step(path):
        y, sample_rate = librosa.load(path, sr=None)
        mel = librosa.feature.melspectrogram(y=y, sr=sample_rate, n_mels=96)
        np.save(out / f"{path.name}.npy", librosa.power_to_db(mel))

    return step


def loop_ours(out):
    plan = preprocess_data.Plan(Path("Samples"), out, SETTINGS)
    return lambda path: preprocess_data.write_spectrogram(
        path.relative_to("Samples").as_posix(), plan)


def features_librosa(out):
    import librosa

    return lambda path: librosa.feature.melspectrogram(y=sound(path), sr=44100, n_mels=96)


def features_ours(out):
    return lambda path: utils.log_mel_spectrogram([sound(path)[None]], SETTINGS)


def features_torch(out):
    import torch

    torch.set_num_threads(1)
    window = torch.hann_window(2048)
    filters = torch.from_numpy(SETTINGS.filters.toarray()).float()

    def step(path):
        spectrum = torch.stft(
            torch.from_numpy(sound(path)),
            2048,
            512,
            window=window,
            pad_mode="constant",
            return_complex=True,
        )
        return filters @ (spectrum.real**2 + spectrum.imag**2)

    return step


def fft(dtype, out):
    import scipy.fft

    frames = np.ones((173, 2048), dtype)  # of a sound of 2 s
    return lambda path: [scipy.fft.rfft(frames[start : start + 64]) for start in range(0, 173, 64)]


def decoding(out):
    return lambda path: list(utils.read_blocks(path))


def writing(out):
    spectrogram = np.ones((96, 173), np.float32)

    def step(path):
        with utils.whole_file(out / f"{path.name}.npy") as temporary:
            np.save(temporary, spectrogram)

    return step


def computing(out):
    return lambda path: utils.sound_to_spectrogram(path, ".", SETTINGS)


def loading(out):
    return lambda path: utils.load_spectrogram(
        f"{path.parent.name}/{path.name}", "Preproc", SETTINGS
    )


WAYS = {
    "loop, librosa": loop_librosa,
    "loop, ours": loop_ours,
    "features, librosa": features_librosa,
    "features, torch.stft": features_torch,
    "features, ours": features_ours,
    "decoding": decoding,
    "FFT alone, float32": partial(fft, np.float32),
    "FFT alone, float64": partial(fft, float),
    "writing": writing,
    "arrays, computed from Samples/": computing,
    "arrays, loaded from Preproc/": loading,
}
LOADED = {}


def sound(path):
    """The samples of a file, read once: only features are timed."""
    if path not in LOADED:
        LOADED[path] = soundfile.read(path, dtype="float32")[0]
    return LOADED[path]


def time_way(name):
    """Print the seconds that one way takes for a sound, after one round that is not counted."""
    paths = sorted(Path("Samples").glob("*/*.wav"))
    with tempfile.TemporaryDirectory(dir=".") as out:
        step = WAYS[name](Path(out))
        for path in paths:
            step(path)
        began = time.perf_counter()
        for path in paths:
            step(path)
        print((time.perf_counter() - began) / len(paths))


# ---------------------------------------------------------------- commands


def run(*args, **options):
    return subprocess.run(
        [sys.executable, *map(str, args)],
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        **options,
    ).stdout


def preprocess(*args):
    """Preprocess into an empty folder. Returns the seconds, and those until the first file."""
    shutil.rmtree("Preproc", ignore_errors=True)
    began, first = time.perf_counter(), None
    process = subprocess.Popen(
        [sys.executable, ROOT / "preprocess_data.py", *args], stdout=subprocess.DEVNULL
    )
    while process.poll() is None:
        if first is None and any(Path("Preproc").glob("*/*.npy")):
            first = time.perf_counter() - began
        time.sleep(0.005 if first is None else 0.05)
    assert process.returncode == 0
    return time.perf_counter() - began, first


def many(n_files):
    """Samples of many names: links to the same clips."""
    clips = sorted(Path("Samples").glob("*/*.wav"))
    for k in range(n_files):
        target = Path("Many", clips[k % len(clips)].parent.name, f"{k}.wav")
        target.parent.mkdir(parents=True, exist_ok=True)
        os.link(clips[k % len(clips)], target)


def median_of(label, unit, values, others=None, note=""):
    """Print the median of values, and of the ratios to `others`, round by round."""
    ratio = "" if others is None else f"{np.median(np.divide(others, values)):8.2f} times"
    print(f"{label:44} {np.median(values):9.3f} {unit:9}{ratio}{note}", flush=True)


def compare_ways():
    ways = {name: [] for name in WAYS}
    for _ in range(ROUNDS):
        for name in list(ways):
            try:
                ways[name].append(1e3 * float(run(__file__, name)))
            except subprocess.CalledProcessError as error:
                assert "torch" in name and "ModuleNotFoundError" in error.stderr, error.stderr
                del ways[name]
    for name, values in ways.items():
        against = {
            "loop": "loop, librosa",
            "features": "features, librosa",
            "arrays": "arrays, computed from Samples/",
        }.get(name.split(",")[0])
        median_of(
            name,
            "ms/sound",
            values,
            ways.get(against),
            f" the speed of: {against}" if against else "",
        )


def compare_commands(n_files=10000):
    many(n_files)
    rounds = [
        (preprocess("--samples", "Many", "--jobs", "1")[0], *preprocess("--samples", "Many"))
        for _ in range(ROUNDS)
    ]
    one, all_cores, first = np.transpose(rounds)
    median_of(f"whole command, {n_files} sounds, --jobs 1", "s", one)
    median_of(
        f"whole command, {n_files} sounds, {os.cpu_count()} cores",
        "s",
        all_cores,
        one,
        " the speed of --jobs 1",
    )
    median_of("start to first file", "s", first)


def check_unchanged(n_files=20000):
    rng = np.random.default_rng(0)
    for k in range(n_files):
        path = Path("Tiny", f"class {k % 10}", f"{k}.wav")
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, rng.uniform(-0.5, 0.5, 100), 8000)
    command = ROOT / "preprocess_data.py", "--samples", "Tiny", "--preproc", "TinyPreproc"
    run(*command)
    seconds = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        assert f"{n_files} kept" in run(*command)
        seconds.append(time.perf_counter() - began)
    median_of(f"whole command, {n_files} unchanged sounds", "s", seconds)


def measure_hour():
    Path("Long/a").mkdir(parents=True)
    minute = np.random.default_rng(0).uniform(-0.5, 0.5, 60 * 44100)
    with soundfile.SoundFile("Long/a/hour.wav", "w", 44100, 1) as file:
        for _ in range(60):
            file.write(minute)
    process = subprocess.Popen(
        [sys.executable, ROOT / "preprocess_data.py", "--samples", "Long", "--jobs", "1"],
        stdout=subprocess.DEVNULL,
    )
    usage = os.wait4(process.pid, 0)[2]
    median_of("an hour of sound: peak memory", "MB", [usage.ru_maxrss / 1024])


def main():
    if len(sys.argv) > 1:
        time_way(sys.argv[1])
        return
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        run(ROOT / "examples/guitar_effects.py", "Samples", "--notes", "8")
        print(f"{len(list(Path('Samples').glob('*/*')))} notes of 2 s, medians of {ROUNDS} rounds")
        preprocess()
        for measure in (compare_ways, compare_commands, check_unchanged, measure_hour):
            measure()
        os.chdir(ROOT)


if __name__ == "__main__":
    main()
