"""Classify a sound with an exported network, without Keras and without this project.

    python examples/export_model.py model.onnx
    pip install numpy scipy soundfile soxr onnxruntime
    python examples/classify_onnx.py model.onnx kick.wav
"""
import json
import sys
from pathlib import Path

if "--help" in sys.argv[1:]:
    print(__doc__)
    sys.exit()
try:
    import numpy as np
    import onnxruntime
    import scipy
    import soundfile
    import soxr
except ImportError as error:
    sys.exit(f"{' '.join(str(error).split())}; pip install numpy scipy soundfile soxr onnxruntime")
if len(sys.argv) != 3:
    sys.exit("name a network and a sound: python examples/classify_onnx.py model.onnx kick.wav")
model, path = map(Path, sys.argv[1:])
for file in (model, model.with_suffix(".json"), path):
    if not file.is_file():
        sys.exit(f"{file}: {'is a folder' if file.is_dir() else 'not found'}; name a file")
try:
    network = onnxruntime.InferenceSession(model)
    info = json.loads(model.with_suffix(".json").read_text())
    settings = info["features"]
except Exception as error:  # the kinds of damage raise different errors
    sys.exit(f"{model}: is not an ONNX network from export_model.py, or its .json is damaged; "
             f"export it again ({' '.join(str(error).split())})")
sample_rate = settings["sample_rate"]  # Hz
n_channels = settings["channels"]
n_fft = settings["n_fft"]
n_frames = info["n_frames"]

# The sound, with the channels and at the sample rate of training.
blocks = []
try:
    with soundfile.SoundFile(path) as file:
        file_rate = file.samplerate
        file.seekable = lambda: False  # reads to the end: a FLAC may not give its length
        while len(block := file.read(2**16, "float32", always_2d=True)):
            blocks.append(block)  # (n, n_channels)
except (soundfile.SoundFileError, TypeError, ValueError) as error:  # TypeError of a .raw file
    sys.exit(f"{path}: cannot be read as a sound: {error}; convert it to WAV, or replace it")
if not blocks:
    sys.exit(f"{path}: holds no samples; name another sound")
y = np.concatenate(blocks)  # (n_samples, n_channels)
if not np.abs(y).max() < 1e9:
    sys.exit(f"{path}: holds NaN, infinity or values beyond 1e9; replace it")
if n_channels == 1:
    y = y.mean(axis=1, keepdims=True)
else:
    y = y[:, np.minimum(range(n_channels), y.shape[1] - 1)]  # repeats the last one if need be
if file_rate != sample_rate:
    y = soxr.resample(y, file_rate, sample_rate)  # another resampler would change the scores
if not len(y):
    y = np.zeros((1, n_channels))  # resampling may leave no sample of a very short sound

# Its log-mel spectrogram, in dB.
y = np.pad(y.T.astype(float), ((0, 0), (n_fft // 2, n_fft // 2)))  # (n_channels, n_samples + n_fft)
frames = np.lib.stride_tricks.sliding_window_view(y, n_fft, axis=1)[:, ::settings["hop_length"]]
power = np.abs(scipy.fft.rfft(frames * scipy.signal.get_window("hann", n_fft))) ** 2
bands = []
for mel in info["mel_filters"]:
    first = mel["first_bin"]
    bands.append(power[..., first:first + len(mel["weights"])] @ mel["weights"])
db = 10 * np.log10(np.maximum(np.stack(bands, axis=1), info["amin"]))  # (n_channels, n_mels, n)
silence = max(10 * np.log10(info["amin"]), db.max() - info["top_db"])
db = np.maximum(db, silence)

# The fewest windows that cover it, with silence around a short sound.
missing = max(0, n_frames - db.shape[2])
margins = missing // 2, missing - missing // 2
db = np.pad(db, ((0, 0), (0, 0), margins), constant_values=silence)
last = db.shape[2] - n_frames
starts = np.linspace(0, last, 1 + int(np.ceil(last / n_frames))).astype(int)
windows = np.stack([db[..., start:start + n_frames] for start in starts]).astype(np.float32)

# The mean of their class probabilities, calibrated.
inputs = network.get_inputs()[0]
windows = windows.reshape(len(windows), *inputs.shape[1:])  # without channels if there is one
probabilities = network.run(None, {inputs.name: windows})[0].mean(axis=0, dtype=float)
probabilities = np.maximum(probabilities, 1e-12) ** (1 / info["temperature"])
probabilities /= probabilities.sum()
for p, name in sorted(zip(probabilities, info["classes"]), reverse=True)[:5]:
    print(f"{p:.6f}  {name}")
