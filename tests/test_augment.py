"""Copies are exact, repeatable and all different, and the original stays untouched."""
import csv
import os
import shutil
import struct
import subprocess
import sys

import numpy as np
import pytest
import soundfile
from conftest import DATA, ROOT, SAMPLE_RATE, needs_data, one_line, run, tone

import augment_data
import utils
from augment_data import (
    DEFORMATIONS,
    PRESETS,
    compress_sound,
    draw_parameters,
    make_copy,
    make_noise,
    measure_rms,
    stretch_sound,
    warp_sound,
)

RATE = 44100  # Hz, where musicians work
ALL = tuple(DEFORMATIONS)
sys.path.insert(0, str(ROOT / "examples"))


def sine(hertz, seconds=2.0, rate=RATE, level=0.5):
    """A sine. [shape=(n_samples, 1), float32]"""
    time = np.arange(int(seconds * rate)) / rate
    return (level * np.sin(2 * np.pi * hertz * time)).astype(np.float32)[:, None]


def peak_frequency(y, near, rate=RATE):
    """The frequency in Hz of the strongest partial within a third of an octave of `near`."""
    n = 2**20
    spectrum = np.abs(np.fft.rfft(y[:, 0] * np.hanning(len(y)), n))
    low, high = int(near * 0.89 * n / rate), int(near * 1.12 * n / rate)
    k = low + np.argmax(spectrum[low:high])
    before, here, after = np.log(spectrum[k - 1:k + 2])
    return (k + (before - after) / 2 / (before - 2 * here + after)) * rate / n


def cents(found, expected):
    return 1200 * np.log2(found / expected)


def rows_of(folder):
    with open(folder / utils.AUGMENTATIONS, newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def y():
    rng = np.random.default_rng(0)
    return np.stack([tone(rng, 300), tone(rng, 500)], axis=1).astype(np.float32)


# ---------------------------------------------------------------- speed and pitch

@pytest.mark.parametrize("hertz", [80, 110, 196, 440, 987.8, 2000, 4000])
@pytest.mark.parametrize("rate", [8000, 44100])
def test_pitch_hits_the_drawn_interval_within_5_cents(hertz, rate):
    if hertz * 1.13 > rate / 2:
        pytest.skip("above half the sample rate")
    for k in range(1, 7):
        copy, parameters = make_copy(sine(hertz, 1.5, rate), rate, "a.wav", k, names=("pitch",))
        expected = hertz * 2 ** (parameters["pitch_semitones"] / 12)
        found = peak_frequency(copy[rate // 4:-rate // 4], expected, rate)
        assert abs(cents(found, expected)) < 5


@pytest.mark.parametrize("hertz", [80, 440, 4000])
@pytest.mark.parametrize("speed", [0.9, 0.97, 1.1])
def test_speed_alone_keeps_pitch_and_level(hertz, speed):
    copy = warp_sound(sine(hertz), RATE, speed_ratio=speed)[RATE // 4:int(1.5 * RATE)]
    assert abs(cents(peak_frequency(copy, hertz), hertz)) < 5
    assert abs(20 * np.log10(measure_rms(copy) / (0.5 / np.sqrt(2)))) < 0.2


@pytest.mark.parametrize("rate", [8000, 44100])
@pytest.mark.parametrize("speed", [0.9, 0.97, 1.1])
def test_speed_alone_hits_the_drawn_length(speed, rate):
    """Two clicks move apart by the ratio and stay sharp; a plain phase vocoder smears them."""
    y = np.zeros((2 * rate, 1), np.float32)
    y[[rate // 5, rate * 9 // 5]] = 1
    copy = stretch_sound(y, rate, speed)
    assert len(copy) == round(len(y) / speed)
    first = np.argmax(np.abs(copy[:rate]))
    second = rate + np.argmax(np.abs(copy[rate:]))
    assert abs((second - first) / (1.6 * rate / speed) - 1) < 0.005
    energy_of_click = np.square(copy[first - rate // 200:first + rate // 200]).sum()
    assert energy_of_click > 0.9 * np.square(copy[:rate]).sum()


@pytest.mark.parametrize("ratio", [0.9, 1.04, 1.1])
def test_speed_with_pitch_moves_both(ratio):
    copy = warp_sound(sine(440, 1.0), RATE, speed_with_pitch_ratio=ratio)
    assert abs(cents(peak_frequency(copy[:int(0.9 * RATE)], 440 * ratio), 440 * ratio)) < 1
    assert len(copy) == RATE and (ratio < 1 or not copy[int(RATE / ratio) + 100:].any())


@pytest.mark.parametrize("hertz", [3000, 10000, 19900, 21500])
@pytest.mark.parametrize("ratio", [0.9, 1.1])
def test_resampling_leaves_no_alias_above_60_db_below_the_tone(hertz, ratio):
    """What the linear interpolation of 2017 mirrors back into hearing."""
    y = sine(hertz, 1.0) * np.hanning(RATE)[:, None].astype(np.float32)  # no clicks at its ends
    copy = warp_sound(y, RATE, speed_with_pitch_ratio=ratio)
    power = np.abs(np.fft.rfft(copy[:, 0] * np.blackman(len(copy)))) ** 2
    place = int(hertz * ratio)
    alias = np.concatenate([power[:max(0, place - 60)], power[place + 60:]]).sum()
    reference = (np.abs(np.fft.rfft(y[:, 0] * np.blackman(len(y)))) ** 2).sum()
    assert 10 * np.log10(alias / reference) < -60


@pytest.mark.parametrize("string, fret", [(0, 0), (2, 7), (5, 12)])
def test_plucked_strings_hit_the_interval_and_keep_their_level(string, fret):
    import guitar_effects
    note = guitar_effects.pluck(6, 1, string, fret, np.random.default_rng(0))
    note = note.astype(np.float32)[:, None] / 4
    midi = guitar_effects.OPEN_STRINGS[string] + fret
    hertz = peak_frequency(note, 440 * 2 ** ((midi - 69) / 12))
    for k in range(1, 4):
        copy, parameters = make_copy(note, RATE, "a.wav", k, names=("pitch", "speed"))
        expected = hertz * 2 ** (parameters.get("pitch_semitones", 0) / 12)
        assert abs(cents(peak_frequency(copy, expected), expected)) < 5
        assert abs(20 * np.log10(measure_rms(copy) / measure_rms(note))) < 1


@needs_data
def test_recorded_bells_and_toms_hit_the_interval():
    """Real notes: the strongest partial of the drums that ring."""
    n = 0
    for path in sorted([*DATA.glob("drums/cowbell/*"), *DATA.glob("drums/*tom*/*")])[::2]:
        y, rate = soundfile.read(path, dtype="float32", always_2d=True)
        spectrum = np.abs(np.fft.rfft(y[:, 0] * np.hanning(len(y)), 2**20))
        hertz = peak_frequency(y, np.argmax(spectrum) * rate / 2**20, rate)
        if len(y) < rate / 3 or not 80 < hertz < 4000:
            continue
        n += 1
        semitones = (-1.7, 0.6)[n % 2]
        expected = hertz * 2 ** (semitones / 12)
        copy = warp_sound(y, rate, pitch_semitones=semitones)
        assert abs(cents(peak_frequency(copy, expected, rate), expected)) < 5, path.name
    assert n >= 8


# ---------------------------------------------------------------- dynamics, noise, shift

@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("peak", [0.03, 1])
def test_compressor_follows_its_static_curve_within_half_a_db(preset, peak):
    """Below the sound's own peak, which comes at its end."""
    _, _, level_in, level_out = PRESETS[preset]
    for level in range(-85, 1, 5):
        for hertz in (80, 1000):
            y = [sine(hertz, 1, 8000, 10 ** (level / 20)), sine(hertz, 0.1, 8000, 1)]
            y = peak * np.concatenate(y)
            middle = compress_sound(y, 8000, preset)[2000:5000]
            found = 20 * np.log10(measure_rms(middle) * np.sqrt(2) / peak)
            assert abs(found - np.interp(level, level_in, level_out)) < 0.5, (level, hertz)


def test_share_of_a_preset_changes_the_level_by_that_share():
    y = sine(440, 1, 8000, 0.1)
    for share, expected in ((1, -11), (0.5, -5.5)):
        copy = compress_sound(y, 8000, "music light", share)
        change = 20 * np.log10(measure_rms(copy) / measure_rms(y))
        assert change == pytest.approx(expected, abs=0.1)


def test_compressor_takes_the_time_of_its_attack_and_release():
    """Music standard: at 0 dB in -20 comes out, at -31 dB -31; attack 0.1 s, release 0.3 s."""
    soft = sine(1000, 2, RATE, 10 ** (-31 / 20))
    y = np.concatenate([soft, sine(1000, 2, RATE, 1), soft])
    copy = compress_sound(y, RATE, "music standard")
    gain = 20 * np.log10(np.abs(copy[:, 0] / np.where(y[:, 0], y[:, 0], np.nan)))
    # The gain is -10 dB where the level is -10.5 dB, an amplitude of 0.3. On the way up this is
    # 1 - 0.97 exp(-t / 0.1), after 0.033 s. On the way down it is 1.5 exp(-t / 0.3) -
    # 0.5 exp(-t / 0.1), after 0.48 s. Both come 0.1 s ahead.
    down, up = np.flatnonzero(gain < -10)[[0, -1]] / RATE - (2, 4)
    assert (down, up) == pytest.approx((0.033 - 0.1, 0.48 - 0.1), abs=0.02)


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("before", [0, 10 ** (-60 / 20)])
def test_compressor_has_turned_a_boost_down_when_the_hit_comes(preset, before):
    y = np.concatenate([sine(200, 1, RATE, before), sine(200, 1)])
    assert np.abs(compress_sound(y, RATE, preset)[RATE:]).max() <= 0.5


def test_compressor_treats_channels_alike():
    y = np.concatenate([sine(300), 0.1 * sine(300)], axis=1)
    copy = compress_sound(y, RATE, "speech")
    np.testing.assert_allclose(copy[:, 1], 0.1 * copy[:, 0], atol=1e-6)


@pytest.mark.parametrize("k", range(1, 13))
def test_noise_hits_its_ratio_within_a_tenth_of_a_db(y, k):
    copy, parameters = make_copy(y / 2, SAMPLE_RATE, "a.wav", k, names=("noise",))
    ratio = 20 * np.log10(measure_rms(y / 2) / measure_rms(copy - y / 2))
    assert parameters["scale"] == 1 and ratio == pytest.approx(parameters["snr_db"], abs=0.1)


def test_noise_is_relative_to_the_copy_whatever_its_gain(y):
    parameters = {"gain_db": -20, "noise": "white", "snr_db": 30}
    copy = augment_data.deform_sound(y, SAMPLE_RATE, parameters, np.random.default_rng(0))
    ratio = 20 * np.log10(measure_rms(y / 10) / measure_rms(copy - y / 10))
    assert ratio == pytest.approx(30, abs=0.1)


@pytest.mark.parametrize("color, slope", [("white", 0), ("pink", -3.01), ("brown", -6.02)])
def test_noise_has_its_color_and_channels_of_its_own(color, slope):
    noise = make_noise((2**18, 2), RATE, color, np.random.default_rng(0))
    assert noise.dtype == np.float32 and abs(np.corrcoef(noise.T)[0, 1]) < 0.3
    power = np.abs(np.fft.rfft(noise[:, 0])) ** 2
    hertz = np.fft.rfftfreq(2**18, 1 / RATE)
    octaves = [10 * np.log10(power[(hertz > low) & (hertz < 2 * low)].mean())
               for low in 100 * 2.0 ** np.arange(7)]
    assert np.polyfit(range(7), octaves, 1)[0] == pytest.approx(slope, abs=0.3)


def test_shift_moves_by_its_share_with_silence_or_rotation():
    y = np.arange(1, 101, dtype=np.float32)[:, None]
    rotated = augment_data.shift_sound(y, 0.1, "rotation")
    np.testing.assert_array_equal(rotated, np.roll(y, 10, axis=0))
    late = augment_data.shift_sound(y, 0.1, "silence")
    np.testing.assert_array_equal(late[:, 0], [0] * 10 + list(range(1, 91)))
    little = augment_data.shift_sound(y, 0.001, "silence")
    np.testing.assert_array_equal(little[:, 0], [0, *range(1, 100)])


# ---------------------------------------------------------------- copies

@pytest.mark.parametrize("name", DEFORMATIONS)
def test_deformation_changes_the_sound_and_not_its_input(name, y):
    before = y.copy()
    y.flags.writeable = False
    copy, parameters = make_copy(y, SAMPLE_RATE, "a.wav", 1, names=(name,))
    np.testing.assert_array_equal(y, before)
    assert copy.dtype == np.float32 and copy.shape == y.shape and np.isfinite(copy).all()
    assert np.abs(copy - y).max() > 1e-3 and not np.shares_memory(copy, y)
    assert set(parameters) == {*DEFORMATIONS[name], "scale"}


def test_copies_all_differ_and_keep_shape_type_and_full_scale(y):
    loud = y * 3
    copies = [make_copy(loud, SAMPLE_RATE, "a.wav", k)[0] for k in range(1, 41)]
    assert len({(copy * 2**15).round().tobytes() for copy in [loud, *copies]}) == 41
    for copy in copies:
        assert copy.dtype == np.float32 and copy.shape == y.shape and np.abs(copy).max() <= 1


# At 16 bits a quiet sound has fewer different copies.
@pytest.mark.parametrize("level, n", [(0.05, 60), (1, 600), (5, 600)])
@pytest.mark.parametrize("names", [
    ALL, ("polarity", "gain"), ("dynamics",), ("gain",), ("polarity", "dynamics")])
def test_many_copies_of_a_quiet_a_loud_and_a_clipping_sound_all_differ(names, level, n):
    y = sine(300, 0.05, 8000, level)
    copies = [make_copy(y, 8000, "a.wav", k, names=names)[0] for k in range(1, n + 1)]
    assert len({(copy * 2**15).round().tobytes() for copy in [y, *copies]}) == n + 1


@pytest.mark.parametrize("k", [1, 2, 9])
def test_every_choice_and_every_value_is_equally_likely(k):
    names = ALL[:3]
    found = [draw_parameters(0, f"{n}.wav", k, names) for n in range(2100)]
    choices = [tuple(parameters) for parameters in found]
    counts = [choices.count(choice) for choice in set(choices)]
    assert len(counts) == 7 and 240 < min(counts) and max(counts) < 360
    semitones = [p["pitch_semitones"] for p in found if "pitch_semitones" in p]
    histogram, _ = np.histogram(semitones, 4, (-2, 2))
    assert histogram.sum() == pytest.approx(1200, abs=90) and np.ptp(histogram) < 90
    assert len({tuple(draw_parameters(0, "a.wav", k, names)) for k in range(1, 8)}) == 7


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("rate", [100, 8000, 192000])
@pytest.mark.parametrize("n_samples", [2, 50])
def test_shortest_sounds_can_be_altered(n_samples, rate):
    y = np.linspace(0.1, 0.5, n_samples, dtype=np.float32)[:, None]
    assert all(make_copy(y, rate, "a.wav", k)[0].shape == y.shape for k in range(1, 41))


@pytest.mark.parametrize("rate", [1, 8, 20, 2**30])
def test_absurd_sample_rates_do_no_harm(rate):
    """Below 10 Hz the stretcher brings the process down, at 20 it never ends."""
    y = sine(1, 400, 8)
    copies = [make_copy(y, rate, "a.wav", k, names=("speed", "noise"))[0] for k in (1, 2, 3)]
    assert all(copy.shape == y.shape and np.isfinite(copy).all() for copy in copies)


def test_shift_that_would_leave_silence_rotates():
    y = np.zeros((8000, 1), np.float32)
    y[-100:] = 0.5
    assert all(make_copy(y, 8000, "a.wav", k, names=("shift",))[0].any() for k in range(1, 41))


@pytest.mark.parametrize("level, words", [(0, "is silent"), (0.5, "a copy would equal it")])
def test_copy_that_would_equal_its_sound_is_a_mistake(level, words):
    y = np.full((100, 1), level, np.float32)
    with pytest.raises(utils.UserError, match=f"^a.wav: {words}.*; remove it"):
        for k in range(1, 9):  # some shift by rotation
            make_copy(y, 8000, "a.wav", k, names=("shift",))


@pytest.mark.parametrize("extension, subtype, rate, channels", [
    ("wav", "PCM_16", 8000, 1), ("wav", "PCM_24", 44100, 2), ("flac", "PCM_16", 22050, 1),
    ("aiff", "PCM_16", 48000, 2), ("ogg", "VORBIS", 44100, 1), ("mp3", "MPEG_LAYER_III", 44100, 2)])
def test_copies_keep_format_rate_channels_and_length(tmp_path, extension, subtype, rate, channels):
    path = tmp_path / f"a.b.{extension}"
    y = np.random.default_rng(0).uniform(-0.5, 0.5, (rate // 4, channels))
    soundfile.write(path, y, rate, subtype)
    run("augment_data.py", 2, path, cwd=tmp_path)
    for k in (1, 2):
        info = soundfile.info(tmp_path / f"a.b_aug{k}.{extension}")
        assert (info.subtype, info.samplerate, info.channels) == (subtype, rate, channels)
        assert info.frames == soundfile.info(path).frames


def test_format_that_cannot_be_written_is_one_line_with_the_command_that_converts_it(tmp_path):
    """libsndfile reads MP3 data in a WAV file, but does not write it."""
    soundfile.write(tmp_path / "a.mp3", sine(440), RATE)
    data = (tmp_path / "a.mp3").read_bytes()
    mp3 = struct.pack("<HHIIHHHHIHHH", 0x55, 1, RATE, 4000, 1, 0, 12, 1, 2, 576, 1, 1393)
    body = b"WAVEfmt " + struct.pack("<I", 30) + mp3 + b"data" + struct.pack("<I", len(data)) + data
    (tmp_path / "a b.wav").write_bytes(b"RIFF" + struct.pack("<I", len(body)) + body)
    result = run("augment_data.py", 1, "a b.wav", cwd=tmp_path, status=1)
    assert result.stderr.splitlines()[0] == (
        "skipped a b.wav: its format (MPEG Layer III) cannot be written (Supported file format but "
        "unsupported encoding); convert it and remove the original, or replace it if that fails: "
        "ffmpeg -i 'a b.wav' 'a b.converted.wav'")


def test_minutes_of_ogg_are_written(tmp_path):
    """libsndfile 1.2.2 crashes on a minute of Vorbis in one write."""
    with soundfile.SoundFile(tmp_path / "a.ogg", "w", 44100, 2) as file:
        for _ in range(60):
            file.write(np.random.default_rng(0).uniform(-0.5, 0.5, (44100, 2)))
    run("augment_data.py", 1, "a.ogg", "--only", "gain", cwd=tmp_path)
    assert soundfile.info(tmp_path / "a_aug1.ogg").frames == 60 * 44100


# ---------------------------------------------------------------- the command

def test_copies_depend_on_seed_name_and_number_alone(sounds):
    files = sorted((sounds / "Samples").glob("*/*"))
    run("augment_data.py", 2, *files, "--jobs", 2, cwd=sounds)
    copies = {path: path.read_bytes() for path in sounds.rglob("*_aug*")}
    logs = {path: path.read_bytes() for path in sounds.rglob(utils.AUGMENTATIONS)}
    assert len(copies) == 60 and len(logs) == 3
    for path in [*copies, *logs]:
        path.unlink()
    run("augment_data.py", 2, *files[::-1], "--jobs", 1, cwd=sounds)
    assert {path: path.read_bytes() for path in sounds.rglob("*_aug*")} == copies
    assert {path: path.read_bytes() for path in sounds.rglob(utils.AUGMENTATIONS)} == logs
    path = next(iter(copies))
    path.unlink()
    run("augment_data.py", 2, augment_source(path), "--seed", 1, cwd=sounds)
    assert path.read_bytes() != copies[path]


def augment_source(copy):
    return copy.with_name(copy.name.split("_aug")[0] + copy.suffix)


def test_running_twice_augments_no_copy_and_keeps_what_is_there(sounds):
    files = sorted((sounds / "Samples/low").iterdir())
    run("augment_data.py", 2, *files, cwd=sounds)
    kept = sounds / "Samples/low/00_aug1.wav"
    kept.write_bytes(b"mine")
    before = sorted(path.name for path in (sounds / "Samples/low").iterdir())
    said = run("augment_data.py", 1, *sorted((sounds / "Samples/low").iterdir()), cwd=sounds).stdout
    assert "21 files passed over: copies" in said
    assert "0 copies written, 10 existing copies kept" in said
    after = sorted(path.name for path in (sounds / "Samples/low").iterdir())
    assert after == before  # fewer copies remove none
    assert kept.read_bytes() == b"mine"


def test_overwrite_makes_copies_again_and_their_lines_anew(sounds):
    files = sorted((sounds / "Samples/low").iterdir())
    run("augment_data.py", 2, *files, cwd=sounds)
    before = {path.name: path.read_bytes() for path in (sounds / "Samples/low").iterdir()}
    run("augment_data.py", 1, *files, "--overwrite", "--seed", 1, cwd=sounds)
    after = {path.name: path.read_bytes() for path in (sounds / "Samples/low").iterdir()}
    changed = {name for name in before if after[name] != before[name]}
    assert changed == {f"{k:02d}_aug1.wav" for k in range(10)} | {utils.AUGMENTATIONS}
    found = [(row["copy"], row["seed"]) for row in rows_of(sounds / "Samples/low")]
    assert found == [("1", "1"), ("2", "0")] * 10


def test_any_copy_can_be_made_again_from_its_line(sounds):
    folder = sounds / "Samples/high"
    run("augment_data.py", 3, *sorted(folder.iterdir()), "--seed", 5, cwd=sounds)
    rows = rows_of(folder)
    assert len(rows) == 30
    for row in rows:
        y, rate = soundfile.read(folder / row["file"], dtype="float32", always_2d=True)
        parameters = {name: row[name] for name in augment_data.PARAMETERS if row[name]}
        for name in parameters.keys() - {"compression", "noise", "shift_fill"}:
            parameters[name] = float(parameters[name])
        rng = augment_data.make_generator(int(row["seed"]), row["file"], f"{row['copy']} noise")
        copy = augment_data.deform_sound(y, rate, parameters, rng) * float(row["scale"])
        written, _ = soundfile.read(augment_path(folder, row), always_2d=True)
        assert np.abs(copy - written).max() < 2**-14
        drawn = draw_parameters(5, row["file"], int(row["copy"]), tuple(row["only"].split(",")))
        assert parameters.keys() == drawn.keys()


def augment_path(folder, row):
    return folder / row["file"].replace(".wav", f"_aug{row['copy']}.wav")


def test_nothing_is_clipped_and_the_scale_is_in_the_line(tmp_path):
    soundfile.write(tmp_path / "a.wav", sine(300, 0.5, 8000, 1.0), 8000)
    run("augment_data.py", 40, "a.wav", "--only", "noise,speed", cwd=tmp_path)
    scales = [float(row["scale"]) for row in rows_of(tmp_path)]
    assert min(scales) < 0.999 and max(scales) <= 1
    for row, scale in zip(rows_of(tmp_path), scales):
        peak = np.abs(soundfile.read(augment_path(tmp_path, row))[0]).max()
        assert scale == 1 or peak == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("flags, names", [
    (("--only", "noise,pitch"), {"pitch", "noise"}),
    (("--without", "dynamics,speed,speed_with_pitch,shift,polarity"), {"pitch", "gain", "noise"})])
def test_only_and_without_choose(sounds, flags, names):
    path = sounds / "Samples/low/00.wav"
    run("augment_data.py", 7, path, *flags, cwd=sounds)
    rows = rows_of(path.parent)
    given = {parameter for row in rows for parameter in augment_data.PARAMETERS if row[parameter]}
    assert given == {parameter for name in names for parameter in DEFORMATIONS[name]}
    in_order = [name for name in DEFORMATIONS if name in names]
    assert {row["only"] for row in rows} == {",".join(in_order)}


def test_folders_and_patterns_in_quotes_are_taken_as_a_shell_would_expand_them(sounds):
    (sounds / "Samples/low/deep").mkdir()
    (sounds / "Samples/low/00.wav").rename(sounds / "Samples/low/deep/00.wav")
    (sounds / "Samples/low/notes.txt").write_text("passed over in a folder")
    run("augment_data.py", 1, "Samples/low", "Samples/mid*/0[0-4].wav", cwd=sounds)
    samples = sounds / "Samples"
    names = {path.relative_to(samples).as_posix() for path in samples.rglob("*_aug1.wav")}
    assert names == {"low/deep/00_aug1.wav", *(f"low/0{i}_aug1.wav" for i in range(1, 10)),
                     *(f"middle/0{i}_aug1.wav" for i in range(5))}
    said = run("augment_data.py", 1, "Samples", cwd=sounds).stdout  # passes over copies and tables
    assert "15 copies written, 15 existing copies kept" in said


def test_original_that_is_named_like_a_copy_is_a_source_and_its_copies_are_not(sounds):
    low = sounds / "Samples/low"
    (low / "00.wav").rename(low / "garden_aug15.wav")
    run("augment_data.py", 1, low / "garden_aug15.wav", cwd=sounds)
    assert (low / "garden_aug15_aug1.wav").exists()
    said = run("augment_data.py", 1, *low.glob("garden*"), cwd=sounds).stdout
    assert "1 files passed over: copies" in said
    assert "0 copies written, 1 existing copies kept" in said
    run("preprocess_data.py", "--augment", 2, cwd=sounds)
    assert {path.name for path in (sounds / "Preproc/low").glob("garden*")} == {
        "garden_aug15.wav.npy", "garden_aug15_aug1.wav.npy", "garden_aug15_aug2.wav.npy"}


def test_copies_whose_source_is_gone_remain_copies_before_and_after_preprocessing(sounds):
    run("augment_data.py", 1, "Samples/low/00.wav", cwd=sounds)
    (sounds / "Samples/low/00.wav").unlink()
    folders = sounds / "Samples", sounds / "Preproc"
    assert utils.find_source(*folders).copies == {"low/00_aug1.wav": "low/00.wav"}
    run("preprocess_data.py", cwd=sounds)
    source = utils.find_source(*folders)
    assert source.folder == folders[1] and source.copies == {"low/00_aug1.wav": "low/00.wav"}


def test_folder_that_may_not_be_read_is_a_mistake(monkeypatch, tmp_path):
    def refuse(folder):
        raise PermissionError(13, "Permission denied")
    monkeypatch.setattr(os, "listdir", refuse)
    with pytest.raises(utils.UserError, match="Permission denied; make the folder readable"):
        augment_data.list_sources([str(tmp_path)])


def test_names_that_a_table_cannot_hold_as_they_are_are_escaped(tmp_path):
    names = ["=1+1.wav", "line\nbreak.wav"]
    for name in names:
        soundfile.write(tmp_path / name, sine(300, 0.1, 8000), 8000)
    run("augment_data.py", 2, *names, cwd=tmp_path)
    cells = [row["file"] for row in rows_of(tmp_path)]
    assert cells == ["'=1+1.wav"] * 2 + [r"line\nbreak.wav"] * 2
    for name in names:  # its copies remain copies, as the table lists them
        (tmp_path / name).unlink()
        said = run("augment_data.py", 1, *tmp_path.glob(f"{name[:4]}*"), cwd=tmp_path).stdout
        assert "2 files passed over: copies" in said and "0 copies written" in said


def test_what_is_no_sound_is_named_and_the_rest_done(sounds):
    folder = sounds / "Samples/low"
    (folder / "empty.wav").touch()
    (folder / "notes.txt").write_text("text")
    (folder / "broken.wav").write_bytes(b"RIFF" + bytes(20))
    (folder / "folder.wav").mkdir()
    soundfile.write(folder / "none.wav", np.zeros(0), 8000)
    soundfile.write(folder / "silent.wav", np.zeros(8000), 8000)
    names = "empty.wav notes.txt broken.wav folder.wav none.wav silent.wav missing.wav"
    bad = [folder / name for name in names.split()]
    good = [folder / "00.wav", folder / "01.wav"]
    result = run("augment_data.py", 2, *bad, *good, cwd=sounds, status=1)
    assert "4 copies written, 0 existing copies kept, 7 files skipped" in result.stdout
    lines = [line for line in result.stderr.splitlines() if line.startswith("skipped")]
    assert len(lines) == 7 and all(any(path.name in line for line in lines) for path in bad)
    assert not list(folder.glob(".*")) and len(list(folder.glob("*_aug*"))) == 4


@pytest.mark.parametrize("args, words", [
    ((0, "a.wav"), "at least 1"), ((-3, "a.wav"), "at least 1"), (("two", "a.wav"), "'two'"),
    ((3,), "FILE"), ((1, "a.wav", "--only", "reverb"), "'reverb'"),
    ((2, "a.wav", "--only", "pitch", "--without", "gain"), "not allowed")])
def test_impossible_arguments_get_one_line(tmp_path, args, words):
    assert words in one_line("augment_data.py", *args, cwd=tmp_path, status=2)


@pytest.mark.parametrize("args, words", [
    ((2, "a.wav", "--only", "polarity"), "2 copies would be the same; make one copy"),
    ((1, "a.wav", "--without", ",".join(DEFORMATIONS)), "no deformation is left; name fewer")])
def test_choices_that_leave_nothing_to_do_get_one_line(tmp_path, args, words):
    assert words in one_line("augment_data.py", *args, cwd=tmp_path)


def test_the_users_own_table_is_left_alone(sounds):
    (sounds / "Samples/high" / utils.AUGMENTATIONS).touch()
    (sounds / "Samples/high/notes.txt").touch()
    run("augment_data.py", 1, sounds / "Samples/high/notes.txt", cwd=sounds, status=1)
    log = sounds / "Samples/low" / utils.AUGMENTATIONS
    log.write_text("file,stars\n00.wav,5\n")
    said = run("augment_data.py", 1, log.with_name("00.wav"), cwd=sounds, status=1).stderr
    path = log.with_name("00.wav")
    assert f"{path}: {log.name} beside it is not from this script; move it away" in said
    assert log.read_text() == "file,stars\n00.wav,5\n"
    assert not list(log.parent.glob("*_aug*")) and not list(log.parent.glob(".*"))


def test_damaged_lines_of_the_table_stay_and_take_no_other_with_them(sounds):
    folder = sounds / "Samples/low"
    run("augment_data.py", 1, folder / "00.wav", folder / "01.wav", cwd=sounds)
    log = folder / utils.AUGMENTATIONS
    first, second, third = log.read_text().splitlines()
    log.write_text(f"{first}\n\"\n{second}\n{third[:20]}")  # a stray quote, a torn last line
    run("augment_data.py", 1, folder / "02.wav", folder / "01.wav", "--overwrite", cwd=sounds)
    lines = log.read_text().splitlines()
    assert lines[0] == first and {second, third, '"', third[:20]} < set(lines) and len(lines) == 6


def test_table_that_cannot_be_written_is_named_and_the_rest_done(sounds):
    (sounds / "Samples/low" / utils.AUGMENTATIONS).mkdir()
    files = [sounds / "Samples" / name for name in ("low/00.wav", "high/00.wav")]
    said = run("augment_data.py", 1, *files, cwd=sounds, status=1)
    assert f"skipped {files[0]}: a copy cannot be written beside it" in said.stderr
    assert "1 copies written" in said.stdout
    assert sorted(path.name for path in sounds.rglob("*_aug*")) == ["00_aug1.wav"]


def test_names_that_are_too_long_are_named_and_the_rest_done(sounds):
    folder = sounds / "Samples/low"
    long = folder / ("x" * 248 + ".wav")
    shutil.copy(folder / "00.wav", long)
    result = run("augment_data.py", 1, long, "y" * 300, folder / "00.wav", cwd=sounds, status=1)
    assert f"skipped {long}: a copy cannot be written beside it" in result.stderr
    assert "found nothing there" in result.stderr
    assert "1 copies written" in result.stdout and not list(folder.glob(".*"))


def test_hidden_files_and_names_without_extension_are_handled(sounds):
    folder = sounds / "Samples/low"
    for name in (".0123456789ab.wav", "noext"):
        shutil.copy(folder / "00.wav", folder / name)
    run("augment_data.py", 1, folder / ".0123456789ab.wav", folder / "noext", cwd=sounds)
    said = run("augment_data.py", 1, *sorted(folder.glob("noext*")), cwd=sounds).stdout
    assert "1 files passed over: copies" in said and "0 copies written" in said
    assert len(list(folder.glob("*_aug*"))) == 1


def test_two_runs_at_once_write_each_copy_and_each_line(sounds):
    files = sorted((sounds / "Samples").glob("*/*"))
    command = [sys.executable, ROOT / "augment_data.py", "2", *files, "--jobs", "1"]
    runs = [subprocess.Popen(command, cwd=sounds, stdout=subprocess.DEVNULL) for _ in range(2)]
    assert [process.wait() for process in runs] == [0, 0]
    for folder in (sounds / "Samples").iterdir():
        assert len(rows_of(folder)) == len(list(folder.glob("*_aug*"))) == 20
        assert not list(folder.glob(".*"))


def test_what_a_killed_run_left_is_swept_up_when_no_other_run_can_be_at_it(sounds):
    old, young = (sounds / "Samples/low" / f".{digit * 12}.wav" for digit in "ab")
    old.touch()
    young.touch()
    os.utime(old, (0, 0))
    run("augment_data.py", 1, sounds / "Samples/low/00.wav", cwd=sounds)
    assert not old.exists() and young.exists()
