"""Read damaged files one by one, as the scripts do, and say of each: read, or named in a line, or what went wrong.

    python judge.py FOLDER FILE ...

FOLDER: an undamaged training. FILE: in a folder that says of which kind it is: spectrograms, settings, weights, state.
Prints a JSON line a file, as it is done: its path, and read or named.
"""
import json
import sys
import warnings
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))

import eval_network
import preprocess_data
import train_network
from utils import UserError, shown


def read_spectrogram(path, settings):
    name = Path(path)
    preprocess_data.load_spectrogram(name.stem, name.parent, settings)


def read_settings(path):
    found = preprocess_data.load_settings(Path(path).parent)
    assert found.filters.shape == (found.n_mels, 1 + found.n_fft // 2)


def describe(info):
    """What evaluation tells of a training."""
    scores = np.eye(len(info["classes"]))
    eval_network.measure(scores.argmax(axis=1), scores, scores, {"temperature": 1} | info)


def use_weights(path, spectrogram):
    import models
    network, info = models.load(path)
    (_, scores), = models.predict(network, [("sound", spectrogram)], info["temperature"])
    assert scores.shape == (len(info["classes"]),)
    describe(info)


def go_on(path, network):
    """As train_network.resume does."""
    import models
    info, history, variables = models.load_state(path)
    recipe = models.RECIPES["default"] | {"epochs": 3}
    train_network.plan(history, recipe), train_network.chosen(history or [{"loss": 1}], recipe)
    describe(info)
    try:
        models.assign(network, variables)
    except ValueError as error:
        raise UserError(f"{path}: {error}") from None


def readers(folder):
    """What reads a file of each kind."""
    import models
    settings = preprocess_data.load_settings(folder / "Preproc")
    spectrogram = np.load(next(folder.glob("Preproc/*/*.npy")))
    network, info = models.load(folder / "weights.keras")
    models.compile_for(info["network"], network, info["recipe"])
    return {"settings": read_settings,
            "spectrograms": lambda path: read_spectrogram(path, settings),
            "weights": lambda path: use_weights(path, spectrogram),
            "state": lambda path: go_on(Path(path.replace(".unfinished.npz", ".keras")), network)}


def judge(read, path):
    try:
        with warnings.catch_warnings(action="error"):
            read(path)
    except UserError as error:
        return "named" if Path(path).name[:5] in shown(error) else f"not named: {error}"
    except BaseException as error:
        return f"{type(error).__name__}: {error}"
    return "read"


if __name__ == "__main__":
    read = readers(Path(sys.argv[1]))
    for path in sys.argv[2:]:
        kind = next(kind for kind in read if f"/{kind}/" in path)
        print(json.dumps([path, judge(read[kind], path)]), flush=True)
