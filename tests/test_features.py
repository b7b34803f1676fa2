"""A sound becomes the spectrogram that librosa would make of it."""
import dataclasses
import json

import librosa
import numpy as np
import pytest
import soundfile
from conftest import DATA, needs_data

import models
import utils
from utils import FeatureSettings, convert_blocks, default_settings, log_mel_spectrogram

RATES = [4000, 8000, 11025, 16000, 22050, 32000, 44100, 48000, 96000]  # Hz


def reference(y, settings):
    """librosa's log-mel spectrogram. [shape=(..., n_mels, n_frames)]"""
    mel = librosa.feature.melspectrogram(
        y=y, sr=settings.sample_rate, n_fft=settings.n_fft,
        hop_length=settings.hop_length, n_mels=settings.n_mels, fmin=settings.fmin,
        fmax=settings.fmax)
    return librosa.power_to_db(mel)


def assert_equals_librosa(spectrogram, y, settings):
    """Within 0.002 dB everywhere, and 0.0005 dB within 60 dB of the loudest bin."""
    expected = reference(y, settings)
    np.testing.assert_allclose(spectrogram, expected, atol=2e-3, rtol=0)
    is_loud = expected > expected.max() - 60
    np.testing.assert_allclose(spectrogram[is_loud], expected[is_loud], atol=5e-4, rtol=0)


def spectrogram_of(y, settings):
    return log_mel_spectrogram([np.atleast_2d(y)], settings)


def read_sound(path, sample_rate):
    blocks = convert_blocks(utils.read_blocks(path), default_settings(sample_rate))
    return np.concatenate(list(blocks), axis=1)[0]


def hard_sound(kind, n_samples, sample_rate):
    rng = np.random.default_rng(0)
    time = np.arange(n_samples) / sample_rate
    y = {"sine": np.sin(2 * np.pi * 1000 * time),
         "decay": np.sin(2 * np.pi * 440 * time) * np.exp(-8 * time),
         "noise": 0.1 * rng.normal(size=n_samples),
         "quiet noise": 1e-4 * rng.normal(size=n_samples),
         "click": (time == 0) * 1.0,
         "silence": np.zeros(n_samples)}[kind]
    return y.astype(np.float32)


@pytest.mark.parametrize("sample_rate", RATES)
@pytest.mark.parametrize("kind", ["sine", "decay", "noise", "quiet noise", "click", "silence"])
def test_spectrogram_equals_librosa_at_every_rate(kind, sample_rate):
    settings = default_settings(sample_rate)
    y = hard_sound(kind, sample_rate, sample_rate)
    spectrogram = spectrogram_of(y, settings)
    assert spectrogram.dtype == np.float32
    assert spectrogram.shape == (96, 1 + len(y) // settings.hop_length)
    assert_equals_librosa(spectrogram, y, settings)


@pytest.mark.filterwarnings("ignore:n_fft=")  # librosa's word on sounds shorter than a window
@pytest.mark.parametrize("n_samples", [1, 2, 100, 511, 512, 513, 2047, 2048, 44100, 12 * 44100])
def test_spectrogram_equals_librosa_from_one_sample_to_12_seconds(n_samples):
    settings = default_settings(44100)
    y = hard_sound("noise", n_samples, 44100)
    assert_equals_librosa(spectrogram_of(y, settings), y, settings)


@pytest.mark.parametrize("settings", [
    FeatureSettings(44100, 40, 1025, 300), FeatureSettings(8000, 16, 64, 64),
    FeatureSettings(22050, 128, 4096, 1), FeatureSettings(16000, 1, 1024, 256),
    FeatureSettings(44100, 96, 2048, 512, fmax=9900), FeatureSettings(8000, 9, 512, 99, 1, 5, 3500),
    FeatureSettings(384000, 96, 1024, 256, fmin=15000)], ids=str)
def test_spectrogram_equals_librosa_with_other_settings(settings):
    kind = "noise" if settings.fmin else "decay"  # bands without sound hold rounding errors
    y = hard_sound(kind, 3000, settings.sample_rate)
    assert_equals_librosa(spectrogram_of(y, settings), y, settings)


@needs_data
@pytest.mark.filterwarnings("ignore:n_fft=")
@pytest.mark.parametrize("dataset", ["drums", "fsdd", "kitchen20", "arabic_commands"])
def test_spectrogram_of_real_recordings_equals_librosa(dataset):
    files = sorted(path for path in DATA.glob(f"{dataset}/*/*") if utils.is_sound(path.name))
    chosen = files[::max(1, len(files) // 20)]
    assert len(chosen) >= 10
    for path in chosen:
        y, sample_rate = soundfile.read(path, dtype="float32", always_2d=True)
        settings = default_settings(sample_rate)
        blocks = convert_blocks(utils.read_blocks(path), settings)
        assert_equals_librosa(log_mel_spectrogram(blocks, settings), y.mean(axis=1), settings)


@pytest.mark.parametrize("sizes", [[8000], [1] * 700 + [7300], [4001, 3999], [63, 64, 65, 7808]])
def test_spectrogram_does_not_depend_on_the_blocks_that_are_read(sizes):
    settings = default_settings(8000)
    y = hard_sound("noise", 8000, 8000)
    blocks = np.split(y[None], np.cumsum(sizes)[:-1], axis=1)
    found = log_mel_spectrogram(blocks, settings)
    np.testing.assert_array_equal(found, spectrogram_of(y, settings))


@pytest.mark.parametrize("n_channels", [1, 2, 6])
@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT"])
def test_reading_averages_channels_at_every_bit_depth(tmp_path, n_channels, subtype):
    y = np.random.default_rng(0).uniform(-0.9, 0.9, (3000, n_channels)).astype(np.float32)
    soundfile.write(tmp_path / "a.wav", y, 22050, subtype=subtype)
    step = {"PCM_U8": 2**-7, "PCM_16": 2**-15}.get(subtype, 1e-6)
    read = read_sound(tmp_path / "a.wav", 22050)
    np.testing.assert_allclose(read, y.mean(axis=1), atol=step)
    np.testing.assert_allclose(read, librosa.load(tmp_path / "a.wav", sr=None)[0], atol=1e-6)


@pytest.mark.parametrize("extension", ["wav", "flac", "aiff", "ogg", "mp3"])
def test_reading_resamples_to_the_rate_asked_for(tmp_path, extension):
    path = tmp_path / f"a.{extension}"
    soundfile.write(path, 0.5 * np.sin(2 * np.pi * 440 * np.arange(22050) / 22050), 22050)
    y = read_sound(path, 44100)
    spectrum = np.abs(np.fft.rfft(y[:44000] * np.hanning(44000)))
    assert spectrum.argmax() * 44100 / 44000 == pytest.approx(440, abs=1)


def test_window_and_hop_keep_their_length_in_time():
    found = {rate: default_settings(rate) for rate in (8000, 16000, 22050, 44100, 48000)}
    assert {rate: (s.n_mels, s.n_fft, s.hop_length) for rate, s in found.items()} == {
        8000: (96, 512, 128), 16000: (96, 1024, 256), 22050: (96, 1024, 256),
        44100: (96, 2048, 512), 48000: (96, 2048, 512)}


@pytest.mark.parametrize("sample_rate", [1000, 4000, 8000, 16000, 44100, 192000])
@pytest.mark.parametrize("n_mels", [16, 96, 256])
def test_no_mel_filter_is_empty(sample_rate, n_mels):
    settings = default_settings(sample_rate, n_mels)
    filters = librosa.filters.mel(sr=sample_rate, n_fft=settings.n_fft, n_mels=n_mels)
    assert filters.max(axis=1).min() > 0


@pytest.mark.parametrize("flags, words", [
    ({"n_fft": 256}, r"--n-fft 256 at 44100 Hz: \d+ of 96 mel filters are empty; use a larger"),
    ({"hop_length": 2049}, "--hop-length 2049: longer than n_fft, 2048 samples; use a smaller")])
def test_settings_that_leave_filters_empty_or_skip_samples_are_refused(flags, words):
    with pytest.raises(utils.UserError, match=words):
        default_settings(44100, **flags)


def test_short_frames_for_bats_leave_no_filter_empty_from_15_khz_on():
    settings = default_settings(384000, n_fft=1024, hop_length=256, fmin=15000)
    assert str(settings) == "384000 Hz, 96 mels, n_fft 1024, hop_length 256, 15000 to 192000 Hz"
    with pytest.raises(utils.UserError, match="17 of 96 .* leave out low frequencies with --fmin"):
        default_settings(384000, n_fft=1024)


def test_weights_keep_fmin_and_fmax_and_older_ones_without_them_count_as_the_defaults(trained):
    training = models.load_training(trained / "weights.keras")
    assert str(training.features) == "8000 Hz, 96 mels, n_fft 512, hop_length 128"
    saved = json.loads(training.to_json())
    del saved["features"]["fmin"], saved["features"]["fmax"]
    assert models.Training.from_json(json.dumps(saved)) == training
    training.features = dataclasses.replace(training.features, fmin=300, fmax=3000)
    assert models.Training.from_json(training.to_json()) == training


def test_spectrogram_leaves_its_sound_unchanged():
    y = hard_sound("noise", 8000, 8000)
    before = y.copy()
    spectrogram_of(y, default_settings(8000))
    np.testing.assert_array_equal(y, before)


def test_padding_is_as_loud_as_silence_in_the_sound():
    settings = default_settings(8000)
    y = hard_sound("sine", 4096, 8000)
    quiet = np.zeros(8192, np.float32)
    loud_then_silent = spectrogram_of(np.concatenate([y, quiet]), settings)
    padded = models.pad_spectrogram(spectrogram_of(y, settings), 200)
    assert padded[:, 0] == pytest.approx(loud_then_silent[:, -1])
    assert padded.max() == loud_then_silent.max()


@pytest.mark.parametrize("n_frames", [1, 15, 16, 17, 31, 32, 33, 100])
def test_windows_cover_every_frame_of_a_sound(n_frames):
    spectrogram = np.arange(n_frames, dtype=np.float32)[None]
    windows = models.cut_windows(spectrogram, 16)
    assert windows.shape == (-(-n_frames // 16), 1, 16)
    assert set(range(n_frames)) <= set(windows.ravel())
