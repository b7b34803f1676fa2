"""Classify sounds with an exported network, without Keras and without this project.

    python examples/export_model.py model.onnx
    pip install numpy scipy soundfile soxr onnxruntime
    python examples/classify_onnx.py model.onnx kick.wav folder/

In a program, with this file and the two of the network:

    from classify_onnx import Classifier
    classifier = Classifier("model.onnx")
    classifier.predict(y, sample_rate)  # probabilities, in the order of classifier.classes
"""
import json
import sys
from pathlib import Path

import numpy as np
import scipy
import soundfile
import soxr


class Classifier:
    """An exported network, ready for new sounds."""

    def __init__(self, model):
        """model: path of the .onnx file, with its .json beside it. Raises ValueError."""
        import onnxruntime
        try:
            self.network = onnxruntime.InferenceSession(model)
            self.info = json.loads(Path(model).with_suffix(".json").read_text())
            self.classes = self.info["classes"]
        except Exception as error:  # the kinds of damage raise different errors
            raise ValueError(f"{model}: is not an ONNX network from export_model.py, or its .json "
                             f"is damaged; export it again ({error})") from None

    def predict(self, sound, sample_rate=None):
        """Predict the probability of each class. [shape=(n_classes,)]

        sound: a path; or samples, float in [-1, 1] or int16 [shape=(n_samples,) or (n_samples,
        n_channels)], with their sample rate in Hz. Raises ValueError.
        """
        if sample_rate is None:
            y, sample_rate = read_sound(sound)
        else:
            y = np.asarray(sound)
            y = y / 2**15 if y.dtype == np.int16 else y
            y = y[:, None] if y.ndim == 1 else y  # (n_samples, n_channels)
        if y.ndim != 2 or len(y) < y.shape[1] or not np.abs(y).max() < 1e9:
            raise ValueError("expected samples (n_samples, n_channels), found none, NaN, infinity, "
                             f"values beyond 1e9, or another shape, {y.shape}")
        windows = self.make_windows(y, sample_rate)
        inputs = self.network.get_inputs()[0]
        windows = windows.reshape(len(windows), *inputs.shape[1:])  # without channels if there is 1
        probabilities = self.network.run(None, {inputs.name: windows})[0].mean(axis=0, dtype=float)
        probabilities = np.maximum(probabilities, 1e-12) ** (1 / self.info["temperature"])
        return probabilities / probabilities.sum()

    def make_windows(self, y, file_rate):
        """Make the windows of a sound. [shape=(n_windows, n_channels, n_mels, n_frames)]"""
        settings = self.info["features"]
        n_channels = settings["channels"]
        n_fft = settings["n_fft"]
        n_frames = self.info["n_frames"]

        # The sound, with the channels and at the sample rate of training.
        if n_channels == 1:
            y = y.mean(axis=1, keepdims=True)
        else:
            y = y[:, np.minimum(range(n_channels), y.shape[1] - 1)]  # repeats the last if need be
        if file_rate != settings["sample_rate"]:
            y = soxr.resample(y, file_rate, settings["sample_rate"])  # others change the scores
        if not len(y):
            y = np.zeros((1, n_channels))  # resampling may leave no sample of a very short sound

        # Its log-mel spectrogram, in dB.
        y = np.pad(y.T.astype(float), ((0, 0), (n_fft // 2, n_fft // 2)))
        frames = np.lib.stride_tricks.sliding_window_view(y, n_fft, axis=1)
        frames = frames[:, ::settings["hop_length"]]  # (n_channels, n, n_fft)
        power = np.abs(scipy.fft.rfft(frames * scipy.signal.get_window("hann", n_fft))) ** 2
        bands = []
        for mel in self.info["mel_filters"]:
            first = mel["first_bin"]
            bands.append(power[..., first:first + len(mel["weights"])] @ mel["weights"])
        power = np.maximum(np.stack(bands, axis=1), self.info["amin"])
        db = 10 * np.log10(power)  # (n_channels, n_mels, n)
        silence = max(10 * np.log10(self.info["amin"]), db.max() - self.info["top_db"])
        db = np.maximum(db, silence)

        # The fewest windows that cover it, with silence around a short sound.
        missing = max(0, n_frames - db.shape[2])
        margins = missing // 2, missing - missing // 2
        db = np.pad(db, ((0, 0), (0, 0), margins), constant_values=silence)
        last = db.shape[2] - n_frames
        starts = np.linspace(0, last, 1 + int(np.ceil(last / n_frames))).astype(int)
        windows = [db[..., start:start + n_frames] for start in starts]
        return np.stack(windows).astype(np.float32)


def read_sound(path):
    """Read a sound file. Returns float32 [shape=(n, n_channels)] and Hz. Raises ValueError."""
    blocks = []
    try:
        with soundfile.SoundFile(path) as file:
            file.seekable = lambda: False  # reads to the end: a FLAC may not give its length
            while len(block := file.read(2**16, "float32", always_2d=True)):
                blocks.append(block)  # (n, n_channels)
            rate = file.samplerate
    except (soundfile.SoundFileError, TypeError, ValueError) as error:  # TypeError of a .raw file
        raise ValueError(f"cannot be read as a sound: {error}; convert it to WAV, or replace "
                         "it") from None
    if not blocks:
        raise ValueError("holds no samples; name another sound")
    return np.concatenate(blocks), rate


def list_sounds(places):
    """List sounds, and the files in folders. Ends with one line for a path that is not there."""
    paths = []
    for place in map(Path, places):
        if not place.exists():
            sys.exit(f"{place}: not found; correct the path")
        paths += sorted(path for path in place.rglob("*") if path.is_file()) or [place]
    return paths


def main():
    """Print the two most probable classes of each sound. Ends with status 1 if one is skipped."""
    if "--help" in sys.argv[1:]:
        sys.exit(print(__doc__))
    if len(sys.argv) < 3:
        sys.exit("name a network and sounds: python examples/classify_onnx.py model.onnx kick.wav")
    paths = list_sounds(sys.argv[2:])
    try:
        classifier = Classifier(sys.argv[1])
    except (ImportError, ValueError) as error:
        sys.exit(" ".join(str(error).split()))
    n_skipped = 0
    for path in paths:
        try:
            probabilities = classifier.predict(path)
        except ValueError as error:
            print(f"skipped {path}: {' '.join(str(error).split())}", file=sys.stderr)
            n_skipped += 1
            continue
        (p, first), (q, second) = sorted(zip(probabilities, classifier.classes))[:-3:-1]
        note = "  unknown" if first in classifier.info["background"] else ""
        print(f"{path}  {first} {p:.4f}  {second} {q:.4f}{note}")
    sys.exit(n_skipped > 0)


if __name__ == "__main__":
    main()
