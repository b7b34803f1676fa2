"""Copies are exact, repeatable and all different, and the original stays untouched."""
import shutil
import subprocess
import sys

import numpy as np
import pytest
import soundfile
from conftest import ROOT, SAMPLE_RATE, one_line, read_table, run, tone

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


@pytest.fixture
def y():
    rng = np.random.default_rng(0)
    return np.stack([tone(rng, 300), tone(rng, 500)], axis=1).astype(np.float32)


def cents_off(y, expected, rate=RATE):
    """How far the strongest partial near `expected`, in Hz, is from it, in cents."""
    return abs(1200 * np.log2(peak_frequency(y, expected, rate) / expected))


# ---------------------------------------------------------------- speed and pitch

@pytest.mark.parametrize("rate, hertz", [(8000, 110), (8000, 2000), (RATE, 80), (RATE, 987.8),
                                         (RATE, 4000)])
def test_pitch_and_speed_hit_what_was_drawn_within_5_cents(rate, hertz):
    y = sine(hertz, 1.5, rate)
    middle = slice(rate // 4, -rate // 4)
    for k in range(1, 7):
        copy = make_copy(y, rate, "a.wav", k, names=("pitch",))[middle]
        drawn = draw_parameters(0, "a.wav", k, ("pitch",))
        assert cents_off(copy, hertz * 2 ** (drawn["pitch_semitones"] / 12), rate) < 5
    for speed in (0.9, 0.97, 1.1):
        copy = warp_sound(y, rate, speed_ratio=speed)[rate // 4:rate]
        assert cents_off(copy, hertz, rate) < 5
        assert abs(20 * np.log10(measure_rms(copy) / measure_rms(y))) < 0.2
    copy = warp_sound(y, rate, speed_with_pitch_ratio=1.04)
    assert cents_off(copy[:rate], 1.04 * hertz, rate) < 1 and not copy[int(1.45 * rate):].any()


@pytest.mark.parametrize("speed", [0.9, 1.1])
def test_speed_alone_hits_the_drawn_length(speed):
    """Two clicks move apart by the ratio and stay sharp."""
    y = np.zeros((2 * RATE, 1), np.float32)
    y[[RATE // 5, RATE * 9 // 5]] = 1
    copy = stretch_sound(y, RATE, speed)
    assert len(copy) == round(len(y) / speed)
    first = np.argmax(np.abs(copy[:RATE]))
    second = RATE + np.argmax(np.abs(copy[RATE:]))
    assert abs((second - first) / (1.6 * RATE / speed) - 1) < 0.005
    click = np.square(copy[first - RATE // 200:first + RATE // 200]).sum()
    assert click > 0.9 * np.square(copy[:RATE]).sum()


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


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("before", [0, 10 ** (-60 / 20)])
def test_compressor_has_turned_a_boost_down_when_the_hit_comes(preset, before):
    y = np.concatenate([sine(200, 1, RATE, before), sine(200, 1)])
    assert np.abs(compress_sound(y, RATE, preset)[RATE:]).max() <= 0.5


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
    copy = make_copy(y, SAMPLE_RATE, "a.wav", 1, names=(name,))
    np.testing.assert_array_equal(y, before)
    assert copy.dtype == np.float32 and copy.shape == y.shape and np.abs(copy).max() <= 1
    assert np.abs(copy - y).max() > 1e-3 and not np.shares_memory(copy, y)


def test_subsets_are_equally_likely_and_polarity_is_never_alone():
    names = "pitch", "gain", "polarity"
    found = [tuple(draw_parameters(0, f"{n}.wav", n % 9, names)) for n in range(2100)]
    counts = {choice: found.count(choice) for choice in set(found)}
    assert counts.pop(("pitch_semitones", "gain_db", "polarity")) > 480  # 2 of the 7 subsets
    assert len(counts) == 5 and ("polarity",) not in counts
    assert 240 < min(counts.values()) and max(counts.values()) < 360


# At 16 bits a quiet sound has fewer different copies.
@pytest.mark.parametrize("level, n", [(0.05, 60), (1, 600), (5, 600)])
@pytest.mark.parametrize("names", [
    ALL, ("polarity", "gain"), ("dynamics",), ("gain",), ("polarity", "dynamics")])
def test_many_copies_of_a_quiet_a_loud_and_a_clipping_sound_all_differ(names, level, n):
    y = sine(300, 0.05, 8000, level)
    copies = [make_copy(y, 8000, "a.wav", k, names=names) for k in range(1, n + 1)]
    assert len({(copy * 2**15).round().tobytes() for copy in [y, *copies]}) == n + 1


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("rate", [1, 20, 8000, 2**30])
@pytest.mark.parametrize("n_samples", [2, 50])
def test_shortest_sounds_and_absurd_rates_do_no_harm(n_samples, rate):
    """At some rates the stretcher brings the process down, or never ends."""
    y = np.linspace(0.1, 0.5, n_samples, dtype=np.float32)[:, None]
    for k in range(1, 9):
        copy = make_copy(y, rate, "a.wav", k, names=("speed", "noise", "dynamics"))
        assert copy.shape == y.shape and np.isfinite(copy).all()


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


def test_minutes_of_ogg_are_written(tmp_path):
    """libsndfile 1.2.2 crashes on a minute of Vorbis in one write."""
    with soundfile.SoundFile(tmp_path / "a.ogg", "w", 44100, 2) as file:
        for _ in range(60):
            file.write(np.random.default_rng(0).uniform(-0.5, 0.5, (44100, 2)))
    run("augment_data.py", 1, "a.ogg", "--only", "gain", cwd=tmp_path)
    assert soundfile.info(tmp_path / "a_aug1.ogg").frames == 60 * 44100


# ---------------------------------------------------------------- the command

def copies_in(folder):
    """The bytes of the copies and tables below a folder, by path."""
    return {path: path.read_bytes() for path in folder.rglob("*aug*")}


def test_copies_depend_on_seed_name_and_number_alone(sounds):
    files = sorted((sounds / "Samples").glob("*/*"))
    run("augment_data.py", 2, *files, "--jobs", 2, cwd=sounds)
    before = copies_in(sounds)
    assert len(before) == 60 + 3
    for path in before:
        path.unlink()
    run("augment_data.py", 2, *files[::-1], "--jobs", 1, cwd=sounds)
    assert copies_in(sounds) == before
    files[0].with_name(f"{files[0].stem}_aug1.wav").unlink()  # as after a stop
    run("augment_data.py", 1, files[0], "--seed", 1, cwd=sounds)
    run("augment_data.py", 1, files[1], "--seed", 2, "--overwrite", cwd=sounds)
    changed = {path for path, data in copies_in(sounds).items() if data != before[path]}
    names = utils.AUGMENTATIONS, "00_aug1.wav", "01_aug1.wav"
    assert changed == {files[0].with_name(name) for name in names}
    table = read_table(files[0].with_name(utils.AUGMENTATIONS))
    assert [(row["copy"], row["seed"]) for row in table[:4]] == [
        ("1", "1"), ("2", "0"), ("1", "2"), ("2", "0")]


def test_second_run_augments_no_copy_and_keeps_what_is_there(sounds):
    folder = sounds / "Samples/low"
    run("augment_data.py", 2, folder, cwd=sounds)
    (folder / "00_aug1.wav").write_bytes(b"mine")
    before = copies_in(sounds)
    said = run("augment_data.py", 1, *sorted(folder.iterdir()), cwd=sounds).stdout
    assert "21 files passed over: copies" in said
    assert "0 copies written, 10 existing copies kept" in said
    assert copies_in(sounds) == before  # fewer copies remove none


@pytest.mark.parametrize("flags, names", [
    (("--only", "noise,pitch"), ("pitch", "noise")),
    (("--without", "dynamics,speed,speed_with_pitch,shift,polarity"), ("pitch", "gain", "noise"))])
def test_only_and_without_choose_and_the_table_lists_what_was_drawn(sounds, flags, names):
    folder = sounds / "Samples/low"
    run("augment_data.py", 12, folder / "00.wav", "--seed", 5, *flags, cwd=sounds)
    rows = read_table(folder / utils.AUGMENTATIONS)
    assert [int(row["copy"]) for row in rows] == list(range(1, 13))
    y, rate = soundfile.read(folder / "00.wav", dtype="float32", always_2d=True)
    for row in rows:
        drawn = draw_parameters(5, "00.wav", int(row["copy"]), names)
        assert row["only"] == ",".join(names)
        given = {name: row[name] for name in augment_data.PARAMETERS if row[name]}
        assert given == {name: str(value) for name, value in drawn.items()}
        copy = make_copy(y, rate, "00.wav", int(row["copy"]), 5, names)
        written, _ = soundfile.read(folder / f"00_aug{row['copy']}.wav", always_2d=True)
        assert np.abs(copy - written).max() < 2**-14


def test_sound_that_cannot_be_read_makes_no_original_a_copy(sounds):
    folder = sounds / "Samples/low"
    (folder / "garden.wav").write_text("no sound")
    shutil.copy(folder / "00.wav", folder / "tea_aug1.wav")
    names = [folder / "garden.wav", folder / "tea.wav"]  # damaged, and missing
    run("augment_data.py", 2, *names, cwd=sounds, status=1)
    assert utils.find_copies(["low/tea_aug1.wav"], sounds / "Samples") == {}
    for count in ("1 copies written", "0 copies written, 1 existing"):
        said = run("augment_data.py", 1, *folder.glob("tea*"), cwd=sounds).stdout
        assert count in said
    assert "1 files passed over: copies" in said and (folder / "tea_aug1_aug1.wav").exists()


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


def test_two_runs_at_once_write_each_copy_and_each_line(sounds):
    files = sorted((sounds / "Samples").glob("*/*"))
    command = [sys.executable, ROOT / "augment_data.py", "2", *files, "--jobs", "1"]
    runs = [subprocess.Popen(command, cwd=sounds, stdout=subprocess.DEVNULL) for _ in range(2)]
    assert [process.wait() for process in runs] == [0, 0]
    for folder in (sounds / "Samples").iterdir():
        assert len(read_table(folder / utils.AUGMENTATIONS)) == 20
        assert len(list(folder.glob("*_aug*"))) == 20
        assert not list(folder.glob(".*"))


@pytest.mark.parametrize("name", ["line\nbreak.wav", "=1+1.wav", 'quo"te, comma.wav'])
def test_copies_of_odd_names_remain_copies_when_their_source_is_gone(tmp_path, name):
    soundfile.write(tmp_path / name, sine(300, 0.1, 8000), 8000)
    run("augment_data.py", 2, name, cwd=tmp_path)
    (tmp_path / name).unlink()
    said = run("augment_data.py", 1, *tmp_path.glob("*_aug*"), cwd=tmp_path).stdout
    assert "2 files passed over: copies" in said and "0 copies written" in said


def test_what_is_no_sound_is_named_and_the_rest_done(sounds):
    folder = sounds / "Samples/low"
    (folder / "empty.wav").touch()
    (folder / "broken.wav").write_bytes(b"RIFF" + bytes(20))
    (folder / "folder.wav").mkdir()
    soundfile.write(folder / "silent.wav", np.zeros(8000), 8000)
    names = "empty.wav broken.wav folder.wav silent.wav missing.wav"
    bad = [folder / name for name in names.split()]
    long = folder / ("x" * 248 + ".wav")  # the names of its copies would be too long
    shutil.copy(folder / "00.wav", long)
    files = [*bad, long, folder / "00.wav", folder / "01.wav"]
    result = run("augment_data.py", 2, *files, cwd=sounds, status=1)
    assert "4 copies written, 0 existing copies kept, 6 files skipped" in result.stdout
    lines = [line for line in result.stderr.splitlines() if line.startswith("skipped")]
    assert len(lines) == 6 and all(any(path.name in line for line in lines) for path in bad)
    assert f"skipped {long}: a copy cannot be written beside it" in result.stderr
    assert not list(folder.glob(".*")) and len(list(folder.glob("*_aug*"))) == 4


@pytest.mark.parametrize("args, words", [
    ((0, "a.wav"), "at least 1"), ((3,), "FILE"), ((1, "a.wav", "--only", "reverb"), "'reverb'"),
    ((2, "a.wav", "--only", "pitch", "--without", "gain"), "not allowed"),
    ((2, "a.wav", "--only", "polarity"), "2 copies would be the same; make one copy"),
    ((1, "a.wav", "--without", ",".join(DEFORMATIONS)), "no deformation is left; name fewer")])
def test_impossible_arguments_get_one_line(tmp_path, args, words):
    status = 1 if "deformation" in words or "same" in words else 2
    assert words in one_line("augment_data.py", *args, cwd=tmp_path, status=status)


def test_the_users_own_table_is_left_alone(sounds):
    folder = sounds / "Samples/low"
    table = folder / utils.AUGMENTATIONS
    table.write_text("file,stars\n00.wav,5\n")
    other = sounds / "Samples/high/00.wav"
    result = run("augment_data.py", 1, folder / "00.wav", other, cwd=sounds, status=1)
    assert f"skipped {table}: is not from this script; move it away\n" in result.stderr
    assert table.read_text() == "file,stars\n00.wav,5\n"
    assert list(folder.glob("*aug*")) == [table] and not list(folder.glob(".*"))
    assert other.with_name("00_aug1.wav").exists()  # other folders are served
