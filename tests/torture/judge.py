"""Read damaged files one by one, as the scripts do.

    python judge.py FOLDER FILE ...

FOLDER: an undamaged training. FILE: in a folder that is named after its kind: spectrograms,
settings, weights or checkpoint. Prints a JSON line for each file as soon as it is judged: its
path, and "read", "named" or what went wrong.
"""
import argparse
import copy
import json
import sys
import warnings
from functools import partial
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))

import eval_network
import models
import train_network
import utils
from utils import UserError


def read_settings(path):
    """Read the settings in a Preproc/."""
    settings = utils.load_settings(Path(path).parent)
    assert settings.filters.shape == (settings.n_mels, 1 + settings.n_fft // 2)


def read_spectrogram(path, settings):
    """Read a spectrogram into memory, and as a map."""
    path = Path(path)
    utils.load_spectrogram(path.stem, path.parent, settings)
    utils.locate_spectrogram(path.stem, path.parent, settings)


def use_weights(path, spectrogram):
    """Classify a sound, and describe the training as evaluation does."""
    network, info = models.load_network(path)
    sounds = [("sound", spectrogram)]
    (_, probabilities), = models.predict_sounds(network, sounds, info["temperature"])
    n_classes = len(info["classes"])
    assert probabilities.shape == (n_classes,)
    perfect = np.eye(n_classes)
    args = argparse.Namespace(samples=Path("Samples"), data=None)
    report = eval_network.measure_scores(np.arange(n_classes), perfect, perfect, info)
    json.dumps(report | eval_network.describe_run(args, info, models.keras.backend.backend()))


def continue_training(path, info, figure):
    """Continue a stopped training by one step, and draw its curves."""
    path = Path(path)
    save = path.with_name(path.name.replace(".unfinished.keras", ".keras"))
    assert train_network.checkpoint_path(save) == path
    args = argparse.Namespace(save=save, fresh=False, weights=None)
    network, found = train_network.prepare_network({}, copy.deepcopy(info), args)
    batch = np.zeros((2, *network.input_shape[1:]), np.float32)
    network.train_on_batch(batch, np.eye(len(info["classes"]))[:2], np.ones(2))
    first, *_ = found["history"] or [{}]
    logs = dict.fromkeys([*first, "loss", "accuracy"], 1.0)
    train_network.add_epoch(network, [batch], found, logs, 1.0)
    for row in found["history"]:
        utils.format_clock(row["seconds"])
        train_network.format_scores(row)
    train_network.plot_curves(figure, found["history"])


def make_readers(folder):
    """The function that reads a file of each kind."""
    settings = utils.load_settings(folder / "Preproc")
    spectrogram = np.load(next(folder.glob("Preproc/*/*.npy")))
    info = models.load_info(folder / "weights.keras")
    for key in ("n_frames", "history", "temperature"):  # training adds them
        del info[key]
    return {"settings": read_settings,
            "spectrograms": partial(read_spectrogram, settings=settings),
            "weights": partial(use_weights, spectrogram=spectrogram),
            "checkpoint": partial(continue_training, info=info, figure=Path("curves.png"))}


def judge(read, path):
    """Read a file. Returns "read", "named", or what went wrong."""
    try:
        with warnings.catch_warnings(action="error"):
            read(path)
    except UserError as error:
        is_named = Path(path).name[:5] in utils.shown(error)
        return "named" if is_named else f"not named: {error}"
    except BaseException as error:
        return f"{type(error).__name__}: {error}"
    return "read"


def main():
    """Judge each file of the command line."""
    sys.stdout.reconfigure(errors="backslashreplace")
    out = sys.stdout
    sys.stdout = open("said.txt", "w", errors="backslashreplace")  # what training prints
    readers = make_readers(Path(sys.argv[1]))
    for path in sys.argv[2:]:
        kind = next(kind for kind in readers if f"/{kind}/" in path)
        print(json.dumps([path, judge(readers[kind], path)]), file=out, flush=True)


if __name__ == "__main__":
    main()
