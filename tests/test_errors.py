"""A user's mistake gets one line that names the path, the problem and the remedy."""
import re
import shutil
import subprocess
import sys
import unicodedata

import numpy as np
import pytest
import soundfile
from conftest import ROOT, one_line, run, write_sounds

import utils
from utils import UserError


@pytest.mark.parametrize("script", ["preprocess_data.py", "train_network.py"])
def test_folder_without_sounds_is_named_with_what_was_found(script, tmp_path):
    expected = "Samples: expected a folder with a subfolder for each class, found nothing there"
    assert expected in one_line(script, cwd=tmp_path)
    (tmp_path / "Samples/a").mkdir(parents=True)
    expected = "Samples: expected sounds in a subfolder for each class, found "
    assert f"{expected}none among 0 files" in one_line(script, cwd=tmp_path)
    soundfile.write(tmp_path / "Samples/loose.wav", np.zeros(9), 8000)
    assert f"{expected}1 outside of them" in one_line(script, cwd=tmp_path)
    (tmp_path / "Samples/a/broken.wav").write_text("x")
    line = one_line("preprocess_data.py", cwd=tmp_path)
    assert ("Samples: none of its 1 sound files can be read, such as a/broken.wav; replace them"
            in line)


def test_missing_or_damaged_weights_are_named_before_keras_is_loaded(sounds, monkeypatch):
    monkeypatch.setenv("KERAS_BACKEND", "none, so that loading Keras would be the error")
    for command in (["eval_network.py"],
                    ["train_network.py", "--weights", "gone.keras", "--save", "new.keras"]):
        assert (".keras: expected the weights that train_network.py saves, found nothing there"
                in one_line(*command, cwd=sounds))
    monkeypatch.undo()
    (sounds / "weights.keras").write_text("not a zip file")
    assert re.search(r"weights.keras: expected the weights .* found something else \(.+\); train "
                     "again", one_line("eval_network.py", cwd=sounds))


def test_closed_pipe_is_no_traceback(sounds):
    command = f"{sys.executable} {ROOT}/preprocess_data.py | true"
    result = subprocess.run(command, cwd=sounds, shell=True, capture_output=True, text=True)
    assert result.stderr == ""


@pytest.mark.parametrize("preprocessed", [False, True])
def test_one_class_only_and_a_class_too_small(tmp_path, preprocessed):
    write_sounds(tmp_path, classes=["only"], n=2)
    source = "Preproc" if preprocessed else "Samples"

    def train():
        if preprocessed and not (tmp_path / "Samples/empty").exists():
            run("preprocess_data.py", cwd=tmp_path)
        return one_line("train_network.py", cwd=tmp_path)

    assert f"{source}: expected at least 2 classes (folders), found 1: only" in train()
    (tmp_path / "Samples/empty").mkdir()
    expected = "expected at least 2 sounds, found 0"
    if preprocessed:
        expected = "no sounds there that can be read; add at least 2, or remove the folder"
    assert f"Samples/empty: {expected}" in train()
    shutil.copy(tmp_path / "Samples/only/00.wav", tmp_path / "Samples/empty/a.wav")
    if preprocessed:
        run("preprocess_data.py", cwd=tmp_path)
    assert f"{source}/empty: expected at least 2 sounds, found 1" in train()


def test_sounds_in_subfolders_of_one_folder_are_no_classes_and_the_way_out_is_said(tmp_path):
    write_sounds(tmp_path, n=2)
    (tmp_path / "Samples").rename(tmp_path / "drums")
    (tmp_path / "Samples").mkdir()
    (tmp_path / "drums").rename(tmp_path / "Samples/drums")
    said = run("preprocess_data.py", cwd=tmp_path).stdout
    assert ("6 sounds in 1 class, drums; if its 3 subfolders are the classes, use --samples "
            "Samples/drums") in said
    flags = "--samples", "Samples/drums", "--preproc", "other"
    said = run("preprocess_data.py", *flags, cwd=tmp_path).stdout
    assert "6 sounds in 3 classes, 2 each\n" in said


def test_next_command_is_named_by_the_path_of_this_one(tmp_path):
    write_sounds(tmp_path / "work", n=2)
    (tmp_path / "project").symlink_to(ROOT)
    result = subprocess.run([sys.executable, "../project/preprocess_data.py"],
                            cwd=tmp_path / "work", capture_output=True, text=True, check=True)
    assert result.stdout.endswith("Next: python ../project/train_network.py\n")


def test_class_of_sounds_that_cannot_be_read_stops_preprocessing_and_training(sounds):
    for path in (sounds / "Samples/low").iterdir():
        path.write_text("no sound")
    result = run("preprocess_data.py", cwd=sounds, status=1)
    words = "Samples/low: no sounds there that can be read; add at least 2, or remove the folder"
    assert words in result.stderr and "Next:" not in result.stdout
    assert words in one_line("train_network.py", cwd=sounds)


@pytest.mark.parametrize("script, flag, value", [
    ("train_network.py", "--epochs", "0"), ("train_network.py", "--epochs", "ten"),
    ("train_network.py", "--learning-rate", "nan"), ("train_network.py", "--test", "("),
    ("train_network.py", "--save", "weights.h5"), ("train_network.py", "--mixup", "-1"),
    ("train_network.py", "--epoch", "1"), ("train_network.py", "--masks", "0.5"),
    ("preprocess_data.py", "--channels", "1025"), ("preprocess_data.py", "--sample-rate", "99"),
    ("preprocess_data.py", "--only", "gain"), ("preprocess_data.py", "--without", "reverb"),
    ("augment_data.py", "N", "0")])
def test_flag_that_makes_no_sense_is_named_and_changes_nothing(script, flag, value, sounds):
    before = sorted(sounds.rglob("*"))
    flags = [value, "Samples"] if flag == "N" else [flag, value]
    assert flag in one_line(script, *flags, cwd=sounds, status=2)
    assert sorted(sounds.rglob("*")) == before


def test_weights_of_other_classes_and_of_sounds_that_are_gone(trained, sounds, evaluate):
    shutil.copy(trained / "weights.keras", sounds)
    for name in ("low", "middle", "high"):
        (sounds / "Samples" / name).rename(sounds / "Samples" / name[0])
    with pytest.raises(UserError, match="Samples: holds classes that weights.keras does not know, "
                       "h, l, m; to train with them: python train_network.py --fresh --save "
                       "weights.keras"):
        evaluate(sounds)
    shutil.rmtree(sounds / "Samples")
    with pytest.raises(UserError, match="Samples: expected a folder"):
        evaluate(sounds)


def test_preprocessing_that_was_cut_short_is_not_trained_on(preprocessed):
    sounds = preprocessed
    path = sounds / "Preproc/settings.json"
    finished = path.read_text()
    for text in ("{}", finished.replace("true", "false")):
        path.write_text(text)
        line = one_line("train_network.py", cwd=sounds)
        assert ("Preproc/settings.json: preprocessing is not finished; run preprocess_data.py "
                "again") in line
    path.unlink()
    assert "settings.json: preprocessing is not fin" in one_line("train_network.py", cwd=sounds)


def test_sounds_that_changed_since_preprocessing_are_pointed_out(preprocessed):
    low = preprocessed / "Samples/low"
    (low / "damaged.wav").write_text("no sound")
    run("preprocess_data.py", cwd=preprocessed, status=1)
    train = "train_network.py", "--test", "nothing"
    assert "since preprocessing" not in run(*train, cwd=preprocessed, status=1).stdout
    shutil.copy(low / "00.wav", low / "new.wav")
    (low / "01.wav").rename(low / "swap")
    (low / "02.wav").rename(low / "01.wav")
    (low / "swap").rename(low / "02.wav")
    shutil.rmtree(preprocessed / "Samples/high")
    said = run(*train, cwd=preprocessed, status=1).stdout
    for words in ("1 sound is new since preprocessing, such as low/new.wav",
                  "2 sounds are of another time or content since preprocessing, such as low/01.wav",
                  "10 sounds are gone since preprocessing, such as high/00.wav"):
        assert f"Samples: {words}; preprocess_data.py brings them up to date" in said


def test_damaged_spectrogram_is_named_and_the_rest_used(preprocessed, monkeypatch, capsys):
    sounds = preprocessed
    low = sounds / "Preproc/low"
    (low / "00.wav.npy").write_bytes(b"\x93NUMPY")
    np.save(low / "01.wav.npy", np.zeros((3, 4), np.float32))
    np.save(low / "02.wav.npy", np.array([{"a": "pickle"}]), allow_pickle=True)
    np.save(low / "03.wav.npy", np.full((96, 20), np.nan, np.float32))
    whole = (low / "04.wav.npy").read_bytes()
    (low / "04.wav.npy").write_bytes(whole[:-100])
    (low / "05.wav.npy").unlink()
    (low / "05.wav.npy").symlink_to("nowhere")
    flags = "--epochs", 1, "--layers", 1, "--filters", 2
    result = run("train_network.py", *flags, cwd=sounds, status=1)
    *lines, last = result.stderr.splitlines()
    assert last == "train_network.py: 6 files skipped, named above" and len(lines) == 6
    for i, line in enumerate(lines):
        assert line.startswith(f"skipped Preproc/low/0{i}.wav.npy: expected ")
        assert line.endswith("; remove it and preprocess again")
    assert "24 spectrograms" in result.stdout and (sounds / "weights.keras").exists()
    monkeypatch.setattr(utils, "half_of_memory", lambda: 1)
    source = utils.find_source(sounds / "Samples", sounds / "Preproc")
    spectrograms, n_bad = utils.read_spectrograms(source, source.names)
    assert (len(spectrograms), n_bad) == (24, 6)
    output = capsys.readouterr()
    assert "are memory-mapped" in output.out
    assert output.err.count("; remove it and preprocess again\n") == 6


def test_class_folders_whose_names_look_the_same_are_refused(sounds):
    for form in ("NFC", "NFD"):
        folder = sounds / "Samples" / unicodedata.normalize(form, "café")
        shutil.copytree(sounds / "Samples/low", folder)
    line = one_line("preprocess_data.py", cwd=sounds)
    assert "Samples: two folders are named café" in unicodedata.normalize("NFC", line)
    assert r"('cafe\u0301' and 'caf\xe9'); move the sounds into one of them" in line
