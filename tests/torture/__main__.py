"""What the scripts keep when all goes wrong: each fault many times, at moments and bytes drawn from a seed.

    python tests/torture [--seconds N] [--seed N] [--only FAULT]

Prints how often each fault was tried and survived; exit status 1 if one was not. 15 minutes at most on two cores.
"""
import argparse
import shutil
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parents[1])]

from faults import BATCH, FAULTS, prepare, try_one  # noqa: E402


def survive(name, place, seed):
    """Try a fault as often as its row says, two at a time. Prints its row, and what was lost; whether nothing was."""
    _, text, times, _ = FAULTS[name]
    size = BATCH if times > BATCH else 1
    began, losses, sizes = time.monotonic(), [], [min(size, times - k) for k in range(0, times, size)]

    def attempt(number):
        try:
            return try_one(name, place, seed, number, sizes[number])
        except Exception as error:
            losses.append(f"{name}, seed {seed}, try {number}: {type(error).__name__}: {error}")
            return 0

    with ThreadPoolExecutor(2) as pool:
        n_survived = sum(pool.map(attempt, range(len(sizes))))
    print(f"{text:82} {times:6} {n_survived:9} {time.monotonic() - began:8.0f}", *losses, sep="\n  ", flush=True)
    return n_survived == times


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=0, help="go round again, with the next seed, for so long")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=FAULTS, metavar="FAULT", help="one of " + ", ".join(FAULTS))
    args = parser.parse_args()
    began, place, fine = time.monotonic(), Path(tempfile.mkdtemp(prefix="torture")), True
    print(f"{'Fault':82} {'tried':>6} {'survived':>9} {'seconds':>8}")
    prepare(place)
    while True:
        for name in [args.only] if args.only else FAULTS:
            fine = survive(name, place, args.seed) and fine
        args.seed += 1
        if time.monotonic() - began > args.seconds:
            break
    if fine:
        shutil.rmtree(place)
    sys.exit(0 if fine else f"What was lost lies in {place}")


if __name__ == "__main__":
    main()
