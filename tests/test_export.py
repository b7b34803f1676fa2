"""The examples that export the network, and use it without Keras."""
import json
import shutil
import sys

import numpy as np
import pytest
import soundfile
from conftest import ROOT, SAMPLE_RATE, load_json, made_once, one_line, run, tone

import models
import utils

sys.path.insert(0, str(ROOT / "examples"))
import export_model


def export(trained, path):
    run("examples/export_model.py", path, cwd=trained)


@pytest.fixture
def exported(trained, tmp_path_factory, tmp_path):
    """A folder with model.onnx and model.json."""
    def make(folder):
        export(trained, folder / "model.onnx")

    pytest.importorskip("onnxruntime")
    return shutil.copytree(made_once(tmp_path_factory, "exported", make), tmp_path / "exported")


def classify(folder, name):
    """What the example prints of a sound."""
    return run("examples/classify_onnx.py", "model.onnx", name, cwd=folder).stdout


def test_exported_network_gives_the_same_scores_without_keras(trained, exported):
    network, info = models.load_network(trained / "weights.keras")
    settings = utils.FeatureSettings(**info["features"])
    rng = np.random.default_rng(3)
    for rate in (SAMPLE_RATE, 44100):
        y = tone(rng, 600 * SAMPLE_RATE / rate, 2 * rate / SAMPLE_RATE)  # some windows long
        y = y + rng.normal(0, 0.05, 2 * rate)
        soundfile.write(exported / "new.wav", np.stack([y, 0.5 * y], axis=1), rate)
        lines = classify(exported, "new.wav").splitlines()
        found = {line.split()[1]: float(line.split()[0]) for line in lines}
        sound = utils.sound_to_spectrogram("new.wav", exported, settings)
        predictions = models.predict_sounds(network, [("new", sound)], info["temperature"])
        (_, probabilities), = predictions
        assert found == pytest.approx(dict(zip(info["classes"], probabilities)), abs=1e-4)
    source = (ROOT / "examples/classify_onnx.py").read_text()
    ours = ("keras", "librosa", "utils", "models", "eval_network")
    assert not any(f"import {name}" in source for name in ours)


def test_example_classifies_a_flac_of_unknown_length_and_a_single_sample(exported):
    y = tone(np.random.default_rng(3), 600, 10)  # of more than one block
    soundfile.write(exported / "known.flac", y, SAMPLE_RATE)
    data = bytearray((exported / "known.flac").read_bytes())
    data[21] &= 0xF0  # the number of samples is in 36 bits
    data[22:26] = bytes(4)
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


def test_sound_that_the_example_cannot_classify_is_one_line(exported):
    (exported / "text.wav").write_text("no sound")
    (exported / "headless.raw").write_bytes(bytes(100))
    soundfile.write(exported / "none.wav", [], SAMPLE_RATE)
    for value in (np.nan, np.inf, 1e30):
        soundfile.write(exported / f"{value}.wav", [0.1, value], SAMPLE_RATE, subtype="FLOAT")
    large = "holds NaN, infinity or values beyond 1e9; replace it"
    for name, words in ((".", "is a folder; name a file"), ("gone.wav", "not found; name a file"),
                        ("text.wav", "cannot be read as a sound: Error opening 'text.wav'"),
                        ("headless.raw", "cannot be read as a sound: "),
                        ("none.wav", "holds no samples; name another sound"), ("nan.wav", large),
                        ("inf.wav", large), ("1e+30.wav", large)):
        line = one_line("examples/classify_onnx.py", "model.onnx", name, cwd=exported)
        assert line.startswith(f"{name}: {words}")


def test_example_shows_its_help_and_names_what_is_missing_without_its_packages(
        tmp_path, monkeypatch):
    (tmp_path / "onnxruntime.py").write_text("raise ImportError('no\\nonnxruntime')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    said = run("examples/classify_onnx.py", "--help", cwd=tmp_path).stdout
    assert said.startswith("Classify a sound with an exported network")
    line = one_line("examples/classify_onnx.py", "model.onnx", "a.wav", cwd=tmp_path)
    assert line == "no onnxruntime; pip install numpy scipy soundfile soxr onnxruntime"
    (tmp_path / "onnxruntime.py").write_text("")
    line = one_line("examples/classify_onnx.py", "model.onnx", cwd=tmp_path)
    assert line == ("name a network and a sound: python examples/classify_onnx.py model.onnx "
                    "kick.wav")


@pytest.mark.parametrize("model, info", [("no network", '{"features": {}}'), (None, "{}")])
def test_file_that_is_no_exported_network_is_one_line(exported, model, info):
    if model is not None:
        (exported / "model.onnx").write_text(model)
    (exported / "model.json").write_text(info)
    (exported / "a.wav").write_text("")
    line = one_line("examples/classify_onnx.py", "model.onnx", "a.wav", cwd=exported)
    assert "model.onnx: is not an ONNX network from export_model.py" in line


@pytest.mark.filterwarnings("ignore:.*Interpreter is deprecated")
def test_lite_network_gives_the_same_scores(trained, tmp_path):
    export(trained, tmp_path / "model.tflite")
    info = load_json(tmp_path / "model.json")
    assert info["classes"] == ["high", "low", "middle"]
    assert info["features"]["sample_rate"] == SAMPLE_RATE
    assert {"temperature", "n_frames", "mel_filters", "normalisation"} <= info.keys()
    tensorflow = pytest.importorskip("tensorflow")
    if not hasattr(tensorflow.lite, "Interpreter"):
        pytest.skip("this TensorFlow has no interpreter")
    network, _ = models.load_network(trained / "weights.keras")
    shape = (1, *network.input_shape[1:])
    x = np.random.default_rng(0).normal(-40, 20, shape).astype(np.float32)
    lite = tensorflow.lite.Interpreter(str(tmp_path / "model.tflite"))
    place = lite.get_input_details()[0]["index"]
    lite.resize_tensor_input(place, x.shape)
    lite.allocate_tensors()
    lite.set_tensor(place, x)
    lite.invoke()
    found = lite.get_tensor(lite.get_output_details()[0]["index"])
    np.testing.assert_allclose(found, network.predict_on_batch(x), atol=1e-4)


def test_export_without_its_packages_is_one_line_and_leaves_nothing(trained, tmp_path,
                                                                    monkeypatch):
    def lacking(*args, **kwargs):
        raise ImportError("no tf2onnx")

    monkeypatch.setattr(models.keras.Model, "export", lacking)
    monkeypatch.setattr(sys, "argv", ["export_model.py", str(tmp_path / "model.onnx"),
                                      "--weights", str(trained / "weights.keras")])
    with pytest.raises(utils.UserError, match=r"model\.onnx: .*pip install onnx tf2onnx"):
        export_model.main()
    assert not list(tmp_path.iterdir())


def test_names_that_are_no_export_and_missing_weights_are_one_line(tmp_path):
    line = one_line("examples/export_model.py", "m.h5", cwd=tmp_path, status=2)
    assert "m.h5: expected a name that ends in .onnx or .tflite" in line
    line = one_line("examples/export_model.py", "m.onnx", cwd=tmp_path)
    assert "weights.keras: expected the weights" in line
