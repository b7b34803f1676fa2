"""Every mode of every script, run as a command to its exit status."""
import re
import shutil
from importlib.util import find_spec

import pytest
from conftest import SMALL, one_line, run

MODES = {
    "augment a folder": [
        "augment_data.py", 1, "Samples/low", "--overwrite", "--only", "gain,noise", "--jobs", 1],
    "preprocess with flags": [
        "preprocess_data.py", "--augment", 1, "--without", "pitch", "--strict", "--jobs", 2,
        "--n-mels", 40, "--preproc", "other"],
    "train from weights": [
        "train_network.py", "--weights", "weights.keras", "--save", "new.keras",
        "--epochs", 1, "--results", "other", "--tensorboard", "board"],
    "cross-validate": ["train_network.py", "--folds", 2, "--epochs", 1, *SMALL],
    "evaluate": ["eval_network.py"],
    "evaluate another folder": ["eval_network.py", "--data", "Samples", "--format", "svg"],
    "classify new sounds": [
        "eval_network.py", "Samples/low", "--csv", "new.csv", "--threshold", "0.5"],
    "detect": ["examples/detect.py", "Samples/low/00.wav", "--step", 0.1, "--threshold", 0.3],
    "detect in a folder": [
        "examples/detect.py", "Samples/low", "--results", "other", "--format", "svg", "--raven",
        "--cut", "other/cut"],
    "export to ONNX": ["examples/export_model.py", "model.onnx"],
    "export to TFLite": ["examples/export_model.py", "model.tflite"],
}
NEEDS = {"train from weights": ["tensorboard"], "export to ONNX": ["tf2onnx", "onnx"]}
WRITES = {
    "augment a folder": ["Samples/low/00_aug1.wav", "Samples/low/augmentations.csv"],
    "preprocess with flags": ["other/low/00_aug1.wav.npy", "other/settings.json"],
    "train from weights": [
        "new.keras", "other/training_log.csv", "other/training_curves.png", "board"],
    "cross-validate": [
        "weights.keras", "weights-fold1.keras", "weights-fold2.keras",
        "Results/fold2/training_log.csv"],
    "evaluate": ["Results/metrics.json", "Results/report.html"],
    "evaluate another folder": ["Results/Samples/metrics.json", "Results/Samples/roc_curves.svg"],
    "classify new sounds": ["new.csv"],
    "detect": ["Results/detections/detections.csv", *(
        f"Results/detections/Samples_low_00.wav{end}"
        for end in (".txt", ".steps.csv", "_000.png"))],
    "detect in a folder": [f"other/detections/Samples_low_0{k}.wav{end}" for k in (0, 9)
                           for end in (".txt", "_000.svg", ".Table.1.selections.txt")],
    "export to ONNX": ["model.onnx", "model.json"],
    "export to TFLite": ["model.tflite", "model.json"],
}
SAYS = {"cross-validate": "eval_network.py --folds\n",
        "evaluate": "Scoring: 6 of 6"}


@pytest.mark.parametrize("mode", MODES)
def test_command_ends_with_exit_status_0_and_what_it_should_write(mode, copy_of_trained):
    for package in NEEDS.get(mode, []):
        if not find_spec(package):
            pytest.skip(f"{package} is not installed")
    for name in WRITES[mode]:
        (copy_of_trained / name).unlink(missing_ok=True)
    result = run(*MODES[mode], cwd=copy_of_trained)
    for name in WRITES[mode]:
        assert (copy_of_trained / name).exists(), name
    assert result.stderr == ""
    assert SAYS.get(mode, "") in result.stdout


@pytest.mark.parametrize("script", ["examples/detect.py", "examples/export_model.py"])
def test_help_of_an_example_names_the_command(script, tmp_path):
    said = run(script, "--help", cwd=tmp_path).stdout
    assert f"python {script} " in said and not list(tmp_path.iterdir())


def test_new_sounds_and_classes_after_training_are_said_with_the_next_step(copy_of_trained):
    samples = copy_of_trained / "Samples"
    shutil.copy(samples / "low/00.wav", samples / "low/later.flac.wav")
    shutil.copytree(samples / "low", samples / "new")
    run("preprocess_data.py", cwd=copy_of_trained)
    line = one_line("train_network.py", "--epochs", 3, cwd=copy_of_trained)
    assert re.search(r"weights.keras: \d+ sounds were added, 0 removed and 0 changed since "
                     "training; use --fresh to train again", line)
    line = one_line("eval_network.py", cwd=copy_of_trained)
    assert re.search("Preproc: holds classes that weights.keras does not know, new; "
                     ".*train_network.py --fresh", line)
