"""The networks, how they are fed and when they stop, and the file that they are saved in.

A weights file is Keras's .keras archive with one member more, training.json: classes, feature settings and
the sounds of each side of the split. It alone is enough to score a sound.
"""
import contextlib
import json
import math
import os
import sys
import time
import zipfile
from pathlib import Path

import numpy as np

from preprocess_data import AMIN, TOP_DB
from utils import UserError, class_of, whole_file


@contextlib.contextmanager
def quiet_stderr():
    """Drop what is written to stderr, by compiled code too."""
    sys.stderr.flush()
    kept = os.dup(2)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
with quiet_stderr():  # TensorFlow's notices on start-up are no news to a user
    import keras
    from keras import layers

INFO_FILE = "training.json"
MAX_FRAMES = 256  # the longest window, 3 s at 44.1 kHz: longer sounds are seen and scored in several


# ---------------------------------------------------------------- from spectrograms to windows of one length

def choose_n_frames(spectrograms):
    """The window that holds nine in ten of the sounds whole, a multiple of 8 between 16 and MAX_FRAMES."""
    length = np.percentile([spectrogram.shape[-1] for spectrogram in spectrograms], 90)
    return int(np.clip(math.ceil(length / 8) * 8, 16, MAX_FRAMES))


def pad_to(spectrogram, n_frames):
    """The spectrogram in the middle of at least n_frames, the rest silence. [shape=(..., n_mels, n_frames or more)]"""
    missing = max(0, n_frames - spectrogram.shape[-1])
    # What silence measures beside this sound: 0 dB would be loud.
    silence = max(10 * math.log10(AMIN), spectrogram.max() - TOP_DB)
    margins = [(0, 0)] * (spectrogram.ndim - 1) + [(missing // 2, missing - missing // 2)]
    return np.pad(spectrogram, margins, constant_values=silence)


def windows_of(spectrogram, n_frames):
    """The fewest windows that cover a spectrogram, evenly spread. [shape=(n_windows, ..., n_mels, n_frames)]"""
    padded = pad_to(spectrogram, n_frames)
    last = padded.shape[-1] - n_frames
    starts = np.linspace(0, last, 1 + math.ceil(last / n_frames)).astype(int)
    return np.stack([padded[..., start:start + n_frames] for start in starts])


def one_hot(names, classes):
    """The classes of sounds as rows of zeros and a one. [shape=(len(names), len(classes)), float32]"""
    return np.eye(len(classes), dtype=np.float32)[[classes.index(class_of(name)) for name in names]]


class Batches(keras.utils.PyDataset):
    """Training batches: a window of each sound, in an order and with changes that follow from the seed.

    Yields float32 windows [shape=(batch, ..., n_mels, n_frames)] in dB and targets [shape=(batch, n_classes)].
    Where the recipe says `vary`, windows are shifted in time, mixed with one another and masked in bands and in
    time, and targets are mixed alike and smoothed.
    """

    SHIFT, MIXUP, MASKS, MASK_SHARE, SMOOTHING = 0.1, 0.3, 2, 1 / 8, 0.05

    def __init__(self, spectrograms, targets, n_frames, recipe, seed):
        super().__init__()
        self.spectrograms, self.targets, self.n_frames = spectrograms, targets, n_frames
        self.batch_size, self.vary, self.seed, self.epoch = recipe["batch_size"], recipe["vary"], seed, 0
        # A small set comes round several times in an epoch: patience is counted in epochs.
        self.n_items = max(len(spectrograms), recipe["min_steps"] * self.batch_size)
        self.mean = np.mean([s.mean(axis=-1) for s in spectrograms], axis=0)[..., None]  # (..., n_mels, 1): a mask's

    def __len__(self):
        return math.ceil(self.n_items / self.batch_size)

    def on_epoch_end(self):
        self.epoch += 1

    def __getitem__(self, step):
        order = np.random.default_rng([self.seed, self.epoch])
        n_rounds = math.ceil(self.n_items / len(self.spectrograms))
        rows = np.concatenate([order.permutation(len(self.spectrograms)) for _ in range(n_rounds)])[:self.n_items]
        rows = rows[step * self.batch_size:(step + 1) * self.batch_size]
        rng = np.random.default_rng([self.seed, self.epoch, step])
        x = np.stack([self.window(self.spectrograms[row], rng) for row in rows])  # (batch, ..., n_mels, n_frames)
        y = self.targets[rows]  # (batch, n_classes)
        return self.varied(x, y, rng) if self.vary else (x, y)

    def window(self, spectrogram, rng):
        """A random window; of a sound that fits, one that holds it whole or all but a little."""
        margin = round(self.SHIFT * self.n_frames) if self.vary else 0
        padded = pad_to(spectrogram, self.n_frames + 2 * margin)
        start = rng.integers(padded.shape[-1] - self.n_frames + 1)
        return padded[..., start:start + self.n_frames]

    def varied(self, x, y, rng):
        """Mixup (Zhang 2018), bands and times masked (Park 2019), labels smoothed. Changes no array given."""
        partner = rng.permutation(len(x))
        share = rng.beta(self.MIXUP, self.MIXUP, len(x)).astype(np.float32)
        share = np.maximum(share, 1 - share)
        x, y = (share.reshape(-1, *[1] * (a.ndim - 1)) * (a - a[partner]) + a[partner] for a in (x, y))
        for window in x:
            for _ in range(self.MASKS):
                bands, frames = (self.mask(size, rng) for size in window.shape[-2:])
                window[..., bands, :] = self.mean[..., bands, :]
                window[..., frames] = self.mean
        return x, y * (1 - self.SMOOTHING) + self.SMOOTHING / y.shape[1]

    def mask(self, size, rng):
        """A random slice of up to MASK_SHARE of an axis."""
        width = rng.integers(int(size * self.MASK_SHARE) + 1)
        start = rng.integers(size - width + 1)
        return slice(start, start + width)


# ---------------------------------------------------------------- the networks

def conv_block(x, filters, kernel_size=3, strides=1):
    x = layers.Conv2D(filters, kernel_size, strides, padding="same", use_bias=False)(x)
    # Momentum 0.99, Keras's default, needs thousands of steps before its averages are right.
    x = layers.BatchNormalization(momentum=0.9)(x)
    return layers.ReLU()(x)


def default_network(x, n_layers, filters):
    """A 5x5 convolution at half resolution, then n_layers blocks of two 3x3 convolutions and a pooling.

    Filters double from block to block. Two convolutions before each pooling generalise better than one, and
    nothing at full resolution earns its cost. At the end time is averaged but frequency kept: where the
    energy lies tells classes apart.
    """
    x = conv_block(x, filters, kernel_size=5, strides=2)  # (batch, n_mels / 2, n_frames / 2, filters)
    for block in range(n_layers):
        x = conv_block(x, filters * 2**block)
        x = conv_block(x, filters * 2**block)
        x = layers.AveragePooling2D(2, padding="same")(x)  # halves n_mels and n_frames again
    x = layers.AveragePooling2D((1, x.shape[2]))(x)  # (batch, n_mels', 1, filters)
    x = layers.Flatten()(x)
    return layers.Dropout(0.2)(x)


def original_network(x, n_layers, filters):
    """The network of 2017: a block, n_layers - 1 with ELU, pooling and dropout, and a dense layer of 128."""
    x = layers.Conv2D(filters, 3, padding="same")(x)
    x = layers.BatchNormalization()(x)
    x = layers.ReLU()(x)
    for _ in range(n_layers - 1):
        x = layers.Conv2D(filters, 3, padding="same")(x)
        x = layers.BatchNormalization()(x)
        x = layers.ELU()(x)
        x = layers.MaxPooling2D(2, padding="same")(x)
        x = layers.Dropout(0.25)(x)
    x = layers.Flatten()(x)
    x = layers.Dense(128, activation="relu")(x)
    return layers.Dropout(0.5)(x)


RECIPES = {  # what each network is trained with unless a flag says otherwise
    "default": dict(body=default_network, layers=3, filters=16, batch_size=32, learning_rate=2e-3,
                    optimizer=lambda rate: keras.optimizers.AdamW(rate, weight_decay=0.05, clipnorm=1.0),
                    vary=True, anneal=True, min_steps=30, patience=4),
    "original": dict(body=original_network, layers=4, filters=32, batch_size=128, learning_rate=1.0,
                     optimizer=keras.optimizers.Adadelta, vary=False, anneal=False, min_steps=1, patience=20),
}


def build(recipe, spectrograms, n_classes, n_frames):
    """A compiled network for windows [shape=(batch, n_mels, n_frames)] in dB -> class probabilities.

    Each mel band is normalised by its mean and variance in `spectrograms`, the training sounds. Windows of several
    channels [shape=(batch, channels, n_mels, n_frames)] are as well, each channel for itself.
    """
    shape, n_all = spectrograms[0].shape[:-1], sum(s.shape[-1] for s in spectrograms)  # (..., n_mels)
    mean = sum(s.sum(axis=-1, dtype=float) for s in spectrograms) / n_all
    variance = sum(((s - mean[..., None]) ** 2).sum(axis=-1) for s in spectrograms) / n_all
    inputs = keras.Input((*shape, n_frames))
    axes = tuple(range(1, 1 + len(shape)))
    x = layers.Normalization(axis=axes, mean=mean, variance=variance + 1e-3)(inputs)  # silence has no variance
    x = layers.Reshape((-1, shape[-1], n_frames))(x)  # (batch, channels, n_mels, n_frames)
    x = layers.Permute((2, 3, 1))(x)  # (batch, n_mels, n_frames, channels)
    x = recipe["body"](x, recipe["layers"], recipe["filters"])
    network = keras.Model(inputs, layers.Dense(n_classes, activation="softmax")(x))
    network.compile(recipe["optimizer"](recipe["learning_rate"]), "categorical_crossentropy",
                    metrics=["accuracy"])
    return network


# ---------------------------------------------------------------- training

def use_seed(seed):
    """Seed Keras and have TensorFlow add in one order: the same seed gives the same weights."""
    keras.utils.set_random_seed(seed)
    if keras.backend.backend() == "tensorflow":
        import tensorflow
        tensorflow.config.experimental.enable_op_determinism()


class StopWhenStalled(keras.callbacks.Callback):
    """Hold the learning rate while there is progress, then let it fall to zero and stop.

    Progress is a validation loss 5 % below the best so far, or while annealing is to come, such a training
    loss: it is smoother, and a small set's validation is often lucky or unlucky for many epochs. After
    `patience` epochs without, the rate falls for a third as long as it was held; at the latest it falls in time
    to end with the last epoch allowed. Without `anneal` the rate stays, and training stops there.
    """

    def __init__(self, learning_rate, epochs, patience, anneal):
        super().__init__()
        self.learning_rate, self.epochs, self.patience, self.anneal = learning_rate, epochs, patience, anneal
        self.best, self.last_progress, self.fall = {}, 0, None  # fall: (first epoch, how many)

    def on_epoch_begin(self, epoch, logs=None):
        if not self.anneal:
            return
        rate = self.learning_rate * (0.25 if epoch == 0 else 1)  # a gentle start
        remaining = self.epochs - epoch
        if self.fall is None and remaining <= math.ceil(self.epochs / 3):
            self.fall = epoch, remaining
        if self.fall:
            first, n_epochs = self.fall
            rate *= 1 - (epoch - first + 0.5) / n_epochs
        self.model.optimizer.learning_rate = rate

    def on_epoch_end(self, epoch, logs=None):
        for key in ("val_loss", "loss") if self.anneal or "val_loss" not in logs else ("val_loss",):
            if logs.get(key, math.inf) < 0.95 * self.best.get(key, math.inf):
                self.best[key], self.last_progress = logs[key], epoch
        stalled = epoch - self.last_progress >= self.patience
        if self.fall:
            self.model.stop_training = epoch + 1 >= sum(self.fall)
        elif stalled and self.anneal:
            self.fall = epoch + 1, max(5, (epoch + 1) // 3)
        elif stalled:
            self.model.stop_training = True


class SaveBest(keras.callbacks.Callback):
    """Save the network whenever its loss on the validation sounds is the lowest so far; a line an epoch."""

    def __init__(self, path, info):
        super().__init__()
        self.path, self.info, self.best_loss, self.best = path, info, math.inf, None

    def on_epoch_begin(self, epoch, logs=None):
        self.began = time.perf_counter()

    def on_epoch_end(self, epoch, logs=None):
        loss = logs.get("val_loss", logs["loss"])  # a set too small to validate on has the training loss
        saved = loss < self.best_loss
        scores = "  ".join(f"{key.replace('val_', 'validation ')} {value:.4f}" for key, value in logs.items())
        if saved:
            self.best_loss, self.best = loss, f"epoch {epoch + 1}: {scores}"
            save(self.model, self.info, self.path)
        seconds = time.perf_counter() - self.began
        print(f"epoch {epoch + 1:4d}  {seconds:5.1f} s  {scores}{'  saved' * saved}", flush=True)


def train(recipe, spectrograms, info, epochs, path):
    """Train a network on info["train"], choose its weights by info["validation"], save them with info to `path`."""
    use_seed(info["seed"])
    targets = {side: one_hot(info[side], info["classes"]) for side in ("train", "validation")}
    sounds = [spectrograms[name] for name in info["train"]]
    n_frames = choose_n_frames(sounds)
    network = build(recipe, sounds, len(info["classes"]), n_frames)
    seconds = n_frames * info["features"]["hop_length"] / info["features"]["sample_rate"]
    print(f"Network: {info['network']}, {network.count_params()} weights, window {n_frames} frames ({seconds:.2f} s), "
          f"{keras.backend.backend()} on {keras.distribution.list_devices()[0]}", flush=True)
    batches = Batches(sounds, targets["train"], n_frames, recipe, info["seed"])
    validation = [windows_of(spectrograms[name], n_frames) for name in info["validation"]]
    if validation:  # losses count windows: a long sound has several
        y = np.repeat(targets["validation"], [len(w) for w in validation], axis=0)
        validation = np.concatenate(validation), y
    best = SaveBest(path, info | {"n_frames": n_frames})
    began = time.perf_counter()
    network.fit(batches, epochs=epochs, validation_data=validation or None, verbose=0, callbacks=[
        StopWhenStalled(recipe["learning_rate"], epochs, recipe["patience"], recipe["anneal"]), best,
        keras.callbacks.TerminateOnNaN()])
    if best.best is None:
        raise UserError(f"{path}: expected a finite loss to save weights at, found none; take a lower --learning-rate")
    print(f"Training took {time.perf_counter() - began:.0f} s\n{path}: best is {best.best}")


# ---------------------------------------------------------------- the weights file and its use

def save(network, info, path):
    """Write network and info to `path`, at once or not at all: it can be read at every moment."""
    with whole_file(path) as temporary:
        network.save(temporary)
        with zipfile.ZipFile(temporary, "a") as archive:
            archive.writestr(INFO_FILE, json.dumps(info, indent=1))


def load(path):
    """The network and the info of a weights file. Raises UserError for a file that is missing or not one."""
    if not Path(path).is_file():
        raise UserError(f"{path}: expected the weights that train_network.py saves, found nothing there")
    try:
        with zipfile.ZipFile(path) as archive:
            info = json.loads(archive.read(INFO_FILE))
        return keras.models.load_model(path, compile=False, safe_mode=True), info
    except (zipfile.BadZipFile, KeyError, ValueError, TypeError) as error:
        raise UserError(f"{path}: expected the weights that train_network.py saves, found something else "
                        f"({str(error).splitlines()[0]})") from None


def predict(network, spectrograms, batch_size=64):
    """Class probabilities of sounds of any length, each the mean over its windows. [shape=(n_sounds, n_classes)]"""
    n_frames, scores = network.input_shape[-1], []
    for start in range(0, len(spectrograms), batch_size):  # some at a time: memory stays flat
        windows = [windows_of(s, n_frames) for s in spectrograms[start:start + batch_size]]
        probabilities = network.predict(np.concatenate(windows), batch_size=batch_size, verbose=0)
        ends = np.cumsum([len(w) for w in windows])[:-1]
        scores += [part.mean(axis=0) for part in np.split(probabilities, ends)]
    return np.array(scores)
