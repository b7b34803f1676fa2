"""Simulate how often the promises of evaluation are kept: thresholds, and the 95 % interval.

Thresholds: how many of those for 95 % have a lower true accuracy, by the confidence in the limit
that chooses them. Intervals: how often they hold the true accuracy, for groups
of sounds that are right together (beta-binomial, with an intraclass correlation).

    python benchmarks/intervals.py
"""
import itertools
import sys
from pathlib import Path

import numpy as np
import scipy

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import eval_network
import models

N_KNOWN = 40000  # sounds that tell the true accuracy of a network
KINDS = "calibrated", "noisy", "capped", "meaningless"
VALIDATION_SIZES = 50, 100, 200, 400, 1000
ACCURACIES = 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.949
CONFIDENCES = 0.5, 0.95, models.CONFIDENCE  # the first is about the plain share
GROUP_COUNTS = 5, 10, 20, 60
GROUP_SIZES = 5, 20, 50, "5 to 50"
CORRELATIONS = 0, 0.1, 0.3
SHARES = 0.7, 0.9, 0.98


# ---------------------------------------------------------------- thresholds

def draw_network(rng, kind, accuracy):
    """Draw confidences, and the probabilities that the predictions are right. [shape=(N_KNOWN,)]

    calibrated: the confidence is the probability. noisy: the confidence varies about it. capped:
    3 % of the confident predictions are wrong, too. meaningless: it says nothing.
    """
    if kind == "meaningless":
        return rng.random(N_KNOWN), np.full(N_KNOWN, accuracy)
    ceiling = 0.97 if kind == "capped" else 1
    logits = rng.normal(0, 2, N_KNOWN)
    centre = scipy.optimize.brentq(
        lambda x: ceiling * scipy.special.expit(logits + x).mean() - accuracy, -20, 40)
    logits += centre
    right = ceiling * scipy.special.expit(logits)
    if kind == "noisy":
        logits += rng.normal(0, 2, N_KNOWN)
    return scipy.special.expit(logits), right


def draw_guesses(rng):
    """Draw 50 to 400 random predictions of 2 to 12 classes. Returns classes and probabilities."""
    n, n_classes = rng.integers(50, 401), rng.integers(2, 13)
    sharpness = rng.uniform(0.1, 2)
    return rng.integers(n_classes, size=n), rng.dirichlet(np.full(n_classes, sharpness), n)


def try_threshold(rng, confidence, right, n):
    """Choose a threshold by n validation sounds. Returns the true accuracy above it, or None."""
    rows = rng.integers(len(confidence), size=n)
    y = (rng.random(n) >= right[rows]).astype(int)  # 0 is predicted
    probabilities = np.stack([1 + confidence[rows], 1 - confidence[rows]], axis=1) / 2
    threshold = models.choose_threshold(y, probabilities)
    return threshold and right[(1 + confidence) / 2 >= threshold].mean()


def count_promises(rng, kind, n, n_trials):
    """Count the thresholds for 95 % that n_trials of each accuracy give, and those that miss it."""
    found = []
    for accuracy in ACCURACIES:
        confidence, right = draw_network(rng, kind, accuracy)
        found += [try_threshold(rng, confidence, right, n) for _ in range(n_trials)]
    truths = np.array([truth for truth in found if truth])
    return len(truths), int((truths < 0.95).sum())


def print_thresholds(rng, n_trials=200):
    n_offered = sum(models.choose_threshold(*draw_guesses(rng)) is not None
                    for _ in range(1000))
    print(f"random predictions, 1000 sets: {n_offered} thresholds for 95 %\n")
    print("| confidence of the network | validation sounds |"
          + "".join(f" limit of {x:.0%} |" for x in CONFIDENCES))
    print("|---|---|" + "---|" * len(CONFIDENCES))
    total = np.zeros((len(CONFIDENCES), 2), int)
    for kind, n in itertools.product(KINDS, VALIDATION_SIZES):
        row = []
        for confidence in CONFIDENCES:
            models.CONFIDENCE = confidence
            row.append(count_promises(rng, kind, n, n_trials))
        total += row
        print(f"| {kind} | {n} | " + " | ".join(f"{bad} of {all_}" for all_, bad in row) + " |")
    n_sets = n_trials * len(ACCURACIES) * len(KINDS) * len(VALIDATION_SIZES)
    print(f"| all, {n_sets} sets | | "
          + " | ".join(f"{bad} of {all_} ({bad / all_:.1%})" for all_, bad in total) + " |\n")


# ---------------------------------------------------------------- intervals

def draw_groups(rng, n_groups, size, correlation, accuracy):
    """Draw sounds in groups. Returns whether each is right, and its group. Both [shape=(n,)]"""
    sizes = np.full(n_groups, size)
    if size == "5 to 50":
        sizes = np.geomspace(5, 50, n_groups).round().astype(int)
    share = np.full(n_groups, accuracy)
    if correlation:
        total = 1 / correlation - 1
        share = rng.beta(accuracy * total, (1 - accuracy) * total, n_groups)
    groups = np.repeat(np.arange(n_groups), sizes)
    return rng.random(len(groups)) < share[groups], groups


def plain_interval(is_right, groups):
    return eval_network.wilson_interval(is_right.mean(), len(is_right))


def bootstrap_interval(is_right, groups):
    """Compute the percentiles of 500 samples of the groups."""
    sizes = np.bincount(groups)
    rows = np.random.default_rng(0).integers(len(sizes), size=(500, len(sizes)))
    shares = np.bincount(groups, is_right)[rows].sum(axis=1) / sizes[rows].sum(axis=1)
    return np.quantile(shares, [0.025, 0.975])


def measure_interval(rng, rule, n_trials, *case):
    """Measure how often a rule's interval holds the accuracy, case[-1], and its mean width."""
    ends = np.array([rule(*draw_groups(rng, *case)) for _ in range(n_trials)])
    low, high = ends.T + [[-1e-9], [1e-9]]
    return ((low <= case[-1]) & (case[-1] <= high)).mean(), (high - low).mean()


def print_intervals(rng, n_trials=400):
    rules = {"Wilson": plain_interval, "bootstrap": bootstrap_interval,
             "this project": eval_network.compute_interval}
    columns = " | ".join(f"{name}: coverage (lowest), width" for name in rules)
    print(f"| correlation | groups | {columns} |\n|---|---|{'---|' * len(rules)}")
    found = {name: [] for name in rules}
    for correlation, n_groups in itertools.product(CORRELATIONS, GROUP_COUNTS):
        cells = []
        for name, rule in rules.items():
            results = [measure_interval(rng, rule, n_trials, n_groups, size, correlation, share)
                       for size, share in itertools.product(GROUP_SIZES, SHARES)]
            coverage, width = np.transpose(results)
            found[name] += coverage.tolist()
            cells.append(f"{coverage.mean():.2f} ({coverage.min():.2f}), {width.mean():.2f}")
        print(f"| {correlation} | {n_groups} | {' | '.join(cells)} |")
    for name, coverage in found.items():
        n_low = sum(value < 0.9 for value in coverage)
        print(f"{name}: below 0.90 in {n_low} of {len(coverage)} cells, lowest {min(coverage):.3f}")


def main():
    rng = np.random.default_rng(0)
    print_thresholds(rng)
    print_intervals(rng)


if __name__ == "__main__":
    main()
