"""The networks, their input, predictions and the weights file."""

import keras
import numpy as np
import pytest

import models
import train_network
from utils import UserError

RNG = np.random.default_rng(0)


def spectrograms(n, n_mels=32, low=5, high=60):
    return [
        RNG.normal(-20, 5, (n_mels, RNG.integers(low, high))).astype(np.float32) for _ in range(n)
    ]


@pytest.fixture
def network():
    return models.build_network(
        "default",
        models.HYPERPARAMETERS["default"] | {"layers": 1, "filters": 4},
        spectrograms(8),
        3,
        16,
    )


@pytest.mark.parametrize("name", models.HYPERPARAMETERS)
@pytest.mark.parametrize("n_frames", [16, 24, 256])
@pytest.mark.parametrize("n_layers", [1, 3, 6])
def test_every_size_of_network_gives_probabilities(name, n_frames, n_layers):
    hyperparameters = models.HYPERPARAMETERS[name] | {"layers": n_layers, "filters": 2}
    scores = models.build_network(name, hyperparameters, spectrograms(3), 4, n_frames)(
        RNG.normal(size=(2, 32, n_frames))
    )
    np.testing.assert_allclose(np.sum(scores, axis=1), 1, atol=1e-5)


def test_input_is_normalised_by_the_training_sounds_each_of_which_counts_alike():
    sounds = spectrograms(20)
    sounds.append(
        np.full((32, 50_000), -100, np.float32)
    )  # a long silence, which moves the mean by a share of 1 in 21
    network = models.build_network(
        "default", models.HYPERPARAMETERS["default"], iter(sounds), 3, 16
    )
    normalised = [np.array(network.layers[1](sound[None]))[0] for sound in sounds]
    np.testing.assert_allclose(np.mean([x.mean(axis=1) for x in normalised], axis=0), 0, atol=1e-3)
    np.testing.assert_allclose(
        np.mean([np.square(x).mean(axis=1) for x in normalised], axis=0), 1, atol=1e-3
    )


def test_windows_hold_nine_in_ten_sounds_whole():
    lengths = [20] * 6 + [100] * 4 + [400]
    assert models.choose_n_frames(np.zeros((32, n)) for n in lengths) == 104


def test_validation_and_test_sounds_choose_neither_window_nor_normalisation():
    names = [f"{c}/{i}.wav" for c in "ab" for i in range(6)]
    hyperparameters = models.HYPERPARAMETERS["default"] | {"layers": 1, "filters": 2}
    info = {
        "network": "default",
        "hyperparameters": hyperparameters,
        "classes": ["a", "b"],
        "train": names[:4] + names[6:10],
        "validation": [names[4], names[10]],
        "test": [names[5], names[11]],
    }
    sounds = dict(zip(names, spectrograms(12)))
    others = {
        name: RNG.normal(10, 30, (32, 500)).astype(np.float32)
        for name in info["validation"] + info["test"]
    }
    one, other = (
        train_network.build_or_extend(some, info, None) for some in (sounds, sounds | others)
    )
    assert (
        one.input_shape
        == other.input_shape
        == (None, 32, models.choose_n_frames(sounds[n] for n in info["train"]))
    )
    for part in ("mean", "variance"):
        np.testing.assert_array_equal(
            *(np.array(getattr(network.layers[1], part)) for network in (one, other))
        )
    means = [sounds[name].mean(axis=1) for name in info["train"]]
    np.testing.assert_allclose(np.ravel(one.layers[1].mean), np.mean(means, axis=0), rtol=1e-5)


def test_default_network_and_its_optimizer_are_those_of_the_hyperparameters():
    hyperparameters = models.HYPERPARAMETERS["default"]
    network = models.build_network("default", hyperparameters, spectrograms(3, n_mels=96), 12, 176)
    models.compile_network(network, "default", hyperparameters, n_steps=200)
    block = 2 * ["Conv2D", "BatchNormalization", "ReLU"]
    assert [type(layer).__name__ for layer in network.layers[4:]] == [
        *block[:3],
        *3 * [*block, "AveragePooling2D"],
        "AveragePooling2D",
        "Flatten",
        "Dropout",
        "Dense",
    ]
    convolutions = [layer for layer in network.layers if isinstance(layer, keras.layers.Conv2D)]
    assert [(layer.filters, layer.kernel_size, layer.strides) for layer in convolutions] == [
        (16, (5, 5), (2, 2)),
        *((n, (3, 3), (1, 1)) for n in (16, 16, 32, 32, 64, 64)),
    ]
    assert {
        layer.momentum
        for layer in network.layers
        if isinstance(layer, keras.layers.BatchNormalization)
    } == {0.9}
    assert network.layers[-2].rate == 0.2
    optimizer = network.optimizer
    assert (type(optimizer).__name__, optimizer.weight_decay, optimizer.clipnorm) == (
        "AdamW",
        0.05,
        1.0,
    )
    rates = [
        float(optimizer.learning_rate.numpy())
        for step in range(201)
        if optimizer.iterations.assign(step) is not False
    ]
    assert rates[0] == pytest.approx(0.0002) and max(rates) == rates[10] == pytest.approx(0.002)
    assert rates[10:] == sorted(rates[10:], reverse=True) and rates[-1] == 0


def test_original_network_is_that_of_2017():
    hyperparameters = models.HYPERPARAMETERS["original"]
    network = models.build_network("original", hyperparameters, spectrograms(3, n_mels=96), 12, 176)
    models.compile_network(network, "original", hyperparameters, n_steps=200)
    kinds = [type(layer).__name__ for layer in network.layers[4:]]
    assert kinds == [
        "Conv2D",
        "BatchNormalization",
        "ReLU",
        *3 * ["Conv2D", "BatchNormalization", "ELU", "MaxPooling2D", "Dropout"],
        "Flatten",
        "Dense",
        "Dropout",
        "Dense",
    ]
    assert (
        type(network.optimizer).__name__ == "Adadelta"
        and float(network.optimizer.learning_rate) == 1.0
    )
    convolutions = [layer for layer in network.layers if isinstance(layer, keras.layers.Conv2D)]
    assert {(layer.filters, layer.kernel_size) for layer in convolutions} == {(32, (3, 3))}
    dropouts = [layer for layer in network.layers if isinstance(layer, keras.layers.Dropout)]
    assert [layer.rate for layer in dropouts] == [0.25, 0.25, 0.25, 0.5]
    assert [layer.units for layer in network.layers if isinstance(layer, keras.layers.Dense)] == [
        128,
        12,
    ]
    assert {
        layer.pool_size for layer in network.layers if isinstance(layer, keras.layers.MaxPooling2D)
    } == {(2, 2)}
    assert hyperparameters["batch_size"] == 128 and not any(
        hyperparameters[key]
        for key in ("shift", "warp", "eq", "mixup", "masks", "smoothing")
    )


def test_score_of_a_sound_does_not_depend_on_its_neighbours(network):
    sounds = list(enumerate(spectrograms(70)))
    together = dict(models.predict_sounds(network, sounds))
    assert list(together) == list(range(70)) and together[0].shape == (3,)
    for k in (0, 63, 64, 69):
        ((name, alone),) = models.predict_sounds(network, sounds[k : k + 1])
        assert name == k
        np.testing.assert_allclose(alone, together[k], atol=1e-5)


def test_score_of_a_long_sound_is_the_mean_over_its_windows(network):
    sound = spectrograms(1, low=45, high=46)[0]
    windows = models.cut_windows(sound, 16)
    ((_, scores),) = models.predict_sounds(network, [("long", sound)])
    np.testing.assert_allclose(scores, np.array(network(windows)).mean(axis=0), atol=1e-6)


STILL = dict(shift=0, warp=0, eq=0, mixup=0, masks=0, smoothing=0)  # changes nothing


def make_batches(sounds, classes, network="default", n_frames=24, fill=-30, **changes):
    """Batches of sounds whose classes are given, one a sound."""
    names = [f"{c}/{k}.wav" for k, c in enumerate(classes)]
    info = {
        "train": names,
        "classes": sorted(set(classes)),
        "n_frames": n_frames,
        "seed": 0,
        "epochs": 20,
        "hyperparameters": models.HYPERPARAMETERS[network] | changes,
    }
    fill = np.full((*sounds[0].shape[:-1], 1), fill, np.float32)
    return models.Batches(dict(zip(names, sounds)), info, fill)


def random_batches(network="default", n=40, **changes):
    return make_batches(
        spectrograms(n), RNG.permutation(["a", "b", "c", "d"] * (n // 4)), network, **changes
    )


def test_batches_follow_from_seed_and_epoch_and_leave_the_sounds_alone():
    batches = random_batches()
    before, targets = (
        [sound.copy() for sound in batches.spectrograms.values()],
        batches.targets.copy(),
    )
    first, again = batches[3], batches[3]
    batches.start_epoch(1)
    later = batches[3]
    batches.start_epoch(0)
    np.testing.assert_array_equal(first[0], again[0])
    np.testing.assert_array_equal(first[0], batches[3][0])
    assert not np.array_equal(first[0], later[0])
    for sound, copy in zip(batches.spectrograms.values(), before, strict=True):
        np.testing.assert_array_equal(sound, copy)
    np.testing.assert_array_equal(targets, batches.targets)


def test_batches_of_an_epoch_hold_every_sound_equally_often_and_all_have_one_shape():
    batches = random_batches(batch_size=8, **STILL)
    y = np.concatenate([batches[k][1] for k in range(len(batches))])
    np.testing.assert_array_equal(y.sum(axis=0), 6 * batches.targets.sum(axis=0))
    uneven = random_batches(batch_size=1000)  # the set comes round 25 times a batch
    assert [uneven[k][0].shape for k in range(2)] == 2 * [(1000, 32, 24)]
    assert models.count_steps(2500, 32) == 79 and models.count_steps(40, 32) == 30


def level_batches(**changes):
    """Sounds of one level each: a mixed frame has a level between, a masked one the fill's."""
    sounds = [np.full((32, 20), level, np.float32) for level in np.arange(40) - 50]
    return make_batches(sounds, [f"{k:02}" for k in range(40)], fill=7, **changes)


def test_mixup_mixes_a_window_and_its_target_alike():
    x, y, _ = level_batches(**STILL | {"mixup": 0.3})[0]
    assert ((y > 1e-4).sum(axis=1) == 2).mean() > 0.5  # mixed from two
    np.testing.assert_allclose(x[:, 0, 10], y @ (np.arange(40) - 50), atol=1e-4)
    assert y.max(axis=1).min() >= 0.5


def test_mixup_leaves_each_window_the_larger_share():
    batches = level_batches(**STILL | {"mixup": 0.3})
    x = np.zeros((40, 32, 24), np.float32)
    _, y = batches.mix(x, np.eye(40), np.random.default_rng(0))
    assert 0.5 <= np.diag(y).min() < 0.9


@pytest.mark.parametrize("kind, shares", [("balanced", (0.5, 0.5)), ("none", (0.9, 0.1))])
@pytest.mark.parametrize("mixup", [0, 0.3])
def test_classes_of_90_and_10_sounds_count_alike_in_the_loss_mixed_or_not(kind, shares, mixup):
    batches = make_batches(
        spectrograms(100), ["a"] * 90 + ["b"] * 10, class_weights=kind, mixup=mixup
    )
    mass = 0
    for epoch in range(13):
        batches.start_epoch(epoch)
        mass = mass + sum(weights @ y for _, y, weights in (batches[k] for k in range(30)))
    np.testing.assert_allclose(
        mass / mass.sum(), np.array(shares) * 0.95 + 0.025, atol=0.02
    )  # smoothed
    _, y, weights = batches[0]
    np.testing.assert_allclose(y.sum(axis=1), 1, atol=1e-6)
    assert weights.shape == (32,) and (kind == "balanced" or set(weights) == {1})


def test_warp_changes_speed_and_pitch_by_up_to_its_share():
    times = np.tile(np.arange(100, dtype=np.float32), (32, 1))
    windows = make_batches([times] * 2, ["a", "b"], **STILL | {"warp": 0.2})[0][0]
    speeds = (windows[:, 0, 16] - windows[:, 0, 4]) / 12
    assert speeds.min() < 0.92 and speeds.max() > 1.08 and ((0.7 < speeds) & (speeds < 1.3)).all()
    bands = np.tile(np.arange(32, dtype=np.float32)[:, None], (1, 100))
    windows = make_batches([bands] * 2, ["a", "b"], **STILL | {"warp": 0.2})[0][0]
    steps = windows[:, 20, 0] / 20  # of the nearest bands; the last may be clipped
    places = np.arange(21) * steps[:, None]
    np.testing.assert_allclose(windows[:, :21, 0], places, rtol=0, atol=1)
    assert 1 / 1.2 - 0.026 <= steps.min() < 0.92 and 1.08 < steps.max() <= 1 / 0.8 + 0.026


def test_warp_leaves_the_middle_of_a_sound_that_fits_in_its_place():
    times = np.tile(np.arange(24, dtype=np.float32), (32, 1))
    windows = make_batches([times] * 2, ["a", "b"], **STILL | {"warp": 0.2})[0][0]
    assert set(windows[:, 0, 12]) == {12}
    assert len(set(windows[:, 0, 2])) > 2


def test_eq_raises_and_lowers_ranges_of_bands_the_same_at_all_times():
    sounds = [np.zeros((32, 24), np.float32)] * 4
    gains = make_batches(sounds, ["a", "b"] * 2, **STILL | {"eq": 3})[0][0]
    np.testing.assert_array_equal(gains, np.repeat(gains[..., :1], 24, axis=2))
    assert gains.dtype == np.float32 and 3 < np.abs(gains).max() <= 6
    assert len(np.unique(gains[:, 0, 0])) == 32  # each window has its own curve
    assert np.abs(gains).max(axis=(1, 2)).min() < 0.5  # and its own strength
    assert np.abs(np.diff(gains[..., 0])).max() <= 6 / 31 * 3  # dB from band to band


def test_channels_are_warped_and_equalized_alike():
    sounds = [np.tile(RNG.normal(-50, 9, (1, 32, 24)).astype(np.float32), (2, 1, 1))] * 4
    windows = make_batches(sounds, ["a", "b"] * 2)[0][0]
    assert windows.shape == (32, 2, 32, 24)
    np.testing.assert_array_equal(windows[:, 0], windows[:, 1])


def test_masks_hide_bands_and_times_behind_the_fill():
    x, *_ = level_batches(**STILL | {"masks": 2})[0]
    bands, frames = (x == 7).all(axis=2), (x == 7).all(axis=1)
    assert 1 < bands.sum(axis=1).mean() < 8 and 0.5 < frames.sum(axis=1).mean() < 6
    assert ((x == 7) == (bands[:, :, None] | frames[:, None, :])).all()


@pytest.mark.parametrize("change", [{"warp": 0.2}, {"eq": 6}, {"mixup": 0.3}, {"masks": 2}])
def test_the_last_quarter_of_the_epochs_alters_nothing(change):
    sounds = spectrograms(40, low=24, high=25)
    plain, altered = (
        make_batches(sounds, ["a", "b"] * 20, **STILL | changes) for changes in ({}, change)
    )
    for epoch, is_altered in ((14, True), (15, False), (19, False)):  # of 20
        plain.start_epoch(epoch)
        altered.start_epoch(epoch)
        (x, y, _), (changed, targets, _) = plain[0], altered[0]
        assert np.array_equal(x, changed) is not is_altered
        assert is_altered or np.array_equal(y, targets)


def test_shift_moves_a_sound_that_fits_but_cuts_little_of_it():
    sounds = [np.full((32, 20), -20, np.float32)] * 4

    def onsets(**changes):
        windows = make_batches(sounds, ["a", "b"] * 2, **STILL | changes)[0][0]
        assert (windows[:, 0] > -90).sum(axis=1).min() >= 18
        return {np.flatnonzero(window[0] > -90)[0] for window in windows}

    assert onsets() == {2} and len(onsets(shift=0.1)) > 2


def test_long_sounds_are_seen_in_random_windows():
    ramp = np.tile(np.arange(100, dtype=np.float32), (32, 1))
    starts = make_batches([ramp] * 2, ["a", "b"], **STILL)[0][0][:, 0, 0]
    assert len(set(starts)) > 10 and 0 <= min(starts) and max(starts) <= 76


def test_targets_sum_to_one_and_are_smoothed_where_the_hyperparameters_says():
    x, y, _ = random_batches()[0]
    assert x.shape == (32, 32, 24) and x.dtype == y.dtype == np.float32
    np.testing.assert_allclose(y.sum(axis=1), 1, atol=1e-6)
    assert y.min() == pytest.approx(0.05 / 4)
    assert set(np.unique(random_batches("original")[0][1])) == {0, 1}


def test_labels_outside_training_are_not_smoothed():
    assert models.one_hot(["b/x.wav", "a/y.wav"], ["a", "b"]).tolist() == [[0, 1], [1, 0]]


def test_weights_that_are_something_else_are_refused(tmp_path, network):
    path = tmp_path / "w.keras"
    network.save(path)  # Keras's own, without what training adds
    with pytest.raises(
        UserError, match="w.keras: expected the weights that train_network.py saves"
    ):
        models.load_network(path)
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(UserError, match="w.keras: expected the weights"):
        models.load_network(path)


@pytest.mark.parametrize(
    "n_sounds, n_steps", [(190, 552), (2300, 1919), (10_000, 4000), (100_000, 31_250)]
)
def test_ten_times_the_sounds_get_three_times_the_steps_but_each_ten_epochs(n_sounds, n_steps):
    per_epoch = models.count_steps(n_sounds, 32)
    assert 0 <= models.choose_epochs(n_sounds, 32) * per_epoch - n_steps < per_epoch
