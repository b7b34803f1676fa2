"""The examples that export the network, and use it without Keras."""
import json
import shutil
import sys

import numpy as np
import pytest
import soundfile
from conftest import ROOT, SAMPLE_RATE, load_json, made_once, one_line, run, tone

import models

sys.path.insert(0, str(ROOT / "examples"))
import classify_onnx


@pytest.fixture
def exported(trained, tmp_path_factory, tmp_path):
    """A folder with model.onnx and model.json."""
    def make(folder):
        run("examples/export_model.py", folder / "model.onnx", cwd=trained)
    pytest.importorskip("onnxruntime")
    return shutil.copytree(made_once(tmp_path_factory, "exported", make), tmp_path / "exported")


def predict(folder, *names):
    """The probabilities of sounds from the example's class."""
    classifier = classify_onnx.Classifier(folder / "model.onnx")
    return [classifier.predict(folder / name) for name in names]


@pytest.mark.parametrize("rate", [SAMPLE_RATE, 44100])
def test_exported_network_gives_the_same_scores_without_keras(trained, exported, rate):
    classifier = models.Classifier(trained / "weights.keras")
    rng = np.random.default_rng(3)
    y = tone(rng, 600 * SAMPLE_RATE / rate, 2 * rate / SAMPLE_RATE)  # some windows long
    y = y + rng.normal(0, 0.05, 2 * rate)
    soundfile.write(exported / "new.wav", np.stack([y, 0.5 * y], axis=1), rate)
    expected = classifier.predict(exported / "new.wav")
    np.testing.assert_allclose(predict(exported, "new.wav")[0], expected, atol=1e-4)
    lone = classify_onnx.Classifier(exported / "model.onnx")
    assert lone.classes == classifier.classes
    samples, _ = soundfile.read(exported / "new.wav", dtype="int16")
    np.testing.assert_allclose(lone.predict(samples, rate), expected, atol=1e-4)
    source = (ROOT / "examples/classify_onnx.py").read_text()
    ours = ("keras", "librosa", "utils", "models", "eval_network")
    assert not any(f"import {name}" in source for name in ours)


def test_mean_of_networks_is_exported_like_one(trained, exported):
    pairs = [models.load_network(trained / "weights.keras") for _ in range(2)]
    (first, training), (second, _) = pairs
    second.set_weights([0.9 * weights for weights in second.get_weights()])
    training.flags["--folds"] = 2
    models.save_network(models.average_networks([first, second]), training, exported / "m.keras")
    run("examples/export_model.py", "mean.onnx", "--weights", "m.keras", cwd=exported)
    sound = trained / "Samples/low/00.wav"
    expected = models.Classifier(exported / "m.keras").predict(sound)
    found = classify_onnx.Classifier(exported / "mean.onnx").predict(sound)
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_example_classifies_a_flac_of_unknown_length_and_a_single_sample(exported):
    y = tone(np.random.default_rng(3), 600, 10)  # of more than one block
    soundfile.write(exported / "known.flac", y, SAMPLE_RATE)
    data = bytearray((exported / "known.flac").read_bytes())
    data[21:26] = bytes([data[21] & 0xF0, 0, 0, 0, 0])  # the number of samples is in 36 bits
    (exported / "unknown.flac").write_bytes(data)
    known, unknown = predict(exported, "known.flac", "unknown.flac")
    np.testing.assert_array_equal(known, unknown)

    info = load_json(exported / "model.json")
    info["features"]["n_fft"] += 1  # odd, with as many bins
    (exported / "model.json").write_text(json.dumps(info))
    soundfile.write(exported / "silent.wav", np.zeros(9), SAMPLE_RATE)
    soundfile.write(exported / "click.wav", [0.5], SAMPLE_RATE)
    soundfile.write(exported / "tick.wav", [0.5], 192000)  # of which resampling leaves nothing
    silent, tick, click = predict(exported, "silent.wav", "tick.wav", "click.wav")
    np.testing.assert_array_equal(tick, silent)
    assert np.abs(click - silent).max() > 1e-6


def test_what_the_example_cannot_read_is_one_line(exported):
    (exported / "text.wav").write_text("no sound")
    soundfile.write(exported / "none.wav", [], SAMPLE_RATE)
    soundfile.write(exported / "nan.wav", [0.1, np.nan], SAMPLE_RATE, subtype="FLOAT")
    shutil.copy(exported / "model.json", exported / "text.json")
    for model, name, words in (
            ("model.onnx", "gone.wav", "gone.wav: not found; correct the path"),
            ("model.onnx", "text.wav", "skipped text.wav: cannot be read as a sound: Error"),
            ("model.onnx", "none.wav", "skipped none.wav: holds no samples; name another sound"),
            ("model.onnx", "nan.wav", "skipped nan.wav: expected samples"),
            ("text.wav", "none.wav", "text.wav: is not an ONNX network from export_model.py")):
        assert one_line("examples/classify_onnx.py", model, name, cwd=exported).startswith(words)


def test_example_classifies_folders_and_knows_background(exported):
    (exported / "new").mkdir()
    for name in ("a", "b"):
        soundfile.write(exported / f"new/{name}.wav", tone(np.random.default_rng(0), 200),
                        SAMPLE_RATE)
    said = run("examples/classify_onnx.py", "model.onnx", "new", "new/a.wav", cwd=exported).stdout
    lines = said.splitlines()
    assert [line.split()[0] for line in lines] == ["new/a.wav", "new/b.wav", "new/a.wav"]
    info = load_json(exported / "model.json")
    assert info["background"] == [] and "unknown" not in said
    info["background"] = [lines[0].split()[1]]
    (exported / "model.json").write_text(json.dumps(info))
    said = run("examples/classify_onnx.py", "model.onnx", "new/a.wav", cwd=exported).stdout
    assert said == f"{lines[0]}  unknown\n"


def test_help_of_the_example_needs_no_onnxruntime(tmp_path, monkeypatch):
    (tmp_path / "onnxruntime.py").write_text("raise ImportError('it is missing')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert "kick.wav" in run("examples/classify_onnx.py", "--help", cwd=tmp_path).stdout
    assert "it is missing" in one_line("examples/classify_onnx.py", "m.onnx", ".", cwd=tmp_path)


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
