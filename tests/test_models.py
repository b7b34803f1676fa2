"""The networks, their input, predictions and the weights file."""
import dataclasses

import numpy as np
import pytest

import models
import train_network
from utils import FeatureSettings, Hyperparameters, Split

RNG = np.random.default_rng(0)
STILL = dict(shift=0, warp=0, eq=0, mixup=0, masks=0, smoothing=0)  # changes nothing


def make_spectrograms(n, n_mels=32, low=5, high=60):
    return [RNG.normal(-20, 5, (n_mels, RNG.integers(low, high))).astype(np.float32)
            for _ in range(n)]


def make_training(train=("a/0.wav", "b/1.wav", "c/2.wav"), validation=(), test=(),
                  network="default", n_frames=24, epochs=20, **changes):
    """A Training on sounds of these names. changes: of the hyperparameters."""
    names = [*train, *validation, *test]
    groups = {name: name for name in (*validation, *test)}
    split = Split([*train], [*validation], [*test], [], groups, dict.fromkeys(names, ""), [], [])
    hyperparameters = dataclasses.replace(Hyperparameters.of_network(network), **changes)
    return models.Training(sorted({models.class_of(name) for name in names}),
                           FeatureSettings(8000, 32, 512, 128), network, hyperparameters,
                           n_frames, 0, epochs, {}, None, None, split)


def build(name="default", n_classes=3, n_frames=16, sounds=None, **changes):
    """A network of 3 classes or more. changes: of the hyperparameters."""
    hyperparameters = dataclasses.replace(Hyperparameters.of_network(name), **changes)
    sounds = sounds or make_spectrograms(8)
    return models.build_network(name, hyperparameters, iter(sounds), n_classes, n_frames)


@pytest.fixture
def network():
    return build(layers=1, filters=4)


@pytest.mark.parametrize("name", models.BACKBONES)
@pytest.mark.parametrize("n_layers, n_frames", [(1, 16), (3, 24), (6, 16), (6, 256)])
def test_every_size_of_network_gives_probabilities(name, n_layers, n_frames):
    network = build(name, 4, n_frames, layers=n_layers, filters=2)
    scores = network(RNG.normal(size=(2, 32, n_frames)))
    np.testing.assert_allclose(np.sum(scores, axis=1), [1, 1], atol=1e-5)


def test_input_is_normalised_by_the_training_sounds_each_of_which_counts_alike():
    sounds = make_spectrograms(20)
    sounds.append(np.full((32, 50_000), -100, np.float32))  # a long silence counts for 1 in 21
    layer = build(sounds=sounds).layers[1]
    normalised = [np.array(layer(sound[None]))[0] for sound in sounds]
    means = np.mean([x.mean(axis=1) for x in normalised], axis=0)
    squares = np.mean([np.square(x).mean(axis=1) for x in normalised], axis=0)
    np.testing.assert_allclose(means, 0, atol=1e-3)
    np.testing.assert_allclose(squares, 1, atol=1e-3)


def test_usual_temperature_suits_labels_that_are_mixed_or_smoothed():
    for flags, expected in (({}, 0.7), ({"mixup": 0.0}, 0.7), ({"smoothing": 0.0}, 0.7),
                            ({"mixup": 0.0, "smoothing": 0.0}, 1)):
        assert make_training(**flags).temperature == expected


def test_validation_and_test_sounds_do_not_choose_the_normalisation():
    names = [f"{c}/{i}.wav" for c in "ab" for i in range(6)]
    sounds = dict(zip(names, make_spectrograms(12)))
    training = make_training(names[:8], names[8:10], names[10:], layers=1, filters=2)
    before = train_network.build_network(sounds, training).layers[1]
    others = {name: RNG.normal(10, 30, (32, 500)).astype(np.float32) for name in names[8:]}
    after = train_network.build_network(sounds | others, training).layers[1]
    np.testing.assert_array_equal(before.mean, after.mean)
    np.testing.assert_array_equal(before.variance, after.variance)
    means = [sounds[name].mean(axis=1) for name in names[:8]]
    np.testing.assert_allclose(np.ravel(before.mean), np.mean(means, axis=0), rtol=1e-5)


def settings_of(network, kind, *attributes):
    """The attributes of the layers of a kind, as tuples."""
    return [tuple(getattr(layer, attribute) for attribute in attributes)
            for layer in network.layers if type(layer).__name__ == kind]


def test_default_network_and_its_optimizer_are_those_of_the_hyperparameters():
    network = build(n_classes=12, n_frames=176, sounds=make_spectrograms(3, n_mels=96))
    block = ["Conv2D", "BatchNormalization", "ReLU"]
    assert [type(layer).__name__ for layer in network.layers[4:]] == [
        *block, *3 * [*block, *block, "AveragePooling2D"], "AveragePooling2D", "Flatten",
        "Dropout", "Dense"]
    assert settings_of(network, "Conv2D", "filters", "kernel_size", "strides") == [
        (16, (5, 5), (2, 2)), *((n, (3, 3), (1, 1)) for n in (16, 16, 32, 32, 64, 64))]
    assert set(settings_of(network, "BatchNormalization", "momentum")) == {(0.9,)}
    assert settings_of(network, "Dropout", "rate") == [(0.2,)]
    models.compile_network(network, make_training())  # 20 epochs of 60 steps
    optimizer = network.optimizer
    assert type(optimizer) is models.Muon
    assert (optimizer.weight_decay, optimizer.clipnorm) == (0.05, 1.0)
    rates = []
    for step in range(0, 1201, 60):
        optimizer.iterations.assign(step)
        rates.append(float(optimizer.learning_rate))
    assert rates[0] == pytest.approx(0.0005) and max(rates) == rates[1] == pytest.approx(0.005)
    assert rates[1:] == sorted(rates[1:], reverse=True) and rates[-1] == 0


def run_steps(kind, shapes):
    """Take three steps of an optimizer. Returns the gradients, and each variable before and after.

    The learning rate is 0.01, and there is no weight decay.
    """
    keras = models.keras
    rng = np.random.default_rng(0)
    optimizer = kind(0.01, weight_decay=0)
    before = [rng.normal(size=shape).astype(np.float32) for shape in shapes]
    variables = [keras.Variable(values) for values in before]
    gradients = [[rng.normal(size=shape) for shape in shapes] for _ in range(3)]
    for some in gradients:
        optimizer.apply([keras.ops.convert_to_tensor(g, "float32") for g in some], variables)
    return gradients, before, list(map(keras.ops.convert_to_numpy, variables))


@pytest.mark.parametrize("shape", [(3, 3, 16, 16), (5, 5, 1, 32)])
def test_muon_moves_the_kernel_of_a_convolution_equally_far_in_all_directions(shape):
    gradients, (before,), (after,) = run_steps(models.Muon, [shape])
    momentum = 0
    expected = 0
    for (gradient,) in gradients:
        matrix = gradient.reshape(-1, shape[-1])
        momentum = 0.95 * momentum + matrix
        u, _, vt = np.linalg.svd(matrix + 0.95 * momentum, full_matrices=False)
        expected = expected - 0.01 * 0.2 * max(matrix.shape)**0.5 * u @ vt
    moved = (after - before).reshape(-1, shape[-1])
    ratio = np.linalg.norm(moved) / np.linalg.norm(expected)
    cosine = np.sum(moved * expected) / (np.linalg.norm(moved) * np.linalg.norm(expected))
    assert 0.8 < ratio < 1.1 and cosine > 0.98


def test_muon_is_adamw_for_all_but_kernels_of_convolutions():
    shapes = (16,), (64, 3)
    for own, expected in zip(*(run_steps(kind, shapes)[2] for kind in
                               (models.Muon, models.keras.optimizers.AdamW)), strict=True):
        np.testing.assert_allclose(own, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.skipif(models.keras.backend.backend() != "tensorflow", reason="only for TensorFlow")
def test_fused_batch_normalisation_is_that_of_keras():
    import tensorflow as tf
    x = tf.constant(RNG.normal(3, 2, (8, 12, 10, 6)), tf.float32)
    own, fused = (models.layers.BatchNormalization(momentum=0.9) for _ in range(2))
    for layer in (own, fused):
        layer.build(x.shape)
        layer.set_weights([np.linspace(a, b, 6) for a, b in ((0.5, 2), (-1, 1), (0, 3), (1, 4))])
    models.fuse_normalization(models.keras.Sequential([fused]))
    network = build()
    models.compile_network(network, make_training())
    layers = models.layers.BatchNormalization
    assert all("call" in vars(layer) for layer in network.layers if isinstance(layer, layers))
    for is_training in (True, True, False):
        found = []
        for layer in (own, fused):
            with tf.GradientTape() as tape:
                tape.watch(x)
                y = layer(x, training=is_training)
                loss = tf.reduce_mean(y**3)
            found.append([y, *layer.weights])
            if is_training:
                found[-1] += tape.gradient(loss, [x, layer.gamma, layer.beta])
        for a, b in zip(*found, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
    assert fused.get_config() | {"name": ""} == own.get_config() | {"name": ""}


def test_original_network_is_that_of_2017():
    network = build("original", 12, 176, sounds=make_spectrograms(3, n_mels=96))
    block = ["Conv2D", "BatchNormalization", "ELU", "MaxPooling2D", "Dropout"]
    assert [type(layer).__name__ for layer in network.layers[4:]] == [
        "Conv2D", "BatchNormalization", "ReLU", *3 * block, "Flatten", "Dense", "Dropout", "Dense"]
    assert settings_of(network, "Conv2D", "filters", "kernel_size") == 4 * [(32, (3, 3))]
    assert settings_of(network, "Dropout", "rate") == [(0.25,), (0.25,), (0.25,), (0.5,)]
    assert settings_of(network, "Dense", "units") == [(128,), (12,)]
    assert settings_of(network, "MaxPooling2D", "pool_size") == 3 * [((2, 2),)]
    training = make_training(network="original")
    models.compile_network(network, training)
    assert type(network.optimizer).__name__ == "Adadelta"
    assert float(network.optimizer.learning_rate) == 1.0
    assert training.hyperparameters.batch_size == 128
    assert not any(getattr(training.hyperparameters, key) for key in STILL)


def test_score_of_a_sound_does_not_depend_on_its_neighbours(network):
    sounds = list(enumerate(make_spectrograms(70)))
    together = dict(models.predict_sounds(network, sounds))
    assert list(together) == list(range(70)) and together[0].shape == (3,)
    for k in (0, 63, 64, 69):
        [(name, alone)] = models.predict_sounds(network, sounds[k:k + 1])
        assert name == k
        np.testing.assert_allclose(alone, together[k], atol=1e-5)


def test_score_of_a_long_sound_is_the_mean_over_its_windows(network):
    [sound] = make_spectrograms(1, low=45, high=46)
    windows = models.cut_windows(sound, 16)
    [(_, scores)] = models.predict_sounds(network, [("long", sound)])
    np.testing.assert_allclose(scores, np.array(network(windows)).mean(axis=0), atol=1e-6)


def make_batches(sounds, classes, network="default", fill=-30, **changes):
    """Batches of 32 windows of sounds whose classes are given, one a sound."""
    names = [f"{c}/{k}.wav" for k, c in enumerate(classes)]
    fill = np.full((*sounds[0].shape[:-1], 1), fill, np.float32)
    training = make_training(names, network=network, **{"batch_size": 32} | changes)
    return models.Batches(dict(zip(names, sounds)), training, fill)


def random_batches(network="default", **changes):
    classes = RNG.permutation(["a", "b", "c", "d"] * 10)
    return make_batches(make_spectrograms(40), classes, network, **changes)


def level_batches(**changes):
    """Sounds of one level each: a mixed frame has a level between, a masked one the fill's."""
    sounds = [np.full((32, 20), level, np.float32) for level in np.arange(40) - 50]
    return make_batches(sounds, [f"{k:02}" for k in range(40)], fill=7, **STILL | changes)


def ramp_windows(n_frames, **changes):
    """The first batch of sounds whose values are the number of the frame."""
    times = np.tile(np.arange(n_frames, dtype=np.float32), (32, 1))
    return make_batches([times] * 2, ["a", "b"], **STILL | changes)[0][0]


def test_windows_hold_nine_in_ten_sounds_whole():
    lengths = [20] * 6 + [100] * 4 + [400]
    assert models.choose_n_frames(lengths) == 104


def test_batches_follow_from_seed_and_epoch_and_leave_the_sounds_alone():
    batches = random_batches()
    before = [sound.copy() for sound in batches.spectrograms.values()]
    targets = batches.targets.copy()
    first, *_ = batches[3]
    np.testing.assert_array_equal(first, batches[3][0])
    batches.start_epoch(1)
    assert not np.array_equal(first, batches[3][0])
    batches.start_epoch(0)
    np.testing.assert_array_equal(first, batches[3][0])
    for sound, copy in zip(batches.spectrograms.values(), before, strict=True):
        np.testing.assert_array_equal(sound, copy)
    np.testing.assert_array_equal(targets, batches.targets)


def test_batches_of_an_epoch_hold_every_sound_equally_often_and_all_have_one_shape():
    batches = random_batches(batch_size=8, **STILL)
    y = np.concatenate([batches[k][1] for k in range(len(batches))])
    np.testing.assert_array_equal(y.sum(axis=0), 12 * batches.targets.sum(axis=0))
    uneven = random_batches(batch_size=1000)  # the set comes round 25 times a batch
    assert [uneven[k][0].shape for k in range(2)] == 2 * [(1000, 32, 24)]


@pytest.mark.parametrize("lengths, n_steps, per_epoch", [
    ([100] * 400, 2000, 60),  # in frames
    ([28] * 2300, 2538, 144),
    ([100_000] * 20, 1431, 60),  # of which 1,024 count
    ([9] * 100_000, 62_500, 6250)])
def test_steps_grow_with_the_root_of_all_frames_but_each_sound_gets_ten_epochs(
        lengths, n_steps, per_epoch):
    assert models.count_steps(len(lengths), 16) == per_epoch
    assert 0 <= models.choose_epochs(lengths, 16) * per_epoch - n_steps < per_epoch


@pytest.mark.parametrize("epoch", [0, 15])
def test_mixup_mixes_a_window_and_its_target_alike_and_leaves_it_the_larger_share(epoch):
    batches = level_batches(mixup=0.3)
    batches.start_epoch(epoch)
    x, y, _ = batches[0]
    assert ((y > 1e-4).sum(axis=1) == 2).mean() > 0.5  # mixed from two
    np.testing.assert_allclose(x[:, 0, 10], y @ (np.arange(40) - 50), atol=1e-4)
    own = y[np.arange(32), batches.order[:32]]
    assert 0.5 <= own.min() < 0.9


@pytest.mark.parametrize("kind, shares", [("balanced", (0.5, 0.5)), ("none", (0.9, 0.1))])
@pytest.mark.parametrize("mixup", [0, 0.3])
def test_classes_of_90_and_10_sounds_count_alike_in_the_loss_mixed_or_not(kind, shares, mixup):
    batches = make_batches(make_spectrograms(100), ["a"] * 90 + ["b"] * 10, class_weights=kind,
                           mixup=mixup)
    mass = 0
    for epoch in range(6):
        batches.start_epoch(epoch)
        mass = mass + sum(weights @ y for _, y, weights in map(batches.__getitem__, range(30)))
    smoothed = np.array(shares) * 0.95 + 0.025
    np.testing.assert_allclose(mass / mass.sum(), smoothed, atol=0.025)
    _, y, weights = batches[0]
    np.testing.assert_allclose(y.sum(axis=1), 1, atol=1e-6)
    assert weights.shape == (32,) and (kind == "balanced" or set(weights) == {1})


def test_warp_changes_speed_and_pitch_by_up_to_its_share():
    windows = ramp_windows(100, warp=0.2)
    speeds = (windows[:, 0, 16] - windows[:, 0, 4]) / 12
    assert speeds.min() < 0.92 and speeds.max() > 1.08 and ((0.7 < speeds) & (speeds < 1.3)).all()
    bands = np.tile(np.arange(32, dtype=np.float32)[:, None], (1, 100))
    windows = make_batches([bands] * 2, ["a", "b"], **STILL | {"warp": 0.2})[0][0]
    steps = windows[:, 20, 0] / 20  # of the nearest bands; the last may be clipped
    places = np.arange(21) * steps[:, None]
    np.testing.assert_allclose(windows[:, :21, 0], places, rtol=0, atol=1)
    assert 1 / 1.2 - 0.026 <= steps.min() < 0.92 and 1.08 < steps.max() <= 1 / 0.8 + 0.026
    windows = ramp_windows(24, warp=0.2)  # the middle of a sound that fits stays in its place
    assert set(windows[:, 0, 12]) == {12} and len(set(windows[:, 0, 2])) > 2


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
    is_masked = level_batches(masks=2)[0][0] == 7
    bands = is_masked.all(axis=2)
    frames = is_masked.all(axis=1)
    assert 1 < bands.sum(axis=1).mean() < 8 and 0.5 < frames.sum(axis=1).mean() < 6
    np.testing.assert_array_equal(is_masked, bands[:, :, None] | frames[:, None, :])


@pytest.mark.parametrize("change", [{"warp": 0.2}, {"eq": 6}, {"mixup": 0.3}, {"masks": 2}])
def test_alterations_become_weaker_in_the_second_half(change):
    sounds = make_spectrograms(40, low=24, high=25)
    plain, altered = (make_batches(sounds, ["a", "b"] * 20, **STILL | some)
                      for some in ({}, change))
    distances = []
    strengths = []
    for epoch in (0, 10, 15, 19):  # of 20
        plain.start_epoch(epoch)
        altered.start_epoch(epoch)
        pairs = [(plain[step][0], altered[step][0]) for step in range(16)]
        distances.append(np.mean([np.abs(x - changed).mean() for x, changed in pairs]))
        strengths.append(altered.strength)
    assert strengths == pytest.approx([1, 1, 0.5, 0.1])
    assert distances[1] == pytest.approx(distances[0], rel=0.15)
    assert distances[2] < 0.8 * distances[1]
    assert distances[3] < 0.5 * distances[2]


@pytest.mark.parametrize("shift, low, high", [(0, 1, 1), (0.1, 3, 9)])
def test_shift_moves_a_sound_that_fits_but_cuts_little_of_it(shift, low, high):
    sounds = [np.full((32, 20), -20, np.float32)] * 4
    is_loud = make_batches(sounds, ["a", "b"] * 2, **STILL | {"shift": shift})[0][0][:, 0] > -90
    assert is_loud.sum(axis=1).min() >= 18
    onsets = set(is_loud.argmax(axis=1))
    assert 2 in onsets and low <= len(onsets) <= high


def test_long_sounds_are_seen_in_random_windows():
    starts = ramp_windows(100)[:, 0, 0]
    assert len(set(starts)) > 10 and 0 <= min(starts) and max(starts) <= 76


def test_training_targets_are_smoothed_where_the_hyperparameters_say_and_others_never():
    x, y, _ = random_batches()[0]
    assert x.shape == (32, 32, 24) and x.dtype == y.dtype == np.float32
    np.testing.assert_allclose(y.sum(axis=1), 1, atol=1e-6)
    assert y.min() == pytest.approx(0.05 / 4)
    assert set(np.unique(random_batches("original")[0][1])) == {0, 1}
    assert models.one_hot(["b/x.wav", "a/y.wav"], ["a", "b"]).tolist() == [[0, 1], [1, 0]]


def test_background_fills_silence_and_is_below_each_sound_by_a_random_level(monkeypatch):
    monkeypatch.setattr(models, "BACKGROUND_SHARE", 1)
    monkeypatch.setattr(models, "BACKGROUND_RANGE", (0, 20))
    monkeypatch.setattr(models, "GAIN_RANGE", (-7, -7))
    sound = np.full((8, 6), -20, np.float32)
    noise = np.full((8, 40), -50, np.float32)
    noise[:4] = -90  # it has the upper bands only
    batches = make_batches([sound, noise], ["a", "_background"], warp=0, eq=0, mixup=0, masks=0,
                           shift=0, batch_size=64)
    x, y, _ = batches[0]
    x = x + 7
    is_sound = y[:, 1] > 0.5  # the classes are sorted
    silent = x[is_sound][:, 4:, 0]  # (n, 4), where the sound has silence
    levels = silent[:, 0]
    assert is_sound.sum() > 20 and np.ptp(silent, axis=1).max() < 1e-3
    # Its four loud bands, 20 dB apart at most from all eight of the sound.
    wanted = -20 + 10 * np.log10(8 / 4) - np.array([20, 0])
    assert wanted[0] - 0.1 < levels.min() < levels.max() < wanted[1] + 0.1
    assert np.ptp(levels) > 15
    np.testing.assert_allclose(  # power adds up
        x[is_sound][:, 4:, 12], 10 * np.log10(10 ** -2 + 10 ** (silent / 10)), atol=1e-3)
    monkeypatch.setattr(models, "BACKGROUND_SHARE", 0)
    x, y, _ = batches[0]
    assert x[y[:, 1] > 0.5][:, 4:, 0].max() == -100
