"""The four scripts, run as a user runs them, in a folder of their own; and how they are written."""
import ast
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import soundfile
from conftest import (
    ROOT,
    SAMPLE_RATE,
    SMALL,
    load_json,
    one_line,
    read_scores,
    run,
    write_sounds,
)
from mutants import MUTATIONS

import models
import utils
from utils import default_settings, log_mel_spectrogram

SCRIPTS = "augment_data.py", "preprocess_data.py", "train_network.py", "eval_network.py"
MODULES = "utils.py", "models.py", *SCRIPTS


def test_four_commands_lead_from_sounds_to_curves(trained):
    assert {path.name for path in (trained / "Results").iterdir()} == {
        "roc_curves.png", "precision_recall.png", "confusion_matrix.png", "reliability.png",
        "coverage.png", "report.html", "scores.csv", "mistakes.csv", "metrics.json",
        "training_log.csv", "training_curves.png"}
    metrics = load_json(trained / "Results/metrics.json")
    assert metrics["n_test"] == 6 and metrics["classes"] == ["high", "low", "middle"]
    assert metrics["n_train"] == 45  # 21 sounds that train, a copy of each, and 3 that validate
    assert metrics["macro_auc"] > 0.9 and metrics["accuracy"] > 0.6
    assert not list(trained.glob("*.unfinished*"))


def test_metrics_are_those_of_scikit_learn_on_the_scores(trained):
    from sklearn.metrics import accuracy_score, balanced_accuracy_score, roc_auc_score
    metrics = load_json(trained / "Results/metrics.json")
    rows = read_scores(trained / "Results")
    labels = [row["class"] for row in rows]
    predicted = [row["predicted"] for row in rows]
    scores = np.array([[float(row[c]) for c in metrics["classes"]] for row in rows])
    assert [row["file"].split("/")[0] for row in rows] == labels
    assert [metrics["classes"][k] for k in scores.argmax(axis=1)] == predicted
    assert metrics["accuracy"] == accuracy_score(labels, predicted)
    assert metrics["balanced_accuracy"] == balanced_accuracy_score(labels, predicted)
    scores /= scores.sum(axis=1, keepdims=True)
    expected = roc_auc_score(labels, scores, multi_class="ovr")
    assert metrics["macro_auc"] == pytest.approx(expected)


def test_pictures_are_saved_without_a_display(trained):
    from matplotlib.image import imread
    for name in ("roc_curves", "precision_recall", "confusion_matrix", "reliability"):
        picture = imread(trained / f"Results/{name}.png")
        assert min(picture.shape[:2]) > 300 and picture.std() > 0.05


def test_spectrograms_mirror_samples_and_keep_their_settings(trained):
    sounds = {path.relative_to(trained / "Samples").as_posix()
              for path in (trained / "Samples").glob("*/*.wav")}
    arrays = {path.relative_to(trained / "Preproc").as_posix()
              for path in (trained / "Preproc").glob("*/*.npy")}
    assert arrays == {f"{name}.npy" for name in sounds}
    saved = load_json(trained / "Preproc/settings.json")
    assert saved["features"] == {"sample_rate": SAMPLE_RATE, "n_mels": 96, "n_fft": 512,
                                 "hop_length": 128, "channels": 1}
    assert saved["copies"]["seed"] == 0 and len(saved["copies"]["deformations"]) == 8
    assert saved["finished"] is True and len(saved) == 3
    array = np.load(trained / "Preproc/low/00.wav.npy")
    assert array.dtype == np.float32
    y = soundfile.read(trained / "Samples/low/00.wav", dtype="float32")[0]
    expected = log_mel_spectrogram([y[None]], default_settings(SAMPLE_RATE))
    np.testing.assert_array_equal(array, expected)


def test_weights_know_all_that_scoring_needs(trained):
    network, info = models.load_network(trained / "weights.keras")
    assert info["classes"] == ["high", "low", "middle"]
    assert info["features"] == load_json(trained / "Preproc/settings.json")["features"]
    assert network.input_shape == (None, 96, info["n_frames"])
    used = info["train"] + info["validation"]
    assert len(info["test"]) == 6 and not set(info["test"]) & set(used)
    assert [row["file"] for row in read_scores(trained / "Results")] == info["test"]


def test_weights_know_how_they_were_trained(trained):
    info = models.load_info(trained / "weights.keras")
    assert info["network"] == "default" and info["epochs"] == 3 and info["seed"] == 0
    assert info["hyperparameters"] == models.HYPERPARAMETERS["default"] | {"layers": 1}
    assert [row["epoch"] for row in info["history"]] == [1, 2, 3]
    log = utils.read_csv(trained / "Results/training_log.csv")
    assert [{key: float(value) for key, value in row.items()} for row in log] == info["history"]


def test_scores_come_the_same_from_samples_and_from_preproc(copy_of_trained, evaluate):
    before = read_scores(copy_of_trained / "Results")
    shutil.rmtree(copy_of_trained / "Preproc")
    evaluate(copy_of_trained)
    for old, new in zip(before, read_scores(copy_of_trained / "Results"), strict=True):
        assert old["file"] == new["file"]
        for name in ("high", "low"):
            assert float(old[name]) == pytest.approx(float(new[name]), abs=1e-5)


def test_same_seed_trains_the_same_and_test_sounds_choose_nothing(copy_of_trained):
    """Trained again from Samples/, with every test sound replaced by noise: the same weights."""
    before, info = models.load_network(copy_of_trained / "weights.keras")
    shutil.rmtree(copy_of_trained / "Preproc")
    rng = np.random.default_rng(1)
    for name in info["test"]:
        y = rng.normal(0, 0.5, 5000)
        soundfile.write(copy_of_trained / "Samples" / name, y, SAMPLE_RATE)
    flags = "--epochs", 3, "--layers", 1, "--fresh"
    said = run("train_network.py", *flags, cwd=copy_of_trained).stdout
    assert re.search(r"Computed in [\d.]+ s; to keep them, run python \S*preprocess_data.py", said)
    after, info_after = models.load_network(copy_of_trained / "weights.keras")
    for row in info["history"] + info_after["history"]:
        del row["seconds"], row["windows_per_second"]
    for name in info["test"] + info["unused"]:
        assert (info["contents"].pop(name) != info_after["contents"].pop(name)
                or name in info["unused"])
    assert info == info_after
    for old, new in zip(before.get_weights(), after.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


def test_evaluation_ignores_sounds_that_came_later(copy_of_trained, evaluate):
    low = copy_of_trained / "Preproc/low"
    shutil.copy(low / "00.wav.npy", low / "new.wav.npy")
    evaluate(copy_of_trained)
    assert len(read_scores(copy_of_trained / "Results")) == 6


def test_class_absent_from_the_test_set_has_no_auc_and_does_no_harm(copy_of_trained, evaluate):
    flags = "--epochs", 1, *SMALL, "--test", "^(low|high)/0[0-3].wav", "--fresh"
    said = run("train_network.py", *flags, cwd=copy_of_trained).stdout
    assert "No test sound in middle\n" in said  # another --seed would not help
    assert re.search(r"middle +\d+ +\d+ +0\n", said) and re.search(r"all +\d+ +\d+ +8\n", said)
    assert re.search(r"\d+ copies of validation and test sounds stay unused", said)
    said = evaluate(copy_of_trained)[1].out
    metrics = load_json(copy_of_trained / "Results/metrics.json")
    assert re.search("middle +0 +none +none +none  no test sound", said)
    assert metrics["auc"]["middle"] is None
    assert metrics["n_test"] == 8 and 0 <= metrics["macro_auc"] <= 1


def test_test_set_of_one_class_and_odd_class_names_do_no_harm(tmp_path, evaluate):
    write_sounds(tmp_path, classes=("_$a^$_ %s", "ü\N{SNOWMAN} 'b'"), n=3)
    flags = "--epochs", 1, *SMALL, "--test", "b'/00"
    run("train_network.py", *flags, cwd=tmp_path)
    assert "macro AUC none on 1 sound" in evaluate(tmp_path)[1].out
    assert load_json(tmp_path / "Results/metrics.json")["macro_auc"] is None


def test_set_of_two_sounds_a_class_and_the_2017_network_work_from_end_to_end(tmp_path, evaluate):
    write_sounds(tmp_path, n=2)
    places = ["--samples", "Samples", "--preproc", "p"]
    run("preprocess_data.py", *places, "--n-mels", 40, "--hop-length", 100, cwd=tmp_path)
    said = run(
        "train_network.py", *places, "--save", "w/old.keras", "--network", "original",
        "--epochs", 2, "--layers", 2, "--filters", 8, "--batch-size", 2, "--learning-rate", 0.5,
        "--seed", 7, "--results", "r", cwd=tmp_path).stdout
    following = f"{ROOT}/eval_network.py --preproc p --results r --weights w/old.keras"
    assert f"Next: python {following}\n" in said
    assert "No validation sounds: probabilities are not calibrated" in said
    evaluate(tmp_path, *places, "--weights", "w/old.keras", "--results", "r")
    assert load_json(tmp_path / "r/metrics.json")["n_test"] == 3
    network, info = models.load_network(tmp_path / "w/old.keras")
    assert network.input_shape[1] == 40 and info["temperature"] == 1


def test_mixed_rates_channels_lengths_and_formats_become_one(tmp_path):
    rng = np.random.default_rng(0)
    for name, rate, channels, n_samples in (
            ("a/1.wav", 44100, 1, 50), ("a/2.flac", 44100, 2, 30000), ("a/3.WAV", 44100, 1, 9000),
            ("b/1.aiff", 22050, 1, 11025), ("b/deep/2.ogg", 48000, 2, 24000)):
        path = tmp_path / "Samples" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, rng.uniform(-0.5, 0.5, (n_samples, channels)), rate)
    run("preprocess_data.py", cwd=tmp_path)
    settings = load_json(tmp_path / "Preproc/settings.json")
    assert settings["features"]["sample_rate"] == 44100
    shapes = {path.name: np.load(path).shape for path in (tmp_path / "Preproc").rglob("*.npy")}
    assert shapes == {"1.wav.npy": (96, 1), "2.flac.npy": (96, 59), "3.WAV.npy": (96, 18),
                      "1.aiff.npy": (96, 44), "2.ogg.npy": (96, 44)}


def test_what_is_no_sound_is_named_and_skipped_and_the_rest_done(sounds, capsys):
    (sounds / "Samples/low/broken.wav").write_text("not a sound")
    (sounds / "Samples/low/empty.flac").write_bytes(b"")
    y = np.full(1000, np.nan)
    soundfile.write(sounds / "Samples/high/nan.wav", y, SAMPLE_RATE, subtype="FLOAT")
    (sounds / "Samples/low/notes.txt").write_text("left alone, as are hidden files")
    (sounds / "Samples/low/.hidden.wav").write_text("")
    (sounds / "Samples/readme.txt").write_text("no class")
    result = run("preprocess_data.py", cwd=sounds, status=1)
    for name in ("low/broken.wav", "low/empty.flac", "high/nan.wav"):
        assert f"skipped Samples/{name}: expected" in result.stderr
    assert "low/empty.flac: expected a sound, found an empty file" in result.stderr
    assert "hidden" not in result.stderr
    assert "30 spectrograms written" in result.stdout and "3 sounds skipped" in result.stdout
    assert "2 other files left alone" in result.stdout
    assert len(list((sounds / "Preproc").rglob("*.npy"))) == 30
    shutil.rmtree(sounds / "Preproc")
    source = utils.find_source(sounds / "Samples", sounds / "Preproc")
    spectrograms, n_bad = utils.read_spectrograms(source, source.names)
    assert (len(spectrograms), n_bad) == (30, 3)
    said = capsys.readouterr().err
    assert f"skipped {sounds}/Samples/low/broken.wav: expected a sound" in said


def test_second_preprocessing_forgets_what_is_gone_and_changes_nothing_else(preprocessed):
    sounds = preprocessed
    (sounds / "Preproc/suspicious.csv").unlink()  # which the next run makes again
    before = {path: path.read_bytes() for path in (sounds / "Preproc").rglob("*.*")}
    shutil.rmtree(sounds / "Samples/high")
    (sounds / "Samples/low/00.wav").unlink()
    run("preprocess_data.py", cwd=sounds)
    (sounds / "Preproc/suspicious.csv").unlink()
    after = {path: path.read_bytes() for path in (sounds / "Preproc").rglob("*.*")}
    gone = {path for path in before if path.parent.name == "high"}
    gone.add(sounds / "Preproc/low/00.wav.npy")
    assert after == {path: text for path, text in before.items() if path not in gone}
    assert not (sounds / "Preproc/high").exists()


def test_sound_that_became_unreadable_keeps_no_spectrogram_of_other_settings(preprocessed):
    sounds = preprocessed
    (sounds / "Samples/low/00.wav").write_text("damaged")
    run("preprocess_data.py", "--hop-length", 64, cwd=sounds, status=1)
    assert not (sounds / "Preproc/low/00.wav.npy").exists()
    assert (sounds / "Preproc/low/01.wav.npy").exists()


def test_stranger_s_arrays_are_never_removed(sounds):
    (sounds / "mine/low").mkdir(parents=True)
    np.save(sounds / "mine/low/dear.npy", np.zeros(3))
    np.save(sounds / "mine/low/dear.wav.npy", np.zeros(3))
    line = one_line("preprocess_data.py", "--preproc", "mine", cwd=sounds)
    assert ("mine: holds 1 .npy files but no settings.json, so preprocessing did not write them; "
            "name another folder with --preproc") in line
    (sounds / "mine/low/dear.wav.npy").unlink()
    for _ in range(2):
        run("preprocess_data.py", "--preproc", "mine", cwd=sounds)
    assert (sounds / "mine/low/dear.npy").exists()


# ---------------------------------------------------------------- what the scripts load

def modules_after(script, *args, cwd):
    """Import a script, then run it. Returns its output, and the names of the modules loaded."""
    code = (f"import sys, runpy; sys.path.insert(0, {str(ROOT)!r})\n"
            f"import {script[:-3]}; print('imported')\n"
            f"sys.argv = {[script, *map(str, args)]!r}\n"
            f"try: runpy.run_path({str(ROOT / script)!r}, run_name='__main__')\n"
            "except SystemExit as end: assert not end.code\n"
            "print(*sys.modules)")
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("imported\n")  # and nothing before it
    return result.stdout, set(result.stdout.splitlines()[-1].split())


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_loads_nothing_slow_and_importing_runs_nothing(script, tmp_path):
    said, modules = modules_after(script, "--help", cwd=tmp_path)
    assert not {"keras", "tensorflow", "sklearn", "matplotlib"} & modules
    assert "argparse" in modules
    assert f"python {script}" in said and not list(tmp_path.iterdir())


@pytest.mark.parametrize("script", SCRIPTS[:2])
def test_augmenting_and_preprocessing_load_neither_tensorflow_nor_keras(script, sounds):
    files = [1, *(sounds / "Samples/low").iterdir()] if script.startswith("augment") else []
    _, modules = modules_after(script, *files, cwd=sounds)
    assert not {"keras", "tensorflow", "sklearn", "matplotlib"} & modules and "utils" in modules


# ---------------------------------------------------------------- how they are written

def parse(module):
    return ast.parse((ROOT / module).read_text())


def imports_of(module):
    """The modules of this project that a module imports, anywhere in it."""
    found = set()
    for node in ast.walk(parse(module)):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}:{node.lineno}: a relative import"
            found.add(node.module)
    return {f"{name}.py" for name in found if f"{name}.py" in MODULES}


def test_imports_go_one_way():
    found = {module: imports_of(module) for module in MODULES}
    assert found["utils.py"] == set()
    assert found["models.py"] == {"utils.py"}
    for module in MODULES:
        scripts = found[module] & set(SCRIPTS)
        assert scripts == ({"augment_data.py"} if module == "preprocess_data.py" else set()), module


def lengths_of(module):
    """The number of lines of each function, with its decorators, by "module:line name"."""
    kinds = ast.FunctionDef, ast.AsyncFunctionDef
    functions = [node for node in ast.walk(parse(module)) if isinstance(node, kinds)]
    return {f"{module}:{node.lineno} {node.name}": 1 + node.end_lineno - min(
        [node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
        for node in functions}


@pytest.mark.parametrize("module", MODULES)
def test_no_function_is_longer_than_40_lines(module):
    lengths = lengths_of(module)
    assert lengths and {name: n for name, n in lengths.items() if n > 40} == {}


@pytest.mark.parametrize("module", MODULES)
def test_no_line_is_longer_than_100_columns(module):
    lines = (ROOT / module).read_text().splitlines()
    assert [(number, len(line)) for number, line in enumerate(lines, 1) if len(line) > 100] == []


def test_every_mutation_fits_one_place_of_the_code():
    counts = {each.name: (ROOT / each.file).read_text().count(each[2]) for each in MUTATIONS}
    assert {name: n for name, n in counts.items() if n != 1} == {}
