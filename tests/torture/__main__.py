"""What the scripts keep when all goes wrong: each fault many times, at moments and bytes drawn from a seed.

    python tests/torture [--seconds N] [--seed N] [--only FAULT]

Prints how often each fault was tried and survived; exit status 1 if one was not. 15 minutes at most on two cores.
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

from faults import BATCH, FAULTS, prepare, try_one  # noqa: E402


def attempt(name, place, seed, number, size):
    """Try a fault once, on `size` files if it takes many. Returns how many were survived, the loss, the seconds."""
    began = time.monotonic()
    try:
        return try_one(name, place, seed, number, size), None, time.monotonic() - began
    except Exception as error:
        loss = f"{name}, seed {seed}, try {number}: {type(error).__name__}: {error}"
        return 0, loss, time.monotonic() - began


def sizes_of(times):
    """The files of each try of a fault: one, or a batch."""
    size = BATCH if times > BATCH else 1
    return [min(size, times - k) for k in range(0, times, size)]


def survive(names, place, seed):
    """Try faults as often as their rows say, two at a time. Prints their rows, with what was lost; whether none was."""
    fine = True
    with ThreadPoolExecutor(2) as pool:
        tries = {name: [pool.submit(attempt, name, place, seed, number, size)
                        for number, size in enumerate(sizes_of(FAULTS[name][2]))] for name in names}
        for name, futures in tries.items():
            survived, losses, seconds = zip(*(future.result() for future in futures))
            _, text, times, _ = FAULTS[name]
            print(f"{text:82} {times:6} {sum(survived):9} {sum(seconds):8.0f}", *filter(None, losses), sep="\n  ",
                  flush=True)
            fine = fine and sum(survived) == times
    return fine


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=0, help="go round again, with the next seed, for so long")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=FAULTS, metavar="FAULT", help="one of " + ", ".join(FAULTS))
    args = parser.parse_args()
    began, place, fine = time.monotonic(), Path(tempfile.mkdtemp(prefix="torture")), True
    print(f"{'Fault':82} {'tried':>6} {'survived':>9} {'seconds':>8}", flush=True)
    prepare(place)
    for seed in itertools.count(args.seed):
        fine = survive([args.only] if args.only else FAULTS, place, seed) and fine
        if time.monotonic() - began > args.seconds:
            break
    print(f"{time.monotonic() - began:.0f} s in all")
    if not fine:
        sys.exit(f"What was lost lies in {place}")
    shutil.rmtree(place)


if __name__ == "__main__":
    main()
