"""The examples that export the network, and use it without Keras."""
import sys

import numpy as np
import pytest
import soundfile
from conftest import ROOT, SAMPLE_RATE, load_json, one_line, run, tone

import models
import utils

sys.path.insert(0, str(ROOT / "examples"))
import export_model


def export(trained, path):
    run("examples/export_model.py", path, cwd=trained)
    return path


def test_exported_network_gives_the_same_scores_without_keras(trained, tmp_path):
    pytest.importorskip("onnxruntime")
    export(trained, tmp_path / "model.onnx")
    network, info = models.load_network(trained / "weights.keras")
    settings = utils.FeatureSettings(**info["features"])
    rng = np.random.default_rng(3)
    for rate in (SAMPLE_RATE, 44100):
        y = tone(rng, 600 * SAMPLE_RATE / rate, 2 * rate / SAMPLE_RATE)  # some windows long
        y = y + rng.normal(0, 0.05, 2 * rate)
        soundfile.write(tmp_path / "new.wav", np.stack([y, 0.5 * y], axis=1), rate)
        said = run("examples/classify_onnx.py", "model.onnx", "new.wav", cwd=tmp_path).stdout
        exported = {line.split()[1]: float(line.split()[0]) for line in said.splitlines()}
        sound = utils.sound_to_spectrogram("new.wav", tmp_path, settings)
        predictions = models.predict_sounds(network, [("new", sound)], info["temperature"])
        (_, probabilities), = predictions
        assert exported == pytest.approx(dict(zip(info["classes"], probabilities)), abs=1e-4)
    source = (ROOT / "examples/classify_onnx.py").read_text()
    ours = ("keras", "librosa", "utils", "models", "eval_network")
    assert not any(f"import {name}" in source for name in ours)

    (tmp_path / "text.wav").write_text("no sound")
    for name, words in ((".", "is a folder; name a file"), ("gone.wav", "not found"),
                        ("text.wav", "cannot be read as a sound")):
        assert words in one_line("examples/classify_onnx.py", "model.onnx", name, cwd=tmp_path)


@pytest.mark.parametrize("model, info", [("no network", '{"features": {}}'), (None, "{}")])
def test_file_that_is_no_exported_network_is_one_line(trained, tmp_path, model, info):
    pytest.importorskip("onnxruntime")
    if model is None:
        export(trained, tmp_path / "model.onnx")
    else:
        (tmp_path / "model.onnx").write_text(model)
    (tmp_path / "model.json").write_text(info)
    (tmp_path / "a.wav").write_text("")
    line = one_line("examples/classify_onnx.py", "model.onnx", "a.wav", cwd=tmp_path)
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
