"""Try each fault many times, at moments and bytes drawn from a seed.

    python tests/torture [--seconds N] [--seed N] [--only FAULT]

Prints how often each fault was tried and survived. Exit status 1 if one was not. It takes 15
minutes at most on two cores.
"""
import argparse
import itertools
import shutil
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parents[1])]

import inputs  # noqa: E402
import locks  # noqa: E402, F401
import stops  # noqa: E402, F401
from common import BATCH, FAULTS, Draw, originals, undisturbed  # noqa: E402


def attempt(name, place, seed, number, n_files):
    """Try a fault once, on n_files files if it takes many.

    Returns how many tries were survived, a text on what was lost or None, and the seconds.
    """
    began = time.monotonic()
    lost = None
    folder = place / f"{name} {seed} {number}"
    folder.mkdir()
    try:
        function = FAULTS[name].function
        n_survived = function(place, folder, Draw(name, seed, number, n_files)) or 1
        shutil.rmtree(folder)
    except Exception as error:
        n_survived = 0
        lost = f"{name}, seed {seed}, try {number}: {type(error).__name__}: {error}"
    return n_survived, lost, time.monotonic() - began


def batch_sizes(n_tries):
    """The number of files in each try of a fault: one, or a batch."""
    size = BATCH if n_tries > BATCH else 1
    return [min(size, n_tries - k) for k in range(0, n_tries, size)]


def try_faults(names, place, seed):
    """Try faults, two tries at a time, and print a line for each. Returns whether none was lost."""
    is_fine = True
    with ThreadPoolExecutor(2) as pool:
        tries = {}
        for name in names:
            tries[name] = [pool.submit(attempt, name, place, seed, number, n_files)
                           for number, n_files in enumerate(batch_sizes(FAULTS[name].n_tries))]
        for name, futures in tries.items():
            results = [future.result() for future in futures]
            n_survived = sum(n for n, _, _ in results)
            lost = [text for _, text, _ in results if text]
            seconds = sum(took for _, _, took in results)
            fault = FAULTS[name]
            line = f"{fault.text:82} {fault.n_tries:6} {n_survived:9} {seconds:8.0f}"
            print(line, *lost, sep="\n  ", flush=True)
            is_fine = is_fine and n_survived == fault.n_tries
    return is_fine


def parse_args():
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=0,
                        help="repeat with the next seed for so long")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=FAULTS, metavar="FAULT",
                        help="one of " + ", ".join(FAULTS))
    return parser.parse_args()


def main():
    """Try the faults. Exits with status 1 if anything was lost."""
    args = parse_args()
    names = [args.only] if args.only else list(FAULTS)
    began = time.monotonic()
    place = Path(tempfile.mkdtemp(prefix="torture"))
    print(f"{'Fault':82} {'tried':>6} {'survived':>9} {'seconds':>8}", flush=True)
    for kind in ("preprocessed", "augmented", "trained", "many"):
        undisturbed(place, kind)
    inputs.sources()
    originals(place)
    is_fine = True
    for seed in itertools.count(args.seed):
        is_fine = try_faults(names, place, seed) and is_fine
        if time.monotonic() - began > args.seconds:
            break
    print(f"{time.monotonic() - began:.0f} s in all")
    if not is_fine:
        sys.exit(f"What was lost lies in {place}")
    shutil.rmtree(place)


if __name__ == "__main__":
    main()
