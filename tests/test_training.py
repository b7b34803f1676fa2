"""Training continues where it was stopped, ends at the right weights, on every backend."""

import contextlib
import csv
import itertools
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import soundfile
from conftest import ROOT, SMALL, one_line, read_table, run

import models
import train_network
import utils
from utils import UserError

N_STEPS = 5  # in an epoch


# ---------------------------------------------------------------- one training in this process


@pytest.fixture
def sounds(preprocessed):
    return preprocessed


@pytest.fixture
def train(sounds, monkeypatch, capsys):
    """A function that trains in a folder of sounds and returns what was said.

    It takes a few steps an epoch.
    """
    monkeypatch.setattr(models, "MIN_STEPS", N_STEPS)

    def call(*args, small=SMALL):
        monkeypatch.setattr(sys, "argv", ["train_network.py", *small, *map(str, args)])
        capsys.readouterr()  # what a run said that was interrupted
        with contextlib.chdir(sounds):
            train_network.main()
        return capsys.readouterr().out

    return call


def weights_of(path):
    return models.load_network(path)[0].get_weights()


def assert_same_weights(a, b):
    for x, y in zip(weights_of(a), weights_of(b), strict=True):
        np.testing.assert_array_equal(x, y)


def test_before_the_first_epoch_a_table_tells_what_is_trained_on_what(train):
    said = train("--epochs", 1).split("epoch    1")[0]
    assert re.search(
        r"Class +train +validation +test\nhigh +7 +1 +2\nlow +7 +1 +2\nmiddle +7 +1 +2\n"
        r"all +21 +3 +6",
        said,
    )
    words = r"default, \d+ weights, window \d+ frames \(0\.\d+ s\), tensorflow on \w+"
    assert re.search(words, said)
    assert (
        "8000 Hz, 96 mels" in said
        and "batch_size 32, learning_rate 0.002, mixup 0.3, masks 2, shift 0.1" in said
    )


def test_an_epoch_is_a_line_in_the_log_and_curves_are_drawn(train, sounds):
    said = train("--epochs", 3)
    assert (
        len(
            re.findall(
                r"epoch +\d  loss \d\.\d+  accuracy .*validation loss .*validation accuracy .* "
                r"\d+ windows/s  \d+:\d\d left",
                said,
            )
        )
        == 3
    )
    with open(sounds / "Results/training_log.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["1", "2", "3"]
    assert all(
        float(row[key]) >= 0
        for row in rows
        for key in (
            "loss",
            "accuracy",
            "val_loss",
            "val_accuracy",
            "learning_rate",
            "windows_per_second",
        )
    )
    from matplotlib.image import imread

    picture = imread(sounds / "Results/training_curves.png")
    assert min(picture.shape[:2]) > 300 and picture.std() > 0.05


def test_flags_of_the_recipe_reach_training(train, sounds):
    train(
        "--epochs",
        1,
        "--mixup",
        0,
        "--masks",
        0,
        "--shift",
        0,
        "--warp",
        0.2,
        "--eq",
        3,
        "--class-weights",
        "none",
        "--batch-size",
        8,
    )
    found = models.load_network(sounds / "weights.keras")[1]["hyperparameters"]
    keys = "mixup", "masks", "shift", "warp", "eq", "class_weights", "batch_size"
    assert [found[key] for key in keys] == [0, 0, 0, 0.2, 3, "none", 8]


def test_weights_older_than_a_hyperparameter_get_its_default(train, sounds, monkeypatch):
    train("--epochs", 1, "--save", "first.keras")
    read_info = models.read_info

    def read_older(path):
        info = read_info(path)
        if path.name == "first.keras":
            del info["hyperparameters"]["eq"], info["hyperparameters"]["warp"]
        return info

    monkeypatch.setattr(models, "read_info", read_older)
    train("--epochs", 1, "--weights", "first.keras", "--save", "second.keras", small=())
    found = models.load_info(sounds / "second.keras")["hyperparameters"]
    default = models.HYPERPARAMETERS["default"]
    assert (found["eq"], found["warp"]) == (default["eq"], default["warp"])


def test_thresholds_are_those_of_calibrated_validation_sounds(train, sounds, monkeypatch):
    monkeypatch.setattr(models, "CONFIDENCE", 0)  # a few sounds give a threshold
    train("--epochs", 2, small=())
    network, info = models.load_network(sounds / "weights.keras")
    spectrograms = {name: np.load(sounds / f"Preproc/{name}.npy") for name in info["validation"]}
    predictions = models.predict_sounds(network, spectrograms.items(), info["temperature"])
    probabilities = np.stack([row for _, row in predictions])
    labels = models.one_hot(info["validation"], info["classes"])
    for key, accuracy in (("threshold_95", 0.95), ("threshold_99", 0.99)):
        expected = models.choose_threshold(labels.argmax(axis=1), probabilities, accuracy)
        assert info["history"][-1][key] == pytest.approx(expected, abs=1e-5)


def test_checkpoint_of_an_older_version_without_thresholds_is_continued(train, sounds, monkeypatch):
    stop_after_an_epoch(train, monkeypatch, "--epochs", 2)
    path = sounds / "weights.unfinished.keras"
    network, info = models.load_network(path, compile=True)
    for key in ("threshold_95", "threshold_99"):
        info["history"][0].pop(key, None)
    del info["fold"], info["--folds"], info["--folds-by"]
    models.save_network(network, info, path)
    assert "Continues after epoch 1" in train("--epochs", 2)
    rows = read_table(sounds / "Results/training_log.csv")
    assert [row["epoch"] for row in rows] == ["1", "2"] and not rows[0].get("threshold_95")
    run("eval_network.py", cwd=sounds)


def train_folds_until(train, monkeypatch, n_trained, *args):
    """Train folds, and stop after an epoch of the one after n_trained."""
    with monkeypatch.context() as patch:
        trained = []
        save = train_network.save_checkpoint

        def stop(network, info, args):
            save(network, info, args)
            trained.append(args.save)
            if len(set(trained)) > n_trained:
                raise ZeroDivisionError
        patch.setattr(train_network, "save_checkpoint", stop)
        with pytest.raises(ZeroDivisionError):
            train(*args)


def test_folds_trained_afresh_and_stopped_are_not_mixed_with_the_earlier_ones(
        train, sounds, monkeypatch):
    train("--folds", 3, "--epochs", 1)
    train_folds_until(train, monkeypatch, 1, "--folds", 2, "--epochs", 2, "--fresh")
    left = sorted(path.name for path in sounds.glob("*.keras"))
    assert left == ["weights-fold1.keras", "weights-fold2.unfinished.keras"]
    said = train("--folds", 2, "--epochs", 2)
    assert "weights-fold1.keras: training on these sounds is finished" in said
    assert "Continues after epoch 1" in said
    run("eval_network.py", "--folds", cwd=sounds)
    with pytest.raises(UserError, match="weights-fold1.keras: .*use --fresh to train again"):
        train("--folds", 3, "--epochs", 2)


def test_folds_that_earlier_weights_learned_from_whole_are_refused_before_training(train, sounds):
    train("--epochs", 1)
    said = one_line("train_network.py", "--folds", 2, "--weights", "weights-fold1.keras",
                    "--save", "weights.keras", cwd=sounds)
    assert "weights-fold1.keras: expected the weights" in said
    (sounds / "weights.keras").rename(sounds / "weights-fold1.keras")
    said = one_line("train_network.py", "--folds", 2, "--weights", "weights-fold1.keras",
                    cwd=sounds, status=2)
    assert "--weights weights-fold1.keras: would be replaced" in said
    with pytest.raises(UserError, match="fold .: has no test sounds, for --weights was trained on"):
        train("--folds", 10, "--epochs", 1, "--weights", "weights-fold1.keras", "--save",
              "other.keras", small=())
    assert not list(sounds.glob("other*"))


def test_class_weights_reach_the_loss(train, monkeypatch):
    monkeypatch.setattr(
        models, "balance_classes", lambda targets, kind: np.full(3, 1e-9, np.float32)
    )
    assert re.search(r"epoch +1  loss 0\.0000 ", train("--epochs", 1))


def test_learning_rate_falls_along_a_cosine_and_each_epoch_has_batches_of_its_own(
    train, sounds, monkeypatch
):
    start_epoch, batches = models.Batches.start_epoch, []

    def watched(self, epoch):
        start_epoch(self, epoch)
        batches.append(self[0][0])

    monkeypatch.setattr(models.Batches, "start_epoch", watched)
    train("--epochs", 4)
    rates = [float(row["learning_rate"]) for row in read_table(sounds / "Results/training_log.csv")]
    n_warmup = 4 * N_STEPS // 20
    n_falling = 4 * N_STEPS - n_warmup
    shares = [(N_STEPS * epoch - n_warmup) / n_falling for epoch in (1, 2, 3, 4)]
    assert rates == pytest.approx([0.001 * (1 + math.cos(math.pi * x)) for x in shares], abs=1e-6)
    assert len(batches) == 5  # that of the start is the first epoch's
    for before, after in itertools.pairwise(batches[1:]):
        assert not np.array_equal(before, after)


def test_without_epochs_the_number_follows_from_the_sounds(train, monkeypatch):
    monkeypatch.setattr(models, "choose_epochs", lambda n, size: {(21, 32): 2}[n, size])
    said = train()
    assert "epochs 2\n" in said and "epoch    2" in said and "epoch    3" not in said


def test_identical_files_are_pointed_out_and_groups_suggested(train, sounds):
    for k, path in enumerate(sorted((sounds / "Preproc").glob("*/*.npy"))):
        path.rename(path.with_name(f"speaker{k % 4}-{path.name}"))
    for path in (sounds / "Preproc/low").glob("speaker1-*.npy"):
        shutil.copy(path, path.with_name(path.name.replace("-", "-twin of ")))
    said = train("--epochs", 1)
    words = r"Sounds that hold the recording of another, and stay with it: \d, such as low/speaker1"
    assert re.search(words, said)
    assert "speaker" in said and "--fresh --groups '^([^-]+)-' keeps each in one subset" in said
    said = train("--epochs", 1, "--groups", "^(speaker.)-", "--fresh")
    assert "keeps each" not in said and "Groups by --groups: 4, such as speaker0\n" in said


@pytest.mark.skipif(not find_spec("tensorboard"), reason="tensorboard is not installed")
def test_tensorboard_gets_the_scores(train, sounds):
    train("--epochs", 2, "--tensorboard", "board")
    for side in ("train", "validation"):
        data = b"".join(path.read_bytes() for path in (sounds / "board" / side).iterdir())
        assert data.count(b"epoch_loss") >= 2


# ---------------------------------------------------------------- stopped, gone on with, finished


def test_stopped_by_ctrl_c_the_same_command_ends_at_the_weights_of_an_undisturbed_run(
    train, sounds, monkeypatch, capsys
):
    train("--epochs", 3, "--save", "undisturbed.keras")
    add_epoch = train_network.add_epoch

    def interrupted(network, batches, info, logs, seconds):
        if len(info["history"]) == 2:
            raise KeyboardInterrupt
        add_epoch(network, batches, info, logs, seconds)

    monkeypatch.setattr(train_network, "add_epoch", interrupted)
    with pytest.raises(SystemExit, match="130"):
        utils.run(lambda: train("--epochs", 3))
    expected = "stopped; files already written are complete; the same command continues"
    assert expected in capsys.readouterr().err
    assert not (sounds / "weights.keras").exists()
    monkeypatch.setattr(train_network, "add_epoch", add_epoch)
    said = train("--epochs", 3)
    assert "Continues after epoch 2 of" in said
    assert "epoch    2" not in said and "epoch    3" in said
    assert_same_weights(sounds / "weights.keras", sounds / "undisturbed.keras")
    assert not list(sounds.glob("*unfinished*"))


KILLED = f"""
import os, sys; sys.path.insert(0, {str(ROOT)!r}); import models, train_network, utils
name, when, is_after = sys.argv.pop(1), int(sys.argv.pop(1)), sys.argv.pop(1) == "after"
models.MIN_STEPS = {N_STEPS}
where = next(module for module in (os, models, train_network) if hasattr(module, name))
function, called = getattr(where, name), []
def killed(*args, **kwargs):
    called.append(1)
    if is_after:
        function(*args, **kwargs)
    if len(called) == when:
        os.kill(os.getpid(), 9)
    if not is_after:
        return function(*args, **kwargs)
setattr(where, name, killed)
utils.run(train_network.main)
"""
MOMENTS = [
    ("replace", 4, "before"),  # in epoch 2: a file is written, but not yet at its place
    ("save_network", 4, "after"),  # the weights are there, and the checkpoint still is
]


def test_killed_at_any_moment_it_ends_at_the_weights_of_an_undisturbed_run(train, sounds):
    train("--epochs", 4, "--save", "undisturbed.keras", "--results", "undisturbed")
    for moment in MOMENTS:
        command = [sys.executable, "-c", KILLED, *map(str, moment), *SMALL, "--epochs", "4"]
        result = subprocess.run(command, cwd=sounds, capture_output=True)
        assert result.returncode == -signal.SIGKILL, result
    for path in sounds.glob(".*"):
        os.utime(path, (0, 0))  # as if an hour had passed
    said = train("--epochs", 4)
    assert "Continues after epoch" in said and "weights.keras: loss" in said
    assert_same_weights(sounds / "weights.keras", sounds / "undisturbed.keras")
    logs = [
        (sounds / folder / "training_log.csv").read_text().splitlines()
        for folder in ("Results", "undisturbed")
    ]
    columns = [[line.split(",")[:6] for line in log] for log in logs]
    assert columns[0] == columns[1] and len(logs[0]) == 5
    assert not list(sounds.glob(".*")) and not list(sounds.glob("*unfinished*"))


def test_training_that_diverges_at_once_says_so_and_leaves_earlier_weights_alone(train, sounds):
    (sounds / "weights.keras").write_bytes(b"earlier")
    with pytest.raises(UserError, match="the loss is not finite; lower --learning-rate"):
        train("--learning-rate", "1e30", "--epochs", 2, "--fresh")
    assert (sounds / "weights.keras").read_bytes() == b"earlier"


def test_training_that_diverges_later_is_not_called_finished(train, sounds, monkeypatch):
    validate = train_network.validate_network

    def diverged(network, spectrograms, info):
        loss = {"val_loss": math.nan} if info["history"] else {}
        return validate(network, spectrograms, info) | loss

    monkeypatch.setattr(train_network, "validate_network", diverged)
    for _ in range(2):
        with pytest.raises(UserError, match="the loss is not finite; lower --learning-rate"):
            train("--epochs", 3)
    assert not (sounds / "weights.keras").exists()
    assert all(np.isfinite(a).all() for a in weights_of(sounds / "weights.unfinished.keras"))


def test_finished_training_is_not_done_again_nor_replaced_by_another_without_being_told(
    train, sounds
):
    train("--epochs", 1)
    before = (sounds / "weights.keras").read_bytes()
    assert "training on these sounds is finished; --fresh" in train("--epochs", 1)
    for flags, words in (
        (["--epochs", 2], r"epochs \(1, now 2\)"),
        (["--epochs", 1, "--seed", 1], r"seed \(0, now 1\);"),
        (["--epochs", 1, "--network", "original"], "network"),
    ):
        with pytest.raises(UserError, match=f"weights.keras: .*{words}.*--fresh"):
            train(*flags)
    run("preprocess_data.py", "--hop-length", 64, cwd=sounds)
    with pytest.raises(UserError, match=r"weights.keras: .*hop_length \(128, now 64\)"):
        train("--epochs", 1)
    run("preprocess_data.py", cwd=sounds)
    (sounds / "Preproc/low/00.wav.npy").rename(sounds / "Preproc/low/new.wav.npy")
    with pytest.raises(
        UserError,
        match="weights.keras: 1 sounds were added, 1 removed and 0 changed since training; "
        "use --fresh to train again",
    ):
        train("--epochs", 1)
    shutil.rmtree(sounds / "Preproc/low")
    with pytest.raises(
        UserError, match=r"weights.keras: 0 sounds were added, \d+ removed and .*--fresh"
    ):
        train("--epochs", 1)
    assert (sounds / "weights.keras").read_bytes() == before
    train("--epochs", 1, "--fresh", "--seed", 1)
    assert models.load_network(sounds / "weights.keras")[1]["seed"] == 1


def test_new_contents_under_the_same_names_are_not_called_finished(train, sounds):
    train("--epochs", 1)
    low = sounds / "Samples/low"
    y, rate = soundfile.read(low / "00.wav")
    soundfile.write(low / "00.wav", y[::-1], rate)
    run("preprocess_data.py", cwd=sounds)
    with pytest.raises(UserError, match="0 sounds were added, 0 removed and 1 changed since"):
        train("--epochs", 1)


def test_two_trainings_do_not_write_the_same_files(train, sounds):
    for path in (Path("weights.keras"), Path("Results/training_log.csv")):
        (sounds / path.parent).mkdir(exist_ok=True)
        with utils.claim_file(sounds / path):
            with pytest.raises(UserError, match=f"{path}: another training is writing it; wait "):
                train("--epochs", 1)
    train("--epochs", 1)
    assert not list(sounds.glob("**/.*"))


def test_epochs_that_follow_from_the_sounds_are_no_difference(train, sounds):
    train("--epochs", 1)
    info = models.load_info(sounds / "weights.keras")
    moved = info | {"train": info["train"][1:], "validation": [info["train"][0]], "epochs": 2,
                    "--groups": "x"}
    assert train_network.describe_changes(info, moved) == (
        "differs from this training in --groups")
    assert train_network.describe_changes(info, info | {"epochs": 2}) == (
        "differs from this training in epochs (1, now 2)")


def stop_after_an_epoch(train, monkeypatch, *args):
    with monkeypatch.context() as patch:
        save = train_network.save_checkpoint
        patch.setattr(train_network, "save_checkpoint", lambda *args: save(*args) or 1 / 0)
        with pytest.raises(ZeroDivisionError):
            train(*args)


def test_stopped_training_of_other_settings_is_not_continued(train, sounds, monkeypatch):
    stop_after_an_epoch(train, monkeypatch, "--epochs", 2)
    other = r"weights.unfinished.keras: .*learning_rate \(0.002, now 0.1\).*--fresh"
    with pytest.raises(UserError, match=other):
        train("--epochs", 2, "--learning-rate", 0.1)
    assert "Continues" not in train("--epochs", 2, "--learning-rate", 0.1, "--fresh")
    stop_after_an_epoch(train, monkeypatch, "--epochs", 2, "--fresh")
    (sounds / "weights.unfinished.keras").write_bytes(b"torn")
    with pytest.raises(UserError, match="weights.unfinished.keras: expected the weights .*again"):
        train("--epochs", 2)
    assert "epoch    1" in train("--epochs", 2, "--fresh")


def test_earlier_weights_stay_until_the_end_of_another_training(train, sounds, monkeypatch):
    train("--epochs", 1)
    before = (sounds / "weights.keras").read_bytes()
    stop_after_an_epoch(train, monkeypatch, "--epochs", 2, "--fresh")
    assert (sounds / "weights.keras").read_bytes() == before
    assert "Continues after epoch 1 of" in train("--epochs", 2)
    assert (sounds / "weights.keras").read_bytes() != before


def test_training_that_needs_too_much_memory_stands_in_the_way_of_no_other(
    train, sounds, monkeypatch
):
    def run_out(*args):
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(train_network, "fit_network", run_out)
        with pytest.raises(UserError, match="try --batch-size 16"):
            train("--epochs", 1)
    train("--epochs", 1, "--batch-size", 16)
    with pytest.raises(UserError, match=r"weights.keras: .*batch_size \(16, now 32\)"):
        train("--epochs", 1)


# ---------------------------------------------------------------- from earlier weights


def test_training_starts_from_earlier_weights(train, sounds):
    train("--epochs", 6, "--save", "earlier.keras")
    first = re.search(r"epoch +1  loss (\d\.\d+)", train("--epochs", 1, "--save", "cold.keras"))[1]
    said = train("--epochs", 1, "--weights", "earlier.keras", small=())
    assert "Starts from earlier.keras, which has the same classes" in said
    assert float(re.search(r"epoch +1  loss (\d\.\d+)", said)[1]) < float(first)


def test_sounds_that_earlier_training_learned_from_are_never_tested(train, sounds):
    train("--epochs", 1, "--save", "first.keras")
    said = train(
        "--epochs", 1, "--weights", "first.keras", "--save", "second.keras", "--seed", 1, small=()
    )
    train(
        "--epochs", 1, "--weights", "second.keras", "--save", "third.keras", "--seed", 2, small=()
    )
    first, second, third = (
        models.load_info(sounds / f"{name}.keras") for name in ("first", "second", "third")
    )
    seen = {*first["train"], *first["validation"]}
    assert re.search(
        r"\d of 6 test sounds are left out: the earlier training used them", said
    )
    assert not seen & set(second["test"]) and set(second["test"]) < set(first["test"])
    assert not (seen | {*second["train"], *second["validation"]}) & set(third["test"])
    assert not set(first["train"]) & set(second["validation"])
    assert not {*first["train"], *second["train"]} & set(third["validation"])
    assert {name for name, _ in third["learned"]} == {*first["train"], *second["train"]}


def test_sounds_or_groups_that_earlier_training_learned_from_neither_test_nor_validate(capsys):
    people = {"a/mia_1": 0, "a/theo_2": 1, "a/lea_1": 2, "a/kim_1": 3, "a/theo_1": 1, "a/nora_1": 4,
              "b/nora_2": 4, "b/lea_2": 2, "a/ida_1": 5, "a/eva_1": 6}
    sides = {"train": ["a/mia_1"], "validation": ["a/theo_2", "a/lea_1", "a/kim_1", "a/ida_1"],
             "test": ["a/theo_1", "a/nora_1", "b/nora_2", "b/lea_2", "a/eva_1"]}
    earlier = {"train": ["b/theo_7"], "validation": ["b/lea_7"], "learned": [["b/kim_7", "k"]],
               "seen": [["b/eva_7", "e"]], "contents": {"b/theo_7": "t", "b/lea_7": "l"}}
    sets = people | {"b/theo_7": 1, "b/lea_7": 2, "b/kim_7": 3, "b/eva_7": 6}
    found = train_network.leave_out_seen(sides, earlier, sets)
    assert found["test"] == ["a/nora_1", "b/nora_2"]
    assert "3 of 5 test sounds are left out" in capsys.readouterr().out
    # Lea was not learned from: she validated then.
    assert found["validation"] == ["a/lea_1", "a/ida_1"]
    assert found["train"] == ["a/kim_1", "a/mia_1", "a/theo_2"]
    assert found["learned"] == [("b/kim_7", "k"), ("b/theo_7", "t")]
    assert found["seen"] == [("b/eva_7", "e"), ("b/kim_7", "k"), ("b/lea_7", "l"),
                             ("b/theo_7", "t")]


@pytest.mark.parametrize("network", models.HYPERPARAMETERS)
def test_with_other_classes_the_body_is_kept_and_the_last_layer_new(train, sounds, network):
    train("--epochs", 1, "--save", "earlier.keras", "--network", network)
    earlier, info = models.load_network(sounds / "earlier.keras")
    info = info | {"classes": ["x", "y"]}
    new = train_network.build_or_extend({}, info, sounds / "earlier.keras")
    assert new.output_shape == (None, 2)
    for before, after in zip(earlier.get_weights()[:-2], new.get_weights()[:-2], strict=True):
        np.testing.assert_array_equal(before, after)
    shutil.rmtree(sounds / "Preproc/low")
    said = train("--epochs", 1, "--weights", "earlier.keras", small=())
    assert "Starts from earlier.keras; the last layer is new for these 2 classes" in said
    info = models.load_network(sounds / "weights.keras")[1]
    assert (
        info["classes"] == ["high", "middle"]
        and info["network"] == network
        and info["hyperparameters"]["filters"] == 2
    )


def test_weights_for_spectrograms_of_other_settings_are_refused(train, sounds):
    train("--epochs", 1, "--save", "earlier.keras")
    run("preprocess_data.py", "--n-mels", 40, cwd=sounds)
    with pytest.raises(
        UserError, match="--weights earlier.keras: expected spectrograms made with .*96.*40"
    ):
        train("--epochs", 1, "--weights", "earlier.keras", small=())
    with pytest.raises(
        UserError,
        match="nowhere.keras: expected the weights that train_network.py saves, found noth",
    ):
        train("--weights", "nowhere.keras", small=())


# ---------------------------------------------------------------- memory


def test_spectrograms_that_do_not_fit_are_read_anew_and_give_the_same_weights(train, sounds):
    assert "memory-mapped" not in train("--epochs", 2, "--save", "held.keras")
    assert "exceed --memory and are memory-mapped" in train("--epochs", 2, "--memory", "0.0001")
    assert_same_weights(sounds / "held.keras", sounds / "weights.keras")


MEASURED = f"""
import resource, sys; sys.path.insert(0, {str(ROOT)!r}); import models, train_network
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
train_network.main()
print("used", (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


def test_streaming_arrays_of_50_mb_takes_the_memory_of_a_few(tmp_path):
    settings = {"sample_rate": 8000, "n_mels": 96, "n_fft": 512, "hop_length": 128, "channels": 1}
    for k in range(8):
        path = tmp_path / "Preproc" / "ab"[k % 2] / f"{k}.wav.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        array = np.lib.format.open_memmap(
            path, "w+", np.float32, (96, 130_000)
        )  # zeros that take no disk
        array[:, ::50_000] = k
        array[:, :99] = np.random.default_rng(k).uniform(-60, 0, (96, 99))  # unlike the others
    saved = {"features": settings, "copies": {}, "finished": True}
    (tmp_path / "Preproc/settings.json").write_text(json.dumps(saved))
    said = subprocess.run(
        [sys.executable, "-c", MEASURED, *SMALL, "--epochs", "1", "--memory", "0.000001"],
        cwd=tmp_path,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    assert "memory-mapped" in said
    assert int(re.search(r"used (\d+)", said)[1]) < 400  # MiB beyond Keras


class Watched:
    """A spectrogram that says which frames are asked for; it can be read in no other way."""

    def __init__(self, array):
        self.array, self.shape, self.n_read = array, array.shape, 0

    def __getitem__(self, place):
        part = self.array[place]
        self.n_read += part.size
        return part


def test_batches_read_no_more_of_long_sounds_than_their_windows_and_keep_no_hold_of_them():
    names = [f"{c}/{k}.wav" for c in "ab" for k in range(4)]
    sounds = {name: Watched(np.zeros((8, 10_000), np.float32)) for name in names}
    info = {
        "train": names,
        "classes": ["a", "b"],
        "n_frames": 16,
        "seed": 0,
        "epochs": 1,
        "hyperparameters": models.HYPERPARAMETERS["default"],
    }
    batches = models.Batches(sounds, info, np.zeros((8, 1), np.float32))
    batches[0]
    assert sum(sound.n_read for sound in sounds.values()) == 32 * 8 * 16
    window = batches.cut_window(np.zeros((8, 100), np.float32), np.random.default_rng(0))
    assert window.base is None  # a view would keep a memory map and its file open


def test_streamed_spectrograms_are_mapped_and_not_read(train, sounds):
    source = utils.find_source(sounds / "Samples", sounds / "Preproc")
    held, streamed = (
        utils.read_spectrograms(source, source.names, memory)[0] for memory in (None, 1)
    )
    for name in source.names:
        mapped = streamed[name]
        assert isinstance(mapped.base, np.memmap) and not isinstance(held[name].base, np.memmap)
        np.testing.assert_array_equal(mapped, held[name])


def test_spectrogram_that_vanishes_while_it_is_mapped_is_one_line(train, sounds, monkeypatch):
    fit_network = train_network.fit_network

    def vanishing(*args):
        shutil.rmtree(sounds / "Preproc/low")
        return fit_network(*args)

    monkeypatch.setattr(train_network, "fit_network", vanishing)
    expected = "Preproc/low/.*npy: changed since it was checked: .*No such file.*; run the same"
    with pytest.raises(UserError, match=expected):
        train("--epochs", 1, "--memory", "0.0001")


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 1 byte"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"),
    ],
)
def test_batch_that_does_not_fit_is_named_with_one_to_try(error):
    with pytest.raises(
        UserError, match="--batch-size 32: out of memory; try --batch-size 16, or fewer"
    ):
        with models.explain_errors(32):
            raise error


def test_network_beyond_all_memory_is_one_line(train):
    with pytest.raises(UserError, match="--batch-size 32: out of memory"):
        train(small=("--layers", "1", "--filters", str(2**21)))


# ---------------------------------------------------------------- backends and devices


def train_in(folder, *args, backend="jax", code=None, **environment):
    command = [sys.executable, "-c", code or SHORT, *SMALL, *map(str, args)]
    environment = os.environ | {"KERAS_BACKEND": backend, "JAX_PLATFORMS": "cpu"} | environment
    return subprocess.Popen(command, cwd=folder, env=environment, text=True, stdout=subprocess.PIPE)


SHORT = f"""
import sys; sys.path.insert(0, {str(ROOT)!r}); import models, train_network
models.MIN_STEPS = {N_STEPS}
train_network.main()
"""
TWICE = f"""
{SHORT}
sys.argv += ["--save", "2.keras", "--devices", "2"]
train_network.main()
"""
SCORES = f"""
{SHORT}
import numpy, utils
from pathlib import Path
source = utils.find_source(Path("Samples"), Path("Preproc"))
spectrograms, _ = utils.read_spectrograms(source, source.names)
for name in ("weights", "other"):
    network, _ = models.load_network(name + ".keras")
    scores = dict(models.predict_sounds(network, spectrograms.items()))
    numpy.save(name + ".npy", list(scores.values()))
"""


@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_weights_of_one_backend_give_the_same_scores_in_another(train, sounds, backend):
    if not find_spec(backend):
        pytest.skip(f"{backend} is not installed")
    train("--epochs", 1)
    said = train_in(
        sounds, "--epochs", 1, "--save", "other.keras", backend=backend, code=SCORES
    ).communicate()[0]
    assert f"{backend} on cpu" in said
    source = utils.find_source(sounds / "Samples", sounds / "Preproc")
    spectrograms, _ = utils.read_spectrograms(source, source.names)
    for name in ("weights", "other"):
        scores = list(
            dict(
                models.predict_sounds(
                    models.load_network(sounds / f"{name}.keras")[0], spectrograms.items()
                )
            ).values()
        )
        np.testing.assert_allclose(np.load(sounds / f"{name}.npy"), scores, atol=1e-4)


def losses(said):
    return [float(x) for x in re.findall(r"loss (\d+\.\d+)", said)]


@pytest.mark.skipif(not find_spec("jax"), reason="jax is not installed")
def test_two_devices_have_the_losses_of_one_device(train, sounds):
    flags = "--epochs", 1, "--learning-rate", 1e-4
    two = "--xla_force_host_platform_device_count=2"
    devices = train_in(sounds, *flags, code=TWICE, XLA_FLAGS=two)
    one, parallel = np.split(np.array(losses(devices.communicate()[0])), 2)
    np.testing.assert_allclose(parallel, one, atol=1e-3)
    assert len(one) == 4 and devices.returncode == 0


@pytest.mark.parametrize("backend", ["foo", "torch"])
def test_backend_that_is_not_there_is_one_line(sounds, backend, monkeypatch):
    if backend == "torch" and find_spec("torch"):
        pytest.skip("torch is installed")
    monkeypatch.setenv("KERAS_BACKEND", backend)
    line = one_line("train_network.py", cwd=sounds)
    assert f"KERAS_BACKEND={backend}: cannot be loaded" in line
    assert "use tensorflow, jax or torch" in line


def test_devices_need_jax(train):
    with pytest.raises(UserError, match="--devices 2: needs KERAS_BACKEND=jax, found tensorflow"):
        train("--devices", 2)
