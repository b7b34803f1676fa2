"""Measure the trained network beside the classic way, and what its use costs.

classic: scikit-learn's SVM (RBF, on the standardised mean and deviation of each mel band and of
its differences from frame to frame, the approach of Stein et al., 2010). It is fitted on the
training and validation sounds of weights.keras. Five folds of them choose its C. Both are scored
on the same test sounds.
speed: new sounds a second, the seconds to the first answer, an hour's detections and their memory.
many: the seconds and the peak memory that 40,000 test sounds of 500 classes take.

Run it where training was run:

    python benchmarks/evaluate.py classic
    python benchmarks/evaluate.py speed Samples/*/*
    python benchmarks/evaluate.py many
"""
import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import scipy

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import eval_network
import utils

ROOT = Path(__file__).resolve().parent.parent
HOUR = 3600  # seconds
KERAS_MEMORY = """
import sys; sys.path.insert(0, sys.argv[1])
import resource, numpy, models
network, _ = models.load_network("weights.keras")
window = numpy.zeros(network.input_shape[1:], numpy.float32)
list(models.predict_sounds(network, [("x", window)]))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""


# ---------------------------------------------------------------- classic

def describe_bands(spectrogram):
    """Describe each mel band and its differences by mean and deviation. [shape=(4 * n_mels,)]"""
    margins = [(0, 0)] * (spectrogram.ndim - 1) + [(0, 1)]
    padded = np.pad(spectrogram, margins, "edge")  # so that one frame has a difference too
    differences = np.diff(padded)
    return np.concatenate([function(x, axis=-1).ravel() for x in (spectrogram, differences)
                           for function in (np.mean, np.std)])


def fit_svm(x, y):
    """Fit the SVM on descriptions [shape=(n, n_features)] of sounds of classes y [shape=(n,)]."""
    from sklearn.model_selection import GridSearchCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from sklearn.svm import SVC
    began = time.perf_counter()
    pipeline = make_pipeline(StandardScaler(), SVC())
    svm = GridSearchCV(pipeline, {"svc__C": [1, 10, 100]}).fit(x, y)
    c = svm.best_params_["svc__C"]
    print(f"SVM: C {c}, fitted in {time.perf_counter() - began:.1f} s")
    return svm


def score_svm(svm, x):
    """Score sounds by the SVM, as probabilities [shape=(n, n_classes)] of no meaning but order."""
    decisions = svm.decision_function(x).reshape(len(x), -1)
    if decisions.shape[1] == 1:  # two classes
        decisions = np.concatenate([-decisions, decisions], axis=1)
    return scipy.special.softmax(decisions, axis=1)


def compare_with_svm():
    import models
    network, training = models.load_network("weights.keras")
    split = training.split
    classes = training.classes
    source = utils.find_source(Path("Samples"), Path("Preproc"), training.features)
    spectrograms, _ = utils.read_spectrograms(source, source.names)
    used = {*split.train, *split.validation} & set(spectrograms)
    names = utils.originals(used, source.copies)
    tests = [name for name in split.test if name in spectrograms]
    x = np.stack([describe_bands(spectrograms[name]) for name in names])
    x_test = np.stack([describe_bands(spectrograms[name]) for name in tests])
    y = models.class_indices(tests, classes)
    svm = fit_svm(x, models.class_indices(names, classes))
    sounds = ((name, spectrograms[name]) for name in tests)
    network_scores = np.stack([row for _, row in models.predict_sounds(network, sounds)])
    print(f"{'':8} accuracy  balanced  macro F1  macro AUC   of {len(tests)} sounds")
    for label, p in (("SVM", score_svm(svm, x_test)), ("network", network_scores)):
        groups = training.find_groups(tests)
        report = eval_network.measure_scores(
            eval_network.Predictions(tests, y, p, p, groups, classes))
        print(f"{label:8} {report['accuracy']:8.4f}  {report['balanced_accuracy']:8.4f}  "
              f"{report['macro_f1']:8.4f}  {report['macro_auc']:9.4f}")


# ---------------------------------------------------------------- speed

def time_lines(script, *args, cwd="."):
    """Run a script. Returns the seconds until each line, and its peak memory in MB."""
    lines = []
    began = time.perf_counter()
    command = [sys.executable, ROOT / script, *map(str, args)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=cwd) as process:
        for _ in process.stdout:
            lines.append(time.perf_counter() - began)
        _, process.returncode, usage = os.wait4(process.pid, 0)
    return lines, usage.ru_maxrss / 1024


def write_hour(path, sounds):
    """Write an hour of the sounds one after another at 44.1 kHz, whatever their own rate."""
    import soundfile
    n = 0
    k = 0
    with soundfile.SoundFile(path, "w", 44100, 1) as file:
        while n < HOUR * 44100:
            y, _ = soundfile.read(sounds[k % len(sounds)], dtype="float32", always_2d=True)
            file.write(y.mean(axis=1))
            n += len(y)
            k += 1


def measure_speed(sounds):
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", "import keras"], capture_output=True, check=True)
    keras = time.perf_counter() - began
    lines, _ = time_lines("eval_network.py", *sounds)
    lines = lines[:len(sounds)]  # without the counts at the end
    rate = (len(lines) - 1) / (lines[-1] - lines[0])
    print(f"{len(lines)} sounds: first answer after {lines[0]:.1f} s (loading Keras alone took "
          f"{keras:.1f} s); then {rate:.0f} sounds a second")
    command = [sys.executable, "-c", KERAS_MEMORY, ROOT]
    alone = float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "hour.wav")
        write_hour(path, sounds)
        lines, peak = time_lines("examples/detect.py", path, "--results", folder)
    print(f"detections in an hour at 44.1 kHz: {lines[-1]:.0f} s; {peak:.0f} MB at its peak, "
          f"{peak - alone:.0f} MB beyond the {alone:.0f} MB that Keras and the network take")


# ---------------------------------------------------------------- many classes

def measure_many(n_classes=500, n=80):
    """Train for an epoch on two sounds of each class, and evaluate n others of each."""
    features = {"sample_rate": 8000, "n_mels": 16, "n_fft": 512, "hop_length": 128, "channels": 1}
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        for k in range(n_classes):
            path = Path(folder, f"Preproc/{k:03d}")
            path.mkdir(parents=True)
            for i in range(n + 2):
                array = rng.normal(-50 + k / 20, 10, (16, 16)).astype(np.float32)
                np.save(path / f"{'test' if i < n else 'train'}{i}.wav.npy", array)
        settings = {"features": features, "copies": {}, "finished": True}
        utils.save_json(Path(folder, "Preproc", utils.SETTINGS_FILE), settings)
        flags = ["--test", "test", "--epochs", 1, "--layers", 1, "--filters", 4]
        time_lines("train_network.py", *flags, cwd=folder)
        began = time.perf_counter()
        lines, peak = time_lines("eval_network.py", cwd=folder)
        seconds = time.perf_counter() - began
    print(f"{n_classes * n} sounds of {n_classes} classes: {seconds:.0f} s, {peak:.0f} MB at its "
          f"peak, the longest silence {max(np.diff([0, *lines])):.0f} s")


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("classic", "speed", "many"))
    parser.add_argument("sounds", nargs="*", type=Path)
    args = parser.parse_args()
    if args.what == "speed" and not args.sounds:
        parser.error("speed: no sounds given; name some")
    if args.what == "classic":
        compare_with_svm()
    elif args.what == "speed":
        measure_speed(args.sounds)
    else:
        measure_many()


if __name__ == "__main__":
    main()
