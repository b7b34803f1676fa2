"""Read damaged files one by one, as the scripts do.

    python judge.py FOLDER FILE ...

FOLDER: an undamaged training. FILE: in a folder that is named after its kind: spectrograms,
settings, or network. Prints a JSON line for each file as soon as it is judged: its
path, and "read", "named" or what went wrong.
"""
import json
import sys
import warnings
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))

import models
import utils


def read(path, settings):
    """Read a file by the function for its kind."""
    kind = next(kind for kind in ("spectrograms", "settings", "network") if f"/{kind}" in path)
    path = Path(path)
    if kind == "settings":
        found = utils.load_settings(path.parent)
        assert found.filters.shape == (found.n_mels, 1 + found.n_fft // 2)
    elif kind == "spectrograms":
        utils.load_spectrogram(path.stem, path.parent, settings)
    else:
        network, _ = models.load_network(path)
        network.predict(np.zeros((1, *network.input_shape[1:]), np.float32), verbose=0)


def judge(path, settings):
    """Read a file. Returns "read", "named", or what went wrong."""
    try:
        with warnings.catch_warnings(action="error"):
            read(path, settings)
    except utils.UserError as error:
        is_named = Path(path).name[:5] in utils.shown(error)
        return "named" if is_named else f"not named: {error}"
    except BaseException as error:
        return f"{type(error).__name__}: {error}"
    return "read"


settings = utils.load_settings(Path(sys.argv[1], "Preproc"))
for path in sys.argv[2:]:
    print(json.dumps([path, judge(path, settings)]), flush=True)
