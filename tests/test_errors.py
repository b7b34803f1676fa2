"""A user's mistake gets one line that names the path, the problem and the remedy."""
import re
import shutil
import subprocess
import sys
import unicodedata
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
from conftest import ROOT, one_line, run, write_sounds

import preprocess_data
import train_network
import utils
from utils import UserError


@pytest.mark.parametrize("script", ["preprocess_data.py", "train_network.py"])
def test_no_samples_folder(script, tmp_path):
    line = one_line(script, cwd=tmp_path)
    assert ("Samples: expected a folder with a subfolder for each class, found nothing there"
            in line)


@pytest.mark.parametrize("script", ["preprocess_data.py", "train_network.py"])
def test_no_sound_at_all(script, tmp_path):
    (tmp_path / "Samples/a").mkdir(parents=True)
    expected = "Samples: expected sounds in a subfolder for each class, found "
    assert f"{expected}none among 0 files" in one_line(script, cwd=tmp_path)
    soundfile.write(tmp_path / "Samples/loose.wav", np.zeros(9), 8000)
    assert f"{expected}1 outside of them" in one_line(script, cwd=tmp_path)


def test_only_files_that_cannot_be_read(tmp_path):
    (tmp_path / "Samples/a").mkdir(parents=True)
    (tmp_path / "Samples/a/broken.wav").write_text("x")
    line = one_line("preprocess_data.py", cwd=tmp_path)
    assert ("Samples: none of its 1 sound files can be read, such as a/broken.wav; replace them"
            in line)


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


def test_missing_weights_are_named_before_keras_is_loaded(sounds, monkeypatch):
    monkeypatch.setenv("KERAS_BACKEND", "none, so that loading Keras would be the error")
    training = "train_network.py", "--weights", "gone.keras", "--save", "new.keras"
    for command in (["eval_network.py"], training):
        line = one_line(*command, cwd=sounds)
        assert (".keras: expected the weights that train_network.py saves, found nothing there"
                in line)


@pytest.mark.parametrize("rates, sample_rate, words", [
    ((44100, 96000), None, "100% of low, but 0% of high, is recorded below 96000 Hz. "),
    ((44100, 96000), 44100, "100% of low, but 0% of high, is recorded at or below 44100 Hz. "),
    ((44100, 96000), 39600, None), ((96000, 96000), None, None), ((8000, 8000), 16000, None)])
def test_sample_rates_that_tell_classes_apart_are_said_with_the_rate_that_removes_the_clue(
        tmp_path, capsys, rates, sample_rate, words):
    names = [f"{name}/{i}.wav" for name in ("low", "high") for i in range(10)]
    for k, (name, rate) in enumerate(zip(names, [rates[0]] * 10 + [rates[1]] * 10)):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        y = np.random.default_rng(k).normal(0, 0.1, rate)
        soundfile.write(tmp_path / name, y, rate)
    settings = utils.choose_settings(tmp_path, names, sample_rate)
    assert settings.sample_rate == (sample_rate or max(rates))
    said = capsys.readouterr().out.splitlines()
    assert len(said) == (1 if words else 0)
    for line in said:
        assert words in line
        assert line.endswith("preprocess_data.py --sample-rate 39600 removes this clue. It also "
                             "removes all sound above 19.8 kHz.")
    if rates == (44100, 96000):  # the same white noise: what differs is the clue
        sounds = [utils.sound_to_spectrogram(name, tmp_path, settings) for name in names]
        low, high = (np.mean([sound.mean(axis=1) for sound in some], axis=0)
                     for some in (sounds[:10], sounds[10:]))  # dB of each band
        clue = np.abs(low - high - np.median(low - high)).max()  # dB
        assert clue > 2 if words else clue < 1


def test_odd_rates_of_every_kind_do_no_harm(capsys):
    rates = {f"{c}/{k}.wav": 8000 + 100 * k for c in "ab" for k in range(30)}
    utils.note_telling_rates(rates, 9000)
    assert not capsys.readouterr().out


def test_class_of_sounds_that_cannot_be_read_stops_preprocessing_and_training(sounds):
    for path in (sounds / "Samples/low").iterdir():
        path.write_text("no sound")
    result = run("preprocess_data.py", cwd=sounds, status=1)
    words = "Samples/low: no sounds there that can be read; add at least 2, or remove the folder"
    assert words in result.stderr and "Next:" not in result.stdout
    assert words in one_line("train_network.py", cwd=sounds)


class Counted(list):
    """A list that counts how often it is walked through."""
    n = 0

    def __iter__(self):
        self.n += 1
        return super().__iter__()

    def __contains__(self, item):
        self.n += 1
        return super().__contains__(item)


def test_stale_spectrograms_are_removed_in_one_walk_through_the_names(tmp_path):
    for folder in ("Samples/a", "Preproc/a"):
        (tmp_path / folder).mkdir(parents=True)
    for k in range(50):
        np.save(tmp_path / f"Preproc/a/{k}.wav.npy", np.zeros(3))
    (tmp_path / "Samples/a/7.wav").touch()
    with open(tmp_path / "Preproc/a/7.wav.npy", "ab") as file:
        file.write(utils.make_key(tmp_path / "Samples/a/7.wav"))
    made_with = {"features": {}, "copies": {}}
    utils.save_json(tmp_path / "Preproc/settings.json", made_with)
    wanted = Counted(["a/7.wav"])
    args = SimpleNamespace(samples=tmp_path / "Samples", preproc=tmp_path / "Preproc")
    assert preprocess_data.remove_stale(args, wanted, made_with, made_with) == 49 and wanted.n < 5
    assert [path.name for path in (tmp_path / "Preproc/a").iterdir()] == ["7.wav.npy"]


def test_every_package_that_is_required_is_imported():
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    packages = {re.match(r"[\w-]+", line)[0] for line in lines
                if line and not line.startswith("#")}
    modules = {"scikit-learn": "sklearn", "python-stretch": "python_stretch"}
    source = "".join(path.read_text() for path in ROOT.glob("*.py"))
    for package in packages - {"pillow"}:  # which Matplotlib loads
        name = modules.get(package, package)
        assert re.search(rf"(import|from) {name}\b", source), package


def test_test_expression_that_matches_nothing_or_everything(sounds):
    def refusal(expression, status=1):
        return run("train_network.py", "--test", expression, cwd=sounds, status=status).stderr

    expected = "--test xyz: matches no sound; use a pattern that matches names such as high/00.wav"
    assert expected in refusal("xyz")
    assert "--test wav: leaves no sound to train on in high, low, middle" in refusal("wav")
    assert "expected a regular expression, found (: " in refusal("(", status=2)
    assert not (sounds / "weights.keras").exists()


@pytest.mark.parametrize("flag, value", [
    ("--epochs", "0"), ("--epochs", "ten"), ("--layers", "-1"), ("--seed", "-1"),
    ("--seed", "5000000000"), ("--learning-rate", "nan"), ("--learning-rate", "0"),
    ("--network", "huge"), ("--save", "weights.h5"), ("--weights", "weights.keras"),
    ("--epoch", "1"), ("--mixup", "-1"), ("--masks", "0.5"), ("--shift", "1"),
    ("--warp", "1"), ("--eq", "-1"),
    ("--class-weights", "some"), ("--memory", "0"), ("--devices", "0")])
def test_flag_that_makes_no_sense(flag, value, sounds):
    assert flag in one_line("train_network.py", flag, value, cwd=sounds, status=2)


@pytest.mark.parametrize("flags", [
    ["--n-mels", "0"], ["--channels", "1025"], ["--jobs", "0"], ["--sample-rate", "99"],
    ["--only", "gain"], ["--augment", "1", "--without", "reverb"],
    ["--augment", "1", "--only", "gain", "--without", "noise"]])
def test_flag_of_preprocessing_that_makes_no_sense(flags, sounds):
    assert flags[-2] in one_line("preprocess_data.py", *flags, cwd=sounds, status=2)
    assert not (sounds / "Preproc").exists()


def test_weights_missing_or_something_else(sounds, evaluate):
    expected = "weights.keras: expected the weights that train_network.py saves, found "
    assert f"{expected}nothing there" in one_line("eval_network.py", cwd=sounds)
    for text in ("", "not a zip file"):
        (sounds / "weights.keras").write_text(text)
        with pytest.raises(UserError, match=rf"{expected}something else \(.+\); train again"):
            evaluate(sounds)


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


def arguments(folder, memory=None):
    """What train_network.load_training_set takes of the command line."""
    return SimpleNamespace(samples=folder / "Samples", preproc=folder / "Preproc", memory=memory)


def test_training_waits_while_preprocessing_is_at_work_and_says_so(preprocessed, capsys):
    sounds = preprocessed
    with ThreadPoolExecutor() as pool:
        with utils.folder_lock(sounds / "Preproc"):
            loading = pool.submit(train_network.load_training_set, arguments(sounds))
            with pytest.raises(TimeoutError):
                loading.result(timeout=0.5)
            said = capsys.readouterr().out
            assert "Preproc: preprocessing is at work there; waiting for its end" in said
            (sounds / "Preproc/low/00.wav.npy").unlink()
        source, spectrograms, _ = loading.result()
        assert len(source.names) == len(spectrograms) == 29


def test_preprocessing_waits_while_training_reads(preprocessed, monkeypatch):
    sounds = preprocessed
    read_spectrograms = utils.read_spectrograms
    processes = []

    def read_slowly(*args):
        process = subprocess.Popen([sys.executable, ROOT / "preprocess_data.py"], cwd=sounds,
                                   text=True, stdout=subprocess.PIPE)
        first, _, third = (process.stdout.readline() for _ in range(3))
        assert "30 sounds" in first and "waiting for its end" in third
        processes.append(process)
        return read_spectrograms(*args)

    monkeypatch.setattr(utils, "read_spectrograms", read_slowly)
    _, spectrograms, _ = train_network.load_training_set(arguments(sounds))
    assert len(spectrograms) == 30
    assert "30 kept" in processes[0].communicate(timeout=60)[0]


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


def test_class_folders_whose_names_look_the_same_are_refused(sounds):
    for form in ("NFC", "NFD"):
        folder = sounds / "Samples" / unicodedata.normalize(form, "café")
        shutil.copytree(sounds / "Samples/low", folder)
    line = one_line("preprocess_data.py", cwd=sounds)
    assert "Samples: two folders are named café" in unicodedata.normalize("NFC", line)
    assert r"('cafe\u0301' and 'caf\xe9'); move the sounds into one of them" in line


def test_results_among_the_sounds_are_refused(sounds):
    line = one_line("train_network.py", "--results", "Samples/Results", cwd=sounds)
    assert "--results" in line and "or a folder in it" in line
    assert not (sounds / "Samples/Results").exists()


def test_damaged_spectrogram_is_named_and_the_rest_used(preprocessed, capsys):
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
    _, spectrograms, n_bad = train_network.load_training_set(arguments(sounds, memory=1e-6))
    assert (len(spectrograms), n_bad) == (24, 6)  # memory-mapped
    for line, said in zip(lines, capsys.readouterr().err.splitlines(), strict=True):
        assert said.replace(f"{sounds}/", "").split(", found")[0] == line.split(", found")[0]
        assert said.endswith("; remove it and preprocess again")


@pytest.mark.parametrize("n", ["0", "-1", "x", "1.5"])
def test_number_of_copies_that_makes_no_sense(n, sounds):
    assert "N" in one_line("augment_data.py", n, "Samples/low/00.wav", cwd=sounds, status=2)


def test_augmenting_no_file_at_all(tmp_path):
    result = run("augment_data.py", 1, "Samples/*/*", cwd=tmp_path, status=1)
    line = "skipped Samples/*/*: expected a sound, found nothing there; correct the path\n"
    assert result.stderr.startswith(line)


def test_augmenting_what_is_no_sound_names_it_and_does_the_rest(sounds):
    (sounds / "Samples/low/notes.txt").write_text("not a sound")
    (sounds / "Samples/low/none").mkdir()
    files = [f"Samples/low/{name}" for name in ("00.wav", "notes.txt", "gone.wav", "none")]
    result = run("augment_data.py", 1, *files, cwd=sounds, status=1)
    for path, found in (("low/notes.txt", "a text file"),
                        ("low/gone.wav", "nothing there"), ("low/none", "a folder")):
        assert f"skipped Samples/{path}: expected a sound, found {found}" in result.stderr
    assert (sounds / "Samples/low/00_aug1.wav").exists()
