"""What damaged and hostile files once did, each as the small case that it comes down to."""
import io
import json
import os
import signal
import struct
import sys
import zipfile
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import soundfile
from conftest import load_json, run

import models
import preprocess_data
import utils
from utils import FeatureSettings, UserError, load_spectrogram, sound_to_spectrogram

SETTINGS = FeatureSettings(8000, 4, 64, 16)


# ---------------------------------------------------------------- sounds

def with_rate(path, rate, n=200):
    soundfile.write(path, 0.5 * np.sin(np.arange(n)), 8000)
    data = bytearray(path.read_bytes())
    data[24:28] = struct.pack("<I", rate)
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("rate", [0, 1, 99, 10**7 + 1, 2**31 - 1])
def test_rate_that_no_sound_has_is_refused_and_takes_no_memory(tmp_path, rate):
    path = with_rate(tmp_path / "a.wav", rate)
    with_rate(tmp_path / "b.wav", 8000)
    with pytest.raises(UserError, match=r"a\.wav: expected a s"):
        sound_to_spectrogram("a.wav", tmp_path, SETTINGS)
    read_rate = partial(utils.read_rate, folder=tmp_path)
    rates, errors = utils.map_files(read_rate, ["a.wav", "b.wav"], jobs=0)
    assert rates == {"b.wav": 8000} and list(errors) == ["a.wav"]
    assert utils.choose_settings(tmp_path, ["a.wav", "b.wav"]).sample_rate == 8000
    assert path.exists()


def test_header_that_claims_hours_which_its_decoder_would_make_up_is_refused(tmp_path):
    soundfile.write(tmp_path / "a.w64", np.zeros(640), 8000, "GSM610")
    data = bytearray((tmp_path / "a.w64").read_bytes())
    start = data.index(b"data") + 16  # a W64's chunks begin with 16 bytes that name them
    data[start + 4:start + 8] = bytes.fromhex("925e63cc")  # of 8 bytes, the upper ones of a size
    (tmp_path / "a.wav").write_bytes(data)
    with pytest.raises(UserError, match=r"a\.wav: its header claims \d{11,} samples in \d+ bytes; "
                       "replace the damaged file"):
        sound_to_spectrogram("a.wav", tmp_path, SETTINGS)


# ---------------------------------------------------------------- spectrograms and settings

def npy(array, head=None):
    """A .npy file of an array, with another header if given."""
    file = io.BytesIO()
    np.save(file, array, allow_pickle=True)
    data = file.getvalue()
    if head is None:
        return data
    return data[:10] + head.ljust(len(data[:128]) - 11).encode() + b"\n" + data[128:]


def header(descr="'<f4'", shape="(4, 20)", order="False"):
    return f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}}}"


GOOD = np.zeros((4, 20), np.float32)


@pytest.mark.parametrize("data", [
    b"", b"\x93NUMPY", npy(GOOD)[:-1], npy(GOOD, header(shape="(4L, 20L)")),
    npy(GOOD, header(shape="(4, 2000000000000)")), npy(GOOD, "[" * 50),
    npy(GOOD, header("'|O'")), npy(np.array([{"a": 1}])), npy(GOOD, header("'V0'")),
    npy(GOOD, "{'descr': ['f'], 'shape': ()}"), npy(GOOD + np.inf), npy(GOOD + 1e30),
    npy(GOOD + np.nan), npy(GOOD[:3]), npy(GOOD.astype(">f4")), npy(GOOD[:, :0])])
@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("mmap_mode", [None, "r"])
def test_spectrogram_that_is_damaged_is_named(tmp_path, data, mmap_mode):
    (tmp_path / "a.wav.npy").write_bytes(data)
    expected = r"a\.wav\.npy: expected .*; remove it and preprocess again"
    with pytest.raises(UserError, match=expected):
        load_spectrogram("a.wav", tmp_path, SETTINGS, mmap_mode)


@pytest.mark.parametrize("n_samples", [1, 10, 5000])
@pytest.mark.parametrize("channels", [1, 2, 3])
def test_spectrogram_is_the_same_memory_mapped(tmp_path, channels, n_samples):
    """NumPy may save one of several channels and one frame in another order of bytes."""
    y = np.random.default_rng(0).normal(0, 0.1, (n_samples, 3))
    soundfile.write(tmp_path / "x.wav", y, 8000)
    settings = utils.default_settings(8000, channels=channels)
    expected = sound_to_spectrogram("x.wav", tmp_path, settings)
    preprocess_data.write_spectrogram("x.wav", preprocess_data.Plan(tmp_path, tmp_path, settings))
    read = load_spectrogram("x.wav", tmp_path, settings)
    np.testing.assert_array_equal(read, expected)
    mapped = utils.MappedSpectrograms(tmp_path, ["x.wav"])
    np.testing.assert_array_equal(mapped["x.wav"], expected)


FEATURES = vars(SETTINGS)
CHANGES = [{"n_mels": "4"}, {"n_mels": 0}, {"n_fft": -1}, {"hop_length": 1.5}, {"more": 1},
           {"sample_rate": 10**400}, {"channels": None}, {"channels": True}, {"fmin": None},
           {"fmin": 4000}, {"fmax": 4001}, {"fmax": 0}, {"fmin": 9, "fmax": 9}]


@pytest.mark.parametrize("text", [
    "", "[]", "7", "{}", "[" * 10**5, '{"finished": 5}', '{"n_mels": 96}', "\xff",
    '{"finished": true}', json.dumps({"features": FEATURES}),
    json.dumps({"features": FEATURES, "finished": False}),
    json.dumps({"features": FEATURES, "finished": 1}),
    json.dumps({"features": [], "finished": True}),
    *(json.dumps({"features": FEATURES | change, "copies": {}, "finished": True})
      for change in CHANGES)])
def test_settings_that_are_damaged_are_named(tmp_path, text):
    (tmp_path / "settings.json").write_text(text, encoding="latin-1")
    with pytest.raises(UserError, match="settings.json: preprocessing is not finished; run "
                       "preprocess_data.py again"):
        utils.load_settings(tmp_path)


# ---------------------------------------------------------------- weights

def members_of(path):
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def write_archive(path, members):
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)


def test_weights_with_a_flipped_bit_or_without_a_part_are_refused(trained, tmp_path):
    data = bytearray((trained / "weights.keras").read_bytes())
    data[len(data) // 2] ^= 1
    path = tmp_path / "w.keras"
    path.write_bytes(data)
    with pytest.raises(UserError, match="model.weights.h5 is damaged"):
        models.load_network(path)
    members = members_of(trained / "weights.keras")
    for name in ("config.json", "model.weights.h5", "training.json"):
        write_archive(path, {key: data for key, data in members.items() if key != name})
        with pytest.raises(UserError, match=r"w\.keras: expected the weights"):
            models.load_network(path)


EPOCH = {"loss": 1, "accuracy": 1, "seconds": 1}


@pytest.mark.parametrize("field, value, reason", [
    ("classes", ["high", "low"], r"a network from .* to \(None, 3\)"),
    ("classes", ["high", "low", "low"], "classes"), ("classes", "abc", "classes"),
    ("history", [EPOCH | {"temperature": 0}], "temperature 0"),
    ("history", [EPOCH | {"temperature": "1"}], "history"), ("history", [{"loss": 1}], "history"),
    ("features", {}, "sample_rate"), ("features", None, ""), ("seed", None, "seed None"),
    ("network", "other", "network 'other'"), ("hyperparameters", [], ""),
    ("hyperparameters", {"eq": 101}, "eq 101"), ("n_frames", 8, "a network from"),
    ("split", {"train": None}, "missing"), ("fold", [3, 2], r"fold \[3, 2\]")])
def test_weights_with_a_training_that_cannot_be_are_refused_by_the_field(
        trained, tmp_path, field, value, reason):
    members = members_of(trained / "weights.keras")
    values = json.loads(members["training.json"])
    for wrong, words in ((values | {field: value}, reason),
                         ({key: values[key] for key in values if key != field}, field)):
        write_archive(tmp_path / "w.keras", members | {"training.json": json.dumps(wrong)})
        if field == "history" and words == field:
            continue  # a training that was not begun
        with pytest.raises(UserError, match=rf"w\.keras: expected the weights .*{words}.*again"):
            models.load_network(tmp_path / "w.keras")


def test_weights_with_layers_that_are_not_ours_are_refused_before_keras_sees_them(
        trained, tmp_path, monkeypatch):
    monkeypatch.setattr(models.keras.models, "load_model",
                        lambda *_, **__: pytest.fail("Keras was asked"))
    members = members_of(trained / "weights.keras")
    for kind in ("Lambda", "TFSMLayer", "TorchModuleWrapper"):
        network = json.loads(members["config.json"])
        layer = network["config"]["layers"][2]
        layer["config"]["hidden"] = [{"class_name": kind, "config": {}}]
        write_archive(tmp_path / "w.keras", members | {"config.json": json.dumps(network)})
        with pytest.raises(UserError, match=rf"\(it holds {kind}\)"):
            models.load_network(tmp_path / "w.keras")


# ---------------------------------------------------------------- names

@pytest.mark.parametrize("text, expected", [
    ("a b\u00e9\u96e8", "a b\u00e9\u96e8"), ("a\nb", r"a\nb"), ("\x1b[31m", r"\x1b[31m"),
    ("\x9b", r"\x9b"), ("\u202egnp", r"\u202egnp"), ("\udcff", r"\udcff"),
    ("\r\t\x00", r"\r\t\x00")])
def test_names_are_shown_without_what_steers_a_terminal(text, expected, capsys):
    utils.say(f"x: {text}", text)
    assert capsys.readouterr().out == f"x: {expected}\n{expected}\n"


# ---------------------------------------------------------------- what is lost, and what is left

def crash_at_five(name, **_):
    if name == "low/05.wav":
        os.kill(os.getpid(), signal.SIGKILL)
    return 1.0


def test_sound_that_crashes_its_decoder_keeps_no_spectrogram_of_what_it_was(
        preprocessed, monkeypatch, capsys):
    sounds = preprocessed
    os.utime(sounds / "Samples/low/05.wav")
    monkeypatch.chdir(sounds)
    monkeypatch.setattr(sys, "argv", ["preprocess_data.py"])
    monkeypatch.setattr(preprocess_data, "write_spectrogram", crash_at_five)
    monkeypatch.delitem(sys.modules, "keras", raising=False)  # a fork gets the lines above
    assert preprocess_data.main() == 1
    output = capsys.readouterr()
    assert output.err.startswith("skipped Samples/low/05.wav: crashes its decoder, or needs more ")
    assert "0 spectrograms written, 29 kept, 0 removed, 1 sounds skipped" in output.out
    assert not Path("Preproc/low/05.wav.npy").exists()
    assert len(utils.list_spectrograms("Preproc")) == 29
    table = Path("Preproc/skipped.csv").read_text()
    assert table.startswith('file,reason\nlow/05.wav,"crashes its decoder, or ')


def test_sound_whose_name_is_not_utf_8_is_read_copied_and_shown(sounds):
    path = sounds / "Samples/low" / os.fsdecode(b"caf\xe9.wav")
    path.write_bytes((sounds / "Samples/low/00.wav").read_bytes())
    run("augment_data.py", 1, path, cwd=sounds)
    assert path.with_name(os.fsdecode(b"caf\xe9_aug1.wav")).exists()
    (sounds / "Samples/low" / os.fsdecode(b"bad\xe9.wav")).write_text("no sound")
    result = run("preprocess_data.py", cwd=sounds, status=1)
    assert r"skipped Samples/low/bad\udce9.wav: expected a sound" in result.stderr
    assert len(list((sounds / "Preproc/low").iterdir())) == 12
    assert load_json(sounds / "Preproc/settings.json")["finished"] is True
