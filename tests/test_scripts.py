"""The four scripts, run as a user runs them, in a folder of their own; and how they are written."""
import ast
import re
import shutil
import subprocess
import sys
import zipfile

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
from mutants import MUTATIONS, mutate_project

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
    assert metrics["n_train"] == 48 and not metrics["n_validation"]  # 24 sounds, a copy of each
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
                                 "hop_length": 128, "channels": 1, "fmin": 0, "fmax": None}
    assert saved["copies"]["seed"] == 0 and len(saved["copies"]["deformations"]) == 8
    assert saved["finished"] is True and len(saved) == 3
    array = np.load(trained / "Preproc/low/00.wav.npy")
    assert array.dtype == np.float32
    y = soundfile.read(trained / "Samples/low/00.wav", dtype="float32")[0]
    expected = log_mel_spectrogram([y[None]], default_settings(SAMPLE_RATE))
    np.testing.assert_array_equal(array, expected)


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


def read_weights(path):
    with zipfile.ZipFile(path) as archive:
        return archive.read("model.weights.h5")


def test_same_seed_trains_the_same_and_test_sounds_choose_nothing(copy_of_trained, evaluate):
    """Trained again from Samples/, with every test sound replaced by noise: the same weights."""
    before = read_weights(copy_of_trained / "weights.keras")
    scores = read_scores(copy_of_trained / "Results")
    shutil.rmtree(copy_of_trained / "Preproc")
    evaluate(copy_of_trained)
    for old, new in zip(scores, read_scores(copy_of_trained / "Results"), strict=True):
        assert old["file"] == new["file"]  # as from Preproc/
        assert float(old["low"]) == pytest.approx(float(new["low"]), abs=1e-5)
    rng = np.random.default_rng(1)
    for row in scores:
        path = copy_of_trained / "Samples" / row["file"]
        soundfile.write(path, rng.normal(0, 0.5, 5000), SAMPLE_RATE)
    flags = "--epochs", 3, "--layers", 1, "--fresh"
    said = run("train_network.py", *flags, cwd=copy_of_trained).stdout
    assert re.search(r"Computed in [\d.]+ s; to keep them, run python \S*preprocess_data.py", said)
    assert read_weights(copy_of_trained / "weights.keras") == before


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
    assert "No validation sounds: the temperature that calibrates is the usual one, 1.0\n" in said
    evaluate(tmp_path, *places, "--weights", "w/old.keras", "--results", "r")
    assert load_json(tmp_path / "r/metrics.json")["n_test"] == 3


# ---------------------------------------------------------------- how they are written

@pytest.mark.parametrize("script", SCRIPTS)
def test_help_loads_nothing_slow_and_importing_runs_nothing(script, tmp_path):
    code = (f"import sys, runpy; sys.path.insert(0, {str(ROOT)!r})\n"
            f"import {script[:-3]}; print('imported')\n"
            f"sys.argv = [{script!r}, '--help']\n"
            f"try: runpy.run_path({str(ROOT / script)!r}, run_name='__main__')\n"
            "except SystemExit as end: assert not end.code\n"
            "print(*sys.modules)")
    said = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True,
                          text=True, check=True).stdout
    assert said.startswith("imported\n")  # and nothing before it
    modules = set(said.splitlines()[-1].split())
    assert not {"keras", "tensorflow", "sklearn", "matplotlib"} & modules
    assert f"python {script}" in said and not list(tmp_path.iterdir())


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_one_way_and_no_line_is_longer_than_100_columns(module):
    text = (ROOT / module).read_text()
    found = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            found.update(f"{alias.name}.py" for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            found.add(f"{node.module}.py")
    allowed = {"utils.py": set(), "models.py": {"utils.py"},
               "preprocess_data.py": {"utils.py", "augment_data.py"}}
    assert found & set(MODULES) <= allowed.get(module, {"utils.py", "models.py"})
    assert max(map(len, text.splitlines())) <= 100


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_mutation_fits_one_place_of_the_code(mutation, tmp_path):
    for module in MODULES:
        shutil.copy(ROOT / module, tmp_path)
    assert mutate_project(tmp_path, mutation) == ""
