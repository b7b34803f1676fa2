"""The networks, the windows and batches that feed them, predictions, and the weights file.

A weights file is Keras's .keras archive with one more member, training.json: a Training. It is all
that scoring a sound needs.

The same code runs on TensorFlow, JAX and PyTorch. The environment variable KERAS_BACKEND chooses.
"""
import contextlib
import dataclasses
import functools
import itertools
import json
import logging
import math
import os
import re
import sys
import tempfile
import zipfile

import numpy as np
import scipy

from utils import (
    AMIN,
    DISK_FULL,
    MIN_VALIDATION,
    TOP_DB,
    FeatureSettings,
    Hyperparameters,
    Split,
    UserError,
    check_samples,
    check_types,
    check_weights_path,
    class_of,
    convert_blocks,
    find_group,
    is_background,
    log_mel_spectrogram,
    sound_to_spectrogram,
    to_power,
    whole_file,
)


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
logging.getLogger("tensorflow").setLevel(logging.ERROR)  # each fold is one more tf.function
with quiet_stderr():  # TensorFlow prints notices on start-up
    try:
        import keras
    except (ImportError, ValueError) as error:
        raise UserError(f"KERAS_BACKEND={os.environ.get('KERAS_BACKEND')}: cannot be loaded "
                        f"({error}); use tensorflow, jax or torch, and install its "
                        "package") from None
    from keras import layers

TRAINING_FILE = "training.json"
# Keras builds only these parts of our networks from a weights file. Others could run code.
SAFE_CLASSES = frozenset(
    "None Functional __keras_tensor__ DTypePolicy InputLayer Normalization Reshape Permute Conv2D "
    "BatchNormalization ReLU ELU AveragePooling2D MaxPooling2D Flatten Dropout Dense Average "
    "GlorotUniform Zeros Ones Muon Adadelta CosineDecay".split())
MAX_FRAMES = 256  # frames in a window, 3 s at 44.1 kHz; longer sounds are cut into several windows
STEPS_PER_ROOT = 10  # number of steps = this times the square root of the number of frames
UNKNOWN = "unknown"  # the prediction where the confidence is below the threshold
KEPT_SHARE = 0.95  # at most this share of the validation sounds reaches the threshold
# In the accuracy above a threshold. The search tries many thresholds, so 95 % would not be enough.
CONFIDENCE = 0.99
# The correlation between the correctness of two sounds of a group, before any are seen.
CORRELATION = 0.3
# Of the best temperatures on test sounds: the median, and the spread of the logarithm.
USUAL_TEMPERATURE = 0.7
TEMPERATURE_SPREAD = 0.3
TARGET = 95  # the accuracy in percent for which training chooses a threshold
SCORED_AT_ONCE = 64  # windows in a batch of predictions
MIN_STEPS = 60  # in an epoch; a small data set is repeated to fill them
BACKGROUND_SHARE = 0.75  # of the training windows get background, if there is any
BACKGROUND_RANGE = 5, 35  # dB from its level up to that of the sound
GAIN_RANGE = -30, 10  # dB; sounds are often quieter in a recording than in a file of their own
FLAGS = "--groups", "--test", "--folds", "--folds-by"  # of the split


# ---------------------------------------------------------------- training metadata

@dataclasses.dataclass
class Training:
    """The settings, the split and the history of a training run: the content of training.json."""

    classes: list  # names, sorted; the outputs of the network have this order
    features: FeatureSettings
    network: str  # "default" or "original"
    hyperparameters: Hyperparameters
    n_frames: int  # of a window
    seed: int
    epochs: int
    flags: dict  # from those of FLAGS that were given to their values
    fold: list | None  # in cross-validation, the number of the fold, and how many there are
    weights: str | None  # a hash of the weights file that the training started from
    split: Split
    history: list = dataclasses.field(default_factory=list)  # the scores of each epoch, as dicts

    def __post_init__(self):
        check_types(self)
        if not len(set(self.classes)) == len(self.classes) > 1:
            raise ValueError(f"classes {self.classes}")
        if self.network not in BACKBONES:
            raise ValueError(f"network {self.network!r}")
        if self.fold and not 1 <= self.fold[0] <= self.fold[1]:
            raise ValueError(f"fold {self.fold}")
        for row in self.history:
            is_complete = isinstance(row, dict) and {"loss", "accuracy", "seconds"} <= row.keys()
            if not is_complete or {*map(type, row.values())} - {int, float}:
                raise ValueError(f"history {row!r:.80}")
        if not 1e-3 < self.temperature < 1e3:
            raise ValueError(f"temperature {self.temperature}")

    @property
    def temperature(self):
        """The temperature of the calibration, the usual one without validation sounds."""
        is_plain = self.hyperparameters.mixup == self.hyperparameters.smoothing == 0
        usual = 1.0 if is_plain else USUAL_TEMPERATURE  # mixed or smoothed labels lower confidence
        return (self.history or [{}])[-1].get("temperature", usual)

    @property
    def threshold(self):
        """The threshold that --threshold auto stands for, or None."""
        return self.history[-1].get("threshold") if self.history else None

    def find_groups(self, names):
        """Find the group of each sound: as the split had it, or else by its name."""
        pattern = self.flags.get("--groups")
        pattern = pattern and re.compile(pattern)
        return [self.split.groups.get(name) or find_group(name, pattern) for name in names]

    @property
    def is_mean(self):
        """Whether the network is the mean of those of a cross-validation."""
        return self.fold is None and not {"--folds", "--folds-by"}.isdisjoint(self.flags)

    def explain_no_threshold(self):
        """Explain why the validation sounds gave no threshold."""
        n = len(self.split.validation)
        inflation = self.history[-1].get("inflation", 1.0) if self.history else 1.0
        if n >= inflation * MIN_VALIDATION:
            return (f"the confident ones of the {n} validation sounds hold too many mistakes, or "
                    "nearly all are equally confident")
        note = f", which share groups and count as {int(n / inflation)}" if inflation > 1 else ""
        return f"too few validation sounds ({n}{note}; at least {MIN_VALIDATION} are needed)"

    @property
    def n_steps(self):
        """The number of steps in an epoch."""
        return count_steps(len(self.split.train), self.hyperparameters.batch_size)

    def settings(self):
        """All that the user can choose for a training run, as a flat dict."""
        return {"network": self.network, "seed": self.seed, "epochs": self.epochs,
                "n_frames": self.n_frames,
                "weights": self.weights, **{flag: self.flags.get(flag) for flag in FLAGS},
                **dataclasses.asdict(self.features), **dataclasses.asdict(self.hyperparameters)}

    def to_json(self):
        """This training as text."""
        return json.dumps(dataclasses.asdict(self), indent=1)

    @classmethod
    def from_json(cls, text):
        """Read the text of to_json. Raises TypeError or ValueError, which name a wrong field."""
        values = json.loads(text)
        for field, kind in (("features", FeatureSettings), ("split", Split),
                            ("hyperparameters", Hyperparameters)):
            values[field] = kind(**values[field])
        return cls(**values)


# ---------------------------------------------------------------- the networks

def add_convolution(x, filters, kernel_size=3, strides=1):
    """A convolution, batch normalisation and ReLU."""
    x = layers.Conv2D(filters, kernel_size, strides, padding="same", use_bias=False)(x)
    # Keras's default momentum, 0.99, needs thousands of steps before its averages are right.
    x = layers.BatchNormalization(momentum=0.9)(x)
    return layers.ReLU()(x)


def add_default_layers(x, n_layers, filters):
    """A 5x5 convolution at half resolution, then n_layers blocks of two convolutions and pooling.

    The number of filters doubles from block to block. Time is averaged, but frequency is kept,
    because the frequencies of the energy tell classes apart.
    """
    x = add_convolution(x, filters, kernel_size=5, strides=2)
    for block in range(n_layers):  # (batch, n_mels / 2, n_frames / 2, filters)
        x = add_convolution(x, filters * 2**block)
        x = add_convolution(x, filters * 2**block)
        x = layers.AveragePooling2D(2, padding="same")(x)  # halves n_mels and n_frames again
    x = layers.AveragePooling2D((1, x.shape[2]))(x)  # (batch, n_mels', 1, filters')
    x = layers.Flatten()(x)
    return layers.Dropout(0.2)(x)


def add_original_layers(x, n_layers, filters):
    """The network of 2017: n_layers convolutions, the later ones with pooling and dropout."""
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


BACKBONES = {"default": add_default_layers, "original": add_original_layers}


def measure_bands(spectrograms):
    """The mean and variance of each mel band over sounds. Both [shape=(..., n_mels)].

    Every sound counts the same. Otherwise an hour of silence would outweigh a thousand short ones.
    """
    n = 0
    mean = 0.0
    square = 0.0
    for s in spectrograms:  # one at a time: they need not fit into memory together
        n += 1
        mean = mean + s.mean(axis=-1, dtype=float)
        square = square + np.einsum("...t,...t->...", s, s, dtype=float) / s.shape[-1]
    mean = mean / n
    variance = np.maximum(square / n - mean**2, 0) + 1e-3  # silence has no variance
    return mean, variance


def build_network(name, hyperparameters, spectrograms, n_classes, n_frames):
    """The network `name`: windows in dB [shape=(batch, ..., n_mels, n_frames)] -> probabilities.

    spectrograms: of the training sounds, whose mean and variance normalise each mel band.
    """
    mean, variance = measure_bands(spectrograms)
    shape = mean.shape  # (n_mels,), or (channels, n_mels)
    axes = tuple(range(1, 1 + len(shape)))
    inputs = keras.Input((*shape, n_frames))
    x = layers.Normalization(axis=axes, mean=mean, variance=variance)(inputs)
    x = layers.Reshape((-1, shape[-1], n_frames))(x)  # (batch, channels, n_mels, n_frames)
    x = layers.Permute((2, 3, 1))(x)  # (batch, n_mels, n_frames, channels)
    x = BACKBONES[name](x, hyperparameters.layers, hyperparameters.filters)
    outputs = layers.Dense(n_classes, activation="softmax", name="head")(x)
    return keras.Model(inputs, outputs)


def extend_network(network, n_classes):
    """The backbone of a trained network with a new last layer for n_classes classes."""
    head = layers.Dense(n_classes, activation="softmax", name="head")
    return keras.Model(network.input, head(network.layers[-2].output))


def average_networks(networks):
    """A network that predicts the mean of what others predict for the same windows."""
    inputs = keras.Input(networks[0].input_shape[1:])
    outputs = []
    for k, network in enumerate(networks, 1):
        network.name = f"fold{k}"  # the names in a network differ
        outputs.append(network(inputs))
    return keras.Model(inputs, layers.Average()(outputs))


@keras.saving.register_keras_serializable()
class Muon(keras.optimizers.AdamW):
    """AdamW, but the kernels of convolutions take the steps of Muon (Jordan 2024).

    A step of Muon is about equally large in all directions of a kernel, so training needs fewer
    steps. Keras's own Muon leaves convolutions to AdamW.
    """

    MOMENTUM = 0.95

    def update_step(self, gradient, variable, learning_rate):
        """Update one variable. For a kernel, AdamW's first moment stores Muon's momentum."""
        if len(variable.shape) != 4:  # a kernel has height, width, channels and filters
            super().update_step(gradient, variable, learning_rate)
            return
        momentum = self._momentums[self._get_variable_index(variable)]
        self.assign(momentum, self.MOMENTUM * momentum + gradient)
        direction = gradient + self.MOMENTUM * momentum  # Nesterov's
        step = orthogonalize(keras.ops.reshape(direction, (-1, variable.shape[-1])))
        size = 0.2 * math.sqrt(max(step.shape))  # about as large as a step of AdamW (Liu 2025)
        self.assign_sub(variable, learning_rate * size * keras.ops.reshape(step, variable.shape))


def orthogonalize(matrix):
    """Bring the singular values of a matrix near 1, by five steps of Newton and Schulz.

    The coefficients are Jordan's. Values above 0.002 of the norm end between 0.68 and 1.21, and
    smaller ones grow up to 485-fold.
    """
    matrix = matrix / (keras.ops.norm(matrix) + 1e-7)
    for _ in range(5):
        gram = keras.ops.transpose(matrix) @ matrix
        matrix = 3.4445 * matrix + matrix @ (2.0315 * gram @ gram - 4.775 * gram)
    return matrix


def compile_network(network, training):
    """Give a network its optimizer and learning-rate schedule, for all epochs of a training run.

    The learning rate rises in the first twentieth, then falls to zero along a cosine. The
    original network keeps a constant rate.
    """
    n_steps = training.epochs * training.n_steps
    rate = training.hyperparameters.learning_rate
    if training.network == "original":
        optimizer = keras.optimizers.Adadelta(rate)
    else:
        n_warmup = n_steps // 20
        schedule = keras.optimizers.schedules.CosineDecay(
            rate / 10, n_steps - n_warmup, warmup_target=rate, warmup_steps=n_warmup)
        optimizer = Muon(schedule, weight_decay=0.05, clipnorm=1.0)
    network.compile(optimizer, "categorical_crossentropy", metrics=["accuracy"])
    optimizer.build(network.trainable_variables)
    prepare_steps(network)


def fuse_normalization(network):
    """Let TensorFlow's own kernel compute batch normalisation while training.

    A step then takes 0.6 to 0.8 of its time: Keras takes the moments and normalises in separate
    operations. The layers are still Keras's, and so are the weights files. The kernel expects the
    channels last, as they are in our networks.
    """
    if keras.backend.backend() == "tensorflow":
        for layer in network.layers:
            if isinstance(layer, layers.BatchNormalization):
                layer.call = functools.partial(normalize_batch, layer)


def normalize_batch(layer, inputs, training=None, mask=None):
    """Compute what a BatchNormalization layer computes, and update its averages in training."""
    import tensorflow
    averages = () if training else (layer.moving_mean, layer.moving_variance)
    outputs, mean, variance = tensorflow.compat.v1.nn.fused_batch_norm(
        inputs, layer.gamma, layer.beta, *averages, epsilon=layer.epsilon,
        is_training=bool(training))
    if training:
        n = tensorflow.cast(tensorflow.size(inputs) / layer.gamma.shape[0], layer.dtype)
        variance = variance * (n - 1) / n  # Keras averages variances without Bessel's correction
        for average, value in ((layer.moving_mean, mean), (layer.moving_variance, variance)):
            average.assign(average * layer.momentum + value * (1 - layer.momentum))
    return outputs


def prepare_steps(network):
    """Prepare a compiled network for training steps.

    The variables of loss and metrics are made here. Keras else makes them in the first step.
    TensorFlow would trace that step twice. JAX and PyTorch would draw batches for it beforehand,
    and train on them later.
    """
    fuse_normalization(network)
    y = np.ones((1, network.output_shape[1]), np.float32)
    network.compute_loss(None, y, y)
    network.compute_metrics(None, y, y)
    network.reset_metrics()


def band_means(network):
    """The mean of each mel band in training, in dB. [shape=(..., n_mels, 1), float32]"""
    means = keras.ops.convert_to_numpy(network.layers[1].mean)  # (1, ..., n_mels, 1)
    return np.asarray(means, np.float32)[0]


# ---------------------------------------------------------------- windows and batches

def choose_n_frames(lengths):
    """The window length that holds nine in ten sounds of these lengths whole. All in frames.

    It is a multiple of 8, at least 16 and at most MAX_FRAMES.
    """
    length = np.percentile(lengths, 90)
    return int(np.clip(math.ceil(length / 8) * 8, 16, MAX_FRAMES))


def pad_spectrogram(spectrogram, n_frames):
    """Put silence around a spectrogram, up to n_frames. [shape=(..., n_mels, n_frames or more)]"""
    missing = n_frames - spectrogram.shape[-1]
    if missing <= 0:
        return spectrogram
    # The decibels of silence in this spectrogram: 0 dB would be loud.
    silence = max(10 * math.log10(AMIN), spectrogram.max() - TOP_DB)
    padded = np.full((*spectrogram.shape[:-1], n_frames), silence, np.float32)
    start = missing // 2
    padded[..., start:start + spectrogram.shape[-1]] = spectrogram
    return padded


def cut_windows(spectrogram, n_frames):
    """The fewest evenly spread windows that cover it. [shape=(n_windows, ..., n_mels, n_frames)]"""
    padded = pad_spectrogram(spectrogram, n_frames)
    last = padded.shape[-1] - n_frames
    starts = np.linspace(0, last, 1 + math.ceil(last / n_frames)).astype(int)
    return np.stack([padded[..., start:start + n_frames] for start in starts])


def find_level(spectrogram):
    """The level of the loudest frame of a spectrogram, over all bands, in dB."""
    return 10 * np.log10(to_power(spectrogram).sum(axis=-2).max())


def add_power(a, b):
    """Add the power of two spectrograms in dB of the same shape. Returns dB."""
    return 10 * np.log10(to_power(a) + to_power(b))


def class_indices(names, classes):
    """The index of each sound's class. [shape=(len(names),), int]"""
    index = {name: k for k, name in enumerate(classes)}
    return np.array([index[class_of(name)] for name in names], int)


def one_hot(names, classes):
    """The classes of sounds as rows of zeros and a one. [shape=(n_sounds, n_classes), float32]"""
    return np.eye(len(classes), dtype=np.float32)[class_indices(names, classes)]


def balance_classes(targets, kind):
    """The weight of each class in the loss. [shape=(n_classes,), float32]

    targets: one-hot [shape=(n_sounds, n_classes)]. kind: "balanced" or "none".
    """
    if kind == "none":
        return np.ones(targets.shape[1], np.float32)
    counts = np.maximum(targets.sum(axis=0), 1)
    return (len(targets) / (targets.shape[1] * counts)).astype(np.float32)


def weigh_targets(targets, weights):
    """Apply class weights to mixed targets. Returns targets that sum to one, and row weights.

    Keras's class_weight would weigh a whole row by the class of its largest part.
    """
    parts = targets * weights  # (batch_size, n_classes)
    total = parts.sum(axis=1)  # (batch_size,)
    return parts / total[:, None], total


def count_steps(n_sounds, batch_size):
    """How many steps an epoch has."""
    return max(math.ceil(n_sounds / batch_size), MIN_STEPS)


def choose_epochs(lengths, batch_size):
    """How many epochs to train on sounds of these lengths in frames.

    The number of steps grows with the square root of the frames in all. A sound counts for at most
    4 * MAX_FRAMES frames. Each sound is trained on in at least ten epochs.
    """
    n_frames = np.minimum(lengths, 4 * MAX_FRAMES).sum()
    n_steps = max(STEPS_PER_ROOT * math.sqrt(n_frames), 10 * len(lengths) / batch_size)
    return math.ceil(n_steps / count_steps(len(lengths), batch_size))


class Batches(keras.utils.PyDataset):
    """Training batches of random windows. Seed, epoch and number of epochs determine them.

    Windows are cut at random places, altered and mixed. Alterations and mixing become weaker in the
    second half of the epochs, down to nearly none.
    """

    EQ_POINTS = 4  # of the curve that raises or lowers the bands
    MASK_SHARE = 1 / 8  # the largest share of the bands, or frames, that a mask covers

    def __init__(self, spectrograms, training, fill):
        """fill: masked values [shape=(..., n_mels, 1)]."""
        # Threads that prepare batches while the network trains. On JAX they slow it down.
        super().__init__(workers=2 if keras.backend.backend() == "tensorflow" else 1)
        self.spectrograms = spectrograms
        self.names = training.split.train
        self.targets = one_hot(self.names, training.classes)
        self.n_frames = training.n_frames
        self.hyperparameters = training.hyperparameters
        self.seed = training.seed
        self.n_epochs = training.epochs
        self.n_steps = training.n_steps
        self.fill = fill
        self.background = [name for name in self.names if is_background(class_of(name))]
        self.class_weights = balance_classes(self.targets, self.hyperparameters.class_weights)
        self.start_epoch(0)

    def start_epoch(self, epoch):
        """Draw the order of the sounds. A further shuffle fills the last batch of an epoch."""
        rng = np.random.default_rng([self.seed, epoch])
        n = self.n_steps * self.hyperparameters.batch_size
        n_rounds = math.ceil(n / len(self.names))
        rounds = [rng.permutation(len(self.names)) for _ in range(n_rounds)]
        self.epoch = epoch
        self.strength = min(1, 2 * (1 - epoch / self.n_epochs))  # of all alterations
        self.order = np.concatenate(rounds)[:n]

    def __len__(self):
        return self.n_steps

    def __getitem__(self, step):
        """Windows in dB [shape=(batch_size, ..., n_mels, n_frames)], targets, and row weights."""
        size = self.hyperparameters.batch_size
        smoothing = self.hyperparameters.smoothing
        rows = self.order[step * size:(step + 1) * size]
        rng = np.random.default_rng([self.seed, self.epoch, step])
        x = np.stack([self.cut_window(self.spectrograms[self.names[row]], rng) for row in rows])
        y = self.targets[rows]
        x = self.equalize(x, rng)
        x, y = self.mix(x, y, rng)
        self.mask(x, rng)
        y, weights = weigh_targets(y, self.class_weights)
        y = y * (1 - smoothing) + smoothing / y.shape[1]
        return x, y, weights

    def cut_window(self, spectrogram, rng):
        """Cut a random window, which holds all, or nearly all, of a sound that fits into it."""
        margin = round(self.hyperparameters.shift * self.n_frames)
        padded = pad_spectrogram(spectrogram, self.n_frames + 2 * margin)
        start = rng.integers(padded.shape[-1] - self.n_frames + 1)
        return self.add_background(self.warp(padded, start, rng), rng)

    def add_background(self, window, rng):
        """Put a random stretch of background under a window, and change the level of both.

        It also fills the silence around a short sound, for a recording has none. Some windows stay
        as they are, for new sounds that are files of their own.
        """
        if not self.background or rng.random() > BACKGROUND_SHARE:
            return window
        spectrogram = self.spectrograms[self.background[rng.integers(len(self.background))]]
        n = spectrogram.shape[-1]
        frames = (rng.integers(n) + np.arange(self.n_frames)) % n  # a short one is repeated
        background = spectrogram[..., frames]
        gain = find_level(window) - find_level(background) - rng.uniform(*BACKGROUND_RANGE)
        mixed = add_power(window, background + np.float32(gain))
        return mixed + np.float32(rng.uniform(*GAIN_RANGE))

    def warp(self, padded, start, rng):
        """Cut a window at a random speed and pitch (VTLP, Jaitly 2013).

        Frames and bands are the nearest of the spectrogram. Beyond its edges, the outermost repeat.
        """
        warp = self.hyperparameters.warp * self.strength
        n_mels, n = padded.shape[-2:]
        speed, pitch = 1 + rng.uniform(-warp, warp, size=2)
        middle = self.n_frames // 2
        frames = start + middle + speed * (np.arange(self.n_frames) - middle)
        frames = np.clip(np.rint(frames), 0, n - 1).astype(int)
        bands = np.clip(np.rint(np.arange(n_mels) / pitch), 0, n_mels - 1).astype(int)
        return padded[..., frames][..., bands, :]  # reads only these frames of a mapped file

    def equalize(self, x, rng):
        """Change the level, and raise or lower ranges of bands (FilterAugment, Nam 2022).

        Each window draws its own limit, between 0 and what is left of eq.
        """
        n_mels = x.shape[-2]
        eq = self.hyperparameters.eq * self.strength * rng.random((len(x), 1))  # dB
        levels = rng.uniform(-eq, eq)
        points = levels + rng.uniform(-eq, eq, size=(len(x), self.EQ_POINTS))
        bands = np.linspace(0, self.EQ_POINTS - 1, n_mels)
        curves = [np.interp(bands, np.arange(self.EQ_POINTS), row) for row in points]
        gains = np.array(curves, np.float32)  # dB, (batch_size, n_mels)
        return x + gains.reshape(len(x), *[1] * (x.ndim - 3), n_mels, 1)

    def mix(self, x, y, rng):
        """Blend each window and target with a share of another (mixup, Zhang 2018)."""
        alpha = self.hyperparameters.mixup
        if not alpha:
            return x, y
        partner = rng.permutation(len(x))
        share = rng.beta(alpha, alpha, len(x))
        share = self.strength * np.minimum(share, 1 - share).astype(np.float32)  # of the partner
        x_share = share.reshape(-1, *[1] * (x.ndim - 1))
        return x + x_share * (x[partner] - x), y + share[:, None] * (y[partner] - y)

    def mask(self, x, rng):
        """Cover random bands and times of each window in place (SpecAugment, Park 2019)."""
        widest = [int(size * self.MASK_SHARE) + 1 for size in x.shape[-2:]]
        widths = rng.integers(widest, size=(len(x), self.hyperparameters.masks, 2))
        widths = np.rint(self.strength * widths).astype(int)
        starts = rng.integers(np.array(x.shape[-2:]) - widths + 1)
        for window, begins, ends in zip(x, starts, starts + widths):
            for (band, frame), (band_end, frame_end) in zip(begins, ends):
                window[..., band:band_end, :] = self.fill[..., band:band_end, :]
                window[..., frame:frame_end] = self.fill


# ---------------------------------------------------------------- predictions

def predict_sounds(network, sounds, temperature=1.0):
    """Yield (name, probabilities [shape=(n_classes,)]): the mean over a sound's windows.

    sounds: pairs of a name and a spectrogram, one at a time, so that memory stays flat.
    """
    n_frames = network.input_shape[-1]
    windows = ((name, window) for name, s in sounds for window in cut_windows(s, n_frames))
    predicted = predict_windows(network, windows)
    for name, pairs in itertools.groupby(predicted, key=lambda pair: pair[0]):
        mean = np.mean([probabilities for _, probabilities in pairs], axis=0, dtype=float)
        yield name, apply_temperature(mean, temperature)


def predict_windows(network, windows):
    """Yield (name, probabilities [shape=(n_classes,)]) for pairs of a name and a window."""
    windows = iter(windows)
    while batch := list(itertools.islice(windows, SCORED_AT_ONCE)):
        names, x = zip(*batch)
        x = np.stack(x + x[-1:] * (SCORED_AT_ONCE - len(x)))  # one shape: JAX compiles once
        yield from zip(names, np.asarray(network.predict_on_batch(x)))


def apply_temperature(probabilities, temperature):
    """Calibrate probabilities: sharper below 1, softer above. [shape=(..., n_classes)]"""
    logits = np.log(np.maximum(probabilities, 1e-12))
    return scipy.special.softmax(logits / temperature, axis=-1)


def fit_temperature(labels, probabilities):
    """The temperature that fits probabilities to labels best (Guo 2017).

    Both [shape=(n_sounds, n_classes)], labels one-hot. Few sounds leave it near USUAL_TEMPERATURE.
    Otherwise a few correct predictions alone would make every prediction certain.
    """
    def loss(log_temperature):
        calibrated = apply_temperature(probabilities, np.exp(log_temperature))
        deviation = (log_temperature - math.log(USUAL_TEMPERATURE)) / TEMPERATURE_SPREAD
        return deviation**2 / 2 - np.log(calibrated[labels > 0]).sum()
    best = scipy.optimize.minimize_scalar(loss, bounds=(-3, 3), method="bounded")
    return float(np.exp(best.x))


def measure_coverage(y, probabilities):
    """Measure the accuracy on the sounds whose confidence reaches a threshold, for all thresholds.

    y: class indices [shape=(n_sounds,)]. probabilities: [shape=(n_sounds, n_classes)].
    Returns the thresholds, highest first, the shares of the sounds that reach them, and the
    accuracies on these, each [shape=(n_different_confidences,)].
    """
    confidence = probabilities.max(axis=1)
    order = np.argsort(-confidence)
    n_right = np.cumsum((probabilities.argmax(axis=1) == y)[order])
    is_last = np.diff(confidence[order], append=-1) < 0  # of the sounds of equal confidence
    counts = np.flatnonzero(is_last) + 1
    return confidence[order][is_last], counts / len(y), n_right[is_last] / counts


def measure_inflation(is_right, groups):
    """Measure how much more the number of right sounds varies than that of independent sounds.

    is_right: bool [shape=(n,)]. groups: the group of each sound. It is the design effect of Kish
    1965, never below 1. One more sound that varies by CORRELATION is counted in. Groups that are
    all right or all wrong would not show how much they vary.
    """
    _, groups, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    n = len(is_right)
    n_groups = len(sizes)
    if n_groups == n:
        return 1.0
    share = np.mean(is_right)
    deviations = np.bincount(groups, is_right) - share * sizes  # (n_groups,)
    variance = (deviations**2).sum() * n_groups / max(1, n_groups - 1)
    expected = 1 + CORRELATION * ((sizes**2).sum() / n - 1)
    return max(1.0, float((variance + expected) / (n * share * (1 - share) + 1)))


def choose_threshold(y, probabilities, inflation=1.0):
    """Choose the lowest threshold at or above which TARGET % of the predictions are right.

    Other arguments are those of measure_coverage. The lower limit of the accuracy must reach TARGET
    (Clopper and Pearson 1934, one-sided, at CONFIDENCE). As many sounds as `inflation` count as one
    independent sound. At least one sound in twenty is below the threshold: a new sound may be of
    none of the classes, even if all validation sounds are right. Returns None if no threshold is
    high enough, or if there are too few sounds.
    """
    thresholds, coverage, accuracies = measure_coverage(y, probabilities)
    n = np.round(coverage * len(y))
    n_right = np.round(accuracies * n) / inflation
    n = n / inflation
    # The probability that as many or more of n are right, if the accuracy were no higher.
    chance = scipy.special.betainc(n_right, n - n_right + 1, TARGET / 100)
    is_enough = (chance <= 1 - CONFIDENCE) & (coverage <= KEPT_SHARE)
    return float(thresholds[is_enough][-1]) if is_enough.any() else None


class Classifier:
    """A trained network, ready for new sounds.

    classifier = Classifier("weights.keras")
    classifier.predict(y, sample_rate)  # or: classifier.predict("kick.wav")
    """

    def __init__(self, weights="weights.keras", threshold=0):
        """threshold: the confidence below which a sound is unknown, or "auto". Raises UserError."""
        self.network, self.training = load_network(weights)
        self.classes = self.training.classes  # names, in the order of the probabilities
        self.threshold = find_threshold(threshold, self.training)

    def predict(self, sounds, sample_rate=None):
        """Predict the probability of each class. [shape=(n_classes,), of a list (n, n_classes)]

        sounds: the path of a sound, or samples as in utils.check_samples; or a list of these.
        sample_rate: of samples, in Hz. Raises UserError for a file, ValueError for samples.
        """
        some = sounds if isinstance(sounds, list) else [sounds]
        spectrograms = ((k, self.compute(sound, sample_rate)) for k, sound in enumerate(some))
        rows = np.array([row for _, row in self.score(spectrograms)])
        return rows.reshape(-1, len(self.classes)) if isinstance(sounds, list) else rows[0]

    def compute(self, sound, sample_rate):
        """The spectrogram of one sound. The arguments are those of predict."""
        settings = self.training.features
        if isinstance(sound, (str, os.PathLike)):
            return sound_to_spectrogram(sound, "", settings)
        y = check_samples(sound, sample_rate)
        return log_mel_spectrogram(convert_blocks([(y, sample_rate)], settings), settings)

    def score(self, sounds):
        """Yield (name, probabilities), calibrated, for pairs of a name and a spectrogram."""
        return predict_sounds(self.network, sounds, self.training.temperature)

    def name(self, probabilities):
        """Name the most probable class, or UNKNOWN. probabilities: [shape=(n_classes,)].

        It is unknown if its probability is below the threshold, or if it is a background class.
        """
        name = self.classes[probabilities.argmax()]
        is_known = probabilities.max() >= self.threshold and not is_background(name)
        return name if is_known else UNKNOWN


def find_threshold(threshold, training):
    """Find the confidence below which a sound is unknown.

    threshold: a number, or "auto" for the threshold of the training. Raises UserError if it has
    none.
    """
    if threshold != "auto":
        return threshold
    if training.threshold is None:
        reason = training.explain_no_threshold()
        raise UserError(f"--threshold auto: no threshold for {TARGET} %: {reason}; add sounds, "
                        "train with --folds 5, or name a number, such as --threshold 0.9")
    return training.threshold


def validate_network(network, spectrograms, training):
    """Score whole validation sounds, and calibrate by them.

    Returns the dict of calibrate, or {} if there are no such sounds.
    """
    names = training.split.validation
    if not names:
        return {}
    sounds = ((name, spectrograms[name]) for name in names)
    probabilities = np.stack([row for _, row in predict_sounds(network, sounds)])
    return calibrate(names, probabilities, training)


def calibrate(names, probabilities, training):
    """Calibrate by sounds that were not learned. probabilities: [shape=(n_sounds, n_classes)].

    Returns a dict of the loss, accuracy, temperature, inflation (see measure_inflation) and, if
    there is one, the threshold.
    """
    labels = one_hot(names, training.classes)  # (n_sounds, n_classes)
    y = labels.argmax(axis=1)
    losses = -np.log(np.maximum(probabilities[labels > 0], 1e-7))
    is_right = probabilities.argmax(axis=1) == y
    inflation = measure_inflation(is_right, training.find_groups(names))
    temperature = fit_temperature(labels, probabilities)
    threshold = choose_threshold(y, apply_temperature(probabilities, temperature), inflation)
    scores = {"val_loss": float(losses.mean()), "val_accuracy": float(is_right.mean()),
              "temperature": temperature, "inflation": inflation}
    return scores if threshold is None else scores | {"threshold": threshold}


# ---------------------------------------------------------------- the weights file

def save_network(network, training, path):
    """Write a network and its training to `path` in one step, so that it is always readable."""
    with whole_file(path) as temporary:
        network.save(temporary)
        with zipfile.ZipFile(temporary, "a") as archive:
            archive.writestr(TRAINING_FILE, training.to_json())


def read_training(path):
    """The Training in a weights file. Raises errors of many kinds for another file."""
    with zipfile.ZipFile(path) as archive:
        if damaged := archive.testzip():
            raise ValueError(f"{damaged} is damaged")
        text = archive.read(TRAINING_FILE)
    try:
        return Training.from_json(text)
    except Exception as error:
        raise ValueError(f"{TRAINING_FILE}: {error}") from None


def read_network(path, training, compile):
    """The network in a weights file, of known layers only. Raises errors of many kinds."""
    kinds = set()
    with zipfile.ZipFile(path) as archive:
        json.loads(archive.read("config.json"),
                   object_hook=lambda found: kinds.add(str(found.get("class_name"))))
    if foreign := kinds - SAFE_CLASSES:
        raise ValueError(f"it holds {', '.join(sorted(foreign))}")
    network = keras.models.load_model(path, compile=compile, safe_mode=True)
    settings = training.features
    channels = (settings.channels,) if settings.channels > 1 else ()
    shapes = (None, *channels, settings.n_mels, training.n_frames), (None, len(training.classes))
    if (network.input_shape, network.output_shape) != shapes:
        raise ValueError(f"a network from {network.input_shape} to {network.output_shape}")
    return network


@contextlib.contextmanager
def reading_weights(path):
    """Turn any error in reading a weights file into a UserError."""
    check_weights_path(path)
    try:
        yield
    except Exception as error:  # zip, HDF5, JSON and Keras each have their own
        if getattr(error, "errno", None) in DISK_FULL:
            error.filename = tempfile.gettempdir()  # Keras unpacks there
            raise
        reason = (str(error).splitlines() or [type(error).__name__])[0].split(". ")[0]
        raise UserError(f"{path}: expected the weights that train_network.py saves, found "
                        f"something else ({reason}); train again with --fresh") from None


def load_training(path):
    """The Training in a weights file: the settings and sounds of its network. Raises UserError."""
    with reading_weights(path):
        return read_training(path)


def load_network(path, compile=False):
    """The network and the Training in a weights file, with its optimizer if `compile`.

    Raises UserError if the file is missing, damaged or not a weights file.
    """
    with reading_weights(path):
        training = read_training(path)
        network = read_network(path, training, compile)
        if compile:
            prepare_steps(network)
        return network, training


# ---------------------------------------------------------------- backends and devices

def use_seed(seed):
    """Seed Keras, and make TensorFlow deterministic: the same seed gives the same weights."""
    keras.utils.set_random_seed(seed)
    if keras.backend.backend() == "tensorflow":
        import tensorflow
        tensorflow.config.experimental.enable_op_determinism()


def seed_dropout(network, seed, epoch):
    """Seed dropout for an epoch. Keras saves no random states, so a stop would change them."""
    for k, layer in enumerate(network.layers):
        if isinstance(layer, layers.Dropout):
            state = np.random.SeedSequence([seed, epoch, k]).generate_state(2)
            layer.seed_generator.state.assign(state)


def describe_device(network):
    """The backend and device that a network runs on, such as "tensorflow on cpu:0"."""
    name = keras.backend.backend()
    if name == "torch":  # for which Keras lists no devices
        return f"torch on {network.weights[0].value.device}"
    return f"{name} on {keras.distribution.list_devices()[0]}"


def choose_devices(n, batch_size):
    """A context manager in which each batch is shared among n devices. Raises UserError."""
    if n == 1:
        return contextlib.nullcontext()
    if keras.backend.backend() != "jax":
        raise UserError(f"--devices {n}: needs KERAS_BACKEND=jax, found {keras.backend.backend()}")
    found = keras.distribution.list_devices()
    if n > len(found):
        raise UserError(f"--devices {n}: only {len(found)} available ({', '.join(found)}); use "
                        "fewer")
    if batch_size % n:
        raise UserError(f"--batch-size {batch_size}: use a multiple of {n}, the number of devices")
    return keras.distribution.DataParallel(devices=found[:n]).scope()


@contextlib.contextmanager
def explain_errors(batch_size):
    """Turn a backend's out-of-memory error, or a UserError that it wraps, into a UserError."""
    try:
        yield
    except Exception as error:
        text = f"{type(error).__name__} {error}"
        if found := re.search(r"\w*UserError: (.+)", text):  # TensorFlow wraps those of Batches
            raise UserError(found[1]) from None
        memory = "MemoryError|resource_?exhausted|out of memory|can't allocate memory"
        if not re.search(memory, text, re.IGNORECASE):
            raise
        smaller = f"--batch-size {batch_size // 2}, or " if batch_size > 1 else ""
        raise UserError(f"--batch-size {batch_size}: out of memory; try {smaller}fewer --filters "
                        "or --layers") from None
