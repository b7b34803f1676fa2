"""Preprocessing reads whatever the folder holds, does what is missing, and survives a kill."""
import contextlib
import csv
import os
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import librosa
import numpy as np
import pytest
import soundfile
from conftest import (
    ROOT,
    SAMPLE_RATE,
    drop_root,
    load_json,
    one_line,
    run,
    write_sounds,
)

import preprocess_data
import utils
from utils import UserError, convert_blocks, default_settings, log_mel_spectrogram

PREPROCESS = [sys.executable, ROOT / "preprocess_data.py"]
SECOND = 10**9  # ns
needs_proc = pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="reads /proc")


def arrays(folder):
    """Path below Preproc/ and bytes of all files there, hidden ones too."""
    return {str(path.relative_to(folder / "Preproc")): path.read_bytes()
            for path in (folder / "Preproc").rglob("*") if path.is_file()}


def identities(folder, preproc="Preproc"):
    """Which file each spectrogram is: another one after it was written again.

    A file written again has the modification time of its sound, and perhaps the inode of before.
    """
    found = {path: path.stat() for path in (folder / preproc).rglob("*.npy")}
    return {path: (status.st_ino, status.st_ctime_ns) for path, status in found.items()}


def noise(n_samples, n_channels=1):
    rng = np.random.default_rng(n_samples)
    return rng.uniform(-0.5, 0.5, (n_samples, n_channels)).astype(np.float32)


def set_time(path, ns):
    """Set the modification time of a file."""
    os.utime(path, ns=(ns, ns))


def log_mel(y, sample_rate, n_fft, hop_length):
    """librosa's log-mel spectrogram of 96 bands."""
    mel = librosa.feature.melspectrogram(
        y=y, sr=sample_rate, n_fft=n_fft, hop_length=hop_length, n_mels=96)
    return librosa.power_to_db(mel)


def run_main(folder, then):
    """Preprocess in `folder` with one worker, then run a line of Python. Returns its output."""
    code = (f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
            "sys.argv = ['preprocess_data.py', '--jobs', '1']\n"
            f"import preprocess_data; preprocess_data.main(); {then}")
    command = [sys.executable, "-c", code]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout


def skipped(folder):
    with open(folder / "Preproc/skipped.csv", newline="", encoding="utf-8") as file:
        return {row["file"]: row["reason"] for row in csv.DictReader(file)}


@pytest.fixture
def preprocess(monkeypatch):
    """A function that runs preprocess_data.main in this process, in a folder."""
    def call(folder, *args):
        monkeypatch.chdir(folder)
        monkeypatch.setattr(sys, "argv", ["preprocess_data.py", *map(str, args)])
        monkeypatch.delitem(sys.modules, "keras", raising=False)  # workers are forked then: quick
        return preprocess_data.main()
    return call


# ---------------------------------------------------------------- restartable, and never stale

def test_killed_at_three_moments_it_ends_with_the_bytes_of_an_undisturbed_run(tmp_path):
    write_sounds(tmp_path, n=60)
    command = [*PREPROCESS, "--jobs", "2"]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    undisturbed = arrays(tmp_path)
    rng = random.Random(0)
    n_done = []
    for k in range(3):
        shutil.rmtree(tmp_path / "Preproc")
        process = subprocess.Popen(
            command, cwd=tmp_path, stdout=subprocess.DEVNULL, start_new_session=True)
        # Moments are counted in files, not in seconds: other work slows the start.
        while process.poll() is None and len(list(tmp_path.glob("Preproc/*/[!.]*.npy"))) < 60 * k:
            pass
        time.sleep(rng.uniform(0, 0.01))
        with contextlib.suppress(ProcessLookupError):  # it may just have ended
            os.killpg(process.pid, signal.SIGKILL)  # its worker processes too
        process.wait()
        before = identities(tmp_path) if (tmp_path / "Preproc").exists() else {}
        whole = {path: before[path] for path in before if not path.name.startswith(".")}
        for path in whole:
            name = str(path.relative_to(tmp_path / "Preproc"))
            assert path.read_bytes() == undisturbed[name]
        n_done.append(len(whole))
        run("preprocess_data.py", cwd=tmp_path)
        assert arrays(tmp_path) == undisturbed  # and no temporary file
        assert identities(tmp_path).items() >= whole.items()  # only what was missing was done
    assert len(set(n_done)) > 1 and 0 < sum(n_done) < 3 * 180, n_done  # the moments did differ


SLEEP = """
import os, sys, time
from pathlib import Path
sys.path.insert(0, {root!r})
import utils

def sleep(name):
    Path(name).write_text(str(os.getpid()))
    time.sleep(600)

if __name__ == "__main__":
    if {spawns}:
        sys.modules["keras"] = None  # as if it were loaded
    utils.map_files(sleep, ["pid 0", "pid 1"], jobs=2)
"""


def is_running(pid):
    """Whether a process is there and is no zombie."""
    with contextlib.suppress(OSError):
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    return False


@needs_proc
@pytest.mark.parametrize("spawns", [False, True])
def test_workers_end_when_the_main_process_is_killed(tmp_path, spawns):
    (tmp_path / "sleep.py").write_text(SLEEP.format(root=str(ROOT), spawns=spawns))
    process = subprocess.Popen([sys.executable, "sleep.py"], cwd=tmp_path)
    files = [tmp_path / "pid 0", tmp_path / "pid 1"]
    while not all(path.exists() and path.read_text() for path in files):
        assert process.poll() is None
        time.sleep(0.01)
    pids = [int(path.read_text()) for path in files]
    assert process.pid not in pids and all(map(is_running, pids))
    process.kill()
    process.wait()
    end = time.monotonic() + 10
    while any(map(is_running, pids)) and time.monotonic() < end:
        time.sleep(0.01)
    left = [pid for pid in pids if is_running(pid)]
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert not left


def test_second_run_does_just_what_changed(sounds):
    low = sounds / "Samples/low"
    now = 1_700_000_000 * SECOND + 123_456_789
    for k in range(10):
        soundfile.write(low / f"0{k}.wav", noise(3000 + k)[:3000], SAMPLE_RATE)
        set_time(low / f"0{k}.wav", now)
    run("preprocess_data.py", cwd=sounds)
    before = identities(sounds)
    strays = [sounds / "Preproc/.0123456789ab.json", sounds / "Preproc/low/.0123456789ab.npy"]
    for path in strays:  # of a killed run
        path.touch()
    assert "30 kept" in run("preprocess_data.py", cwd=sounds).stdout
    assert identities(sounds) == before
    assert not any(path.exists() for path in strays)
    soundfile.write(low / "00.wav", noise(2000), SAMPLE_RATE)
    set_time(low / "00.wav", now)  # another size
    set_time(low / "01.wav", now + 100)
    set_time(low / "04.wav", now - 100)  # an older file put in its place
    soundfile.write(low / "new.wav", noise(3000), SAMPLE_RATE)
    (low / "05.wav").rename(low / "swap")  # of one time; one is as long as the other
    (low / "06.wav").rename(low / "05.wav")
    (low / "swap").rename(low / "06.wav")
    (low / "02.wav").unlink()
    (sounds / "Preproc/low/03.wav.npy").write_bytes(b"")  # as after a power cut, with its time
    set_time(sounds / "Preproc/low/03.wav.npy", now)
    said = run("preprocess_data.py", cwd=sounds).stdout
    assert "7 spectrograms written, 23 kept, 1 removed" in said
    after = identities(sounds)
    changed = {path.name.removesuffix(".wav.npy") for path in before.keys() | after.keys()
               if before.get(path) != after.get(path)}
    assert changed == {"00", "01", "02", "03", "04", "05", "06", "new"}
    assert "30 kept" in run("preprocess_data.py", cwd=sounds).stdout


def test_copy_of_preproc_with_other_times_makes_nothing_again(preprocessed):
    sounds = preprocessed
    shutil.copytree(sounds / "Preproc", sounds / "copy", copy_function=shutil.copyfile)
    before = identities(sounds, "copy")
    said = run("preprocess_data.py", "--preproc", "copy", cwd=sounds).stdout
    assert "0 spectrograms written, 30 kept, 0 removed" in said
    assert identities(sounds, "copy") == before


@pytest.mark.parametrize("step", [1, 2 * SECOND])  # ns: of most file systems, and of FAT
def test_sounds_of_one_time_and_size_that_change_places_are_made_again(sounds, step):
    now = 1_700_000_000 * SECOND
    low = sounds / "Samples/low"
    for k in range(10):
        soundfile.write(low / f"0{k}.wav", noise(3000 + k)[:3000], SAMPLE_RATE)
        set_time(low / f"0{k}.wav", now)
    run("preprocess_data.py", cwd=sounds)
    before = {k: np.load(sounds / f"Preproc/low/0{k}.wav.npy") for k in (0, 1)}
    (low / "00.wav").rename(low / "swap")
    (low / "01.wav").rename(low / "00.wav")
    (low / "swap").rename(low / "01.wav")
    soundfile.write(low / "02.wav", noise(4000)[:3000], SAMPLE_RATE)
    set_time(low / "02.wav", (now + SECOND) // step * step)  # replaced within two seconds
    assert "3 spectrograms written, 27 kept" in run("preprocess_data.py", cwd=sounds).stdout
    for k in (0, 1):
        array = np.load(sounds / f"Preproc/low/0{k}.wav.npy")
        np.testing.assert_array_equal(array, before[1 - k])


def test_folders_without_sounds_go_and_nothing_outside_preproc_does(tmp_path):
    write_sounds(tmp_path, n=2)
    (tmp_path / "out/Preproc/gone").mkdir(parents=True)
    (tmp_path / "out/.0123456789ab.json").touch()
    (tmp_path / "out/Preproc/.0123456789ab.json").touch()
    run("preprocess_data.py", "--preproc", "out/Preproc", cwd=tmp_path)
    left = sorted(path.name for path in (tmp_path / "out/Preproc").iterdir())
    assert left == ["high", "low", "middle", "settings.json", "suspicious.csv"]
    assert (tmp_path / "out/.0123456789ab.json").exists()


def test_changed_settings_make_everything_again_and_say_so_in_one_line(preprocessed):
    sounds = preprocessed
    said = run("preprocess_data.py", "--n-mels", 40, cwd=sounds).stdout
    lines = [line for line in said.splitlines() if "settings changed" in line]
    assert len(lines) == 1
    assert "(n_mels 96 -> 40): all spectrograms are made again" in lines[0]
    assert "30 spectrograms written, 0 kept, 0 removed" in said
    assert {np.load(path).shape[0] for path in (sounds / "Preproc").rglob("*.npy")} == {40}


def test_fmin_and_fmax_make_everything_again_and_old_settings_without_them_nothing(preprocessed):
    path = preprocessed / "Preproc/settings.json"
    saved = load_json(path)
    del saved["features"]["fmin"], saved["features"]["fmax"]
    utils.save_json(path, saved)
    said = run("preprocess_data.py", cwd=preprocessed).stdout
    assert "0 spectrograms written, 30 kept" in said and "changed" not in said
    said = run("preprocess_data.py", "--fmin", 300, "--fmax", 3000, cwd=preprocessed).stdout
    assert "settings changed (fmin 0 -> 300, fmax None -> 3000): all spectrograms" in said
    assert "30 spectrograms written" in said
    assert utils.load_settings(path.parent) == default_settings(SAMPLE_RATE, fmin=300, fmax=3000)


@pytest.mark.parametrize("flags, words", [
    (["--fmax", 4001], "--fmax 4001: above 4000 Hz, half of the sample rate; use a lower --fmax or "
     "a higher --sample-rate (default: the most frequent one)"),
    (["--fmin", 4000], "--fmin 4000: not below 4000 Hz, where the mel bands end; use a lower"),
    (["--fmin", 900, "--fmax", 900], "--fmin 900: not below 900 Hz, where the mel bands end")])
def test_mel_bands_that_the_sounds_cannot_fill_are_one_line_and_change_nothing(
        sounds, flags, words):
    assert words in one_line("preprocess_data.py", *flags, cwd=sounds)
    assert not (sounds / "Preproc").exists()


def test_stopped_while_it_removes_what_is_stale_it_is_not_finished(
        sounds, preprocess, monkeypatch):
    """Training would otherwise use what is left, a part of the sounds."""
    preprocess(sounds)
    unlink = Path.unlink
    removed = []

    def stop(path, *args, **kwargs):
        if len(removed) == 5:
            raise KeyboardInterrupt
        unlink(path, *args, **kwargs)
        removed.extend([path] * (path.suffix == ".npy" and not path.name.startswith(".")))

    monkeypatch.setattr(Path, "unlink", stop)
    with pytest.raises(KeyboardInterrupt):
        preprocess(sounds, "--hop-length", 64)
    assert len(utils.list_spectrograms("Preproc")) == 25
    with pytest.raises(UserError, match="settings.json: preprocessing is not finished"):
        utils.load_settings("Preproc")


def test_preprocessing_in_which_every_sound_failed_is_not_finished(tmp_path):
    (tmp_path / "Samples/a").mkdir(parents=True)
    path = tmp_path / "Samples/a/nan.wav"
    soundfile.write(path, np.full(1000, np.nan), SAMPLE_RATE, subtype="FLOAT")
    for flags in ([], ["--augment", 1]):
        result = run("preprocess_data.py", *flags, cwd=tmp_path, status=1)
        assert "Samples: none of its 1 sound files can be read" in result.stderr
        assert load_json(tmp_path / "Preproc/settings.json")["finished"] is False


def test_interrupted_run_says_that_what_is_written_stays(tmp_path):
    write_sounds(tmp_path, n=400)
    for jobs in ("1", "2"):
        process = subprocess.Popen(
            [*PREPROCESS, "--jobs", jobs], cwd=tmp_path, stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE, text=True, start_new_session=True)
        while not list(tmp_path.glob("Preproc/*/[!.]*.npy")):
            assert process.poll() is None
        os.killpg(process.pid, signal.SIGINT)  # as Ctrl-C does, to its worker processes too
        errors = process.communicate(timeout=30)[1]
        assert process.returncode == 130
        assert errors == ("\npreprocess_data.py: stopped; files already written are complete; the "
                          "same command continues\n")
        assert 0 < len(identities(tmp_path)) < 1200
        shutil.rmtree(tmp_path / "Preproc")


def test_runs_at_once_that_want_different_things_wait_for_one_another(tmp_path):
    write_sounds(tmp_path, n=100)
    (tmp_path / "Preproc").mkdir()
    with utils.folder_lock(tmp_path / "Preproc"):
        runs = [subprocess.Popen([*PREPROCESS, *flags], cwd=tmp_path, stdout=subprocess.PIPE,
                                 text=True)
                for flags in (["--augment", "1"], ["--hop-length", "64"])]
        for process in runs:
            lines = [process.stdout.readline() for _ in range(3)]
            assert "Preproc: another run is at work there; waiting for its end" in lines[2]
    assert [process.wait() for process in runs] == [0, 0]
    after = arrays(tmp_path)
    hop_length = load_json(tmp_path / "Preproc/settings.json")["features"]["hop_length"]
    last = ["--hop-length", 64] if hop_length == 64 else ["--augment", 1]
    shutil.rmtree(tmp_path / "Preproc")
    run("preprocess_data.py", *last, cwd=tmp_path)
    assert arrays(tmp_path) == after


# ---------------------------------------------------------------- workers

def die_of_some(name):
    if name in ("a/7", "a/8", "a/199"):
        os.kill(os.getpid(), signal.SIGKILL)
    if name == "a/9":
        bytearray(2**60)
    return name.upper()


@pytest.mark.parametrize("jobs", [1, 3])
def test_sound_that_crashes_its_worker_is_named_and_the_rest_done(jobs, monkeypatch):
    monkeypatch.delitem(sys.modules, "keras", raising=False)  # workers are forked then: quick
    names = [f"a/{i}" for i in range(200)]
    done, errors = utils.map_files(die_of_some, names, "Reading", jobs)
    assert list(errors) == ["a/7", "a/8", "a/9", "a/199"]
    crash = ("{}: crashes its decoder, or needs more memory than there is; remove the file, or "
             "convert it")
    for name in ("a/7", "a/8", "a/199"):
        assert str(errors[name]) == crash.format(name)
    assert str(errors["a/9"]) == "a/9: out of memory; close other programs, or remove the file"
    assert list(done.items()) == [(name, name.upper()) for name in names if name not in errors]


def divide_by_zero(name):
    return 1 / 0


@pytest.mark.parametrize("jobs", [0, 1, 2])
def test_mistake_of_ours_in_a_worker_is_raised_with_its_traceback(jobs):
    with pytest.raises(ZeroDivisionError) as info:
        utils.map_files(divide_by_zero, ["a", "b"], jobs=jobs)
    shown = str(info.value.__cause__) if jobs else str(info.getrepr())
    assert "divide_by_zero" in shown and "1 / 0" in shown


# ---------------------------------------------------------------- whatever the folder holds

@pytest.mark.parametrize("name, format, subtype, rate, channels", [
    ("a.wav", "WAV", "PCM_U8", 4000, 1), ("b.WAV", "WAV", "PCM_16", 8000, 2),
    ("c.wav", "WAV", "PCM_24", 11025, 3), ("d.Wav", "WAV", "PCM_32", 22050, 4),
    ("e.wav", "WAV", "FLOAT", 44100, 5), ("f.wav", "WAV", "DOUBLE", 48000, 6),
    ("g.flac", "FLAC", "PCM_24", 192000, 7), ("h.FLAC", "FLAC", "PCM_16", 96000, 8),
    ("i.ogg", "OGG", "VORBIS", 44100, 2), ("j.opus", "OGG", "OPUS", 48000, 2),
    ("k.AIFF", "AIFF", "PCM_16", 44100, 1), ("l.aif", "AIFF", "PCM_24", 32000, 2),
    ("m.mp3", "MP3", "MPEG_LAYER_III", 44100, 2), ("n.MP3", "MP3", "MPEG_LAYER_III", 16000, 1),
    ("lies.wav", "MP3", "MPEG_LAYER_III", 44100, 1), ("lies.mp3", "WAV", "PCM_16", 44100, 1),
    ("lies.flac", "OGG", "VORBIS", 44100, 1)])
def test_every_format_rate_and_number_of_channels_is_read(
        tmp_path, name, format, subtype, rate, channels):
    path = tmp_path / name
    soundfile.write(path, noise(rate, channels), rate, format=format, subtype=subtype)
    settings = default_settings(22050)
    found = log_mel_spectrogram(convert_blocks(utils.read_blocks(path), settings), settings)
    y = librosa.load(path, sr=22050, res_type="soxr_hq")[0]
    expected = log_mel(y, 22050, n_fft=1024, hop_length=256)
    assert found.shape == expected.shape
    band = min(96, 96 * rate // 22050 - 20)  # above the file's own band is the resampler's noise
    np.testing.assert_allclose(found[:band], expected[:band], atol=2e-3)


def test_odd_names_and_subfolders_are_mirrored(tmp_path):
    names = ["plain.wav", "Grüße 鼓 🥁.wav", "two  spaces.wav", "it's \"quoted\".wav", "-rf.wav",
             "--strict.wav", "%s$a`b`.wav", "a.b.c.wav", "x" * 246 + ".wav", "deep/er/still/x.wav"]
    classes = "-a class-", "ü 'b'"
    for name in names:
        for folder in classes:
            path = tmp_path / "Samples" / folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            soundfile.write(path, noise(1000), SAMPLE_RATE)
    run("preprocess_data.py", cwd=tmp_path)
    found = {name for name in arrays(tmp_path) if name.endswith(".npy")}
    assert found == {f"{folder}/{name}.npy" for folder in classes for name in names}
    shutil.rmtree(tmp_path / "Samples/ü 'b'/deep")
    run("preprocess_data.py", cwd=tmp_path)
    assert not (tmp_path / "Preproc/ü 'b'/deep").exists()
    assert (tmp_path / "Preproc/-a class-/deep/er").exists()


def test_links_to_sounds_work_and_a_loop_of_links_ends(sounds, tmp_path_factory):
    elsewhere = write_sounds(tmp_path_factory.mktemp("elsewhere"), classes=["more"], n=2)
    elsewhere = elsewhere / "Samples/more"
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
    assert set(skipped(sounds)) == {"low/self.wav", "low/dangling.wav"}
    assert "found nothing there" in result.stderr
    names = {path.relative_to(sounds / "Preproc").as_posix() for path in identities(sounds)}
    assert {"low/link.wav.npy", "low/folder/01.wav.npy", "other/00.wav.npy"} <= names
    assert not any("round" in name for name in names)


def preproc_of(folder):
    """All that is in Preproc/: bytes, file times and inodes."""
    return identities(folder), arrays(folder)


@pytest.mark.skipif(sys.platform != "linux", reason="drops a right of root as Linux has it")
@pytest.mark.parametrize("locked", ["Samples/low", "Samples/low/deep", "Preproc/low/deep"])
def test_folder_that_may_not_be_read_stops_the_run_before_anything_changes(sounds, locked):
    (sounds / "Samples/low/deep").mkdir()
    soundfile.write(sounds / "Samples/low/deep/x.wav", noise(1000), SAMPLE_RATE)
    run("preprocess_data.py", cwd=sounds)
    before = preproc_of(sounds)
    (sounds / "Samples/high/00.wav").unlink()  # what would be removed otherwise
    (sounds / locked).chmod(0)
    line = one_line("preprocess_data.py", "--n-mels", 40, cwd=sounds, before=drop_root)
    (sounds / locked).chmod(0o755)
    assert line.startswith(f"preprocess_data.py: {locked}: Permission denied; make the ")
    assert preproc_of(sounds) == before


def test_class_link_that_leads_nowhere_stops_the_run_before_anything_changes(sounds):
    """As of a drive that is not mounted. Its spectrograms are still of use."""
    (sounds / "Samples/low").rename(sounds / "drive")
    (sounds / "Samples/drive v1.5").symlink_to(sounds / "drive")
    run("preprocess_data.py", cwd=sounds)
    before = preproc_of(sounds)
    (sounds / "drive").rename(sounds / "elsewhere")
    line = one_line("preprocess_data.py", "--n-mels", 40, cwd=sounds)
    assert line == ("preprocess_data.py: Samples/drive v1.5: is a broken link; mount the drive it "
                    "points to, or remove it")
    assert preproc_of(sounds) == before


def test_short_and_silent_sounds_are_kept_and_what_is_no_sound_is_listed(sounds):
    middle = sounds / "Samples/middle"
    soundfile.write(middle / "short.wav", noise(1), SAMPLE_RATE)
    soundfile.write(middle / "silent.wav", np.zeros(4000), SAMPLE_RATE)
    for name, value in (("nan", np.nan), ("inf", -np.inf), ("huge", 3e38)):
        y = noise(4000)
        y[1234] = value
        soundfile.write(middle / f"{name}.wav", y, SAMPLE_RATE, subtype="FLOAT")
    soundfile.write(middle / "none.wav", np.zeros(0), SAMPLE_RATE)
    os.mkfifo(middle / "pipe.wav")
    for name, data in (("empty.mp3", b""), ("page.mp3", b"<!DOCTYPE html><html>"),
                       ("pointer.mp3", b"version https://git-lfs.github.com/spec/v1\noid sha256:0"),
                       ("zeros.wav", bytes(2**21))):
        (middle / name).write_bytes(data)
    for name in ("notes.txt", "list.csv", ".hidden.wav", "picture.PNG"):
        (middle / name).write_text("left alone")
    result = run("preprocess_data.py", cwd=sounds, status=1)
    assert np.load(sounds / "Preproc/middle/short.wav.npy").shape == (96, 1)
    silent = np.load(sounds / "Preproc/middle/silent.wav.npy")
    np.testing.assert_allclose(silent, -100, atol=1e-4)
    reasons = skipped(sounds)
    expected = {"empty.mp3": "an empty file", "huge.wav": "beyond 1e9", "inf.wav": "infinity",
                "nan.wav": "NaN", "none.wav": "without samples", "page.mp3": "an HTML page",
                "pipe.wav": "a pipe or device", "pointer.mp3": "run git lfs pull",
                "zeros.wav": "an empty file, or one of zeros"}
    assert list(reasons) == [f"middle/{name}" for name in expected]
    for name, reason in expected.items():
        assert reason in reasons[f"middle/{name}"]
        assert reasons[f"middle/{name}"].startswith("expected ")
        assert f"skipped Samples/middle/{name}: expected " in result.stderr
    assert "32 spectrograms written" in result.stdout
    assert "9 sounds skipped; 4 other files left alone" in result.stdout


def test_bad_sound_is_named_once_with_all_its_copies(sounds):
    (sounds / "Samples/low/bad.wav").write_text("no sound")
    result = run("preprocess_data.py", "--augment", 2, cwd=sounds, status=1)
    assert "1 sounds skipped" in result.stdout and list(skipped(sounds)) == ["low/bad.wav"]
    assert skipped(sounds)["low/bad.wav"].startswith("expected a sound")


def test_strict_stops_at_the_first_bad_sound_in_one_line(sounds):
    for name in ("a.wav", "b.wav"):
        (sounds / "Samples/high" / name).write_text("no sound")
    line = one_line("preprocess_data.py", "--strict", "--jobs", 1, cwd=sounds)
    assert "Samples/high/a.wav: expected a sound" in line
    line = one_line("preprocess_data.py", "--strict", "--jobs", 2, cwd=sounds)
    assert "Samples/high/" in line
    assert load_json(sounds / "Preproc/settings.json")["finished"] is False


@needs_proc
def test_hour_of_sound_takes_no_more_than_500_mb_and_has_the_values_of_a_short_one(tmp_path):
    (tmp_path / "Samples/a").mkdir(parents=True)
    path = tmp_path / "Samples/a/hour.wav"
    minute = noise(60 * 44100)[:, 0] * np.linspace(0, 1, 60 * 44100, dtype=np.float32)
    with soundfile.SoundFile(path, "w", 44100, 1, "PCM_16") as file:
        for _ in range(60):
            file.write(minute)
    said = run_main(tmp_path, "print(open('/proc/self/status').read()); import resource; "
                    "print('worker', resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)")
    assert int(re.search(r"VmHWM:\s+(\d+) kB", said)[1]) < 250 * 1024
    assert 0 < int(re.search(r"worker (\d+)", said)[1]) < 500 * 1024  # 119 MB are the result
    hour = np.load(tmp_path / "Preproc/a/hour.wav.npy", mmap_mode="r")
    assert hour.shape == (96, 1 + 3600 * 44100 // 512)
    first = 59 * 60 * 44100 // 512  # a frame in the last minute, to the end of the sound
    y = soundfile.read(path, start=first * 512, dtype="float32")[0]
    expected = log_mel(y, 44100, n_fft=2048, hop_length=512)
    found = hour[:, first + 2:]  # the first frames know the past
    np.testing.assert_allclose(found, expected[:, 2:], atol=5e-4)


def test_what_libsndfile_cannot_read_is_named_with_the_command_that_converts_it(sounds):
    (sounds / "Samples/low/take 1.m4a").write_bytes(b"\0\0\0\x20ftypM4A " + bytes(100))
    line, _ = run("preprocess_data.py", cwd=sounds, status=1).stderr.splitlines()
    line, command = line.split("; convert it and remove the original, or replace it if that fails:")
    assert line == ("skipped Samples/low/take 1.m4a: expected a sound, found a file that "
                    "libsndfile cannot read (Format not recognised)")
    assert shlex.split(command) == ["ffmpeg", "-i", "Samples/low/take 1.m4a",
                                    "Samples/low/take 1.converted.wav"]


def test_what_holds_no_sound_of_any_format_is_named_with_its_remedy(sounds):
    page = "an HTML page; download the file again"
    pointer = "a Git LFS pointer; run git lfs pull"
    blank = "an empty file, or one of zeros; replace it"
    text = "a text file; replace it"
    files = {"1.mp3": (b"<!DOCTYPE html><html>", page), "2.wav": (b"\r\n <html>caf\xe9", page),
             "3.wav": (b"\xef\xbb\xbf<?xml version='1.0'?><Error>", page),
             "4.mp3": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", pointer),
             "5.wav": (bytes(2**21), blank), "6.mp3": (b"", blank),
             "7.flac": (b'{"error": "not found"}\n', text)}
    for name, (data, _) in files.items():
        (sounds / "Samples/low" / name).write_bytes(data)
    run("preprocess_data.py", cwd=sounds, status=1)
    assert skipped(sounds) == {f"low/{name}": f"expected a sound, found {found}"
                               for name, (_, found) in files.items()}


# ---------------------------------------------------------------- channels, copies

@pytest.mark.parametrize("subtype, difference", [("FLOAT", 1e-4), ("PCM_24", 0.1)])  # dB
def test_copies_made_in_passing_are_those_that_augmenting_would_write(
        tmp_path, subtype, difference):
    for side in ("a", "b"):
        (tmp_path / "Samples" / side).mkdir(parents=True)
        for i in range(3):
            y = noise(6000 + i, 2) * np.linspace(1, 0.2, 6000 + i)[:, None]
            path = tmp_path / "Samples" / side / f"x.{i}.wav"
            soundfile.write(path, y, SAMPLE_RATE, subtype=subtype)
    run("preprocess_data.py", "--augment", 2, "--seed", 5, cwd=tmp_path)
    assert len(list((tmp_path / "Samples").rglob("*.wav"))) == 6
    made = {path.name: np.load(path) for path in (tmp_path / "Preproc/a").iterdir()}
    copies = "", "_aug1", "_aug2"
    assert sorted(made) == sorted(f"x.{i}{copy}.wav.npy" for i in range(3) for copy in copies)
    run("augment_data.py", 2, "--seed", 5, *(tmp_path / "Samples").rglob("*.wav"), cwd=tmp_path)
    run("preprocess_data.py", cwd=tmp_path)
    for name, array in made.items():
        found = np.load(tmp_path / "Preproc/a" / name)
        np.testing.assert_allclose(found, array, atol=difference)


def test_copies_without_a_file_are_made_again_if_their_settings_change_and_no_others(sounds):
    def said(*flags):
        return run("preprocess_data.py", "--augment", 2, *flags, cwd=sounds).stdout

    assert "90 spectrograms written, 0 kept, 0 removed" in said("--seed", 5)
    assert load_json(sounds / "Preproc/settings.json")["copies"]["seed"] == 5
    assert "0 spectrograms written, 90 kept, 0 removed" in said("--seed", 5)
    before = np.load(sounds / "Preproc/low/00_aug1.wav.npy")
    assert "60 spectrograms written, 30 kept, 0 removed" in said()
    other_seed = np.load(sounds / "Preproc/low/00_aug1.wav.npy")
    assert not np.array_equal(before, other_seed)
    assert "60 spectrograms written, 30 kept, 0 removed" in said("--only", "gain")
    assert not np.array_equal(other_seed, np.load(sounds / "Preproc/low/00_aug1.wav.npy"))
    saved = load_json(sounds / "Preproc/settings.json")
    assert saved["copies"] == {"seed": 0, "deformations": ["gain"]}
    said = run("preprocess_data.py", cwd=sounds).stdout
    assert "0 spectrograms written, 30 kept, 60 removed" in said


# ---------------------------------------------------------------- progress, start, other machines

def test_progress_is_a_bar_on_a_terminal(tmp_path):
    import pty
    write_sounds(tmp_path, n=300)
    there, here = pty.openpty()
    environment = {**os.environ, "COLUMNS": "120"}
    process = subprocess.Popen(PREPROCESS, cwd=tmp_path, stdout=here, stderr=here, env=environment)
    os.close(here)
    said = b""
    with contextlib.suppress(OSError):  # the end of a terminal
        while data := os.read(there, 10000):
            said += data
    os.close(there)
    assert process.wait() == 0
    for part in ("━", "900/900", "sounds/s", "times real time"):
        assert part in said.decode(), said.decode()
    assert re.search(r"sounds/s, \d:\d\d left", said.decode())


@pytest.fixture
def cluster(tmp_path):
    """The address of a Dask scheduler with two workers on this machine, and the processes."""
    pytest.importorskip("distributed")
    scheduler, worker = ([sys.executable, "-m", f"distributed.cli.dask_{kind}"]
                         for kind in ("scheduler", "worker"))
    file = tmp_path / "scheduler.json"
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "cwd": tmp_path}
    flags = ["--host", "127.0.0.1", "--port", "0", "--no-dashboard", "--scheduler-file", file]
    processes = [subprocess.Popen([*scheduler, *flags], **quiet)]
    for _ in range(300):
        if file.exists():
            break
        time.sleep(0.1)
    flags = ["--scheduler-file", file, "--no-nanny", "--nthreads", "1", "--no-dashboard"]
    for _ in range(2):  # workers
        processes.append(subprocess.Popen([*worker, *flags], **quiet))
    yield load_json(file)["address"], processes
    for process in processes:
        process.kill()
        process.wait()


def test_dask_cluster_that_loses_a_worker_ends_with_the_bytes_of_a_local_run(cluster, tmp_path):
    write_sounds(tmp_path, n=150)
    run("preprocess_data.py", cwd=tmp_path)
    local = arrays(tmp_path)
    shutil.rmtree(tmp_path / "Preproc")
    address, processes = cluster
    pids, _ = utils.map_files(lambda name: os.getpid(), ["a/1", "a/2"], dask=address)
    assert os.getpid() not in pids.values()  # the workers do the work
    process = subprocess.Popen([*PREPROCESS, "--dask", address], cwd=tmp_path, text=True,
                               stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    while not list(tmp_path.glob("Preproc/*/[!.]*.npy")):
        assert process.poll() is None
    processes[1].kill()
    assert len(list(tmp_path.glob("Preproc/*/[!.]*.npy"))) < 450
    assert process.wait(timeout=120) == 0, process.stderr.read()
    assert arrays(tmp_path) == local


def test_dask_address_that_nobody_answers_is_one_line_and_changes_nothing(sounds):
    pytest.importorskip("distributed")
    run("preprocess_data.py", cwd=sounds)
    before = preproc_of(sounds)
    line = one_line("preprocess_data.py", "--dask", "nonsense", "--n-mels", 40, cwd=sounds)
    assert "--dask nonsense: no scheduler with workers answers there; start one, or " in line
    assert preproc_of(sounds) == before


def test_preproc_that_is_samples_is_refused(sounds):
    for place in ("Samples/../Samples", "Samples/Preproc", "."):
        line = one_line("preprocess_data.py", "--preproc", place, cwd=sounds)
        assert "name another one" in line
