"""A sound becomes the spectrogram that librosa would make of it."""
import pickle
import subprocess
import sys

import librosa
import numpy as np
import pytest
import soundfile
from conftest import ROOT

import models
import utils
from preprocess_data import FeatureSettings, convert, default_settings, log_mel_spectrogram


def reference(y, settings):
    mel = librosa.feature.melspectrogram(y=y, sr=settings.sample_rate, n_fft=settings.n_fft,
                                         hop_length=settings.hop_length, n_mels=settings.n_mels)
    return librosa.power_to_db(mel)


def spectrogram_of(y, settings):
    return log_mel_spectrogram([np.atleast_2d(y)], settings)


def read_sound(path, sample_rate):
    return np.concatenate(list(convert(utils.read_blocks(path), default_settings(sample_rate))), axis=1)[0]


def hard_sound(kind, n_samples, sample_rate):
    rng, time = np.random.default_rng(0), np.arange(n_samples) / sample_rate
    return {"sine": np.sin(2 * np.pi * 1000 * time),
            "decay": np.sin(2 * np.pi * 440 * time) * np.exp(-8 * time),
            "noise": 0.1 * rng.normal(size=n_samples),
            "click": (time == 0) * 1.0,
            "silence": np.zeros(n_samples)}[kind].astype(np.float32)


@pytest.mark.parametrize("sample_rate", [4000, 8000, 11025, 16000, 22050, 32000, 44100, 48000, 96000])
@pytest.mark.parametrize("kind", ["sine", "decay", "noise", "click", "silence"])
def test_spectrogram_equals_librosa_at_every_rate(kind, sample_rate):
    y, settings = hard_sound(kind, sample_rate, sample_rate), default_settings(sample_rate)
    spectrogram = spectrogram_of(y, settings)
    assert spectrogram.dtype == np.float32
    assert spectrogram.shape == (96, 1 + len(y) // settings.hop_length)
    np.testing.assert_allclose(spectrogram, reference(y, settings), atol=1e-4, rtol=0)


@pytest.mark.filterwarnings("ignore:n_fft=")  # librosa's word on sounds shorter than a window
@pytest.mark.parametrize("n_samples", [1, 2, 100, 511, 512, 513, 2047, 2048, 44100, 12 * 44100])
def test_spectrogram_equals_librosa_from_one_sample_to_12_seconds(n_samples):
    y, settings = hard_sound("noise", n_samples, 44100), default_settings(44100)
    np.testing.assert_allclose(spectrogram_of(y, settings), reference(y, settings), atol=1e-4, rtol=0)


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


def test_mel_filters_travel_with_the_settings_so_that_other_processes_need_no_librosa():
    settings = FeatureSettings(22050, 40, 1024, 256)
    np.testing.assert_array_equal(settings.filters.toarray(), librosa.filters.mel(
        sr=22050, n_mels=40, n_fft=1024, dtype=np.float64))
    code = ("import pickle, sys; settings = pickle.loads(bytes.fromhex(sys.argv[1])); "
            "print(settings.filters.shape, 'librosa' in sys.modules)")
    said = subprocess.run([sys.executable, "-c", code, pickle.dumps(settings).hex()], cwd=ROOT, capture_output=True,
                          text=True, check=True).stdout
    assert said == "(40, 513) False\n"


def test_window_and_hop_keep_their_length_in_time():
    found = {rate: default_settings(rate) for rate in (8000, 16000, 22050, 44100, 48000)}
    assert {rate: (s.n_mels, s.n_fft, s.hop_length) for rate, s in found.items()} == {
        8000: (96, 512, 128), 16000: (96, 1024, 256), 22050: (96, 1024, 256), 44100: (96, 2048, 512),
        48000: (96, 2048, 512)}


@pytest.mark.parametrize("sample_rate", [1000, 4000, 8000, 16000, 44100, 192000])
@pytest.mark.parametrize("n_mels", [16, 96, 256])
def test_no_mel_filter_is_empty(sample_rate, n_mels):
    settings = default_settings(sample_rate, n_mels)
    assert librosa.filters.mel(sr=sample_rate, n_fft=settings.n_fft, n_mels=n_mels).max(axis=1).min() > 0


def test_given_n_fft_that_empties_filters_is_refused():
    with pytest.raises(utils.UserError, match="--n-fft 256.*mel filters.*empty"):
        default_settings(44100, n_fft=256)


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
    padded = models.pad_to(spectrogram_of(y, settings), 200)
    assert padded[:, 0] == pytest.approx(loud_then_silent[:, -1])
    assert padded.max() == loud_then_silent.max()


@pytest.mark.parametrize("n_frames", [1, 15, 16, 17, 31, 32, 33, 100])
def test_windows_cover_every_frame_of_a_sound(n_frames):
    spectrogram = np.arange(n_frames, dtype=np.float32)[None]
    windows = models.windows_of(spectrogram, 16)
    assert windows.shape == (-(-n_frames // 16), 1, 16)
    assert set(range(n_frames)) <= set(windows.ravel())
