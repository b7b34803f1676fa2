"""Preprocessing finds sounds that may be wrong, and classes that the recordings give away."""
import shutil

import numpy as np
import pytest
import soundfile
from conftest import read_table, run

import preprocess_data
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
    """The other file, or the detail, of each suspicion, by its kind and file."""
    rows = read_table(folder / "Preproc/suspicious.csv")
    for row in rows:
        assert row["class"] == row["file"].split("/")[0] or not row["file"]
        assert bool(row["other"]) == bool(row["difference"]) != bool(row["detail"])
        assert float(row["difference"] or 0) < 1
    return {(row["kind"], row["file"]): row["other"] or row["detail"] for row in rows}


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
        ("clipped", "low/loud.wav"), ("nearly identical", "low/loud.wav"),
        ("clipped", "middle/full_scale.wav"),
        ("odd length", "low/long.wav"), ("odd length", "low/short.wav")}
    assert found["nearly identical, in two classes", "low/00.wav"] == "high/padded.wav"
    assert found["identical", "low/copy.wav"] == "low/00.wav"
    assert found["clipped", "low/loud.wav"].endswith("of the samples are at 0.500")
    assert "Suspicious, odd length: 2, such as low/long.wav (" in said
    assert "Suspicious, identical: 1, such as low/copy.wav (low/00.wav, 0.00 dB)" in said
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


@pytest.mark.parametrize("bits, kind", [(8, "PCM_U8"), (16, "PCM_16"), (24, "PCM_24"),
                                        (32, "PCM_32")])
def test_clipping_at_full_scale_is_found_on_both_sides(tmp_path, bits, kind):
    top = 2**(bits - 1)
    y = np.array([0.6 * top, top - 1, top - 1, 9, -0.6 * top, -top, -top, -9]).astype(np.int64)
    y = np.tile(y << (32 - bits), 100).astype(np.int32)  # soundfile takes the upper bits
    soundfile.write(tmp_path / "x.wav", y, RATE, kind)
    np.save(tmp_path / "x.wav.npy", np.zeros((96, 5), np.float32))
    plan = preprocess_data.Plan(tmp_path, tmp_path, utils.default_settings(RATE))
    found = preprocess_data.measure_sound("x.wav", plan)
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
    array.write_bytes(array.read_bytes() + utils.make_key(folder / "low/01.wav"))
    (folder / "low/copy.wav").unlink()
    shutil.copy(folder / "low/02.wav", folder / "low/03.wav")
    said = run("preprocess_data.py", cwd=preprocessed).stdout
    reason = "Preproc/low/01.wav.npy: expected decibels, found NaN"
    assert f"Suspicious, unreadable: 1, such as low/01.wav ({reason}" in said
    found = read_suspicious(preprocessed)
    assert found.keys() == {("identical", "low/03.wav"), ("unreadable", "low/01.wav")}
    assert found["unreadable", "low/01.wav"].startswith(reason)


PLAIN = preprocess_data.Measures(8000, 1, 1.0, 0.5, 0.5, 0.0, "", np.zeros(16))


@pytest.mark.parametrize("key, of_a, of_others, words", [
    ("channels", 2, 1, "channels is higher"), ("seconds", 3.0, 1.0, "seconds is higher"),
    ("peak", 0.01, 0.5, "peak is lower")])
def test_properties_that_give_a_class_away_are_found(key, of_a, of_others, words):
    names = [f"{name}/{k}.wav" for name in "abc" for k in range(10)]
    measures = {name: PLAIN._replace(**{key: of_a if name[0] == "a" else of_others})
                for name in names}
    found = preprocess_data.find_clues(measures)
    assert found == [("a", f"{words} than elsewhere (AUC 1.000)")]
    measures["b/0.wav"] = measures["a/0.wav"]
    measures["b/1.wav"] = measures["a/0.wav"]
    assert preprocess_data.find_clues(measures) == []


@pytest.mark.parametrize("of_low, of_high, flags, is_told", [
    (22050, 48000, ["--sample-rate", 48000], True),
    (22050, 48000, ["--sample-rate", 22050], True),  # the cutoff of the resampler tells
    (22050, 48000, ["--sample-rate", 22050, "--fmax", 9900], False),
    (22050, 44100, ["--fmax", 9900], False), (22050, 48000, ["--sample-rate", 19800], False),
    (8000, 8000, ["--sample-rate", 16000], False)])
def test_low_sample_rates_that_give_classes_away_are_a_row_with_the_remedy(
        tmp_path, of_low, of_high, flags, is_told):
    for k in range(20):
        name, rate = (("low", of_low), ("high", of_high))[k // 10]
        (tmp_path / "Samples" / name).mkdir(parents=True, exist_ok=True)
        y = np.random.default_rng(k).normal(0, 0.1, rate // 5)  # the same white noise
        soundfile.write(tmp_path / f"Samples/{name}/{k:02d}.wav", y, rate)
    run("preprocess_data.py", *flags, cwd=tmp_path)
    found = read_table(tmp_path / "Preproc/suspicious.csv")
    assert [(row["kind"], row["class"]) for row in found] == [("class given away", "low")] * is_told
    for row in found:
        assert row["detail"] == (
            "100% of it, but 0% of high, is recorded at 22050 Hz or less; preprocess again with "
            "--fmax 9900, which leaves out all sound above it")
    if of_low < of_high:  # the bands do differ, by more than 2 dB, unless the advice is followed
        low, high = (np.mean([np.load(path).mean(axis=1)
                              for path in (tmp_path / "Preproc" / name).iterdir()], axis=0)
                     for name in ("low", "high"))
        clue = np.abs(low - high - np.median(low - high)).max()  # dB
        assert clue > 2 if is_told else clue < 2


def test_low_rates_are_told_of_half_of_the_classes_and_not_of_rates_of_every_kind():
    measures = {f"{name}/{k}.wav": PLAIN._replace(sample_rate=8000 if name in "ab" else 44100)
                for name in "abcd" for k in range(10)}
    assert [name for name, _ in preprocess_data.find_low_rates(measures, 22050)] == ["a"]
    measures = {f"{name}/{k}.wav": PLAIN._replace(sample_rate=8000 + 100 * k)
                for name in "ab" for k in range(30)}
    assert preprocess_data.find_low_rates(measures, 4500) == []


def test_lengths_are_odd_within_their_class_and_among_all():
    plain = PLAIN._replace(seconds=0.3)
    measures = {f"drum/{k}.wav": plain for k in range(60)}
    measures |= {f"pad/{k}.wav": plain._replace(seconds=20.0) for k in range(20)}
    assert preprocess_data.find_odd_lengths(measures) == {}
    measures["drum/0.wav"] = plain._replace(seconds=9.0)
    assert preprocess_data.find_odd_lengths(measures) == {
        "drum/0.wav": "9.00 s, the median of its class is 0.30 s"}


@pytest.mark.parametrize("rate, lowest", [(8000, 60), (16000, 60), (44100, 100)])
def test_tones_of_different_pitch_are_not_alike(rate, lowest):
    settings = utils.default_settings(rate)
    time = np.arange(rate) / rate
    tones = {}
    for k in range(60):
        y = 0.3 * np.sin(2 * np.pi * lowest * 2 ** (k / 12) * time, dtype=np.float32)
        tones[f"a/{k}.wav"] = utils.log_mel_spectrogram([y[None]], settings)
    assert utils.find_alike({name: name for name in tones},
                            lambda name: utils.take_fingerprint(tones[name]), tones.get) == []


def test_a_recording_is_known_at_another_level_and_in_other_formats(preprocessed):
    folder = preprocessed / "Samples"
    versions = set()
    for k, (name, gain, choices) in enumerate([
            ("high/y.aiff", 1, {}), ("high/x.ogg", 1, {}), ("middle/x.wav", 0.1, {}),
            ("low/y.flac", 0.7, {}), ("low/x.mp3", 0.5, {"compression_level": 0.5})]):
        source = f"low/{k:02d}.wav"
        y, _ = soundfile.read(folder / source)
        silence = np.zeros(90 * k)
        y = gain * np.concatenate([silence, y, silence])
        soundfile.write(folder / name, y, RATE, **choices)
        versions.add(frozenset((source, name)))
    run("preprocess_data.py", cwd=preprocessed)
    found = {frozenset((name, other))
             for (_, name), other in read_suspicious(preprocessed).items()}
    assert found == versions


def test_sounds_that_the_network_would_not_hear_as_they_are_are_listed(preprocessed):
    folder = preprocessed / "Samples"
    y, _ = soundfile.read(folder / "low/00.wav")
    soundfile.write(folder / "low/wired.wav", np.stack([y, -y], axis=1), RATE)
    soundfile.write(folder / "low/units.wav", 32768 * y[::-1], RATE, "FLOAT")
    y, _ = soundfile.read(folder / "low/01.wav")
    soundfile.write(folder / "low/loud.wav", 3 * y[::-1], RATE, "FLOAT")  # 0.9 at most
    said = run("preprocess_data.py", cwd=preprocessed).stdout
    found = read_suspicious(preprocessed)
    assert found.keys() == {("channels cancel", "low/wired.wav"),
                            ("beyond full scale", "low/units.wav")}
    assert "invert a channel, or use more --channels" in found["channels cancel", "low/wired.wav"]
    assert "the largest sample is 98" in found["beyond full scale", "low/units.wav"]
    assert "Suspicious, channels cancel: 1, such as low/wired.wav" in said
    run("preprocess_data.py", "--channels", 2, cwd=preprocessed)
    assert ("channels cancel", "low/wired.wav") not in read_suspicious(preprocessed)
