"""A sound is read whole and alike, whatever its format, its length and what its header says."""
import itertools
import struct

import librosa
import numpy as np
import pytest
import soundfile
from conftest import run

import utils
from utils import UserError

BLOCK = 2**14  # samples, instead of utils.READ_SAMPLES
MP3_SETTINGS = itertools.product(("CONSTANT", "VARIABLE"), (0, 0.5, 0.9, 0.99))
CHOICES = {"MP3": [dict(zip(("bitrate_mode", "compression_level"), pair))
                   for pair in MP3_SETTINGS],
           "OGG": [{"compression_level": level} for level in (0, 0.5, 0.99)]}
FORMATS = [(kind, subtype) for kind in soundfile.available_formats() if kind != "RAW"
           for subtype in soundfile.available_subtypes(kind)]  # RAW has no header


def make_sound(n_samples, n_channels, rate):
    """A tone that swells and fades, with noise. [shape=(n_samples, n_channels)]"""
    time = np.arange(n_samples) / rate
    y = 0.15 * np.sin(2 * np.pi * 440 * time) * (1 + np.sin(2 * np.pi * 3 * time))
    y += np.random.default_rng(0).normal(0, 0.02, n_samples)
    return np.stack([y, np.roll(y, 99)], axis=1)[:, :n_channels]


def write_sound(path, y, rate, kind, subtype, **choices):
    """Write a sound a second at a time: libsndfile crashes on much Ogg Vorbis at once."""
    with soundfile.SoundFile(path, "w", rate, y.shape[1], subtype, None, kind, **choices) as file:
        for start in range(0, len(y), rate):
            file.write(y[start:start + rate])


def read_in_blocks(path):
    blocks = [y for y, _ in utils.read_blocks(path)]
    return np.concatenate(blocks), len(blocks)


@pytest.mark.parametrize("kind, subtype", FORMATS)
def test_reading_in_blocks_equals_reading_at_once(tmp_path, monkeypatch, kind, subtype):
    monkeypatch.setattr(utils, "READ_SAMPLES", BLOCK)
    n_read = 0
    cases = itertools.product((8000, 22050, 44100, 48000), (1, 2), CHOICES.get(kind, [{}]))
    for rate, n_channels, choices in cases:
        path = tmp_path / f"{n_read}.{kind.lower()}"
        y = make_sound(3 * BLOCK // n_channels + 1000, n_channels, rate)
        try:
            write_sound(path, y, rate, kind, subtype, **choices)
            expected, _ = soundfile.read(path, dtype="float32", always_2d=True)
        except (soundfile.SoundFileError, ValueError):
            continue  # not every format takes every rate and number of channels
        found, n_blocks = read_in_blocks(path)
        assert n_blocks >= 4
        # libsndfile itself differs by one step of float32 between two readings of an MP3.
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-7, err_msg=f"{rate} {choices}")
        path.unlink()
        n_read += 1
    if not n_read:
        pytest.skip("soundfile cannot write it, or not read it again")


# ---------------------------------------------------------------- headers that lie

RATE = 16000
SOUND = make_sound(3 * RATE, 1, RATE)


def overwrite(path, mark, offset, data):
    """Overwrite the bytes at `offset` behind the first `mark` in a file."""
    content = bytearray(path.read_bytes())
    start = content.index(mark) + offset
    content[start:start + len(data)] = data
    path.write_bytes(content)


def test_long_mp3_has_the_spectrogram_of_librosa(tmp_path):
    folder = tmp_path / "Samples/a"
    folder.mkdir(parents=True)
    for n_channels, rate in ((2, 24000), (1, 48000)):
        y = make_sound(3 * utils.READ_SAMPLES // n_channels, n_channels, rate)
        write_sound(folder / f"{rate}.mp3", y, rate, "MP3", "MPEG_LAYER_III",
                    compression_level=0.95)
    run("preprocess_data.py", "--sample-rate", 24000, cwd=tmp_path)
    for rate in (24000, 48000):
        y, _ = soundfile.read(folder / f"{rate}.mp3", dtype="float32", always_2d=True)
        y = librosa.resample(y.mean(axis=1), orig_sr=rate, target_sr=24000)
        mel = librosa.feature.melspectrogram(y=y, sr=24000, n_fft=1024, hop_length=256, n_mels=96)
        found = np.load(tmp_path / f"Preproc/a/{rate}.mp3.npy")
        np.testing.assert_allclose(found, librosa.power_to_db(mel), rtol=0, atol=3e-3)


@pytest.mark.parametrize("kind, mark, offset, data", [
    ("FLAC", b"fLaC", 22, bytes(4)),  # an unknown number of samples
    ("FLAC", b"fLaC", 22, struct.pack(">I", 999)),
    ("WAV", b"data", 4, bytes(4)), ("WAV", b"data", 4, struct.pack("<I", 999)),
    ("WAV", b"data", 4, b"\xff" * 4),
    ("AIFF", b"SSND", 4, struct.pack(">I", 8)), ("AIFF", b"SSND", 4, struct.pack(">I", 999)),
    ("AU", b".snd", 8, bytes(4)), ("AU", b".snd", 8, struct.pack(">I", 999)),
    ("W64", b"data\xf3", 16, struct.pack("<Q", 24))])
@pytest.mark.parametrize("block", [2**18, 1000])
def test_all_samples_are_read_though_the_header_announces_fewer(
        tmp_path, monkeypatch, kind, mark, offset, data, block):
    monkeypatch.setattr(utils, "READ_SAMPLES", block)
    path = tmp_path / "x.wav"
    write_sound(path, SOUND, RATE, kind, "PCM_16")
    expected, _ = soundfile.read(path, dtype="float32", always_2d=True)
    overwrite(path, mark, offset, data)
    before = path.read_bytes()
    found, _ = read_in_blocks(path)
    np.testing.assert_array_equal(found, expected)
    assert path.read_bytes() == before


@pytest.mark.parametrize("kind, subtype, mark, offset, data", [
    ("MP3", "MPEG_LAYER_III", b"Xing", 8, struct.pack(">I", 9)),
    ("CAF", "PCM_16", b"data", 4, struct.pack(">Q", 999)),
    ("RF64", "PCM_16", b"ds64", 16, struct.pack("<Q", 999))])
def test_a_sound_that_is_much_longer_than_can_be_read_is_named(
        tmp_path, kind, subtype, mark, offset, data):
    path = tmp_path / "x.wav"
    write_sound(path, SOUND, RATE, kind, subtype)
    overwrite(path, mark, offset, data)
    with pytest.raises(UserError, match=r"x\.wav: is much longer than its header says; "):
        read_in_blocks(path)


@pytest.mark.parametrize("kind, subtype, rest", [
    ("WAV", "PCM_16", b"LIST" + struct.pack("<I", 100_000) + bytes(100_000)),
    ("WAV", "PCM_U8", b"LIST" + struct.pack("<I", 100_000) + b"picture " * 12_500),
    ("AIFF", "PCM_16", b"ID3 " + struct.pack(">I", 100_000) + bytes(100_000)),
    ("WAV", "PCM_16", bytes(200_000)), ("MP3", "MPEG_LAYER_III", bytes(200_000)),
    ("MP3", "MPEG_LAYER_III", b"APETAGEX" + b"picture" * 20_000)])
def test_a_picture_or_free_space_behind_a_sound_is_not_read_as_sound(tmp_path, kind, subtype, rest):
    path = tmp_path / "x.wav"
    write_sound(path, SOUND[1:], RATE, kind, subtype)
    if subtype == "PCM_U8":  # of an odd number of bytes, without the byte that should follow it
        path.write_bytes(path.read_bytes()[:-1])
    expected, _ = read_in_blocks(path)
    path.write_bytes(path.read_bytes() + rest)
    found, _ = read_in_blocks(path)
    np.testing.assert_array_equal(found, expected)
