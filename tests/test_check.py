"""Preprocessing finds sounds that may be wrong, and classes that the recordings give away."""
import os
import shutil

import numpy as np
import pytest
import soundfile
from conftest import read_table, run

import preprocess_data
import train_network
import utils

RATE = 8000  # Hz


@pytest.fixture
def preprocessed(tmp_path):
    """Three classes of ten sounds, each of six random tones one after another, preprocessed."""
    rng = np.random.default_rng(0)
    for k in range(30):
        hertz = np.repeat(rng.uniform(100, 3900, size=6), rng.integers(300, 800, size=6))
        path = tmp_path / "Samples" / ("low", "middle", "high")[k % 3] / f"{k // 3:02d}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, 0.3 * np.sin(2 * np.pi * np.cumsum(hertz) / RATE), RATE)
    run("preprocess_data.py", cwd=tmp_path)
    return tmp_path


def read_suspicious(folder):
    rows = read_table(folder / "Preproc/suspicious.csv")
    return {(row["kind"], row["file"]): row["detail"] for row in rows}


def test_sounds_without_faults_are_not_suspicious(preprocessed):
    assert read_suspicious(preprocessed) == {}


def test_faults_are_found_printed_and_listed(preprocessed):
    folder = preprocessed / "Samples"
    y, rate = soundfile.read(folder / "low/00.wav")
    silence = np.zeros(1000)
    shutil.copy(folder / "low/00.wav", folder / "low/copy.wav")
    full_scale = np.clip(5 * y, -1, 1)  # in 16 bits, -32768 and 32767
    planted = {"middle/full_scale.wav": full_scale[::-1],
               "high/padded.wav": np.concatenate([silence, y / 2, silence]),
               "low/nothing.wav": 1e-4 * y, "low/loud.wav": np.clip(4 * y, -0.5, 0.5),
               "low/long.wav": np.tile(soundfile.read(folder / "low/01.wav")[0], 20),
               "low/short.wav": soundfile.read(folder / "low/02.wav")[0][:60]}
    for name, samples in planted.items():
        soundfile.write(folder / name, samples, rate)
    said = run("preprocess_data.py", cwd=preprocessed).stdout
    found = read_suspicious(preprocessed)
    assert found.keys() == {
        ("identical", "low/copy.wav"), ("nearly identical, in two classes", "low/00.wav"),
        ("silent", "low/nothing.wav"),
        ("clipped", "low/loud.wav"), ("clipped", "middle/full_scale.wav"),
        ("odd length", "low/long.wav"), ("odd length", "low/short.wav")}
    assert found["nearly identical, in two classes", "low/00.wav"].startswith("high/padded.wav, ")
    assert found["clipped", "low/loud.wav"].endswith("of the samples are at 0.500")
    assert "Suspicious, odd length: 2, such as low/long.wav (" in said
    for name in planted:
        (folder / name).unlink()
    (folder / "low/copy.wav").unlink()
    run("preprocess_data.py", cwd=preprocessed)
    assert read_suspicious(preprocessed) == {}


def test_copies_are_not_checked_and_unchanged_sounds_not_again(preprocessed):
    run("augment_data.py", 1, "Samples", "--only", "polarity", cwd=preprocessed)
    assert "Checking: 30 of 30" in run("preprocess_data.py", cwd=preprocessed).stdout
    assert read_suspicious(preprocessed) == {}
    assert "Checking" not in run("preprocess_data.py", cwd=preprocessed).stdout
    (preprocessed / "Preproc/suspicious.csv").unlink()
    assert "Checking" in run("preprocess_data.py", cwd=preprocessed).stdout


def test_a_lower_side_of_few_levels_is_not_clipped(tmp_path):
    y = np.tile([0.5, -0.3, 0.1, -0.3, -0.3, 0], 100)  # as of 8 bits, quiet
    soundfile.write(tmp_path / "x.wav", y, RATE)
    np.save(tmp_path / "x.wav.npy", np.zeros((96, 5), np.float32))
    settings = utils.default_settings(RATE)
    assert preprocess_data.measure_sound("x.wav", tmp_path, tmp_path, settings).clipped == 0


@pytest.mark.parametrize("bits, kind", [(8, "PCM_U8"), (16, "PCM_16"), (24, "PCM_24"),
                                        (32, "PCM_32")])
def test_clipping_at_full_scale_is_found_on_both_sides(tmp_path, bits, kind):
    top = 2**(bits - 1)
    y = np.array([0.6 * top, top - 1, top - 1, 9, -0.6 * top, -top, -top, -9]).astype(np.int64)
    y = np.tile(y << (32 - bits), 100).astype(np.int32)  # soundfile takes the upper bits
    soundfile.write(tmp_path / "x.wav", y, RATE, kind)
    np.save(tmp_path / "x.wav.npy", np.zeros((96, 5), np.float32))
    settings = utils.default_settings(RATE)
    found = preprocess_data.measure_sound("x.wav", tmp_path, tmp_path, settings)
    assert found.clipped == pytest.approx(1 / 4)


def test_a_sound_damaged_later_leaves_the_table_and_a_damaged_array_is_listed(preprocessed):
    folder = preprocessed / "Samples"
    shutil.copy(folder / "low/00.wav", folder / "low/copy.wav")
    run("preprocess_data.py", cwd=preprocessed)
    assert read_suspicious(preprocessed)
    (folder / "low/copy.wav").write_bytes(b"no sound")
    run("preprocess_data.py", cwd=preprocessed, status=1)
    assert read_suspicious(preprocessed) == {}
    array = preprocessed / "Preproc/low/01.wav.npy"
    np.save(array, np.full((96, 20), np.nan, np.float32))
    times = (folder / "low/01.wav").stat()
    os.utime(array, ns=(times.st_mtime_ns, times.st_mtime_ns))
    (folder / "low/copy.wav").unlink()
    shutil.copy(folder / "low/02.wav", folder / "low/03.wav")
    said = run("preprocess_data.py", cwd=preprocessed).stdout
    reason = "Preproc/low/01.wav.npy: expected decibels, found NaN"
    assert f"Suspicious, unreadable: 1, such as low/01.wav ({reason}" in said
    found = read_suspicious(preprocessed)
    assert found.keys() == {("identical", "low/03.wav"), ("unreadable", "low/01.wav")}
    assert found["unreadable", "low/01.wav"].startswith(reason)


def test_training_says_which_subsets_hold_nearly_identical_sounds(preprocessed, capsys):
    low = preprocessed / "Samples/low"
    (low / "00.wav").rename(low / "=a, 1.wav")
    names = sorted(path.name for path in low.iterdir())
    for i, name in enumerate(names):
        y, _ = soundfile.read(low / name)
        soundfile.write(low / f"copy{i}.wav", 0.9 * y, RATE)
    run("preprocess_data.py", cwd=preprocessed)
    split = {"train": [f"low/{name}" for name in names], "validation": ["low/copy9.wav"],
             "test": [f"low/copy{i}.wav" for i in range(6)]}
    train_network.note_alike(split, preprocessed / "Preproc")
    said = capsys.readouterr().out
    assert said.startswith("Nearly identical sounds in two subsets: 7, such as ")
    assert "suspicious.csv lists them" in said
    utils.save_csv(preprocessed / "suspicious.csv", [
        ("kind", "class", "file", "detail"),
        ("identical, in two classes", "low", "low/copy1.wav", f"low/{names[1]}, 0.00 dB")])
    train_network.note_alike(split, preprocessed)
    assert "Nearly identical sounds in two subsets: 1," in capsys.readouterr().out
    train_network.note_alike(split | {"validation": [], "test": []}, preprocessed / "Preproc")
    train_network.note_alike(split, preprocessed / "Samples")  # without a table
    assert capsys.readouterr().out == ""


def test_training_reads_the_table_of_the_check(trained):
    said = (trained / "train.txt").read_text()
    assert "Nearly identical sounds in two subsets: 2, such as high/04.wav and high/01.wav" in said


def test_stereo_spectrograms_are_checked(preprocessed):
    folder = preprocessed / "Samples"
    y, rate = soundfile.read(folder / "low/00.wav")
    soundfile.write(folder / "low/both.wav", np.stack([y, y], axis=1), rate)
    run("preprocess_data.py", "--channels", 2, cwd=preprocessed)
    assert read_suspicious(preprocessed).keys() == {("identical", "low/both.wav")}


@pytest.mark.parametrize("key, of_a, of_others, words", [
    ("sample_rate", 8000, 16000, "sample_rate is lower"), ("channels", 2, 1, "channels is higher"),
    ("seconds", 3.0, 1.0, "seconds is higher"), ("peak", 0.01, 0.5, "peak is lower")])
def test_properties_that_give_a_class_away_are_found(key, of_a, of_others, words):
    plain = preprocess_data.Measures(8000, 1, 1.0, 0.5, 0.0, np.zeros(16))
    names = [f"{name}/{k}.wav" for name in "abc" for k in range(10)]
    measures = {name: plain._replace(**{key: of_a if name[0] == "a" else of_others})
                for name in names}
    found = preprocess_data.find_clues(measures)
    assert found == [("a", f"{words} than elsewhere (AUC 1.000)")]
    measures["b/0.wav"] = measures["a/0.wav"]
    measures["b/1.wav"] = measures["a/0.wav"]
    assert preprocess_data.find_clues(measures) == []


def test_every_property_that_gives_a_class_away_is_a_row():
    plain = preprocess_data.Measures(8000, 1, 1.0, 0.5, 0.0, np.zeros(16))
    measures = {f"{name}/{k}.wav": plain for name in "bc" for k in range(10)}
    odd = plain._replace(sample_rate=16000, channels=2)
    measures |= {f"a/{k}.wav": odd for k in range(10)}
    assert preprocess_data.find_clues(measures) == [
        ("a", "sample_rate is higher than elsewhere (AUC 1.000)"),
        ("a", "channels is higher than elsewhere (AUC 1.000)")]


def test_many_identical_sounds_are_each_listed_once(tmp_path):
    measures = {}
    for k in range(200):
        measures[f"a/{k:03d}.wav"] = preprocess_data.Measures(
            8000, 1, 1.0, 0.5, 0.0, np.zeros(16))
        (tmp_path / "a").mkdir(exist_ok=True)
        np.save(tmp_path / f"a/{k:03d}.wav.npy", np.zeros((96, 5), np.float32))
    twins = preprocess_data.find_twins(measures, tmp_path)
    assert len(twins) == 199 and all(difference == 0 for _, difference in twins.values())
