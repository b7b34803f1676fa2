"""The examples that export the network, and use it without Keras."""
import json
import shutil

import numpy as np
import pytest
import soundfile
from conftest import ROOT, SAMPLE_RATE, load_json, made_once, one_line, run, tone

import models
import utils


@pytest.fixture
def exported(trained, tmp_path_factory, tmp_path):
    """A folder with model.onnx and model.json."""
    def make(folder):
        run("examples/export_model.py", folder / "model.onnx", cwd=trained)
    pytest.importorskip("onnxruntime")
    return shutil.copytree(made_once(tmp_path_factory, "exported", make), tmp_path / "exported")


def classify(folder, name):
    """What the example prints of a sound."""
    return run("examples/classify_onnx.py", "model.onnx", name, cwd=folder).stdout


@pytest.mark.parametrize("rate", [SAMPLE_RATE, 44100])
def test_exported_network_gives_the_same_scores_without_keras(trained, exported, rate):
    network, _ = models.load_network(trained / "weights.keras")
    info = load_json(exported / "model.json")
    rng = np.random.default_rng(3)
    y = tone(rng, 600 * SAMPLE_RATE / rate, 2 * rate / SAMPLE_RATE)  # some windows long
    y = y + rng.normal(0, 0.05, 2 * rate)
    soundfile.write(exported / "new.wav", np.stack([y, 0.5 * y], axis=1), rate)
    lines = classify(exported, "new.wav").splitlines()
    found = {line.split()[1]: float(line.split()[0]) for line in lines}
    settings = utils.FeatureSettings(**info["features"])
    sound = utils.sound_to_spectrogram("new.wav", exported, settings)
    (_, expected), = models.predict_sounds(network, [("new", sound)], info["temperature"])
    assert found == pytest.approx(dict(zip(info["classes"], expected)), abs=1e-4)
    source = (ROOT / "examples/classify_onnx.py").read_text()
    ours = ("keras", "librosa", "utils", "models", "eval_network")
    assert not any(f"import {name}" in source for name in ours)


def test_example_classifies_a_flac_of_unknown_length_and_a_single_sample(exported):
    y = tone(np.random.default_rng(3), 600, 10)  # of more than one block
    soundfile.write(exported / "known.flac", y, SAMPLE_RATE)
    data = bytearray((exported / "known.flac").read_bytes())
    data[21:26] = bytes([data[21] & 0xF0, 0, 0, 0, 0])  # the number of samples is in 36 bits
    (exported / "unknown.flac").write_bytes(data)
    assert classify(exported, "unknown.flac") == classify(exported, "known.flac")

    info = load_json(exported / "model.json")
    info["features"]["n_fft"] += 1  # odd, with as many bins
    (exported / "model.json").write_text(json.dumps(info))
    soundfile.write(exported / "silent.wav", np.zeros(9), SAMPLE_RATE)
    soundfile.write(exported / "click.wav", [0.5], SAMPLE_RATE)
    soundfile.write(exported / "tick.wav", [0.5], 192000)  # of which resampling leaves nothing
    silent = classify(exported, "silent.wav")
    assert classify(exported, "tick.wav") == silent != classify(exported, "click.wav")


def test_what_the_example_cannot_read_is_one_line(exported):
    (exported / "text.wav").write_text("no sound")
    soundfile.write(exported / "none.wav", [], SAMPLE_RATE)
    soundfile.write(exported / "nan.wav", [0.1, np.nan], SAMPLE_RATE, subtype="FLOAT")
    shutil.copy(exported / "model.json", exported / "text.json")
    for model, name, words in (
            ("model.onnx", ".", ".: is a folder; name a file"),
            ("model.onnx", "text.wav", "text.wav: cannot be read as a sound: Error opening"),
            ("model.onnx", "none.wav", "none.wav: holds no samples; name another sound"),
            ("model.onnx", "nan.wav", "nan.wav: holds NaN, infinity or values beyond 1e9"),
            ("text.wav", "none.wav", "text.wav: is not an ONNX network from export_model.py")):
        assert one_line("examples/classify_onnx.py", model, name, cwd=exported).startswith(words)


@pytest.mark.filterwarnings("ignore:.*Interpreter is deprecated")
def test_lite_network_gives_the_same_scores(trained, tmp_path):
    tensorflow = pytest.importorskip("tensorflow")
    run("examples/export_model.py", tmp_path / "model.tflite", cwd=trained)
    network, _ = models.load_network(trained / "weights.keras")
    shape = (1, *network.input_shape[1:])
    x = np.random.default_rng(0).normal(-40, 20, shape).astype(np.float32)
    if not hasattr(tensorflow.lite, "Interpreter"):
        pytest.skip("this TensorFlow has no interpreter")
    lite = tensorflow.lite.Interpreter(str(tmp_path / "model.tflite"))
    place = lite.get_input_details()[0]["index"]
    lite.resize_tensor_input(place, x.shape)
    lite.allocate_tensors()
    lite.set_tensor(place, x)
    lite.invoke()
    found = lite.get_tensor(lite.get_output_details()[0]["index"])
    np.testing.assert_allclose(found, network.predict_on_batch(x), atol=1e-4)


@pytest.mark.parametrize("name, status, words", [
    ("m.h5", 2, "m.h5: expected a name that ends in .onnx or .tflite"),
    ("m.onnx", 1, "weights.keras: expected the weights")])
def test_names_that_are_no_export_and_missing_weights_are_one_line(tmp_path, name, status, words):
    assert words in one_line("examples/export_model.py", name, cwd=tmp_path, status=status)
