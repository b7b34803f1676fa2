"""The trained network beside the classic way, and what its use costs; run where training was run.

classic: scikit-learn's SVM (RBF, on the mean and deviation of each mel band and of its differences from frame to
frame, standardised: the approach of Stein et al., 2010), fitted on the training and validation
sounds of weights.keras, its C chosen by five folds of these, and scored on the same test sounds.
speed: new sounds a second, the seconds until the first answer and where they go, an hour's timeline and its memory.
many: the seconds and the peak memory that 40,000 test sounds of 500 classes take.

    python benchmarks/evaluate.py classic
    python benchmarks/evaluate.py speed Samples/*/*
    python benchmarks/evaluate.py many
"""
import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import scipy.special

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
EVALUATE = [sys.executable, str(ROOT / "eval_network.py")]
HOUR = 3600  # seconds
RSS = """
import sys; sys.path.insert(0, sys.argv[1]); import resource, numpy as np, models
network, info = models.load("weights.keras")
list(models.predict(network, [("x", np.zeros(network.input_shape[1:], np.float32))]))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""


def statistics(spectrogram):
    """The mean and deviation over time of each mel band and of its differences. [shape=(4 * n_mels,)]"""
    padded = np.pad(spectrogram, [(0, 0)] * (spectrogram.ndim - 1) + [(0, 1)], "edge")  # one frame has a difference too
    return np.concatenate([f(x, axis=-1).ravel() for x in (spectrogram, np.diff(padded)) for f in (np.mean, np.std)])


def classic():
    from sklearn.model_selection import GridSearchCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from sklearn.svm import SVC

    import eval_network
    import models
    import train_network
    network, info = models.load("weights.keras")
    settings = train_network.FeatureSettings(**info["features"])
    source = train_network.find_source(Path("Samples"), Path("Preproc"), settings)
    held, _ = train_network.read_spectrograms(source, source.names)
    names = train_network.originals({*info["train"], *info["validation"]} & set(held), source.copies)
    tests = [name for name in info["test"] if name in held]
    classes, x = info["classes"], {name: statistics(held[name]) for name in [*names, *tests]}
    y_train, y = (models.one_hot(some, classes).argmax(axis=1) for some in (names, tests))
    began = time.perf_counter()
    machine = GridSearchCV(make_pipeline(StandardScaler(), SVC()), {"svc__C": [1, 10, 100]})
    machine.fit(np.stack([x[name] for name in names]), y_train)
    print(f"SVM: C {machine.best_params_['svc__C']}, fitted in {time.perf_counter() - began:.1f} s")
    decisions = machine.decision_function(np.stack([x[name] for name in tests])).reshape(len(tests), -1)
    if decisions.shape[1] == 1:  # two classes
        decisions = np.concatenate([-decisions, decisions], axis=1)
    svm = scipy.special.softmax(decisions, axis=1)
    scores = np.stack([row for _, row in models.predict(network, ((name, held[name]) for name in tests))])
    print(f"{'':8} accuracy  balanced  macro F1  macro AUC   of {len(tests)} sounds")
    for label, p in (("SVM", svm), ("network", scores)):
        report = eval_network.measure(y, p, p, info)
        print(f"{label:8} {report['accuracy']:8.4f}  {report['balanced_accuracy']:8.4f}  {report['macro_f1']:8.4f}  "
              f"{report['macro_auc']:9.4f}")


def timed(arguments, cwd="."):
    """Run evaluation. Returns the seconds until each line, and its peak of memory in MB."""
    began, lines = time.perf_counter(), []
    with subprocess.Popen([*EVALUATE, *map(str, arguments)], stdout=subprocess.PIPE, text=True, cwd=cwd) as process:
        for _ in process.stdout:
            lines.append(time.perf_counter() - began)
        _, process.returncode, usage = os.wait4(process.pid, 0)
    return lines, usage.ru_maxrss / 1024


def speed(sounds):
    import soundfile
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", "import keras"], capture_output=True, check=True)
    keras = time.perf_counter() - began
    lines, _ = timed(sounds)
    print(f"{len(lines)} sounds: first answer after {lines[0]:.1f} s (loading Keras alone took {keras:.1f} s); "
          f"then {(len(lines) - 1) / (lines[-1] - lines[0]):.0f} sounds a second")
    base = float(subprocess.run([sys.executable, "-c", RSS, ROOT], capture_output=True, text=True, check=True).stdout)
    with tempfile.TemporaryDirectory() as folder:
        path, n, k = Path(folder, "hour.wav"), 0, 0
        with soundfile.SoundFile(path, "w", 44100, 1) as file:
            while n < HOUR * 44100:  # the sounds one after another, however they were recorded
                y = soundfile.read(sounds[k % len(sounds)], dtype="float32", always_2d=True)[0].mean(axis=1)
                file.write(y)
                n, k = n + len(y), k + 1
        lines, peak = timed(["--timeline", path, "--results", folder])
    print(f"an hour's timeline at 44.1 kHz: {lines[-1]:.0f} s; {peak:.0f} MB at its peak, {peak - base:.0f} MB beyond "
          f"the {base:.0f} MB that Keras and the network take by themselves")


def many(n_classes=500, n=80):
    """Train for an epoch on two sounds a class, and evaluate n others of each."""
    settings = {"sample_rate": 8000, "n_mels": 16, "n_fft": 512, "hop_length": 128, "channels": 1}
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        for k in range(n_classes):
            path = Path(folder, f"Preproc/{k:03d}")
            path.mkdir(parents=True)
            for i in range(n + 2):
                array = rng.normal(-50 + k / 20, 10, (16, 16)).astype(np.float32)
                np.save(path / f"{'test' if i < n else 'train'}{i}.wav.npy", array)
        Path(folder, "Preproc/settings.json").write_text(json.dumps(settings))
        subprocess.run([sys.executable, ROOT / "train_network.py", "--test", "test", "--epochs", "1", "--layers", "1",
                        "--filters", "4"], cwd=folder, check=True, stdout=subprocess.DEVNULL)
        began = time.perf_counter()
        lines, peak = timed([], cwd=folder)
    print(f"{n_classes * n} sounds of {n_classes} classes: {time.perf_counter() - began:.0f} s, {peak:.0f} MB at its "
          f"peak, the longest silence {max(np.diff([0, *lines])):.0f} s")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("classic", "speed", "many"))
    parser.add_argument("sounds", nargs="*", type=Path)
    args = parser.parse_args()
    if args.what == "speed" and not args.sounds:
        parser.error("speed: expected sounds, found none")
    {"classic": classic, "speed": lambda: speed(args.sounds), "many": many}[args.what]()


if __name__ == "__main__":
    main()
