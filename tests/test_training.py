"""Training stops by itself, goes on where it was stopped, keeps the right weights, and runs on every backend."""
import contextlib
import csv
import itertools
import json
import math
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from importlib.util import find_spec

import numpy as np
import pytest
from conftest import ROOT, one_line, read_table, run

import eval_network
import models
import train_network
import utils
from train_network import chosen, plan, rate_of
from utils import UserError

SMALL = "--layers", "1", "--filters", "2"  # a network that trains in no time


# ---------------------------------------------------------------- how long, at which rate, and which epoch is kept

def rates(losses, epochs=2000, training=lambda epoch: 1.0, network="default"):
    """The learning rate of each epoch until training ends, given the validation and training losses."""
    recipe, history, found = models.RECIPES[network] | {"epochs": epochs, "learning_rate": 1.0}, [], []
    while len(history) < plan(history, recipe)[1]:
        found.append(rate_of(history, recipe))
        history.append({"loss": training(len(history)), "val_loss": losses(len(history))})
    return found


def test_rate_is_held_while_the_loss_falls_then_anneals_and_training_ends():
    found = rates(lambda epoch: max(0.1, 0.8**epoch))
    held = found.count(1.0)
    assert 12 <= held <= 20 and len(found) < 35
    assert found[1:held + 1] == [1.0] * held and found[0] < 1
    falling = found[held + 1:]
    assert falling == sorted(falling, reverse=True) and falling[-1] < 0.15


def test_rate_is_held_while_only_the_training_loss_falls():
    found = rates(lambda epoch: 0.5, training=lambda epoch: max(0.3, 0.96**epoch))
    assert 28 <= found.count(1.0) <= 36


@pytest.mark.parametrize("epochs", [1, 2, 9, 30])
def test_rate_falls_in_time_to_end_with_the_last_epoch_allowed(epochs):
    found = rates(lambda epoch: 0.8**epoch, epochs)
    assert len(found) == epochs and found[-1] <= 0.5


@pytest.mark.parametrize("losses", [lambda epoch: max(0.1, 0.8**epoch), lambda epoch: 0.8**epoch])
def test_original_holds_its_rate_and_ends_when_stalled_or_nearly_perfect(losses):
    found = rates(losses, network="original")
    assert 25 < len(found) < 60 and set(found) == {1.0}


def epochs_of(val_losses, error=0.0):
    return [{"loss": 1.0, "val_loss": loss, "val_error": error} for loss in val_losses]


def test_while_the_rate_is_held_the_lowest_loss_is_kept():
    assert chosen(epochs_of([0.9, 0.5, 0.6], error=1.0), models.RECIPES["default"] | {"epochs": 200}) == 1


def test_once_the_rate_falls_an_earlier_lucky_epoch_is_kept_no_more():
    held, recipe = [0.9, 0.2, 0.6, 0.6, 0.6, 0.6], models.RECIPES["default"] | {"epochs": 200}
    assert plan(epochs_of(held), recipe)[0] == 6
    assert chosen(epochs_of(held), recipe) == 1
    assert chosen(epochs_of([*held, 0.5]), recipe) == 6
    assert chosen(epochs_of([*held, 0.3, 0.4, 0.5], error=0.06), recipe) == 7  # the last within 2 errors of the lowest
    assert chosen(epochs_of([*held, 0.3, 0.4, 0.5], error=0.01), recipe) == 6


def test_original_keeps_the_lowest_loss_of_all():
    losses = [0.5, 0.2, *[0.3] * 25]
    assert chosen(epochs_of(losses, error=1.0), models.RECIPES["original"] | {"epochs": 200}) == 1


def test_set_too_small_to_validate_on_is_judged_by_the_training_loss():
    assert chosen([{"loss": loss} for loss in (0.9, 0.4, 0.5)], models.RECIPES["default"] | {"epochs": 200}) == 1


# ---------------------------------------------------------------- one training in this process, fast

@pytest.fixture
def train(sounds, monkeypatch, capsys):
    """A function that trains in a folder of sounds and returns what was said."""
    def call(*args, small=SMALL):
        monkeypatch.setattr(sys, "argv", ["train_network.py", *small, *map(str, args)])
        capsys.readouterr()  # what a run said that was interrupted
        with contextlib.chdir(sounds):
            train_network.main()
        return capsys.readouterr().out
    run("preprocess_data.py", cwd=sounds)
    return call


def weights_of(path):
    return models.load(path)[0].get_weights()


def assert_same_weights(a, b):
    for x, y in zip(weights_of(a), weights_of(b), strict=True):
        np.testing.assert_array_equal(x, y)


def test_before_the_first_epoch_a_table_tells_what_is_trained_on_what(train):
    said = train("--epochs", 1).split("epoch    1")[0]
    assert re.search(r"Class +train +validation +test\nhigh +7 +1 +2\nlow +7 +1 +2\nmiddle +7 +1 +2\n"
                     r"all +21 +3 +6", said)
    assert re.search(r"default, \d+ weights, window 40 frames \(0\.64 s\), tensorflow on \w+", said)
    assert "8000 Hz, 96 mels" in said and "batch_size 32, learning_rate 0.002, mixup 0.3, masks 2, shift 0.1" in said


def test_an_epoch_is_a_line_in_the_log_and_curves_are_drawn(train, sounds):
    said = train("--epochs", 3)
    assert len(re.findall(r"epoch +\d  loss \d\.\d+  accuracy .*validation loss .*validation accuracy .* "
                          r"\d+ clips/s  at most \d+:\d\d left", said)) == 3
    with open(sounds / "Results/training_log.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["1", "2", "3"]
    assert all(float(row[key]) >= 0 for row in rows for key in ("loss", "accuracy", "val_loss", "val_accuracy",
                                                                "learning_rate", "clips_per_second"))
    from matplotlib.image import imread
    picture = imread(sounds / "Results/training_curves.png")
    assert min(picture.shape[:2]) > 300 and picture.std() > 0.05


def test_flags_of_the_recipe_reach_training(train, sounds):
    train("--epochs", 1, "--mixup", 0, "--masks", 0, "--shift", 0, "--class-weights", "none", "--batch-size", 8)
    recipe = models.load(sounds / "weights.keras")[1]["recipe"]
    assert [recipe[key] for key in ("mixup", "masks", "shift", "class_weights", "batch_size")] == [0, 0, 0, "none", 8]


def test_class_weights_reach_the_loss(train, monkeypatch):
    monkeypatch.setattr(models, "class_weights", lambda targets, kind: np.full(3, 1e-9, np.float32))
    assert re.search(r"epoch +1  loss 0\.0000 ", train("--epochs", 1))


def test_each_epoch_has_the_learning_rate_of_its_log_and_batches_of_its_own(train, sounds, monkeypatch):
    fit_epoch, rates, batches = models.fit_epoch, [], []

    def watched(network, sequence, epoch):
        row = fit_epoch(network, sequence, epoch)
        rates.append(float(network.optimizer.learning_rate))
        batches.append(sequence[0][0])
        return row
    monkeypatch.setattr(models, "fit_epoch", watched)
    train("--epochs", 4)
    log = read_table(sounds / "Results/training_log.csv")
    assert rates == pytest.approx([float(row["learning_rate"]) for row in log]) and len(set(rates)) > 2
    for before, after in itertools.pairwise(batches):
        assert not np.array_equal(before, after)


def test_identical_files_are_pointed_out_and_groups_suggested(train, sounds):
    for k, path in enumerate(sorted((sounds / "Preproc").glob("*/*.npy"))):
        path.rename(path.with_name(f"speaker{k % 4}-{path.name}"))
    for path in (sounds / "Preproc/low").glob("speaker1-*.npy"):
        shutil.copy(path, path.with_name(f"twin of {path.name}"))
    said = train("--epochs", 1)
    assert re.search(r"Left out \d sounds?, such as low/.*: identical to a sound on another side of the split", said)
    assert "speaker" in said and "--groups '^([^-]+)-' keeps each on one side" in said
    assert "keeps each" not in train("--epochs", 1, "--groups", "^([^-]+)-", "--fresh")


@pytest.mark.skipif(not find_spec("tensorboard"), reason="tensorboard is not installed")
def test_tensorboard_gets_the_scores(train, sounds):
    train("--epochs", 2, "--tensorboard", "board")
    for side in ("train", "validation"):
        data = b"".join(path.read_bytes() for path in (sounds / "board" / side).iterdir())
        assert data.count(b"epoch_loss") >= 2


# ---------------------------------------------------------------- stopped, gone on with, finished

def test_stopped_by_ctrl_c_the_same_command_ends_at_the_weights_of_an_undisturbed_run(
        train, sounds, monkeypatch, capsys):
    train("--epochs", 5, "--save", "undisturbed.keras")
    fit_epoch = models.fit_epoch

    def interrupted(network, batches, epoch):
        if epoch == 3:
            raise KeyboardInterrupt
        return fit_epoch(network, batches, epoch)
    monkeypatch.setattr(models, "fit_epoch", interrupted)
    with pytest.raises(SystemExit, match="130"):
        utils.run(lambda: train("--epochs", 5))
    assert "stopped in epoch 4; what is written is whole and stays, the same command goes on" in capsys.readouterr().err
    assert models.load(sounds / "weights.keras")[1]["classes"] == ["high", "low", "middle"]
    monkeypatch.setattr(models, "fit_epoch", fit_epoch)
    said = train("--epochs", 5)
    assert "Goes on after epoch 3 of" in said and "with epoch 4" in said
    assert "epoch    3" not in said and "epoch    4" in said
    assert_same_weights(sounds / "weights.keras", sounds / "undisturbed.keras")
    assert not list(sounds.glob("*.npz"))


KILLED = f"""
import os, sys; sys.path.insert(0, {str(ROOT)!r}); import eval_network, models, numpy, train_network, utils
where, name, when = dict(models=models, numpy=numpy, eval_network=eval_network)[sys.argv.pop(1)], *sys.argv[1:3]
del sys.argv[1:3]
called, function = [], getattr(where, name)
def killed(*args, **kwargs):
    called.append(1)
    if len(called) == int(when):
        if name == "savez":
            args[0].write(b"half an archive")
            args[0].flush()
        os.kill(os.getpid(), 9)
    return function(*args, **kwargs)
setattr(where, name, killed)
utils.run(train_network.main)
"""


def test_killed_at_any_moment_it_ends_at_the_weights_of_an_undisturbed_run(train, sounds):
    """Killed in the middle of saving its state, and again at the end before all is drawn."""
    train("--epochs", 4, "--save", "undisturbed.keras", "--results", "undisturbed")
    for moment in (("numpy", "savez", 4), ("eval_network", "plot_curves", 1)):
        command = [sys.executable, "-c", KILLED, *map(str, moment), *SMALL, "--epochs", "4"]
        assert subprocess.run(command, cwd=sounds, capture_output=True).returncode == -signal.SIGKILL
    for path in sounds.glob(".*"):
        os.utime(path, (0, 0))  # as if an hour had passed
    said = train("--epochs", 4)
    assert "Goes on after epoch" in said and "weights.keras: holds epoch" in said
    assert_same_weights(sounds / "weights.keras", sounds / "undisturbed.keras")
    logs = [(sounds / folder / "training_log.csv").read_text().splitlines() for folder in ("Results", "undisturbed")]
    assert [line.split(",")[0] for line in logs[0]] == [line.split(",")[0] for line in logs[1]]
    assert not list(sounds.glob(".*")) and not list(sounds.glob("*.npz"))


def test_training_that_diverges_at_once_says_so_and_leaves_earlier_weights_alone(train, sounds):
    (sounds / "weights.keras").write_bytes(b"earlier")
    with pytest.raises(UserError, match="weights.keras: expected a finite loss, found none; take a lower --learning-r"):
        train("--learning-rate", "1e30", "--epochs", 2, "--fresh")
    assert (sounds / "weights.keras").read_bytes() == b"earlier"


def test_training_that_diverges_later_is_not_called_finished(train, sounds, monkeypatch):
    validate = eval_network.validate

    def diverged(*args):
        return validate(*args) | ({"val_loss": math.nan} if (sounds / "weights.keras").exists() else {})
    monkeypatch.setattr(eval_network, "validate", diverged)
    for _ in range(2):
        with pytest.raises(UserError, match="expected a finite loss, found none; take a lower --learning-rate"):
            train("--epochs", 3)
    assert all(np.isfinite(array).all() for array in weights_of(sounds / "weights.keras"))


def test_finished_training_is_not_done_again_nor_replaced_by_another_without_being_told(train, sounds):
    train("--epochs", 1)
    before = (sounds / "weights.keras").read_bytes()
    assert "finished training of these sounds in this way; --fresh" in train("--epochs", 1)
    for flags, words in ((["--epochs", 2], r"epochs \(1, now 2\)"),
                         (["--epochs", 1, "--seed", 1], r"seed \(0, now 1\);"),
                         (["--epochs", 1, "--network", "original"], "network")):
        with pytest.raises(UserError, match=f"weights.keras: .*{words}.*--fresh"):
            train(*flags)
    run("preprocess_data.py", "--hop-length", 64, cwd=sounds)
    with pytest.raises(UserError, match=r"weights.keras: .*hop_length \(128, now 64\)"):
        train("--epochs", 1)
    run("preprocess_data.py", cwd=sounds)
    (sounds / "Preproc/low/00.wav.npy").rename(sounds / "Preproc/low/new.wav.npy")
    with pytest.raises(UserError, match="weights.keras: 1 sound was added and 1 sound was removed since this training; "
                                        "--fresh trains again"):
        train("--epochs", 1)
    shutil.rmtree(sounds / "Preproc/low")
    with pytest.raises(UserError, match=r"weights.keras: \d+ sounds were removed \(class low\) since .*--fresh"):
        train("--epochs", 1)
    assert (sounds / "weights.keras").read_bytes() == before
    train("--epochs", 1, "--fresh", "--seed", 1)
    assert models.load(sounds / "weights.keras")[1]["seed"] == 1


def test_stopped_training_of_other_settings_is_not_gone_on_with(train, sounds, monkeypatch):
    keep = train_network.keep
    monkeypatch.setattr(train_network, "keep", lambda *args: keep(*args) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        train("--epochs", 2)
    with pytest.raises(UserError, match=r"weights.unfinished.npz: .*learning_rate \(0.002, now 0.1\).*--fresh"):
        train("--epochs", 2, "--learning-rate", 0.1)
    (sounds / "weights.unfinished.npz").write_bytes(b"torn")
    with pytest.raises(UserError, match="weights.unfinished.npz: expected a training to go on with, found.*--fresh"):
        train("--epochs", 2)


def test_training_stopped_in_its_first_epoch_stands_in_the_way_of_no_other(train, sounds, monkeypatch):
    def run_out(*args):
        raise MemoryError
    with monkeypatch.context() as patch:
        patch.setattr(models, "fit_epoch", run_out)
        with pytest.raises(UserError, match="try --batch-size 16"):
            train("--epochs", 1)
        train_again = "--epochs", 1, "--batch-size", 16
    train(*train_again)
    with monkeypatch.context() as patch:
        patch.setattr(models, "fit_epoch", run_out)
        with pytest.raises(UserError):
            train("--epochs", 1, "--fresh")
    before = (sounds / "weights.keras").read_bytes()
    with pytest.raises(UserError, match=r"weights.keras: .*batch_size \(16, now 32\)"):
        train("--epochs", 1)
    assert (sounds / "weights.keras").read_bytes() == before


# ---------------------------------------------------------------- from earlier weights

def test_training_starts_from_earlier_weights(train, sounds):
    train("--epochs", 6, "--save", "earlier.keras")
    first = re.search(r"epoch +1  loss (\d\.\d+)", train("--epochs", 1, "--save", "cold.keras"))[1]
    said = train("--epochs", 1, "--weights", "earlier.keras", small=())
    assert "Starts from earlier.keras, of the same classes" in said
    assert float(re.search(r"epoch +1  loss (\d\.\d+)", said)[1]) < float(first)


def test_sounds_that_earlier_training_learned_from_are_never_tested(train, sounds):
    train("--epochs", 1, "--save", "first.keras")
    said = train("--epochs", 1, "--weights", "first.keras", "--save", "second.keras", "--seed", 1, small=())
    train("--epochs", 1, "--weights", "second.keras", "--save", "third.keras", "--seed", 2, small=())
    first, second, third = (models.load(sounds / f"{name}.keras", models.load_info)
                            for name in ("first", "second", "third"))
    seen = {*first["train"], *first["validation"]}
    assert re.search(r"\d of 6 test sounds are left out: the earlier training learned from them", said)
    assert not seen & set(second["test"]) and set(second["test"]) < set(first["test"])
    assert not (seen | {*second["train"], *second["validation"]}) & set(third["test"])
    assert not set(first["train"]) & set(second["validation"])
    assert not {*first["train"], *second["train"]} & set(third["validation"])
    assert set(third["learned"]) == {*first["train"], *second["train"]}


def test_sounds_or_groups_that_earlier_training_learned_from_neither_test_nor_validate(capsys):
    sides = {"train": ["a/mia_1.wav"], "validation": ["a/theo_2.wav", "a/lea_1.wav", "a/kim_1.wav"],
             "test": ["a/theo_1.wav", "a/nora_1.wav", "b/nora_2.wav", "b/lea_2.wav"]}
    earlier = {"train": ["b/theo_7.wav"], "validation": ["b/lea_7.wav"], "learned": ["b/kim_7.wav"]}
    found = train_network.forget_seen(sides, earlier, re.compile("^[a-z]+"), {})
    assert found["test"] == ["a/nora_1.wav", "b/nora_2.wav"] and "2 of 4 test" in capsys.readouterr().out
    assert found["validation"] == ["a/lea_1.wav"]  # who was not learned from: she validated then
    assert found["train"] == ["a/kim_1.wav", "a/mia_1.wav", "a/theo_2.wav"]
    assert found["learned"] == ["b/kim_7.wav", "b/theo_7.wav"]
    alone = train_network.forget_seen(sides, earlier, None, {})
    assert {side: alone[side] for side in sides} == sides


@pytest.mark.parametrize("network", models.RECIPES)
def test_with_other_classes_the_body_is_kept_and_the_last_layer_new(train, sounds, network):
    train("--epochs", 1, "--save", "earlier.keras", "--network", network)
    earlier, info = models.load(sounds / "earlier.keras")
    new = models.new_network({}, info | {"classes": ["x", "y"]}, sounds / "earlier.keras")
    assert new.output_shape == (None, 2)
    for before, after in zip(earlier.get_weights()[:-2], new.get_weights()[:-2], strict=True):
        np.testing.assert_array_equal(before, after)
    shutil.rmtree(sounds / "Preproc/low")
    said = train("--epochs", 1, "--weights", "earlier.keras", small=())
    assert "its body is kept, the last layer is new for these 2 classes" in said
    info = models.load(sounds / "weights.keras")[1]
    assert info["classes"] == ["high", "middle"] and info["network"] == network and info["recipe"]["filters"] == 2


def test_weights_for_spectrograms_of_other_settings_are_refused(train, sounds):
    train("--epochs", 1, "--save", "earlier.keras")
    run("preprocess_data.py", "--n-mels", 40, cwd=sounds)
    with pytest.raises(UserError, match="--weights earlier.keras: expected spectrograms made as for it, .*96.*40"):
        train("--epochs", 1, "--weights", "earlier.keras", small=())
    with pytest.raises(UserError, match="nowhere.keras: expected the weights that train_network.py saves, found noth"):
        train("--weights", "nowhere.keras", small=())


# ---------------------------------------------------------------- memory

def test_spectrograms_that_do_not_fit_are_read_anew_and_give_the_same_weights(train, sounds):
    assert "do not fit" not in train("--epochs", 2, "--save", "held.keras")
    assert "do not fit into memory" in train("--epochs", 2, "--memory", "0.0001")
    assert_same_weights(sounds / "held.keras", sounds / "weights.keras")


MEASURED = f"""
import resource, sys; sys.path.insert(0, {str(ROOT)!r}); import eval_network, models, train_network
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
train_network.main()
print("used", (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


def test_streaming_arrays_of_100_mb_takes_the_memory_of_a_few(tmp_path):
    settings = {"sample_rate": 8000, "n_mels": 96, "n_fft": 512, "hop_length": 128, "channels": 1}
    for k in range(8):
        path = tmp_path / "Preproc" / "ab"[k % 2] / f"{k}.wav.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        array = np.lib.format.open_memmap(path, "w+", np.float32, (96, 260_000))  # zeros that take no disk
        array[:, ::50_000] = k
    (tmp_path / "Preproc/settings.json").write_text(json.dumps(settings))
    said = subprocess.run([sys.executable, "-c", MEASURED, *SMALL, "--epochs", "1", "--memory", "0.000001"],
                          cwd=tmp_path, check=True, capture_output=True, text=True).stdout
    assert "do not fit into memory" in said
    assert int(re.search(r"used (\d+)", said)[1]) < 700  # MiB beyond Keras


class Watched:
    """A spectrogram that says which frames are asked for; to read it in any other way is an error."""

    def __init__(self, array):
        self.array, self.shape, self.n_read = array, array.shape, 0

    def __getitem__(self, place):
        part = self.array[place]
        self.n_read += part.size
        return part


def test_batches_read_no_more_of_long_sounds_than_their_windows_and_keep_no_hold_of_them():
    names = [f"{c}/{k}.wav" for c in "ab" for k in range(4)]
    sounds = {name: Watched(np.zeros((8, 10_000), np.float32)) for name in names}
    info = {"train": names, "classes": ["a", "b"], "n_frames": 16, "seed": 0, "recipe": models.RECIPES["default"]}
    batches = models.Batches(sounds, info, np.zeros((8, 1), np.float32))
    batches[0]
    assert sum(sound.n_read for sound in sounds.values()) == 32 * 8 * 16
    window = batches.window(np.zeros((8, 100), np.float32), np.random.default_rng(0))
    assert window.base is None  # a view would keep a memory map and its file open


def test_streamed_spectrograms_are_mapped_and_not_read(train, sounds):
    source = train_network.find_source(sounds / "Samples", sounds / "Preproc")
    held, streamed = (train_network.read_spectrograms(source, source.names, memory)[0] for memory in (None, 1))
    for name in source.names:
        mapped = streamed[name]
        assert isinstance(mapped.base, np.memmap) and not isinstance(held[name].base, np.memmap)
        np.testing.assert_array_equal(mapped, held[name])


def test_spectrogram_that_vanishes_while_it_is_streamed_is_one_line(train, sounds, monkeypatch):
    fit_epoch = models.fit_epoch

    def vanishing(*args):
        shutil.rmtree(sounds / "Preproc/low")
        return fit_epoch(*args)
    monkeypatch.setattr(models, "fit_epoch", vanishing)
    with pytest.raises(UserError, match="^Preproc/low/.*npy: expected a spectrogram, found .*No such file"):
        train("--epochs", 1, "--memory", "0.0001")


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 1 byte"),
                                   RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")])
def test_batch_that_does_not_fit_is_named_with_one_to_try(error):
    with pytest.raises(UserError, match="--batch-size 32: expected .*; try --batch-size 16, or fewer"):
        with models.naming_memory(32):
            raise error


def test_network_beyond_all_memory_is_one_line(train):
    with pytest.raises(UserError, match="--batch-size 32: expected network and batch to fit into memory"):
        train(small=("--layers", "1", "--filters", str(2**21)))


# ---------------------------------------------------------------- backends and devices

def train_in(folder, *args, backend="jax", code=None, **environment):
    command = [sys.executable, *(["-c", code] if code else [ROOT / "train_network.py"]), *SMALL, *map(str, args)]
    environment = os.environ | {"KERAS_BACKEND": backend, "JAX_PLATFORMS": "cpu"} | environment
    return subprocess.Popen(command, cwd=folder, env=environment, text=True, stdout=subprocess.PIPE)


SCORES = f"""
import sys; sys.path.insert(0, {str(ROOT)!r}); import train_network, models; from pathlib import Path; import numpy
train_network.main()
source = train_network.find_source(Path("Samples"), Path("Preproc"))
spectrograms, _ = train_network.read_spectrograms(source, source.names)
for name in ("weights", "other"):
    numpy.save(name + ".npy", list(dict(
        models.predict(models.load(name + ".keras")[0], spectrograms.items())).values()))
"""


@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_weights_of_one_backend_give_the_same_scores_in_another(train, sounds, backend):
    if not find_spec(backend):
        pytest.skip(f"{backend} is not installed")
    train("--epochs", 1)
    said = train_in(sounds, "--epochs", 1, "--save", "other.keras", backend=backend, code=SCORES).communicate()[0]
    assert f"{backend} on cpu" in said
    source = train_network.find_source(sounds / "Samples", sounds / "Preproc")
    spectrograms, _ = train_network.read_spectrograms(source, source.names)
    for name in ("weights", "other"):
        scores = list(dict(models.predict(models.load(sounds / f"{name}.keras")[0], spectrograms.items())).values())
        np.testing.assert_allclose(np.load(sounds / f"{name}.npy"), scores, atol=1e-4)


def losses(said):
    return [float(x) for x in re.findall(r"loss (\d+\.\d+)", said)]


@pytest.mark.skipif(not find_spec("jax"), reason="jax is not installed")
def test_two_devices_and_two_hosts_have_the_losses_of_one_device(train, sounds):
    flags = "--epochs", 2, "--learning-rate", 1e-4
    one = losses(train_in(sounds, *flags, "--save", "1.keras").communicate()[0])
    devices = train_in(sounds, *flags, "--save", "2.keras", "--devices", 2,
                       XLA_FLAGS="--xla_force_host_platform_device_count=2")
    np.testing.assert_allclose(losses(devices.communicate()[0]), one, atol=1e-3)
    assert devices.returncode == 0
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    hosts = [train_in(sounds, *flags, "--save", "3.keras", KERAS_DISTRIBUTION_JOB_ADDRESSES=f"127.0.0.1:{port}",
                      KERAS_DISTRIBUTION_NUM_PROCESSES="2", KERAS_DISTRIBUTION_PROCESS_ID=str(k),
                      JAX_CPU_COLLECTIVES_IMPLEMENTATION="gloo") for k in (0, 1)]
    try:
        said = [host.communicate(timeout=200)[0] for host in hosts]
    finally:
        for host in hosts:
            host.kill()
    np.testing.assert_allclose(losses(said[0]), one, atol=1e-3)
    assert len(one) == 6 and [host.returncode for host in hosts] == [0, 0] and not losses(said[1])


@pytest.mark.parametrize("backend", ["foo", "torch"])
def test_backend_that_is_not_there_is_one_line(sounds, backend, monkeypatch):
    if backend == "torch" and find_spec("torch"):
        pytest.skip("torch is installed")
    monkeypatch.setenv("KERAS_BACKEND", backend)
    assert f"KERAS_BACKEND={backend}: expected tensorflow, jax or torch" in one_line("train_network.py", cwd=sounds)


def test_devices_need_jax(train):
    with pytest.raises(UserError, match="--devices 2: expected KERAS_BACKEND=jax, found tensorflow"):
        train("--devices", 2)
