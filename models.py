"""The networks, how they are fed and trained, and the file that they are saved in.

A weights file is Keras's .keras archive with one member more, training.json: classes, feature settings, how it was
trained and the sounds of each side of the split. It alone is enough to score a sound. The same code runs on
TensorFlow, JAX and PyTorch; the environment variable KERAS_BACKEND chooses.
"""
import contextlib
import itertools
import json
import math
import os
import re
import sys
import tempfile
import time
import zipfile
from importlib.util import find_spec

import numpy as np
import scipy.optimize
import scipy.special

from preprocess_data import AMIN, TOP_DB, FeatureSettings
from utils import DISK_FULL, UserError, bar, check_weights_path, class_of, say, whole_file


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
    try:
        import keras
    except (ImportError, ValueError) as error:
        raise UserError(f"KERAS_BACKEND={os.environ.get('KERAS_BACKEND')}: expected tensorflow, jax or torch, and its "
                        f"package, found: {error}") from None
    from keras import layers

INFO_FILE = "training.json"
KEPT_OF_EPOCHS = "epoch", "learning_rate", "loss", "accuracy", "seconds", "clips_per_second"
# What Keras may build of a weights file: the parts of our networks. Others may read files, or run what they bring.
OURS = frozenset("None Functional __keras_tensor__ DTypePolicy InputLayer Normalization Reshape Permute Conv2D "
                 "BatchNormalization ReLU ELU AveragePooling2D MaxPooling2D Flatten Dropout Dense GlorotUniform Zeros "
                 "Ones AdamW Adadelta".split())
MAX_FRAMES = 256  # the longest window, 3 s at 44.1 kHz: longer sounds are seen and scored in several


# ---------------------------------------------------------------- from spectrograms to windows of one length

def choose_n_frames(spectrograms):
    """The window that holds nine in ten of the sounds whole, a multiple of 8 between 16 and MAX_FRAMES."""
    length = np.percentile([spectrogram.shape[-1] for spectrogram in spectrograms], 90)
    return int(np.clip(math.ceil(length / 8) * 8, 16, MAX_FRAMES))


def pad_to(spectrogram, n_frames):
    """The spectrogram in the middle of at least n_frames, the rest silence. [shape=(..., n_mels, n_frames or more)]"""
    missing = n_frames - spectrogram.shape[-1]
    if missing <= 0:
        return spectrogram
    # What silence measures beside this sound: 0 dB would be loud.
    silence = max(10 * math.log10(AMIN), spectrogram.max() - TOP_DB)
    padded = np.full((*spectrogram.shape[:-1], n_frames), silence, np.float32)
    padded[..., missing // 2:missing // 2 + spectrogram.shape[-1]] = spectrogram
    return padded


def windows_of(spectrogram, n_frames):
    """The fewest windows that cover a spectrogram, evenly spread. [shape=(n_windows, ..., n_mels, n_frames)]"""
    padded = pad_to(spectrogram, n_frames)
    last = padded.shape[-1] - n_frames
    starts = np.linspace(0, last, 1 + math.ceil(last / n_frames)).astype(int)
    return np.stack([padded[..., start:start + n_frames] for start in starts])


def class_indices(names, classes):
    """The place of each sound's class among the classes. [shape=(len(names),), int]"""
    index = {name: k for k, name in enumerate(classes)}
    return np.array([index[class_of(name)] for name in names])


def one_hot(names, classes):
    """The classes of sounds as rows of zeros and a one. [shape=(len(names), len(classes)), float32]"""
    return np.eye(len(classes), dtype=np.float32)[class_indices(names, classes)]


def class_weights(targets, kind):
    """What each class counts in the loss: "balanced", so that all classes count alike, or "none". [shape=(n_classes,)]

    targets: one-hot rows of the training sounds [shape=(n_sounds, n_classes)].
    """
    if kind == "none":
        return np.ones(targets.shape[1], np.float32)
    from sklearn.utils.class_weight import compute_class_weight
    y = targets.argmax(axis=1)
    return compute_class_weight("balanced", classes=np.arange(targets.shape[1]), y=y).astype(np.float32)


def weighted(targets, weights):
    """Weigh each class's part of mixed targets. Returns targets whose rows sum to one, and each row's weight.

    Keras's class_weight would weigh a whole row by its largest part, and so a rare class that is mixed in too little.
    """
    parts = targets * weights  # (batch_size, n_classes)
    total = parts.sum(axis=1)  # (batch_size,)
    return parts / total[:, None], total


class Batches(keras.utils.PyDataset):
    """Training batches: a window of each sound, in an order and with changes that follow from seed and epoch.

    Yields windows [shape=(batch_size, ..., n_mels, n_frames), float32, dB], targets [shape=(batch_size, n_classes)]
    and what each window counts in the loss [shape=(batch_size,)].
    fill: what masks put in, a level a band. host: (k, n) for the part of each batch of the k-th of n hosts.
    """

    MASK_SHARE = 1 / 8

    def __init__(self, spectrograms, info, fill, host=(0, 1)):
        super().__init__(workers=2)  # threads that build batches while the network learns from others
        self.spectrograms, self.names, self.fill, self.host = spectrograms, info["train"], fill, host
        self.targets, self.n_frames = one_hot(info["train"], info["classes"]), info["n_frames"]
        self.recipe, self.seed = info["recipe"], info["seed"]
        self.class_weights = class_weights(self.targets, self.recipe["class_weights"])
        # A small set comes round several times in an epoch: patience is counted in epochs.
        self.n_steps = max(math.ceil(len(self.names) / self.recipe["batch_size"]), self.recipe["min_steps"])
        self.begin(0)

    def begin(self, epoch):
        """Draw the order of an epoch. The last batch is filled from the next round: all have one shape."""
        rng, n = np.random.default_rng([self.seed, epoch]), self.n_steps * self.recipe["batch_size"]
        rounds = [rng.permutation(len(self.names)) for _ in range(math.ceil(n / len(self.names)))]
        self.epoch, self.order = epoch, np.concatenate(rounds)[:n]

    def __len__(self):
        return self.n_steps

    def __getitem__(self, step):
        size = self.recipe["batch_size"]
        rows, rng = self.order[step * size:(step + 1) * size], np.random.default_rng([self.seed, self.epoch, step])
        x = np.stack([self.window(self.spectrograms[self.names[row]], rng) for row in rows])
        x, y = self.mixed(x, self.targets[rows], rng)
        self.mask(x, rng)
        y, weights = weighted(y, self.class_weights)
        y = y * (1 - self.recipe["smoothing"]) + self.recipe["smoothing"] / y.shape[1]
        k, n_hosts = self.host
        return tuple(np.array_split(array, n_hosts)[k] for array in (x, y, weights))

    def window(self, spectrogram, rng):
        """A random window; of a sound that fits, one that holds it whole or all but a little."""
        margin = round(self.recipe["shift"] * self.n_frames)
        padded = pad_to(spectrogram, self.n_frames + 2 * margin)
        start = rng.integers(padded.shape[-1] - self.n_frames + 1)
        return padded[..., start:start + self.n_frames].copy()  # lest it hold a memory map, and its file, open

    def mixed(self, x, y, rng):
        """Each window with a share of another, and its target alike (mixup, Zhang 2018)."""
        if not self.recipe["mixup"]:
            return x, y
        partner, share = rng.permutation(len(x)), rng.beta(self.recipe["mixup"], self.recipe["mixup"], len(x))
        share = np.minimum(share, 1 - share).astype(np.float32)  # of the other
        return (a + share.reshape(-1, *[1] * (a.ndim - 1)) * (a[partner] - a) for a in (x, y))

    def mask(self, x, rng):
        """Put each band's mean into random bands and times of each window, in place (Park 2019)."""
        widths = rng.integers([int(size * self.MASK_SHARE) + 1 for size in x.shape[-2:]],
                              size=(len(x), self.recipe["masks"], 2))
        starts = rng.integers(np.array(x.shape[-2:]) - widths + 1)
        for window, begins, ends in zip(x, starts, starts + widths):
            for (band, frame), (band_end, frame_end) in zip(begins, ends):
                window[..., band:band_end, :] = self.fill[..., band:band_end, :]
                window[..., frame:frame_end] = self.fill


# ---------------------------------------------------------------- the networks

def conv_block(x, filters, kernel_size=3, strides=1):
    x = layers.Conv2D(filters, kernel_size, strides, padding="same", use_bias=False)(x)
    # Momentum 0.99, Keras's default, needs thousands of steps before its averages are right.
    x = layers.BatchNormalization(momentum=0.9)(x)
    return layers.ReLU()(x)


def default_network(x, n_layers, filters):
    """A 5x5 convolution at half resolution, then n_layers blocks of two 3x3 convolutions and a pooling.

    Filters double from block to block. Two convolutions before each pooling generalise better than one, and nothing at
    full resolution earns its cost. Time is averaged but frequency kept: where the energy lies tells classes apart.
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


BODIES = {"default": default_network, "original": original_network}
RECIPES = {  # what each network is trained with unless a flag says otherwise
    "default": dict(layers=3, filters=16, batch_size=32, learning_rate=2e-3, mixup=0.3, masks=2, shift=0.1,
                    class_weights="balanced", smoothing=0.05, anneal=True, min_steps=30, patience=4),
    "original": dict(layers=4, filters=32, batch_size=128, learning_rate=1.0, mixup=0, masks=0, shift=0,
                     class_weights="none", smoothing=0, anneal=False, min_steps=1, patience=20),
}


def band_statistics(spectrograms):
    """The mean and variance of each mel band. Both [shape=(..., n_mels)].

    Each sound counts alike, whatever its length: an hour of silence would outweigh a thousand short sounds.
    """
    n, mean, square = 0, 0.0, 0.0  # summed as they come: they need not be in memory together
    for s in spectrograms:
        n += 1
        mean = mean + s.mean(axis=-1, dtype=float)
        square = square + np.einsum("...t,...t->...", s, s, dtype=float) / s.shape[-1]
    mean, square = mean / n, square / n
    return mean, np.maximum(square - mean**2, 0) + 1e-3  # silence has no variance


def build(name, recipe, spectrograms, n_classes, n_frames):
    """The network `name` for windows [shape=(batch, n_mels, n_frames)] in dB -> class probabilities.

    Each mel band is normalised by its mean and variance in `spectrograms`, the training sounds. Windows of several
    channels [shape=(batch, channels, n_mels, n_frames)] are as well, each channel for itself.
    """
    mean, variance = band_statistics(spectrograms)
    shape = mean.shape  # (..., n_mels)
    inputs = keras.Input((*shape, n_frames))
    x = layers.Normalization(axis=tuple(range(1, 1 + len(shape))), mean=mean, variance=variance)(inputs)
    x = layers.Reshape((-1, shape[-1], n_frames))(x)  # (batch, channels, n_mels, n_frames)
    x = layers.Permute((2, 3, 1))(x)  # (batch, n_mels, n_frames, channels)
    x = BODIES[name](x, recipe["layers"], recipe["filters"])
    return keras.Model(inputs, layers.Dense(n_classes, activation="softmax", name="head")(x))


def band_means(network):
    """The mean of each mel band that the network's input is normalised by, in dB. [shape=(..., n_mels, 1), float32]"""
    return np.asarray(keras.ops.convert_to_numpy(network.layers[1].mean), np.float32)[0]


def compile_for(name, network, recipe):
    optimizer = (keras.optimizers.Adadelta(recipe["learning_rate"]) if name == "original" else
                 keras.optimizers.AdamW(recipe["learning_rate"], weight_decay=0.05, clipnorm=1.0))
    network.compile(optimizer, "categorical_crossentropy", metrics=["accuracy"])
    optimizer.build(network.trainable_variables)


# ---------------------------------------------------------------- training

def recipe_of(args):
    """The recipe of args.network as a dict, with what the flags change."""
    recipe = RECIPES[args.network] | {"epochs": args.epochs}
    return recipe | {key: value for key, value in vars(args).items() if key in recipe and value is not None}


def backend_and_device(network):
    name = keras.backend.backend()  # with PyTorch, Keras has no list of devices
    return f"{name} on {network.weights[0].value.device if name == 'torch' else keras.distribution.list_devices()[0]}"


def tensorboard(folder, network):
    """Keras's writer of scores, for a network that is trained an epoch at a time. Raises UserError."""
    if not (find_spec("tensorboard") and find_spec("tensorflow")):
        raise UserError("--tensorboard: expected the package tensorboard, found none: pip install tensorboard")
    folder.mkdir(parents=True, exist_ok=True)
    board = keras.callbacks.TensorBoard(folder, write_graph=False)
    board.set_model(network)
    return board


def use_seed(seed):
    """Seed Keras and have TensorFlow add in one order: the same seed gives the same weights."""
    keras.utils.set_random_seed(seed)
    if keras.backend.backend() == "tensorflow":
        import tensorflow
        tensorflow.config.experimental.enable_op_determinism()


def state_path(weights):
    """Where a training that has not ended keeps all that it needs to go on, beside its weights."""
    return weights.with_name(f"{weights.stem}.unfinished.npz")


def save_state(weights, network, info, history):
    arrays = [keras.ops.convert_to_numpy(v) for v in network.variables + network.optimizer.variables]
    with whole_file(state_path(weights)) as temporary, open(temporary, "wb") as file:
        np.savez(file, *arrays, said=np.frombuffer(json.dumps([info, history]).encode(), np.uint8))


def load_state(weights):
    """The info, the epochs and the variables of a training that was stopped. Raises UserError."""
    path = state_path(weights)
    try:
        with np.load(path, allow_pickle=False) as state:
            info, history = json.loads(state["said"].tobytes())
            info = complete(info)
            check(info)
            if not all(set(KEPT_OF_EPOCHS) <= row.keys() and {*map(type, row.values())} <= {int, float}
                       for row in history):
                raise ValueError("epochs without numbers")
            return info, history, [state[f"arr_{k}"] for k in range(len(state.files) - 1)]
    except Exception as error:  # a damaged archive has many ways to be wrong; pickles in it are not loaded
        raise UserError(f"{path}: expected a training to go on with, found {error}; --fresh starts again") from None


def assign(network, values):
    """Give network and optimizer the values of their variables. Raises ValueError for others."""
    variables = network.variables + network.optimizer.variables
    found = [value.shape for value in values if isinstance(value, np.ndarray) and value.dtype.kind in "fiu"]
    if [(*variable.shape,) for variable in variables] != found:
        raise ValueError(f"{len(values)} arrays of other shapes")
    for variable, value in zip(variables, values):
        variable.assign(value)


@contextlib.contextmanager
def naming_memory(batch_size):
    """Turn what the backends raise where memory runs out, or a spectrogram cannot be read, into a UserError."""
    try:
        yield
    except Exception as error:
        text = f"{type(error).__name__} {error}"
        if found := re.search(r"\w*UserError: (.+)", text):  # TensorFlow wraps what is raised where batches are built
            raise UserError(found[1]) from None
        if not re.search("MemoryError|resource_?exhausted|out of memory|can't allocate memory", text, re.IGNORECASE):
            raise
        smaller = f"--batch-size {batch_size // 2}, or " * (batch_size > 1)
        raise UserError(f"--batch-size {batch_size}: expected network and batch to fit into memory, found no more; "
                        f"try {smaller}fewer --filters or --layers") from None


def new_network(spectrograms, info, start):
    """A network for the training that info tells of: new, or grown from the weights file `start`."""
    recipe, n_classes = info["recipe"], len(info["classes"])
    if start is None:
        n_frames = choose_n_frames(spectrograms[name] for name in info["train"])
        network = build(info["network"], recipe, (spectrograms[name] for name in info["train"]), n_classes, n_frames)
    else:
        network, earlier = load(start)
        if earlier["features"] != info["features"]:
            raise UserError(f"--weights {start}: expected spectrograms made as for it, {earlier['features']}, "
                            f"found {info['features']}; preprocess with its settings")
        if earlier["classes"] == info["classes"]:
            say(f"Starts from {start}, of the same classes")
        else:
            say(f"Starts from {start}: its body is kept, the last layer is new for these {n_classes} classes")
            head = layers.Dense(n_classes, activation="softmax", name="head")
            network = keras.Model(network.input, head(network.layers[-2].output))
    compile_for(info["network"], network, recipe)
    return network


def devices(n, batch_size):
    """(scope, (k, n_hosts)): within scope() a network trains on n devices, or all of n_hosts; this is host k of them.

    Several hosts are told of one another by Keras's KERAS_DISTRIBUTION_... variables. Raises UserError.
    """
    hosts = "KERAS_DISTRIBUTION_JOB_ADDRESSES" in os.environ
    if not hosts and n in (None, 1):
        return contextlib.nullcontext, (0, 1)
    if hosts and n:
        raise UserError(f"--devices {n}: expected none with several hosts, whose devices are all used")
    if keras.backend.backend() != "jax":
        raise UserError(f"--devices {n or 'of several hosts'}: expected KERAS_BACKEND=jax, "
                        f"found {keras.backend.backend()}")
    if hosts:
        keras.distribution.initialize()
    import jax
    found = keras.distribution.list_devices()
    if n and n > len(found):
        raise UserError(f"--devices {n}: expected so many devices, found {len(found)}: {', '.join(found)}")
    if batch_size % len(found[:n]):
        raise UserError(f"--batch-size {batch_size}: expected a multiple of the {len(found[:n])} devices, found none")
    parallel = keras.distribution.DataParallel(devices=found[:n], auto_shard_dataset=False)
    return parallel.scope, (jax.process_index(), jax.process_count())


def fit_epoch(network, batches, epoch):
    """Train for an epoch, behind a bar on a terminal. Returns loss, accuracy and clips per second."""
    began = time.perf_counter()
    with bar(f"epoch {epoch + 1}", len(batches), transient=True) as show:
        watch = keras.callbacks.LambdaCallback(on_train_batch_end=lambda step, logs: show(step + 1))
        batches.begin(epoch)
        logs = network.fit(batches, initial_epoch=epoch, epochs=epoch + 1, verbose=0, shuffle=False,
                           callbacks=[watch] if sys.stdout.isatty() else []).history
    n_clips, seconds = len(batches) * batches.recipe["batch_size"], time.perf_counter() - began
    return {"loss": logs["loss"][0], "accuracy": logs["accuracy"][0],
            "seconds": seconds, "clips_per_second": n_clips / seconds}


# ---------------------------------------------------------------- the weights file and its use

def save(network, info, path):
    """Write network and info to `path`, at once or not at all: it can be read at every moment."""
    with whole_file(path) as temporary:
        network.save(temporary)
        with zipfile.ZipFile(temporary, "a") as archive:
            archive.writestr(INFO_FILE, json.dumps(info, indent=1))


def complete(info):
    """Add to info what former versions did not save. They told of all that was seen, learned from or not."""
    return {"temperature": 1, "seen": [], "unused": [], "learned": info.get("seen", [])} | info


def check(info):
    """Raise an error, of one kind or another, where info is not such as training saves."""
    FeatureSettings(**info["features"])
    lists = [info[key] for key in ("classes", "train", "validation", "test", "unused", "seen", "learned")]
    kinds = [type(info[key]) for key in ("seed", "n_frames")], type(info.get("recipe", {}))
    if not (kinds == ([int, int], dict) and info["network"] in BODIES and 1e-3 < info["temperature"] < 1e3
            and all(isinstance(names, list) and all(isinstance(name, str) for name in names) for names in lists)
            and len(set(info["classes"])) == len(info["classes"]) > 1):
        raise ValueError("what is told of the training is not what training tells")


def load_info(path):
    """What a weights file tells of its training. Raises errors of many kinds where it is damaged, or another's."""
    with zipfile.ZipFile(path) as archive:
        if damaged := archive.testzip():
            raise ValueError(f"{damaged} is damaged")
        info = complete(json.loads(archive.read(INFO_FILE)))
    check(info)
    return info


def load_both(path):
    """The network, of layers as ours and no others, and the info of a weights file. Raises errors of many kinds."""
    info, kinds = load_info(path), set()
    with zipfile.ZipFile(path) as archive:
        json.loads(archive.read("config.json"), object_hook=lambda found: kinds.add(str(found.get("class_name"))))
    if foreign := kinds - OURS:
        raise ValueError(f"it holds {', '.join(sorted(foreign))}")
    network = keras.models.load_model(path, compile=False, safe_mode=True)
    f = FeatureSettings(**info["features"])
    shape = (None, *[f.channels] * (f.channels > 1), f.n_mels, info["n_frames"])
    if (network.input_shape, network.output_shape) != (shape, (None, len(info["classes"]))):
        raise ValueError(f"a network from {network.input_shape} to {network.output_shape}")
    return network, info


def load(path, read=load_both):
    """What `read` finds in a weights file. Raises UserError for a file that is missing or not one."""
    check_weights_path(path)
    try:
        return read(path)
    except Exception as error:  # zip, HDF5, JSON and Keras have a kind of their own for each way to be wrong
        if getattr(error, "errno", None) in DISK_FULL:  # Keras unpacks what it reads
            error.filename = tempfile.gettempdir()
            raise
        reason = (str(error).splitlines() or [type(error).__name__])[0].split(". ")[0]
        raise UserError(f"{path}: expected the weights that train_network.py saves, found something else "
                        f"({reason})") from None


def predict(network, sounds, temperature=1.0):
    """Yield (name, class probabilities [shape=(n_classes,)]) of sounds, pairs of a name and a spectrogram.

    Those of a sound of any length are the mean over its windows, calibrated. Takes sounds as they come: memory is flat.
    """
    windows = ((name, window) for name, s in sounds for window in windows_of(s, network.input_shape[-1]))
    for name, scored in itertools.groupby(predict_windows(network, windows), key=lambda pair: pair[0]):
        yield name, calibrated(np.mean([scores for _, scores in scored], axis=0, dtype=float), temperature)


def predict_windows(network, windows, batch_size=64):
    while batch := list(itertools.islice(windows, batch_size)):
        names, x = zip(*batch)
        x = np.stack(x + x[-1:] * (batch_size - len(x)))  # of one shape always: JAX compiles once
        yield from zip(names, np.asarray(network.predict_on_batch(x)))


def calibrated(scores, temperature):
    """Probabilities as the temperature makes them, sharper below 1, softer above. [shape=(..., n_classes)]"""
    return scipy.special.softmax(np.log(np.maximum(scores, 1e-12)) / temperature, axis=-1)


def best_temperature(truth, scores):
    """The temperature at which probabilities fit the truth best (Guo 2017). Both [shape=(n_sounds, n_classes)].

    One sound more, whose class is anyone's guess, keeps a few that are all right from making it certain (Platt 1999).
    """
    targets = (len(truth) * truth + 1 / truth.shape[1]) / (len(truth) + 1)
    return float(np.exp(scipy.optimize.minimize_scalar(
        lambda t: -(targets * np.log(calibrated(scores, np.exp(t)))).sum(), bounds=(-3, 3), method="bounded").x))
