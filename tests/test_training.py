"""Training resumes where it was stopped, and ends at the right weights, on every backend."""
import contextlib
import dataclasses
import itertools
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import zipfile
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import soundfile
from conftest import ROOT, SMALL, one_line, read_table, run

import models
import train_network
import utils
from utils import Hyperparameters, Split, UserError

N_STEPS = 5  # in an epoch


# ---------------------------------------------------------------- one training in this process

@pytest.fixture
def sounds(preprocessed):
    return preprocessed


@pytest.fixture
def train(sounds, monkeypatch, capsys):
    """A function that trains a few steps an epoch in the folder `sounds`. Returns its output."""
    monkeypatch.setattr(models, "MIN_STEPS", N_STEPS)
    monkeypatch.setattr(utils, "MIN_VALIDATION", 0)

    def call(*args, small=SMALL):
        monkeypatch.setattr(sys, "argv", ["train_network.py", *small, *map(str, args)])
        capsys.readouterr()  # of an interrupted run
        with contextlib.chdir(sounds):
            train_network.main()
        return capsys.readouterr().out
    return call


@pytest.fixture
def stop(train, monkeypatch):
    """A function that trains, and stops after an epoch of the fold after n_trained."""
    def call(*args, n_trained=0):
        saved = set()
        save_checkpoint = train_network.save_checkpoint

        def save_and_stop(network, training, places):
            save_checkpoint(network, training, places)
            saved.add(places.save)
            if len(saved) > n_trained:
                raise ZeroDivisionError
        with monkeypatch.context() as patch:
            patch.setattr(train_network, "save_checkpoint", save_and_stop)
            with pytest.raises(ZeroDivisionError):
                train(*args)
    return call


def assert_same_weights(a, b):
    pairs = zip(*(models.load_network(path)[0].get_weights() for path in (a, b)), strict=True)
    for x, y in pairs:
        np.testing.assert_array_equal(x, y)


def test_table_log_and_curves(train, sounds):
    before, *epochs = train("--epochs", 2).split("epoch    ")
    assert re.search(
        r"Class +train +validation +test\nhigh +7 +1 +2\nlow +7 +1 +2\nmiddle +7 +1 +2\n"
        r"all +21 +3 +6", before)
    assert re.search(r"default, \d+ weights, window \d+ frames \(0\.\d+ s\), tensorflow on", before)
    assert "8000 Hz, 96 mels" in before
    assert "batch_size 16, learning_rate 0.005, mixup 0.3, masks 2, shift 0.1" in before
    assert len(epochs) == 2
    for line in epochs:
        assert re.match(r"\d  loss \d\.\d+  accuracy .*validation loss .*validation accuracy .* "
                        r"\d+ windows/s  \d+:\d\d left", line)
    rows = read_table(sounds / "Results/training_log.csv")
    assert [row["epoch"] for row in rows] == ["1", "2"]
    keys = "loss accuracy val_loss val_accuracy learning_rate windows_per_second".split()
    assert all(float(row[key]) >= 0 for row in rows for key in keys)
    assert len({row["temperature"] for row in rows}) == 2  # each epoch is calibrated
    from matplotlib.image import imread
    picture = imread(sounds / "Results/training_curves.png")
    assert min(picture.shape[:2]) > 300 and picture.std() > 0.05


def test_flags_reach_training_and_each_epoch_its_scores(train, sounds, monkeypatch):
    monkeypatch.setattr(
        models, "choose_epochs", lambda lengths, size: {(21, 8): 2}[len(lengths), size])
    given = {"mixup": 0, "masks": 0, "shift": 0, "warp": 0.2, "eq": 3, "class_weights": "none",
             "batch_size": 8, "smoothing": 0.1}
    flags = [text for key, value in given.items() for text in (f"--{key.replace('_', '-')}", value)]
    board = ["--tensorboard", "board"] if find_spec("tensorboard") else []
    said = train(*flags, *board)
    assert "epochs 2\n" in said and "epoch    2" in said and "epoch    3" not in said
    found = dataclasses.asdict(models.load_training(sounds / "weights.keras").hyperparameters)
    assert found == dataclasses.asdict(Hyperparameters(1, 2)) | given
    for subset in ("train", "validation") if board else ():
        data = b"".join(path.read_bytes() for path in (sounds / "board" / subset).iterdir())
        assert data.count(b"epoch_loss") >= 2


def test_threshold_is_that_of_calibrated_validation_sounds(train, sounds, monkeypatch):
    monkeypatch.setattr(models, "CONFIDENCE", 0)  # a few sounds give a threshold
    train("--epochs", 2, small=())
    network, training = models.load_network(sounds / "weights.keras")
    names = training.split.validation
    spectrograms = {name: np.load(sounds / f"Preproc/{name}.npy") for name in names}
    predictions = models.predict_sounds(network, spectrograms.items(), training.temperature)
    probabilities = np.stack([row for _, row in predictions])
    y = models.class_indices(names, training.classes)
    expected = models.choose_threshold(y, probabilities)
    assert training.history[-1]["inflation"] == 1
    assert training.threshold == pytest.approx(expected, abs=1e-5)


def test_validation_and_test_sounds_choose_neither_window_nor_normalisation(train, sounds):
    train("--epochs", 1, "--save", "first.keras")
    split = models.load_training(sounds / "first.keras").split
    for name in split.validation + split.test:
        path = sounds / f"Preproc/{name}.npy"
        np.save(path, 20 + np.pad(np.load(path), [(0, 0), (0, 500)], "wrap"))
    train("--epochs", 1, "--save", "second.keras")
    (first, before), (second, after) = [models.load_network(sounds / f"{name}.keras")
                                        for name in ("first", "second")]
    assert before.split.train == after.split.train and before.n_frames == after.n_frames
    for part in ("mean", "variance"):
        np.testing.assert_array_equal(
            *[np.array(getattr(network.layers[1], part)) for network in (first, second)])


def test_class_weights_reach_the_loss(train, monkeypatch):
    monkeypatch.setattr(
        models, "balance_classes", lambda targets, kind: np.full(3, 1e-9, np.float32))
    assert re.search(r"epoch +1  loss 0\.0000 ", train("--epochs", 1))


def test_learning_rate_falls_along_a_cosine_and_each_epoch_has_batches_of_its_own(
        train, sounds, monkeypatch):
    start_epoch = models.Batches.start_epoch
    batches = []

    def watched(self, epoch):
        start_epoch(self, epoch)
        batches.append(self[0][0])
    monkeypatch.setattr(models.Batches, "start_epoch", watched)
    train("--epochs", 4)
    rates = [float(row["learning_rate"]) for row in read_table(sounds / "Results/training_log.csv")]
    n_warmup = 4 * N_STEPS // 20
    n_falling = 4 * N_STEPS - n_warmup
    shares = [(N_STEPS * epoch - n_warmup) / n_falling for epoch in (1, 2, 3, 4)]
    assert rates == pytest.approx([0.0025 * (1 + math.cos(math.pi * x)) for x in shares], abs=1e-6)
    for before, after in itertools.pairwise(batches[-4:]):
        assert not np.array_equal(before, after)


def test_identical_files_are_reported_and_groups_suggested(train, sounds):
    for k, path in enumerate(sorted((sounds / "Preproc").glob("*/*.npy"))):
        path.rename(path.with_name(f"speaker{k % 4}-{path.name}"))
    for path in (sounds / "Preproc/low").glob("speaker1-*.npy"):
        shutil.copy(path, path.with_name(path.name.replace("-", "-twin of ")))
    said = train("--epochs", 1)
    words = r"Sounds that hold the recording of another, and stay with it: \d, such as low/speaker1"
    assert re.search(words, said)
    assert "share parts, such as speaker0 and speaker1. If each" in said
    assert "--fresh --groups '^[^-]+' keeps each in one subset" in said
    said = train("--epochs", 1, "--groups", "^(speaker.)-", "--fresh")
    assert "keeps each" not in said and "Groups by --groups: 4, such as speaker0\n" in said


def test_training_goes_on_with_another_pattern_that_makes_the_same_groups(train, stop):
    stop("--epochs", 2, "--groups", r"\d\.")
    assert "Continues after epoch 1" in train("--epochs", 2, "--groups", r".\.")
    assert "on these sounds is finished" in train("--epochs", 2, "--groups", r"[0-9]\.")
    with pytest.raises(UserError, match="differs from this training in --groups; use --fresh"):
        train("--epochs", 2, "--groups", r"(\d)\.")  # other names of groups make another split


# ---------------------------------------------------------------- folds

def test_folds_trained_afresh_and_stopped_are_not_mixed_with_the_earlier_ones(train, sounds, stop):
    train("--folds", 3, "--epochs", 1)
    stop("--folds", 2, "--epochs", 2, "--fresh", n_trained=1)
    left = sorted(path.name for path in sounds.glob("*.keras"))
    assert left == ["weights-fold1.keras", "weights-fold2.unfinished.keras"]
    said = train("--folds", 2, "--epochs", 2)
    assert "weights-fold1.keras: training on these sounds is finished" in said
    assert "Continues after epoch 1" in said
    run("eval_network.py", "--folds", cwd=sounds)
    for flags in (["--folds", 3], ["--folds", 2, "--groups", r"\d(\d)"]):  # neither is the same
        with pytest.raises(UserError, match="weights.keras: .*use --fresh to train again"):
            train(*flags, "--epochs", 2)
    shutil.copy(sounds / "weights-fold1.keras", sounds / "weights.unfinished.keras")
    with pytest.raises(UserError, match="weights.unfinished.keras: .*use --fresh to train again"):
        train("--folds", 2, "--epochs", 2)


def test_folds_that_earlier_weights_learned_from_are_refused_before_training(train, sounds):
    train("--epochs", 1, "--save", "weights-fold1.keras")
    said = one_line("train_network.py", "--folds", 2, "--weights", "weights-fold1.keras",
                    cwd=sounds, status=2)
    assert "--weights weights-fold1.keras: would be replaced" in said
    with pytest.raises(UserError, match="fold has no test sounds left, for --weights was trained"):
        train("--folds", 10, "--weights", "weights-fold1.keras", "--save", "other.keras", small=())
    assert not list(sounds.glob("other*"))


# ---------------------------------------------------------------- stopped, resumed, finished

KILLED = f"""
import os, sys; sys.path.insert(0, {str(ROOT)!r}); import models, train_network, utils
name, when, is_after = sys.argv.pop(1), int(sys.argv.pop(1)), sys.argv.pop(1) == "after"
models.MIN_STEPS = {N_STEPS}
utils.MIN_VALIDATION = 0
where = os if hasattr(os, name) else models
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
    ("replace", 3, "before"),  # in epoch 3: a file is written, but not yet at its place
    ("save_network", 3, "after"),  # the weights are there, and the checkpoint still is
]


def test_stopped_and_killed_at_any_moment_it_ends_at_the_weights_of_an_undisturbed_run(
        train, sounds, monkeypatch, capsys):
    train("--epochs", 4, "--save", "undisturbed.keras", "--results", "undisturbed")
    add_epoch = train_network.add_epoch

    def interrupted(training, *args):
        if training.history:
            raise KeyboardInterrupt
        add_epoch(training, *args)
    with monkeypatch.context() as patch:
        patch.setattr(train_network, "add_epoch", interrupted)
        with pytest.raises(SystemExit, match="130"):
            utils.run(lambda: train("--epochs", 4))
    expected = "stopped; files already written are complete; the same command continues"
    assert expected in capsys.readouterr().err
    assert not (sounds / "weights.keras").exists()
    for moment in MOMENTS:
        command = [sys.executable, "-c", KILLED, *map(str, moment), *SMALL, "--epochs", "4"]
        result = subprocess.run(command, cwd=sounds, capture_output=True, text=True)
        assert result.returncode == -signal.SIGKILL, result
    for path in sounds.glob(".*"):
        os.utime(path, (0, 0))  # as if an hour had passed
    said = train("--epochs", 4)
    assert "Continues after epoch 4" in said and "weights.keras: loss" in said
    assert_same_weights(sounds / "weights.keras", sounds / "undisturbed.keras")
    log, expected = (read_table(sounds / folder / "training_log.csv")
                     for folder in ("Results", "undisturbed"))
    assert len(log) == 4
    for key in "epoch loss accuracy val_loss val_accuracy learning_rate".split():
        assert [row[key] for row in log] == [row[key] for row in expected]
    assert not list(sounds.glob(".*")) and not list(sounds.glob("*unfinished*"))


def test_training_that_diverges_is_not_called_finished(train, sounds, monkeypatch):
    (sounds / "weights.keras").write_bytes(b"earlier")
    message = "the loss is not finite; lower --learning-rate"
    with pytest.raises(UserError, match=message):
        train("--learning-rate", "1e30", "--epochs", 2, "--fresh")
    assert (sounds / "weights.keras").read_bytes() == b"earlier"
    (sounds / "weights.keras").unlink()
    validate = models.validate_network

    def diverged(network, spectrograms, training):
        loss = {"val_loss": math.nan} if training.history else {}
        return validate(network, spectrograms, training) | loss
    monkeypatch.setattr(models, "validate_network", diverged)
    for _ in range(2):
        with pytest.raises(UserError, match=message):
            train("--epochs", 3)
    assert not (sounds / "weights.keras").exists()
    network = models.load_network(sounds / "weights.unfinished.keras")[0]
    assert all(np.isfinite(a).all() for a in network.get_weights())


def test_finished_training_is_not_replaced_without_being_told(train, sounds):
    train("--epochs", 1)
    weights = sounds / "weights.keras"
    before = weights.read_bytes()
    assert "training on these sounds is finished; --fresh" in train("--epochs", 1)

    def assert_refused(words, *flags):
        with pytest.raises(UserError, match=f"weights.keras: .*{words}.*; use --fresh to train"):
            train(*(flags or ("--epochs", 1)))
    assert_refused(r"epochs \(1, now 2\)", "--epochs", 2)
    assert_refused(r"seed \(0, now 1\)", "--epochs", 1, "--seed", 1)
    assert_refused("network", "--epochs", 1, "--network", "original")
    run("preprocess_data.py", "--hop-length", 64, cwd=sounds)
    assert_refused(r"hop_length \(128, now 64\)")
    low = sounds / "Samples/low"
    y, rate = soundfile.read(low / "00.wav")
    soundfile.write(low / "00.wav", y[::-1], rate)
    run("preprocess_data.py", cwd=sounds)
    assert_refused("0 sounds were added, 0 removed and 1 changed since training")
    (sounds / "Preproc/low/01.wav.npy").rename(sounds / "Preproc/low/new.wav.npy")
    assert_refused("1 sounds were added, 1 removed and 1 changed since training")
    assert weights.read_bytes() == before
    train("--epochs", 1, "--fresh", "--seed", 1)
    training = models.load_training(weights)
    assert training.seed == 1
    # The number of epochs follows from the frames of the training sounds: no difference of its own.
    split = training.split
    moved = dataclasses.replace(split, train=split.train[1:],
                                validation=[*split.validation, split.train[0]],
                                groups=split.groups | {split.train[0]: "x"})
    other = dataclasses.replace(training, split=moved, epochs=2, flags={"--groups": "x"})
    assert train_network.describe_changes(training, other) == (
        "differs from this training in --groups")
    features = dataclasses.replace(training.features, hop_length=64)  # it gives more frames
    other = dataclasses.replace(training, features=features, epochs=2)
    assert train_network.describe_changes(training, other) == (
        "differs from this training in hop_length (128, now 64)")


def test_two_trainings_do_not_write_the_same_files(train, sounds):
    for path in (Path("weights.keras"), Path("Results/training_log.csv")):
        (sounds / path.parent).mkdir(exist_ok=True)
        with utils.claim_file(sounds / path):
            with pytest.raises(UserError, match=f"{path}: another training is writing it; wait "):
                train("--epochs", 1)
    assert not list(sounds.glob("**/.*"))


def test_stopped_training_of_other_settings_is_not_continued(train, sounds, stop):
    train("--epochs", 1)
    before = (sounds / "weights.keras").read_bytes()
    stop("--epochs", 2, "--fresh")
    other = r"weights.unfinished.keras: .*learning_rate \(0.005, now 0.1\).*--fresh"
    with pytest.raises(UserError, match=other):
        train("--epochs", 2, "--learning-rate", 0.1)
    assert (sounds / "weights.keras").read_bytes() == before
    assert "Continues after epoch 1 of" in train("--epochs", 2)
    assert (sounds / "weights.keras").read_bytes() != before
    (sounds / "weights.unfinished.keras").write_bytes(b"torn")
    with pytest.raises(UserError, match="weights.unfinished.keras: expected the weights .*again"):
        train("--epochs", 2)
    assert "epoch    1" in train("--epochs", 1, "--fresh")


def test_wrong_field_of_the_weights_is_named(train, sounds):
    train("--epochs", 1)
    path = sounds / "weights.keras"
    with zipfile.ZipFile(path) as archive:
        training = json.loads(archive.read("training.json"))
    for field, value, found in (
            ("network", "x", "network 'x'"), ("seed", "x", "seed 'x'"),
            ("history", [{"epoch": 1}], "history {'epoch': 1}"), ("history", ["x"], "history 'x'")):
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("training.json", json.dumps(training | {field: value}))
        message = re.escape(f"something else (training.json: {found}); train again with --fresh")
        with pytest.raises(UserError, match=message):
            models.load_training(path)


# ---------------------------------------------------------------- from earlier weights

def test_sounds_that_earlier_weights_used_are_never_tested(train, sounds):
    def first_loss(said):
        return float(re.search(r"epoch +1  loss (\d\.\d+)", said)[1])
    cold = first_loss(train("--epochs", 6, "--save", "first.keras"))
    said = train("--epochs", 1, "--weights", "first.keras", "--save", "second.keras", "--seed", 1,
                 small=())
    assert "Starts from first.keras, which has the same classes" in said
    assert re.search(r"\d of 6 test sounds are left out: the earlier training used them", said)
    assert first_loss(said) < cold
    train("--epochs", 1, "--weights", "second.keras", "--save", "third.keras", "--seed", 2,
          small=())
    paths = [sounds / f"{name}.keras" for name in ("first", "second", "third")]
    first, second, third = (models.load_training(path).split for path in paths)
    seen = {*first.train, *first.validation}
    assert not seen & set(second.test) and set(second.test) < set(first.test)
    assert not (seen | {*second.train, *second.validation}) & set(third.test)
    assert not set(first.train) & set(second.validation)
    assert not {*first.train, *second.train} & set(third.validation)
    assert {name for name, _ in third.learned} == {*first.train, *second.train}


@pytest.mark.parametrize("network", models.BACKBONES)
def test_with_other_classes_or_features(train, sounds, network):
    train("--epochs", 1, "--save", "earlier.keras", "--network", network)
    earlier = models.load_network(sounds / "earlier.keras")[0]
    new = models.extend_network(earlier, 2)
    assert new.output_shape == (None, 2)
    for before, after in zip(earlier.get_weights()[:-2], new.get_weights()[:-2], strict=True):
        np.testing.assert_array_equal(before, after)
    shutil.rmtree(sounds / "Preproc/low")
    said = train("--epochs", 1, "--weights", "earlier.keras", small=())
    assert "Starts from earlier.keras; the last layer is new for these 2 classes" in said
    training = models.load_training(sounds / "weights.keras")
    assert training.classes == ["high", "middle"] and training.network == network
    assert training.hyperparameters.filters == 2
    run("preprocess_data.py", "--n-mels", 40, cwd=sounds)
    words = "--weights earlier.keras: expected spectrograms made with .*96.*40"
    with pytest.raises(UserError, match=words):
        train("--epochs", 1, "--weights", "earlier.keras", small=())
    with pytest.raises(UserError, match="nowhere.keras: expected the weights that"):
        train("--weights", "nowhere.keras", small=())


# ---------------------------------------------------------------- memory

def test_memory_mapped_spectrograms_give_the_same_weights(train, sounds, monkeypatch):
    assert "memory-mapped" not in train("--epochs", 2, "--save", "held.keras")
    monkeypatch.setattr(utils, "half_of_memory", lambda: 1)
    assert "memory-mapped" in train("--epochs", 2)
    assert_same_weights(sounds / "held.keras", sounds / "weights.keras")
    fit_network = train_network.fit_network

    def vanishing(*args):
        shutil.rmtree(sounds / "Preproc/low")
        return fit_network(*args)
    monkeypatch.setattr(train_network, "fit_network", vanishing)
    expected = "Preproc/low/.*npy: changed since it was checked: .*No such file.*; run the same"
    with pytest.raises(UserError, match=expected):
        train("--epochs", 1, "--fresh")


MEASURED = f"""
import resource, sys; sys.path.insert(0, {str(ROOT)!r}); import models, train_network, utils
utils.half_of_memory = lambda: 1
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
train_network.main()
print("used", (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


def test_mapped_arrays_of_50_mb_take_the_memory_of_a_few(tmp_path):
    settings = {"sample_rate": 8000, "n_mels": 96, "n_fft": 512, "hop_length": 128, "channels": 1}
    for k in range(8):
        path = tmp_path / "Preproc" / "ab"[k % 2] / f"{k}.wav.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        # Zeros take no disk.
        array = np.lib.format.open_memmap(path, "w+", np.float32, (96, 130_000))
        array[:, ::50_000] = k
        array[:, :99] = np.random.default_rng(k).uniform(-60, 0, (96, 99))  # unlike the others
    saved = {"features": settings, "copies": {}, "finished": True}
    (tmp_path / "Preproc/settings.json").write_text(json.dumps(saved))
    command = [sys.executable, "-c", MEASURED, *SMALL, "--epochs", "1"]
    said = subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True).stdout
    assert "memory-mapped" in said
    assert int(re.search(r"used (\d+)", said)[1]) < 400  # MiB beyond Keras


class Watched:
    """A spectrogram that counts the values that are read; it can be read in no other way."""

    def __init__(self, array):
        self.array = array
        self.shape = array.shape
        self.n_read = 0

    def __getitem__(self, place):
        part = self.array[place]
        self.n_read += part.size
        return part


def test_batches_read_no_more_than_their_windows_and_keep_no_hold_of_them():
    names = [f"{c}/{k}.wav" for c in "ab" for k in range(4)]
    sounds = {name: Watched(np.zeros((8, 10_000), np.float32)) for name in names}
    training = models.Training(
        ["a", "b"], utils.default_settings(8000), "default", Hyperparameters(), 16, 0, 1, {}, None,
        None, Split(names, [], [], [], {}, dict.fromkeys(names, ""), [], []))
    batches = models.Batches(sounds, training, np.zeros((8, 1), np.float32))
    batches[0]
    assert sum(sound.n_read for sound in sounds.values()) == 16 * 8 * 16
    window = batches.cut_window(np.zeros((8, 100), np.float32), np.random.default_rng(0))
    assert window.base is None  # a view would keep a memory map and its file open


@pytest.mark.parametrize("error", [
    MemoryError(),
    RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 1 byte"),
    RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"),
])
def test_batch_that_does_not_fit_is_one_line_and_does_not_stop_a_smaller_one(
        train, monkeypatch, error):
    def run_out(*args):
        raise error
    with monkeypatch.context() as patch:
        patch.setattr(train_network, "fit_network", run_out)
        words = "--batch-size 16: out of memory; try --batch-size 8, or fewer"
        with pytest.raises(UserError, match=words):
            train("--epochs", 1)
    if isinstance(error, MemoryError):
        train("--epochs", 1, "--batch-size", 8)


# ---------------------------------------------------------------- backends and devices

SHORT = f"""
import sys; sys.path.insert(0, {str(ROOT)!r}); import models, train_network, utils
models.MIN_STEPS = {N_STEPS}
utils.MIN_VALIDATION = 0
train_network.main()
"""
TWICE = f"""
{SHORT}
sys.argv += ["--save", "2.keras", "--devices", "2"]
train_network.main()
"""
SCORES = """
import sys; sys.path.insert(0, ROOT); import models, numpy, utils
from pathlib import Path
def save_scores(backend):
    source = utils.find_source(Path("Samples"), Path("Preproc"))
    spectrograms, _ = utils.read_spectrograms(source, source.names)
    for name in ("weights", "other"):
        network, _ = models.load_network(name + ".keras")
        scores = dict(models.predict_sounds(network, spectrograms.items()))
        numpy.save(f"{name}-{backend}.npy", list(scores.values()))
""".replace("ROOT", repr(str(ROOT)))


def train_in(folder, code, *args, backend="jax", **environment):
    command = [sys.executable, "-c", code, *SMALL, "--epochs", "1", *map(str, args)]
    environment = os.environ | {"KERAS_BACKEND": backend, "JAX_PLATFORMS": "cpu"} | environment
    return subprocess.run(command, cwd=folder, env=environment, text=True, check=True,
                          stdout=subprocess.PIPE).stdout


@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_weights_of_one_backend_give_the_same_scores_in_another(train, sounds, backend):
    if not find_spec(backend):
        pytest.skip(f"{backend} is not installed")
    train("--epochs", 1)
    code = f"{SHORT}\n{SCORES}\nsave_scores({backend!r})"
    assert f"{backend} on cpu" in train_in(sounds, code, "--save", "other.keras", backend=backend)
    space = {}
    exec(SCORES, space)
    with contextlib.chdir(sounds):
        space["save_scores"]("here")
    for name in ("weights", "other"):
        here, there = (np.load(sounds / f"{name}-{place}.npy") for place in ("here", backend))
        np.testing.assert_allclose(here, there, atol=1e-4)


@pytest.mark.skipif(not find_spec("jax"), reason="jax is not installed")
def test_two_devices_have_the_losses_of_one_device(sounds):
    said = train_in(sounds, TWICE, "--learning-rate", 1e-4,
                    XLA_FLAGS="--xla_force_host_platform_device_count=2")
    losses = [float(x) for x in re.findall(r"loss (\d+\.\d+)", said)]
    assert len(losses) == 8
    np.testing.assert_allclose(losses[4:], losses[:4], atol=1e-3)


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
