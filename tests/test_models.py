"""The networks, their input, and which weights are kept."""
import keras
import numpy as np
import pytest

import models
from utils import UserError

RNG = np.random.default_rng(0)


def spectrograms(n, n_mels=32, low=5, high=60):
    return [RNG.normal(-20, 5, (n_mels, RNG.integers(low, high))).astype(np.float32) for _ in range(n)]


@pytest.fixture
def network():
    return models.build(models.RECIPES["default"] | {"layers": 1, "filters": 4}, spectrograms(8), 3, 16)


@pytest.mark.parametrize("name", models.RECIPES)
@pytest.mark.parametrize("n_frames", [16, 24, 256])
@pytest.mark.parametrize("n_layers", [1, 3, 6])
def test_every_size_of_network_gives_probabilities(name, n_frames, n_layers):
    recipe = models.RECIPES[name] | {"layers": n_layers, "filters": 2}
    scores = models.build(recipe, spectrograms(3), 4, n_frames)(RNG.normal(size=(2, 32, n_frames)))
    np.testing.assert_allclose(np.sum(scores, axis=1), 1, atol=1e-5)


def test_input_is_normalised_by_the_training_sounds():
    sounds = spectrograms(20)
    network = models.build(models.RECIPES["default"], sounds, 3, 16)
    x = np.concatenate(sounds, axis=1)[None]
    normalised = np.array(network.layers[1](x))
    np.testing.assert_allclose(normalised.mean(axis=2), 0, atol=1e-4)
    np.testing.assert_allclose(normalised.std(axis=2), 1, atol=1e-3)


def test_original_network_is_that_of_2017():
    network = models.build(models.RECIPES["original"], spectrograms(3, n_mels=96), 12, 176)
    kinds = [type(layer).__name__ for layer in network.layers[4:]]
    assert kinds == ["Conv2D", "BatchNormalization", "ReLU",
                     *3 * ["Conv2D", "BatchNormalization", "ELU", "MaxPooling2D", "Dropout"],
                     "Flatten", "Dense", "Dropout", "Dense"]
    assert type(network.optimizer).__name__ == "Adadelta" and float(network.optimizer.learning_rate) == 1.0
    convolutions = [layer for layer in network.layers if isinstance(layer, keras.layers.Conv2D)]
    assert {(layer.filters, layer.kernel_size) for layer in convolutions} == {(32, (3, 3))}
    dropouts = [layer for layer in network.layers if isinstance(layer, keras.layers.Dropout)]
    assert [layer.rate for layer in dropouts] == [0.25, 0.25, 0.25, 0.5]
    assert [layer.units for layer in network.layers if isinstance(layer, keras.layers.Dense)] == [128, 12]
    assert {layer.pool_size for layer in network.layers if isinstance(layer, keras.layers.MaxPooling2D)} == {(2, 2)}
    assert models.RECIPES["original"]["batch_size"] == 128 and not models.RECIPES["original"]["vary"]


def test_score_of_a_sound_does_not_depend_on_its_neighbours(network):
    sounds = spectrograms(70)
    together = models.predict(network, sounds)
    assert together.shape == (70, 3)
    for k in (0, 63, 64, 69):
        np.testing.assert_allclose(models.predict(network, sounds[k:k + 1])[0], together[k], atol=1e-5)


def test_score_of_a_long_sound_is_the_mean_over_its_windows(network):
    sound = spectrograms(1, low=45, high=46)[0]
    windows = models.windows_of(sound, 16)
    np.testing.assert_allclose(models.predict(network, [sound])[0], np.array(network(windows)).mean(axis=0), atol=1e-6)


def make_batches(network="default", n=40, **changes):
    sounds = spectrograms(n)
    targets = np.eye(4, dtype=np.float32)[RNG.integers(0, 4, n)]
    return sounds, targets, models.Batches(sounds, targets, 24, models.RECIPES[network] | changes, 0)


def test_batches_follow_from_the_seed_and_leave_the_sounds_alone():
    sounds, targets, batches = make_batches()
    before = [sound.copy() for sound in sounds], targets.copy()
    first, again = batches[3], batches[3]
    batches.on_epoch_end()
    later = batches[3]
    np.testing.assert_array_equal(first[0], again[0])
    assert not np.array_equal(first[0], later[0])
    for sound, copy in zip(sounds, before[0]):
        np.testing.assert_array_equal(sound, copy)
    np.testing.assert_array_equal(targets, before[1])


def test_batches_of_an_epoch_hold_every_sound_equally_often():
    _, targets, batches = make_batches(vary=False, min_steps=5, batch_size=8)
    y = np.concatenate([batches[k][1] for k in range(len(batches))])
    np.testing.assert_array_equal(y.sum(axis=0), targets.sum(axis=0))


def test_windows_are_shifted_mixed_and_masked():
    """Sounds of one level each, so that a mixed frame has a level between and a masked one the mean's."""
    levels = np.arange(40, dtype=np.float32) - 50
    sounds = [np.full((32, 20), level, np.float32) for level in levels]
    batches = models.Batches(sounds, np.eye(40, dtype=np.float32), 24, models.RECIPES["default"], 0)
    x, y = batches[0]
    weights = (y - 0.05 / 40) / 0.95  # the smoothing undone
    assert ((weights > 1e-4).sum(axis=1) == 2).mean() > 0.5  # mixed from two
    mixed = weights @ levels
    assert (np.isclose(x, mixed[:, None, None], atol=0.01).any(axis=(1, 2))).mean() > 0.7
    mean = levels.mean()
    masked_bands, masked_frames = np.isclose(x, mean).all(axis=2), np.isclose(x, mean).all(axis=1)
    assert 1 < masked_bands.sum(axis=1).mean() < 8 and 0.5 < masked_frames.sum(axis=1).mean() < 6
    padded = [np.pad(sound, ((0, 0), (2, 2)), constant_values=-100) for sound in sounds]  # silence about each
    plain = models.Batches(padded, np.eye(40, dtype=np.float32), 24, models.RECIPES["default"] | {"vary": False}, 0)
    assert len({np.flatnonzero(plain[0][0][k, 0] > -90)[0] for k in range(32)}) == 1
    rng, shifts = np.random.default_rng(0), set()
    for _ in range(50):
        shifts.add(np.flatnonzero(batches.window(padded[0], rng)[0] > -90)[0])
    assert len(shifts) > 2


def test_mixed_and_smoothed_targets_still_sum_to_one():
    x, y = make_batches()[2][0]
    assert x.shape == (32, 32, 24) and x.dtype == np.float32
    np.testing.assert_allclose(y.sum(axis=1), 1, atol=1e-6)
    assert y.min() > 0


def test_labels_outside_training_are_not_smoothed():
    assert models.one_hot(["b/x.wav", "a/y.wav"], ["a", "b"]).tolist() == [[0, 1], [1, 0]]
    _, y = make_batches("original")[2][0]
    assert set(np.unique(y)) == {0, 1}


def test_best_weights_are_kept_not_the_last(network, tmp_path):
    keeper = models.SaveBest(tmp_path / "w.keras", {"classes": ["a", "b", "c"]})
    keeper.set_model(network)
    for epoch, loss in enumerate((0.9, 0.5, 0.7)):
        network.layers[-1].bias.assign([epoch, 0, 0])
        keeper.on_epoch_begin(epoch)
        keeper.on_epoch_end(epoch, {"loss": 1 - loss, "val_loss": loss})
    kept, info = models.load(tmp_path / "w.keras")
    assert np.array(kept.layers[-1].bias).tolist() == [1, 0, 0] and info == {"classes": ["a", "b", "c"]}


def rates(losses, epochs=2000, training=lambda epoch: 1.0, **recipe):
    """The learning rate of each epoch until training stops, given the validation and training losses."""
    network = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    network.compile("sgd", "mse")
    stopper = models.StopWhenStalled(1.0, epochs, **recipe)
    stopper.set_model(network)
    network.stop_training, found = False, []
    for epoch in range(epochs):
        stopper.on_epoch_begin(epoch)
        found.append(float(network.optimizer.learning_rate))
        stopper.on_epoch_end(epoch, {"loss": training(epoch), "val_loss": losses(epoch)})
        if network.stop_training:
            break
    return found


def test_rate_is_held_while_the_loss_falls_then_anneals_and_stops():
    found = rates(lambda epoch: max(0.1, 0.8**epoch), patience=4, anneal=True)
    held = found.count(1.0)
    assert 12 <= held <= 20 and len(found) < 35
    assert found[1:held + 1] == [1.0] * held and found[0] < 1
    falling = found[held + 1:]
    assert falling == sorted(falling, reverse=True) and falling[-1] < 0.15


def test_rate_is_held_while_only_the_training_loss_falls():
    found = rates(lambda epoch: 0.5, training=lambda epoch: max(0.3, 0.96**epoch), patience=4, anneal=True)
    assert 28 <= found.count(1.0) <= 36


def test_fall_ends_with_the_last_epoch_allowed():
    found = rates(lambda epoch: 0.8**epoch, epochs=9, patience=4, anneal=True)
    assert len(found) == 9 and found.count(1.0) == 5 and found[-1] < 0.2


def test_original_holds_its_rate_and_stops_when_stalled():
    found = rates(lambda epoch: max(0.1, 0.8**epoch), patience=20, anneal=False)
    assert 25 < len(found) < 40


def test_weights_that_are_something_else_are_refused(tmp_path, network):
    path = tmp_path / "w.keras"
    network.save(path)  # Keras's own, without what training adds
    with pytest.raises(UserError, match="w.keras: expected the weights that train_network.py saves"):
        models.load(path)
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(UserError, match="w.keras: expected the weights"):
        models.load(path)
