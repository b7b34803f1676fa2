"""What can happen to the four scripts, and what must hold then: one function a fault, one call a try.

Each gets an empty folder and a random.Random, and raises AssertionError where something was lost. One that tries
many files in one call returns how many.
"""
import shutil

import inputs
import locks
import stops
from common import BATCH, FAULTS, Draw, originals, undisturbed

__all__ = ["BATCH", "FAULTS", "prepare", "try_one"]
MODULES = inputs, stops, locks  # each adds its faults to the list


def try_one(name, place, seed, number, room=1, short=False):
    """Try a fault once, in a folder of its own below `place`; how many tries that was. Raises AssertionError."""
    folder = place / f"{name} {seed} {number}"
    folder.mkdir()
    n = FAULTS[name][0](place, folder, Draw(name, seed, number, room, short))
    shutil.rmtree(folder)
    return n or 1


def prepare(place):
    """What the tries share, done before two of them run side by side."""
    for kind in ("preprocessed", "augmented", "trained", "many"):
        undisturbed(place, kind)
    inputs.sources()
    originals(place)
