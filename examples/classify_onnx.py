"""Say what a sound is with the network that eval_network.py exported, without Keras and without this project.

    python eval_network.py --export model.onnx
    pip install numpy scipy soundfile soxr onnxruntime
    python examples/classify_onnx.py model.onnx kick.wav
"""
import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import scipy.fft
import scipy.signal
import soundfile
import soxr

if len(sys.argv) != 3:
    sys.exit(__doc__)
model, path = map(Path, sys.argv[1:])
for file in (model, model.with_suffix(".json"), path):
    if not file.is_file():
        sys.exit(f"{file}: {'is a folder; name a file' if file.is_dir() else 'is not there'}")
info = json.loads(model.with_suffix(".json").read_text())
settings = info["features"]
n_fft, hop_length, n_frames = settings["n_fft"], settings["hop_length"], info["n_frames"]

try:
    y, sample_rate = soundfile.read(path, dtype="float32", always_2d=True)  # (n_samples, n_channels)
except soundfile.SoundFileError as error:
    sys.exit(f"{path}: is not a sound that can be read: {error}")
if not len(y):
    sys.exit(f"{path}: holds no samples")
n_channels = settings["channels"]
y = y.mean(axis=1)[None] if n_channels == 1 else y[:, np.minimum(range(n_channels), y.shape[1] - 1)].T
if sample_rate != settings["sample_rate"]:  # by the resampler of training: another one gives other scores
    y = soxr.resample(y.T, sample_rate, settings["sample_rate"]).T

y = np.pad(y.astype(float), ((0, 0), (n_fft // 2, n_fft // 2)))  # (channels, n_samples + n_fft)
frames = np.lib.stride_tricks.sliding_window_view(y, n_fft, axis=1)[:, ::hop_length]  # (channels, n, n_fft)
power = np.abs(scipy.fft.rfft(frames * scipy.signal.get_window("hann", n_fft))) ** 2
mel = np.stack([power[..., f["first_bin"]:f["first_bin"] + len(f["weights"])] @ f["weights"]
                for f in info["mel_filters"]], axis=1)  # (channels, n_mels, n)
db = 10 * np.log10(np.maximum(mel, info["amin"]))
silence = max(10 * np.log10(info["amin"]), db.max() - info["top_db"])
missing = max(0, n_frames - db.shape[-1])
db = np.pad(np.maximum(db, silence), ((0, 0), (0, 0), (missing // 2, missing - missing // 2)), constant_values=silence)
last = db.shape[-1] - n_frames
starts = np.linspace(0, last, 1 + int(np.ceil(last / n_frames))).astype(int)  # the fewest windows that cover it
windows = np.stack([db[..., start:start + n_frames] for start in starts]).astype(np.float32)

network = onnxruntime.InferenceSession(model)
name, shape = network.get_inputs()[0].name, (len(windows), *network.get_inputs()[0].shape[1:])
scores = network.run(None, {name: windows.reshape(shape)})[0].mean(axis=0, dtype=float)
scores = np.maximum(scores, 1e-12) ** (1 / info["temperature"])  # calibration
for p, label in sorted(zip(scores / scores.sum(), info["classes"]), reverse=True)[:5]:
    print(f"{p:.6f}  {label}")
