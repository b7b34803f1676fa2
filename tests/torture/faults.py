"""The list of faults: what can happen to the four scripts, and what must hold then.

Each is a function of a shared folder, an empty folder of its own and a Draw. It raises
AssertionError if something was lost. One that tries many files in a call returns how many.
"""
import shutil

import inputs
import locks
import stops
from common import BATCH, FAULTS, Draw, originals, undisturbed

__all__ = ["BATCH", "FAULTS", "prepare", "try_one"]
MODULES = inputs, stops, locks  # each adds its faults to FAULTS


def try_one(name, place, seed, number, n_files=1):
    """Try a fault once, in a folder of its own in `place`. Returns how many tries that was.

    Raises AssertionError.
    """
    folder = place / f"{name} {seed} {number}"
    folder.mkdir()
    n = FAULTS[name].function(place, folder, Draw(name, seed, number, n_files))
    shutil.rmtree(folder)
    return n or 1


def prepare(place):
    """Make what the tries share, before two of them run side by side."""
    for kind in ("preprocessed", "augmented", "trained", "many"):
        undisturbed(place, kind)
    inputs.sources()
    originals(place)
