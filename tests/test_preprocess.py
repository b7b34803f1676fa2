"""Preprocessing reads whatever the folder holds, does what is missing and no more, and survives being killed."""
import contextlib
import csv
import errno
import json
import os
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time

import librosa
import numpy as np
import pytest
import soundfile
from conftest import DATA, ROOT, SAMPLE_RATE, needs_data, one_line, run, write_sounds

import utils
from preprocess_data import convert, default_settings, log_mel_spectrogram

PREPROCESS = [sys.executable, ROOT / "preprocess_data.py"]


def arrays(folder):
    """Path below Preproc/ and bytes of all files there, hidden ones too."""
    return {str(path.relative_to(folder / "Preproc")): path.read_bytes()
            for path in (folder / "Preproc").rglob("*") if path.is_file()}


def identities(folder):
    """Which file each spectrogram is: another one after it was written again."""
    return {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in (folder / "Preproc").rglob("*.npy")}


def noise(n_samples, n_channels=1):
    return np.random.default_rng(n_samples).uniform(-0.5, 0.5, (n_samples, n_channels)).astype(np.float32)


def run_main(folder, then):
    """What preprocessing in `folder`, in one process, says, and a line of Python that this process runs after it."""
    code = (f"import sys; sys.path.insert(0, {str(ROOT)!r}); sys.argv = ['preprocess_data.py', '--jobs', '1']\n"
            f"import preprocess_data; preprocess_data.main(); {then}")
    return subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=True).stdout


def skipped(folder):
    with open(folder / "Preproc/skipped.csv", newline="", encoding="utf-8") as file:
        return {row["file"]: row["reason"] for row in csv.DictReader(file)}


# ---------------------------------------------------------------- restartable, and never stale

def test_killed_at_three_moments_and_run_again_it_ends_with_the_bytes_of_an_undisturbed_run(tmp_path):
    write_sounds(tmp_path, n=60)
    command = [*PREPROCESS, "--jobs", "2"]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    undisturbed, rng = arrays(tmp_path), random.Random(0)
    n_done = []
    for k in range(3):
        shutil.rmtree(tmp_path / "Preproc")
        process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL, start_new_session=True)
        # Moments counted in files, not in seconds: other work beside the test changes how long a start takes.
        while process.poll() is None and len(list(tmp_path.glob("Preproc/*/[!.]*.npy"))) < 60 * k:
            pass
        time.sleep(rng.uniform(0, 0.01))
        with contextlib.suppress(ProcessLookupError):  # it may just have ended
            os.killpg(process.pid, signal.SIGKILL)  # its worker processes too
        process.wait()
        before = identities(tmp_path) if (tmp_path / "Preproc").exists() else {}
        whole = {path: before[path] for path in before if not path.name.startswith(".")}
        assert all(path.read_bytes() == undisturbed[str(path.relative_to(tmp_path / "Preproc"))] for path in whole)
        n_done.append(len(whole))
        run("preprocess_data.py", cwd=tmp_path)
        assert arrays(tmp_path) == undisturbed  # and no temporary file
        assert identities(tmp_path).items() >= whole.items()  # only what was missing was done
    assert len(set(n_done)) > 1 and 0 < sum(n_done) < 3 * 180, n_done  # the moments did differ


def test_second_run_does_just_what_changed(sounds):
    run("preprocess_data.py", cwd=sounds)
    before = identities(sounds)
    strays = [sounds / "Preproc/.0123456789ab.json", sounds / "Preproc/low/.0123456789ab.npy"]  # of a killed run
    for path in strays:
        path.touch()
    assert "30 kept" in run("preprocess_data.py", cwd=sounds).stdout and identities(sounds) == before
    assert not any(path.exists() for path in strays)
    low, times = sounds / "Samples/low", os.stat(sounds / "Samples/low/00.wav")
    soundfile.write(low / "00.wav", noise(3000), SAMPLE_RATE)  # other size, same time
    os.utime(low / "00.wav", ns=(times.st_atime_ns, times.st_mtime_ns))
    os.utime(low / "01.wav", ns=(0, os.stat(low / "01.wav").st_mtime_ns + 100))  # same size, other time
    soundfile.write(low / "new.wav", noise(3000), SAMPLE_RATE)
    (low / "02.wav").unlink()
    (sounds / "Preproc/low/03.wav.npy").write_bytes(b"")  # as after a power cut
    said = run("preprocess_data.py", cwd=sounds).stdout
    assert "4 spectrograms written, 26 kept, 1 removed" in said
    after = identities(sounds)
    changed = {path.name[:-8] for path in before.keys() | after.keys() if before.get(path) != after.get(path)}
    assert changed == {"00", "01", "02", "03", "new"}
    assert "30 kept" in run("preprocess_data.py", cwd=sounds).stdout


def test_changed_settings_make_everything_again_and_say_so_in_one_line(sounds):
    run("preprocess_data.py", cwd=sounds)
    lines = [line for line in run("preprocess_data.py", "--n-mels", 40, cwd=sounds).stdout.splitlines()
             if "settings changed" in line]
    assert len(lines) == 1 and "(n_mels 96 -> 40): 30 spectrograms are made again" in lines[0]
    assert {np.load(path).shape[0] for path in (sounds / "Preproc").rglob("*.npy")} == {40}


def test_sound_that_became_unreadable_keeps_no_spectrogram(sounds):
    run("preprocess_data.py", cwd=sounds)
    (sounds / "Samples/low/00.wav").write_text("damaged")
    for _ in range(2):  # named by each run
        run("preprocess_data.py", cwd=sounds, status=1)
        assert not (sounds / "Preproc/low/00.wav.npy").exists() and list(skipped(sounds)) == ["low/00.wav"]
    (sounds / "Samples/low/00.wav").unlink()
    run("preprocess_data.py", cwd=sounds)
    assert not (sounds / "Preproc/skipped.csv").exists()


def test_interrupted_run_says_that_what_is_written_stays(tmp_path):
    write_sounds(tmp_path, n=400)
    for jobs in ("1", "2"):
        process = subprocess.Popen([*PREPROCESS, "--jobs", jobs], cwd=tmp_path, stdout=subprocess.DEVNULL,
                                   stderr=subprocess.PIPE, text=True, start_new_session=True)
        while not list(tmp_path.glob("Preproc/*/[!.]*.npy")):
            assert process.poll() is None
        os.killpg(process.pid, signal.SIGINT)  # as Ctrl-C does, to its worker processes too
        errors = process.communicate(timeout=30)[1]
        assert process.returncode == 130 and "what is written is whole and stays" in errors
        assert "Traceback" not in errors and 0 < len(identities(tmp_path)) < 1200
        shutil.rmtree(tmp_path / "Preproc")


def test_runs_at_once_that_want_different_things_wait_for_one_another(tmp_path):
    write_sounds(tmp_path, n=100)
    (tmp_path / "Preproc").mkdir()
    with utils.alone_in(tmp_path / "Preproc"):
        runs = [subprocess.Popen([*PREPROCESS, *flags], cwd=tmp_path, stdout=subprocess.PIPE, text=True)
                for flags in (["--augment", "1"], ["--hop-length", "64"])]
        for process in runs:
            lines = [process.stdout.readline() for _ in range(3)]
            assert "another run is at work there; waiting for its end" in lines[2]
    assert [process.wait() for process in runs] == [0, 0]
    after = arrays(tmp_path)
    last = ["--hop-length", 64] if "64" in after["settings.json"].decode() else ["--augment", 1]
    shutil.rmtree(tmp_path / "Preproc")
    run("preprocess_data.py", *last, cwd=tmp_path)
    assert arrays(tmp_path) == after


def test_folders_without_sounds_are_not_made_or_go_and_nothing_outside_preproc_does(tmp_path):
    write_sounds(tmp_path, n=2)
    (tmp_path / "Samples/empty/deep").mkdir(parents=True)
    (tmp_path / "out/Preproc/gone").mkdir(parents=True)
    (tmp_path / "out/Preproc/.0123456789ab.json").touch()
    said = run("preprocess_data.py", "--preproc", "out/Preproc", cwd=tmp_path).stdout
    assert "Samples: 6 sounds in 3 classes, 2 each; no sounds in empty\n" in said
    left = sorted(path.name for path in (tmp_path / "out/Preproc").iterdir())
    assert left == ["high", "low", "middle", "settings.json"]


def die_of_some(name):
    if name in ("a/7", "a/8", "a/199"):
        os.kill(os.getpid(), signal.SIGKILL)
    if name == "a/9":
        bytearray(2**60)
    return name.upper()


@pytest.mark.parametrize("jobs", [1, 3])
def test_sound_that_crashes_its_process_is_named_and_the_rest_done(jobs):
    names = [f"a/{i}" for i in range(200)]
    done, errors = utils.for_each(die_of_some, names, "Reading", "Samples", jobs)
    assert list(errors) == ["a/7", "a/8", "a/9", "a/199"]
    assert str(errors["a/7"]).startswith("Samples/a/7: expected a file that can be read, found that it crashes")
    assert "fit into memory" in str(errors["a/9"])
    assert done == {name: name.upper() for name in names if name not in errors}


def count_and_die(n):
    yield from range(n)
    if n == 2:
        os.kill(os.getpid(), signal.SIGKILL)


def test_what_a_process_yields_before_it_crashes_is_kept():
    errors = {}
    assert list(utils.done(count_and_die, [1, 2, 3], errors)) == [(1, 0), (2, 0), (2, 1), (3, 0), (3, 1), (3, 2)]
    assert list(errors) == [2]


# ---------------------------------------------------------------- whatever the folder holds

@pytest.mark.parametrize("name, format, subtype, rate, channels", [
    ("a.wav", "WAV", "PCM_U8", 4000, 1), ("b.WAV", "WAV", "PCM_16", 8000, 2), ("c.wav", "WAV", "PCM_24", 11025, 3),
    ("d.Wav", "WAV", "PCM_32", 22050, 4), ("e.wav", "WAV", "FLOAT", 44100, 5), ("f.wav", "WAV", "DOUBLE", 48000, 6),
    ("g.flac", "FLAC", "PCM_24", 192000, 7), ("h.FLAC", "FLAC", "PCM_16", 96000, 8),
    ("i.ogg", "OGG", "VORBIS", 44100, 2), ("j.opus", "OGG", "OPUS", 48000, 2), ("k.AIFF", "AIFF", "PCM_16", 44100, 1),
    ("l.aif", "AIFF", "PCM_24", 32000, 2),
    ("m.mp3", "MP3", "MPEG_LAYER_III", 44100, 2), ("n.MP3", "MP3", "MPEG_LAYER_III", 16000, 1),
    ("lies.wav", "MP3", "MPEG_LAYER_III", 44100, 1), ("lies.mp3", "WAV", "PCM_16", 44100, 1),
    ("lies.flac", "OGG", "VORBIS", 44100, 1)])
def test_every_format_rate_and_number_of_channels_is_read(tmp_path, name, format, subtype, rate, channels):
    path = tmp_path / name
    soundfile.write(path, noise(rate, channels), rate, format=format, subtype=subtype)
    settings = default_settings(22050)
    found = log_mel_spectrogram(convert(utils.read_blocks(path), settings), settings)
    y = librosa.load(path, sr=22050, res_type="soxr_hq")[0]
    expected = librosa.power_to_db(librosa.feature.melspectrogram(y=y, sr=22050, n_mels=96, n_fft=1024, hop_length=256))
    assert found.shape == expected.shape
    band = min(96, 96 * rate // 22050 - 20)  # a resampler's leavings above the file's own band are no sound
    np.testing.assert_allclose(found[:band], expected[:band], atol=2e-3)


def test_odd_names_and_subfolders_are_mirrored(tmp_path):
    names = ["plain.wav", "Grüße 鼓 🥁.wav", "two  spaces.wav", "it's \"quoted\".wav", "-rf.wav", "--strict.wav",
             "%s$a`b`.wav", "a.b.c.wav", "x" * 246 + ".wav", "deep/er/still/x.wav"]
    for name in names:
        for folder in ("-a class-", "ü 'b'"):
            path = tmp_path / "Samples" / folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            soundfile.write(path, noise(1000), SAMPLE_RATE)
    run("preprocess_data.py", cwd=tmp_path)
    assert {name for name in arrays(tmp_path) if name.endswith(".npy")} == {
        f"{folder}/{name}.npy" for folder in ("-a class-", "ü 'b'") for name in names}
    shutil.rmtree(tmp_path / "Samples/ü 'b'/deep")
    run("preprocess_data.py", cwd=tmp_path)
    assert not (tmp_path / "Preproc/ü 'b'/deep").exists() and (tmp_path / "Preproc/-a class-/deep/er").exists()


def test_name_too_long_is_named_and_the_rest_done(sounds):
    soundfile.write(sounds / "Samples/low" / ("x" * 250 + ".wav"), noise(1000), SAMPLE_RATE)
    result = run("preprocess_data.py", cwd=sounds, status=1)
    assert "expected a name of at most 251 bytes" in result.stderr and "30 spectrograms written" in result.stdout


def test_links_to_sounds_work_and_a_loop_of_links_ends(sounds, tmp_path_factory):
    elsewhere = write_sounds(tmp_path_factory.mktemp("elsewhere"), classes=["more"], n=2) / "Samples/more"
    low = sounds / "Samples/low"
    (low / "link.wav").symlink_to(elsewhere / "00.wav")
    (low / "folder").symlink_to(elsewhere)
    (sounds / "Samples/other").symlink_to(elsewhere)
    (low / "round").symlink_to(low)
    (low / "round2").symlink_to(sounds / "Samples")
    (low / "round3").symlink_to(sounds)
    (elsewhere / "up").symlink_to(elsewhere.parent)
    (low / "self.wav").symlink_to("self.wav")
    (low / "dangling.wav").symlink_to("nowhere.wav")
    result = run("preprocess_data.py", cwd=sounds, status=1)
    assert set(skipped(sounds)) == {"low/self.wav", "low/dangling.wav"} and "found nothing there" in result.stderr
    names = {path.relative_to(sounds / "Preproc").as_posix() for path in identities(sounds)}
    assert {"low/link.wav.npy", "low/folder/01.wav.npy", "other/00.wav.npy"} <= names
    assert not any("round" in name for name in names)


def test_short_and_silent_sounds_are_kept_and_what_is_no_sound_is_listed_with_the_reason(sounds):
    middle = sounds / "Samples/middle"
    soundfile.write(middle / "short.wav", noise(1), SAMPLE_RATE)
    soundfile.write(middle / "silent.wav", np.zeros(4000), SAMPLE_RATE)
    for name, value in (("nan", np.nan), ("inf", -np.inf), ("huge", 3e38)):
        y = noise(4000)
        y[1234] = value
        soundfile.write(middle / f"{name}.wav", y, SAMPLE_RATE, subtype="FLOAT")
    soundfile.write(middle / "none.wav", np.zeros(0), SAMPLE_RATE)
    (middle / "empty.mp3").touch()
    (middle / "text.flac").write_text("this is no sound")
    for name in ("notes.txt", "list.csv", ".hidden.wav", "picture.PNG"):
        (middle / name).write_text("left alone")
    result = run("preprocess_data.py", cwd=sounds, status=1)
    assert np.load(sounds / "Preproc/middle/short.wav.npy").shape == (96, 1)
    assert set(np.load(sounds / "Preproc/middle/silent.wav.npy").ravel()) == {-100}
    reasons = skipped(sounds)
    expected = {"empty.mp3": "an empty file", "huge.wav": "beyond 1e9", "inf.wav": "infinity", "nan.wav": "NaN",
                "none.wav": "no samples", "text.flac": "what libsndfile cannot read"}
    assert sorted(reasons) == [f"middle/{name}" for name in expected]
    for name, reason in expected.items():
        assert reason in reasons[f"middle/{name}"] and f"skipped Samples/middle/{name}: " in result.stderr
    assert "32 spectrograms written" in result.stdout and "4 other files left alone" in result.stdout


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with names here")
def test_pipes_are_no_sounds_and_nobody_waits_for_them(sounds):
    os.mkfifo(sounds / "Samples/low/pipe.wav")
    result = run("preprocess_data.py", cwd=sounds, status=1)
    assert "skipped Samples/low/pipe.wav: expected a sound, found a pipe or device" in result.stderr
    assert "30 spectrograms written" in result.stdout


def test_bad_sound_is_named_once_with_all_its_copies(sounds):
    (sounds / "Samples/low/bad.wav").write_text("no sound")
    result = run("preprocess_data.py", "--augment", 2, cwd=sounds, status=1)
    assert "1 sounds skipped" in result.stdout and list(skipped(sounds)) == ["low/bad.wav"]
    assert skipped(sounds)["low/bad.wav"].startswith("expected a sound")


def test_sound_of_which_resampling_leaves_nothing_has_a_silent_frame(sounds):
    soundfile.write(sounds / "Samples/low/click.wav", noise(1), 192000)
    run("preprocess_data.py", "--n-fft", 1025, cwd=sounds)
    assert np.load(sounds / "Preproc/low/click.wav.npy").shape == (96, 1)


@needs_data
def test_folder_of_real_recordings_as_messy_as_a_user_s_is_read_whole(tmp_path):
    (tmp_path / "Samples").symlink_to(DATA / "drums")
    said = run("preprocess_data.py", cwd=tmp_path).stdout
    assert "285 spectrograms written" in said and "0 sounds skipped" in said
    for path in sorted(DATA.glob("drums/*/*"))[::40]:
        y = librosa.load(path, sr=44100, res_type="soxr_hq")[0]
        mel = librosa.feature.melspectrogram(y=y, sr=44100, n_fft=2048, hop_length=512, n_mels=96)
        found = np.load(tmp_path / "Preproc" / path.parent.name / f"{path.name}.npy")
        np.testing.assert_allclose(found, librosa.power_to_db(mel), atol=1e-3)


def test_strict_stops_at_the_first_bad_sound_in_one_line(sounds):
    for name in ("a.wav", "b.wav"):
        (sounds / "Samples/high" / name).write_text("no sound")
    assert "Samples/high/a.wav: expected a sound" in one_line("preprocess_data.py", "--strict", cwd=sounds)
    assert "Samples/high/" in one_line("preprocess_data.py", "--strict", "--jobs", 2, cwd=sounds)


@pytest.mark.parametrize("name, head", [
    ("take 1.m4a", b"\0\0\0\x20ftypM4A "), ("take.wma", b"0&\xb2u\x8ef\xcf\x11\xa6\xd9"),
    ("lies.wav", b"\0\0\0\x20ftypM4A ")])
def test_what_libsndfile_does_not_know_is_named_with_the_command_that_converts_it(sounds, name, head):
    path = f"Samples/low/{name}"
    (sounds / path).write_bytes(head + bytes(100))
    said = run("preprocess_data.py", cwd=sounds, status=1).stderr
    command = said.splitlines()[0].split("convert it and remove it: ")[1]
    assert shlex.split(command) == ["ffmpeg", "-i", path, path.rsplit(".", 1)[0] + ".converted.wav"]


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="the peak memory is read from /proc")
def test_hour_of_sound_takes_no_more_than_400_mb_and_has_the_values_of_a_short_one(tmp_path):
    (tmp_path / "Samples/a").mkdir(parents=True)
    minute = noise(60 * 44100)[:, 0] * np.linspace(0, 1, 60 * 44100, dtype=np.float32)
    with soundfile.SoundFile(tmp_path / "Samples/a/hour.wav", "w", 44100, 1, "PCM_16") as file:
        for _ in range(60):
            file.write(minute)
    said = run_main(tmp_path, "print(open('/proc/self/status').read())")
    assert int(re.search(r"VmHWM:\s+(\d+) kB", said)[1]) < 400 * 1024
    hour = np.load(tmp_path / "Preproc/a/hour.wav.npy", mmap_mode="r")
    assert hour.shape == (96, 1 + 3600 * 44100 // 512)
    first = 59 * 60 * 44100 // 512  # a frame in the last minute, and the samples from there to the end
    y = soundfile.read(tmp_path / "Samples/a/hour.wav", start=first * 512, dtype="float32")[0]
    expected = librosa.power_to_db(librosa.feature.melspectrogram(y=y, n_fft=2048, hop_length=512, n_mels=96, sr=44100))
    np.testing.assert_allclose(hour[:, first + 2:], expected[:, 2:], atol=1e-4)  # the first frames know the past


# ---------------------------------------------------------------- channels, copies

def test_channels_are_kept_and_training_and_scoring_take_them(tmp_path, evaluate):
    rng = np.random.default_rng(0)
    for side in (0, 1):  # the classes differ in nothing but the side that is loud
        for i in range(10):
            y = rng.normal(0, 0.001, (4000, 2))
            y[:, side] = rng.normal(0, 0.3, 4000)
            path = tmp_path / "Samples" / ("left", "right")[side] / f"{i}.wav"
            path.parent.mkdir(parents=True, exist_ok=True)
            soundfile.write(path, y, SAMPLE_RATE)
    soundfile.write(tmp_path / "Samples/left/mono.wav", noise(4000), SAMPLE_RATE)
    run("preprocess_data.py", "--channels", 2, cwd=tmp_path)
    array = np.load(tmp_path / "Preproc/left/0.wav.npy")
    assert array.shape == (2, 96, 32)
    y = soundfile.read(tmp_path / "Samples/left/0.wav", dtype="float32")[0].T
    expected = librosa.power_to_db(librosa.feature.melspectrogram(y=y, sr=8000, n_fft=512, hop_length=128, n_mels=96))
    np.testing.assert_allclose(array, expected, atol=1e-4)
    mono = np.load(tmp_path / "Preproc/left/mono.wav.npy")
    np.testing.assert_array_equal(mono[0], mono[1])
    run("train_network.py", "--epochs", 3, "--test", "[0-4].wav", cwd=tmp_path)
    for source in ("Preproc", "Samples"):  # and from the sounds themselves, with the settings of the weights
        assert f"Reading {source}" in evaluate(tmp_path)[1].out
        assert json.loads((tmp_path / "Results/metrics.json").read_text())["accuracy"] == 1
        shutil.rmtree(tmp_path / "Preproc", ignore_errors=True)


@pytest.mark.parametrize("subtype, difference", [("FLOAT", 1e-4), ("PCM_24", 0.1)])  # dB
def test_copies_made_in_passing_are_those_that_augmenting_would_write(tmp_path, subtype, difference):
    for side in ("a", "b"):
        (tmp_path / "Samples" / side).mkdir(parents=True)
        for i in range(3):
            y = noise(6000 + i, 2) * np.linspace(1, 0.2, 6000 + i)[:, None]
            soundfile.write(tmp_path / "Samples" / side / f"x.{i}.wav", y, SAMPLE_RATE, subtype=subtype)
    run("preprocess_data.py", "--augment", 2, "--seed", 5, cwd=tmp_path)
    assert len(list((tmp_path / "Samples").rglob("*.wav"))) == 6
    made = {path.name: np.load(path) for path in (tmp_path / "Preproc/a").iterdir()}
    assert sorted(made) == sorted(f"x.{i}{copy}.wav.npy" for i in range(3) for copy in ("", "_aug1", "_aug2"))
    assert "18 kept" in run("preprocess_data.py", "--augment", 2, "--seed", 5, cwd=tmp_path).stdout
    assert "12 spectrograms written, 6 kept" in run("preprocess_data.py", "--augment", 2, cwd=tmp_path).stdout
    run("augment_data.py", 2, "--seed", 5, *(tmp_path / "Samples").rglob("*.wav"), cwd=tmp_path)
    run("preprocess_data.py", cwd=tmp_path)
    for name, array in made.items():
        np.testing.assert_allclose(np.load(tmp_path / "Preproc/a" / name), array, atol=difference)


# ---------------------------------------------------------------- progress, start, other machines

def test_progress_is_plain_lines_off_a_terminal(capsys):
    items = [f"Samples/class {k}/x.wav" for k in range(3)]
    assert list(utils.progress(iter([(0,), (2,), (1,)]), items, "Reading", seconds=0)) == [(0,), (2,), (1,)]
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3 and "Reading: 1 of 3" in lines[0] and "0 left, Samples/class 0" in lines[0]
    assert "Reading: 3 of 3" in lines[2] and "sounds/s" in lines[2]


def test_progress_is_a_bar_on_a_terminal(tmp_path):
    import pty
    write_sounds(tmp_path, n=300)
    there, here = pty.openpty()
    process = subprocess.Popen(PREPROCESS, cwd=tmp_path, stdout=here, stderr=here, env={**os.environ, "COLUMNS": "120"})
    os.close(here)
    said = b""
    try:
        while data := os.read(there, 10000):
            said += data
    except OSError:  # the end of a terminal
        pass
    os.close(there)
    assert process.wait() == 0
    for part in ("━", "900/900", "sounds/s", "times real time"):
        assert part in said.decode(), said.decode()
    assert re.search("left, (low|middle|high)", said.decode())


def test_start_loads_nothing_that_reading_and_transforming_do_not_need(sounds):
    modules = set(run_main(sounds, "print(*sys.modules)").splitlines()[-1].split())
    assert not {"keras", "tensorflow", "sklearn", "matplotlib.pyplot", "soxr", "distributed"} & modules


@pytest.fixture
def cluster(tmp_path):
    """The address of a Dask scheduler with two worker processes on this machine, and those processes."""
    pytest.importorskip("distributed")
    scheduler, worker = ([sys.executable, "-m", f"distributed.cli.dask_{kind}"] for kind in ("scheduler", "worker"))
    file = tmp_path / "scheduler.json"
    quiet = dict(stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=tmp_path)
    processes = [subprocess.Popen([*scheduler, "--host", "127.0.0.1", "--port", "0", "--no-dashboard",
                                   "--scheduler-file", file], **quiet)]
    for _ in range(100):
        if file.exists():
            break
        time.sleep(0.1)
    for _ in range(2):  # workers
        processes.append(subprocess.Popen([*worker, "--scheduler-file", file, "--no-nanny", "--nthreads", "1",
                                           "--no-dashboard"], **quiet))
    yield json.loads(file.read_text())["address"], processes
    for process in processes:
        process.kill()
        process.wait()


def test_dask_cluster_that_loses_a_worker_ends_with_the_bytes_of_a_local_run(cluster, tmp_path):
    write_sounds(tmp_path, n=150)
    run("preprocess_data.py", cwd=tmp_path)
    local = arrays(tmp_path)
    shutil.rmtree(tmp_path / "Preproc")
    address, processes = cluster
    pids, _ = utils.for_each(lambda name: os.getpid(), ["a/1", "a/2"], "Asking", "", cluster=address)
    assert os.getpid() not in pids.values()  # the workers do the work
    process = subprocess.Popen([*PREPROCESS, "--dask", address], cwd=tmp_path, stdout=subprocess.DEVNULL,
                               stderr=subprocess.PIPE, text=True)
    while not list(tmp_path.glob("Preproc/*/[!.]*.npy")):
        assert process.poll() is None
    processes[1].kill()
    assert len(list(tmp_path.glob("Preproc/*/[!.]*.npy"))) < 450
    assert process.wait(timeout=120) == 0, process.stderr.read()
    assert arrays(tmp_path) == local


def test_dask_address_that_nobody_answers_is_one_line_and_changes_nothing(sounds):
    pytest.importorskip("distributed")
    run("preprocess_data.py", cwd=sounds)
    before = identities(sounds), arrays(sounds)
    line = one_line("preprocess_data.py", "--dask", "nonsense", "--n-mels", 40, cwd=sounds)
    assert "--dask nonsense: expected the address" in line and (identities(sounds), arrays(sounds)) == before


def test_preproc_that_is_samples_is_refused(sounds):
    line = one_line("preprocess_data.py", "--preproc", "Samples/../Samples", cwd=sounds)
    assert "expected another folder than --samples" in line


def test_folder_that_cannot_be_locked_is_worked_on_all_the_same(tmp_path, monkeypatch):
    """As on some network file systems."""
    fcntl = pytest.importorskip("fcntl")

    def flock(descriptor, operation):
        raise OSError(errno.EBADF, "Bad file descriptor")
    monkeypatch.setattr(fcntl, "flock", flock)
    with utils.alone_in(tmp_path):
        (tmp_path / "x").touch()
