"""What damaged and hostile files once did, each as the small case that it comes down to."""
import argparse
import io
import json
import os
import signal
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import soundfile
from conftest import ROOT, run

import augment_data
import models
import preprocess_data
import utils
from preprocess_data import FeatureSettings, load_spectrogram, sound_to_spectrogram
from utils import UserError

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
    with pytest.raises(UserError, match=r"a\.wav: expected a s"):
        sound_to_spectrogram("a.wav", tmp_path, SETTINGS)
    assert preprocess_data.read_rates(tmp_path, ["a.wav", with_rate(tmp_path / "b.wav", 8000).name]) == {"b.wav": 8000}
    assert path.exists()


def test_sound_of_few_hertz_is_resampled_in_parts(tmp_path, monkeypatch):
    with_rate(tmp_path / "a.wav", 100)
    whole = sound_to_spectrogram("a.wav", tmp_path, SETTINGS)
    monkeypatch.setattr(utils, "READ_SAMPLES", 1000)
    assert whole.shape == (4, 1001) and np.array_equal(sound_to_spectrogram("a.wav", tmp_path, SETTINGS), whole)


def test_header_that_claims_hours_which_its_decoder_would_make_up_is_refused(tmp_path):
    soundfile.write(tmp_path / "a.w64", np.zeros(640), 8000, "GSM610")
    data = bytearray((tmp_path / "a.w64").read_bytes())
    start = data.index(b"data") + 16  # a W64's chunks begin with 16 bytes that name them
    data[start + 4:start + 8] = bytes.fromhex("925e63cc")  # of 8 bytes, the upper ones of a size
    (tmp_path / "a.wav").write_bytes(data)
    with pytest.raises(UserError, match=r"a\.wav: expected a sound, found a header that claims \d{11,} samples"):
        sound_to_spectrogram("a.wav", tmp_path, SETTINGS)


@pytest.mark.parametrize("name, format, subtype", [("a.flac", "FLAC", "PCM_16"), ("a.ogg", "OGG", "VORBIS"),
                                                   ("a.caf", "CAF", "ALAC_16"), ("a.opus", "OGG", "OPUS"),
                                                   ("a.mp3", "MP3", "MPEG_LAYER_III"), ("a.wav", "WAV", "GSM610")])
def test_silence_that_takes_few_bytes_is_read_whole(tmp_path, name, format, subtype):
    soundfile.write(tmp_path / name, np.zeros(80000), 8000, subtype, format=format)
    n_samples = sum(len(block) for block, _ in utils.read_blocks(tmp_path / name))
    assert 80000 <= n_samples < 84000


# ---------------------------------------------------------------- spectrograms and settings

def npy(array, head=None):
    np.save(file := io.BytesIO(), array, allow_pickle=True)
    data = file.getvalue()
    return data if head is None else data[:10] + head.ljust(len(data[:128]) - 11).encode() + b"\n" + data[128:]


GOOD = np.zeros((4, 20), np.float32)


@pytest.mark.parametrize("data", [
    b"", b"\x93NUMPY", npy(GOOD)[:-1], npy(GOOD, "{'descr': '<f4', 'fortran_order': False, 'shape': (4L, 20L)}"),
    npy(GOOD, "{'descr': '<f4', 'fortran_order': False, 'shape': (4, 2000000000000)}"), npy(GOOD, "[" * 50),
    npy(GOOD, "{'descr': '|O', 'fortran_order': False, 'shape': (4, 20)}"), npy(np.array([{"a": 1}])),
    npy(GOOD, "{'descr': 'V0', 'fortran_order': False, 'shape': (4, 20)}"), npy(GOOD, "{'descr': ['f'], 'shape': ()}"),
    npy(GOOD + np.inf), npy(GOOD + 1e30), npy(GOOD + np.nan), npy(GOOD[:3]), npy(GOOD.astype(">f4")), npy(GOOD[:, :0])])
@pytest.mark.filterwarnings("error")
def test_spectrogram_that_is_damaged_is_named(tmp_path, data):
    (tmp_path / "a.wav.npy").write_bytes(data)
    with pytest.raises(UserError, match=r"a\.wav\.npy: expected .*; remove it and preprocess again"):
        load_spectrogram("a.wav", tmp_path, SETTINGS)


@pytest.mark.parametrize("text", ["", "[]", "7", "{}", "[" * 10**5, '{"unfinished": 5}', '{"n_mels": 96}', "\xff",
                                  *(json.dumps(vars(SETTINGS) | changed) for changed in (
                                      {"n_mels": "4"}, {"n_mels": 0}, {"n_fft": -1}, {"hop_length": 1.5}, {"more": 1},
                                      {"sample_rate": 10**400}, {"channels": None}, {"channels": True}))])
def test_settings_that_are_damaged_are_named(tmp_path, text):
    (tmp_path / "settings.json").write_text(text, encoding="latin-1")
    with pytest.raises(UserError, match="settings.json: expected settings of finished preprocessing"):
        preprocess_data.load_settings(tmp_path)


@pytest.mark.parametrize("text", ["7", '{"unfinished": 5}', "[" * 10**5])
def test_settings_that_are_damaged_are_made_again(sounds, text):
    (sounds / "Preproc").mkdir()
    (sounds / "Preproc/settings.json").write_text(text)
    run("preprocess_data.py", cwd=sounds)
    assert preprocess_data.load_settings(sounds / "Preproc").sample_rate == 8000


# ---------------------------------------------------------------- weights

def members_of(path):
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def write_archive(path, members):
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)


@pytest.mark.parametrize("changed, found", [
    ({"classes": ["high", "low"]}, "a network from"), ({"classes": ["high", "low", "low"]}, "what is told"),
    ({"classes": "abc"}, "what is told"), ({"test": [1]}, "what is told"), ({"temperature": 0}, "what is told"),
    ({"temperature": "1"}, "'<' not supported"), ({"n_frames": 8}, "a network from"), ({"recipe": []}, "what is told"),
    ({"network": "other"}, "what is told"), ({"seed": None}, "what is told"),
    ({"features": {}}, "missing"), ({"features": None}, "must be a mapping")])
def test_weights_with_a_training_that_cannot_be_are_refused(trained, tmp_path, changed, found):
    members = members_of(trained / "weights.keras")
    info = json.loads(members["training.json"]) | changed
    write_archive(tmp_path / "w.keras", members | {"training.json": json.dumps(info)})
    with pytest.raises(UserError, match=rf"w\.keras: expected the weights .*{found}"):
        models.load(tmp_path / "w.keras")


def test_weights_with_a_flipped_bit_or_without_a_part_are_refused(trained, tmp_path):
    data = bytearray((trained / "weights.keras").read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "w.keras").write_bytes(data)
    with pytest.raises(UserError, match="model.weights.h5 is damaged"):
        models.load(tmp_path / "w.keras")
    members = members_of(trained / "weights.keras")
    for name in ("config.json", "model.weights.h5", "training.json"):
        write_archive(tmp_path / "w.keras", {key: data for key, data in members.items() if key != name})
        with pytest.raises(UserError, match=r"w\.keras: expected the weights"):
            models.load(tmp_path / "w.keras")


def test_weights_with_layers_that_are_not_ours_are_refused_before_keras_sees_them(trained, tmp_path, monkeypatch):
    monkeypatch.setattr(models.keras.models, "load_model", lambda *_, **__: pytest.fail("Keras was asked"))
    members = members_of(trained / "weights.keras")
    for kind in ("Lambda", "TFSMLayer", "TorchModuleWrapper"):
        network = json.loads(members["config.json"])
        network["config"]["layers"][2]["config"]["hidden"] = [{"class_name": kind, "config": {}}]
        write_archive(tmp_path / "w.keras", members | {"config.json": json.dumps(network)})
        with pytest.raises(UserError, match=rf"\(it holds {kind}\)"):
            models.load(tmp_path / "w.keras")


def test_weights_with_layers_that_keras_holds_unsafe_are_refused_by_its_safe_mode_too(trained, tmp_path, monkeypatch):
    members = members_of(trained / "weights.keras")
    network = json.loads(members["config.json"])
    network["config"]["layers"][1] |= {"module": "keras.layers", "class_name": "Lambda", "config": {
        "name": "x", "function": {"class_name": "__lambda__", "config": {"code": "", "defaults": None}}}}
    write_archive(tmp_path / "w.keras", members | {"config.json": json.dumps(network)})
    monkeypatch.setattr(models, "OURS", models.OURS | {"Lambda", "__lambda__"})
    with pytest.raises(UserError, match="found something else .*[Ll]ambda"):
        models.load(tmp_path / "w.keras")


def test_weights_of_another_name_are_refused(trained, tmp_path):
    (tmp_path / "w.h5").write_bytes((trained / "weights.keras").read_bytes())
    with pytest.raises(UserError, match=r"w\.h5: expected a name that ends in \.keras"):
        models.load(tmp_path / "w.h5")


@pytest.mark.parametrize("said", [b"", b"7", b"[1, 2]", b"[{}, []]", b"[" * 10**5])
def test_state_of_a_training_that_is_damaged_is_named(tmp_path, said):
    np.savez(tmp_path / "w.unfinished.npz", np.zeros(3), said=np.frombuffer(said, np.uint8))
    with pytest.raises(UserError, match=r"w\.unfinished\.npz: expected a training to go on with"):
        models.load_state(tmp_path / "w.keras")


# ---------------------------------------------------------------- names

@pytest.mark.parametrize("text, expected", [
    ("a b\u00e9\u96e8", "a b\u00e9\u96e8"), ("a\nb", r"a\nb"), ("\x1b[31m", r"\x1b[31m"), ("\x9b", r"\x9b"),
    ("\u202egnp", r"\u202egnp"), ("\udcff", r"\udcff"), ("\r\t\x00", r"\r\t\x00")])
def test_names_are_shown_without_what_steers_a_terminal(text, expected, capsys):
    utils.say(f"x: {text}", text)
    assert capsys.readouterr().out == f"x: {expected}\n{expected}\n"


def test_names_that_a_spreadsheet_would_run_are_text_in_tables(tmp_path):
    utils.save_csv(tmp_path / "a.csv", [["=1+1", "+1", "-rf", "@x", "\t=1", "a=b", "", -1.5, 0.25]])
    assert (tmp_path / "a.csv").read_text() == "'=1+1,'+1,'-rf,'@x,'\t=1,a=b,,-1.5,0.25\n"


# ---------------------------------------------------------------- what may not be read or replaced, and what is left

def sounds_made_anew(folder, *flags, status=0):
    return run("preprocess_data.py", *flags, cwd=folder, status=status)


def test_spectrograms_of_other_settings_that_cannot_be_replaced_are_not_trained_on(sounds):
    sounds_made_anew(sounds)
    (sounds / "Samples/drive").symlink_to("nowhere")
    (sounds / "Preproc/drive").mkdir()
    np.save(sounds / "Preproc/drive/x.wav.npy", np.zeros((96, 9), np.float32))
    result = sounds_made_anew(sounds, "--hop-length", 64, status=1)
    assert "skipped Samples/drive: expected a sound, found nothing there" in result.stderr
    assert "spectrograms of other settings could not be replaced, as drive/x.wav.npy" in result.stdout
    with pytest.raises(UserError, match="settings.json: expected settings of finished preprocessing"):
        preprocess_data.load_settings(sounds / "Preproc")


def test_class_on_a_drive_that_is_not_there_is_named_and_keeps_its_spectrograms(sounds):
    (sounds / "Samples/low").rename(sounds / "drive")
    (sounds / "Samples/low").symlink_to(sounds / "drive")
    sounds_made_anew(sounds)
    (sounds / "drive").rename(sounds / "elsewhere")
    result = sounds_made_anew(sounds, status=1)
    assert "skipped Samples/low: expected a sound, found nothing there" in result.stderr
    assert "0 removed" in result.stdout
    assert len(list((sounds / "Preproc/low").iterdir())) == 10


def crash_at_five(name):
    if name.endswith("5.wav"):
        os.kill(os.getpid(), signal.SIGKILL)


def test_sound_that_crashes_its_decoder_keeps_no_spectrogram_of_what_it_was(sounds, monkeypatch):
    sounds_made_anew(sounds)
    os.utime(sounds / "Samples/low/05.wav")
    monkeypatch.chdir(sounds)
    task = preprocess_data.Task(Path("Samples"), Path("Preproc"), preprocess_data.load_settings("Preproc"))
    monkeypatch.setattr(preprocess_data.Task, "run", lambda self, name: crash_at_five(name))
    monkeypatch.delitem(sys.modules, "keras", raising=False)  # that it forks, and the lines above reach its processes
    args = argparse.Namespace(jobs=2, dask=None, strict=False)
    names = utils.list_spectrograms("Preproc")
    _, errors, _, _ = preprocess_data.make_spectrograms(task, names, args)
    (name, error), = errors.items()
    assert name == "low/05.wav" and str(error).startswith("Samples/low/05.wav: expected a file")
    assert not Path("Preproc/low/05.wav.npy").exists() and len(utils.list_spectrograms("Preproc")) == 29


def test_line_of_a_copy_that_does_not_fit_leaves_the_table_as_it_was(tmp_path):
    path = tmp_path / "a.wav"
    augment_data.note(path, 1, {"seed": 0})
    before = (tmp_path / utils.AUGMENTATIONS).read_bytes()
    code = (f"import resource, sys; sys.path.insert(0, {str(ROOT)!r}); import augment_data, pathlib\n"
            f"resource.setrlimit(resource.RLIMIT_FSIZE, ({len(before) + 10},) * 2)\n"
            f"augment_data.note(pathlib.Path({str(path)!r}), 2, dict(seed=0))")
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "OSError" in result.stderr and (tmp_path / utils.AUGMENTATIONS).read_bytes() == before


def test_closed_standard_output_is_one_line(tmp_path):
    code = "import os, sys; os.close(1); os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
    result = subprocess.run([sys.executable, "-c", code, ROOT / "augment_data.py", "1", "x.wav"], cwd=tmp_path,
                            text=True, stderr=subprocess.PIPE)
    assert result.returncode == 1 and result.stderr.startswith("augment_data.py: expected standard output")
    assert len(result.stderr.splitlines()) == 1


def fail_oddly(item):
    raise type("Odd", (Exception,), {})("odd")


@pytest.mark.parametrize("jobs", [0, 1])
def test_mistake_of_ours_in_a_process_is_told_with_its_traceback(jobs):
    with pytest.raises(RuntimeError, match=r"fail_oddly[\s\S]*Odd: odd"):
        list(utils.done(fail_oddly, [1], {}, jobs))


def test_sound_whose_name_is_not_utf_8_is_read_copied_and_shown(sounds):
    for script in ("preprocess_data.py", "augment_data.py"):
        path = sounds / "Samples/low" / os.fsdecode(b"caf\xe9.wav")
        path.write_bytes((sounds / "Samples/low/00.wav").read_bytes())
        run(script, *[1, path] * script.startswith("augment"), cwd=sounds)
    assert len(list((sounds / "Preproc/low").iterdir())) == 11
    assert path.with_name(os.fsdecode(b"caf\xe9_aug1.wav")).exists()


def test_device_is_not_replaced_by_a_file(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match="pipe: expected a place for a file, found a device or pipe"):
        utils.save_text(tmp_path / "pipe", "")
    assert (tmp_path / "pipe").is_fifo() and len(list(tmp_path.iterdir())) == 1
