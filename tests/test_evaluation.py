"""What evaluation measures, prints and draws, and what it says of new sounds."""
import contextlib
import dataclasses
import shutil
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
import soundfile
from conftest import (
    SAMPLE_RATE,
    SMALL,
    load_json,
    made_once,
    one_line,
    read_scores,
    read_table,
    run,
    tone,
)

import eval_network
import models
import utils
from benchmarks import intervals


def predictions_of(y, probabilities, raw=None, groups=None):
    """Predictions for sounds of classes a, b and so on, each sound a group of its own."""
    names = [f"{i}.wav" for i in range(len(y))]
    classes = ([*"abcd"] if probabilities.shape[1] == 4
               else [f"class {k}" for k in range(probabilities.shape[1])])
    return eval_network.Predictions(names, y, probabilities,
                                    probabilities if raw is None else raw, groups or names, classes)


def measure(*args):
    return eval_network.measure_scores(predictions_of(*args))


# ---------------------------------------------------------------- measure

def hand_case():
    """Six sounds of three of four classes: four are right, the most confident is wrong."""
    y = np.array([0, 0, 0, 1, 1, 2])
    probabilities = np.array([
        [0.7, 0.1, 0.1, 0.1], [0.6, 0.2, 0.1, 0.1], [0.1, 0.2, 0.1, 0.6],
        [0.1, 0.7, 0.1, 0.1], [0.9, 0.05, 0.03, 0.02], [0.2, 0.2, 0.5, 0.1]])
    return y, probabilities


def test_metrics_of_a_case_computed_by_hand():
    y, p = hand_case()
    raw = p**2 / (p**2).sum(axis=1, keepdims=True)
    report = measure(y, p, raw)
    assert report["accuracy"] == pytest.approx(4 / 6)
    assert report["n_test"] == report["n_groups"] == 6
    # Wilson's interval at z = 1.95996: centre (p + z^2 / 2n) / (1 + z^2 / n).
    assert report["accuracy_95"] == pytest.approx([0.29999, 0.90323], abs=1e-4)
    recall = {"a": 2 / 3, "b": 0.5, "c": 1, "d": np.nan}
    assert report["recall"] == pytest.approx(recall, nan_ok=True)
    assert report["precision"]["a"] == pytest.approx(2 / 3) and report["precision"]["b"] == 1
    assert report["macro_precision"] == pytest.approx((2 / 3 + 1 + 1) / 3)
    assert report["balanced_accuracy"] == pytest.approx((2 / 3 + 0.5 + 1) / 3)
    assert report["macro_f1"] == pytest.approx((2 / 3 + 2 / 3 + 1) / 3)
    # Of 0.7, 0.6 and 0.1 against 0.1, 0.9 and 0.2: four of nine pairs are in order, one is a tie.
    assert report["auc"]["a"] == pytest.approx(4.5 / 9)
    assert report["auc"]["c"] == 1 and np.isnan(report["auc"]["d"])
    assert report["top_3_accuracy"] == pytest.approx(5 / 6)
    assert report["support"] == {"a": 3, "b": 2, "c": 1, "d": 0}
    assert report["log_loss"] == pytest.approx(-np.log([0.7, 0.6, 0.1, 0.7, 0.05, 0.5]).mean())
    # Confidences: 0.5, 0.6 twice, 0.7 twice, 0.9: four bins of fifteen.
    expected = (abs(1 - 0.5) + 2 * abs(0.5 - 0.6) + 2 * abs(1 - 0.7) + abs(0 - 0.9)) / 6
    assert report["calibration_error"] == pytest.approx(expected)
    assert report["uncalibrated"]["calibration_error"] != report["calibration_error"]


def test_metrics_are_those_of_scikit_learn_where_every_class_is_present():
    from sklearn import metrics
    y = np.arange(200) % 4
    p = np.random.default_rng(0).dirichlet(np.ones(4), 200)
    report = measure(y, p)
    predicted = p.argmax(axis=1)
    labels = np.eye(4)[y]
    expected = {
        "macro_auc": metrics.roc_auc_score(y, p, multi_class="ovr"),
        "micro_auc": metrics.roc_auc_score(labels, p, average="micro"),
        "macro_average_precision": metrics.average_precision_score(labels, p),
        "micro_average_precision": metrics.average_precision_score(labels, p, average="micro"),
        "macro_f1": metrics.f1_score(y, predicted, average="macro"),
        "macro_precision": metrics.precision_score(y, predicted, average="macro"),
        "balanced_accuracy": metrics.balanced_accuracy_score(y, predicted),
        "top_3_accuracy": metrics.top_k_accuracy_score(y, p, k=3)}
    assert {key: report[key] for key in expected} == pytest.approx(expected)


def test_absent_class_is_null_in_json_and_nothing_else_is(tmp_path):
    utils.save_json(tmp_path / "m.json", measure(*hand_case()))
    tables = [table for table in load_json(tmp_path / "m.json").values() if isinstance(table, dict)]
    nulls = [name for table in tables for name in table if table[name] is None]
    assert nulls == ["d"] * 5
    assert "NaN" not in (tmp_path / "m.json").read_text()


# ---------------------------------------------------------------- intervals

def test_interval_over_single_sounds_is_wilson_s():
    from scipy import stats
    for n_right, n in ((0, 1), (1, 1), (29, 40), (40, 40)):
        found = eval_network.compute_interval(np.arange(n) < n_right, [f"a/{i}" for i in range(n)])
        expected = stats.binomtest(n_right, n).proportion_ci(method="wilson")
        assert found == pytest.approx([*expected], abs=1e-4)


def test_interval_of_two_groups_computed_by_hand():
    # 8 of 10 and 4 of 10 are right: each is 2 off, so the number of right sounds has the variance
    # 8 * 2 / 1 = 16, beside 20 * 0.6 * 0.4 = 4.8. The sound beside them has 1 + 0.3 * 9.
    is_right = np.r_[np.arange(10) < 8, np.arange(10) < 4]
    n = 20 / ((16 + 3.7) / (4.8 + 1))
    expected = eval_network.wilson_interval(0.6, n, 12.7062)  # t, of one degree of freedom
    assert eval_network.compute_interval(is_right, ["a"] * 10 + ["b"] * 10) == pytest.approx(
        [*expected], abs=1e-4)


def test_interval_is_never_narrower_than_that_of_single_sounds():
    alternating = np.arange(200) % 2 == 0  # all groups are equally right
    plain = eval_network.wilson_interval(0.5, 200)
    low, high = eval_network.compute_interval(alternating, np.arange(200) // 2)
    assert low < plain[0] and high > plain[1]
    right = np.ones(200, bool)
    lows = [eval_network.compute_interval(right, np.arange(200) // size)[0]
            for size in (1, 2, 20, 200)]
    assert lows == sorted(lows, reverse=True) and len(set(lows)) == 4
    assert lows[0] > 0.98 and 0.7 < lows[2] < 0.9 and 0 < lows[3] < 0.2


@pytest.mark.parametrize("n_groups, size, correlation", [
    (5, 20, 0.3), (10, "5 to 50", 0.1), (20, 50, 0.3), (60, 5, 0)])
@pytest.mark.parametrize("accuracy", intervals.SHARES)
def test_interval_over_groups_holds_the_true_accuracy(n_groups, size, correlation, accuracy):
    coverage, width = intervals.measure_interval(
        np.random.default_rng(0), eval_network.compute_interval, 300, n_groups, size, correlation,
        accuracy)
    assert coverage > 0.87 and width < 0.65  # of 300 trials, 0.90 is 0.87 by chance


def test_groups_are_those_of_the_split_or_else_of_the_names(trained):
    training = models.load_training(trained / "weights.keras")
    names = training.split.test[:2] + ["a/y-3.wav", "b/y-3.wav"]
    training.split.groups.update(zip(names[:2], "12"))
    assert training.find_groups(names) == ["1", "2", "a/y-3", "b/y-3"]
    training.flags["--groups"] = "^[^-]+"
    assert training.find_groups(names) == ["1", "2", "y", "y"]


def test_groups_are_listed_by_their_accuracy():
    y = np.zeros(6, int)
    p = np.eye(2)[[0, 0, 1, 0, 1, 1]]
    found = eval_network.measure_groups(predictions_of(y, p, groups=[*"aabbcc"]))
    assert [(row["group"], row["sounds"], row["accuracy"]) for row in found] == [
        ("c", 2, 0), ("b", 2, 0.5), ("a", 2, 1)]


def test_groups_of_the_weights_widen_the_interval_and_are_printed(trained, evaluate, tmp_path):
    said = (trained / "eval.txt").read_text()
    plain = load_json(trained / "Results/metrics.json")
    low, high = plain["accuracy_95"]
    assert f"(95 % interval {low:.4f} to {high:.4f}), balanced" in said and plain["n_groups"] == 6
    page = (trained / "Results/report.html").read_text()
    assert f"{low:.2f} to\n{high:.2f}.\nIf the test is repeated with other sounds" in page
    assert "The interval is too narrow if sounds share a speaker" in page
    network, training = models.load_network(trained / "weights.keras")
    training.split = dataclasses.replace(
        training.split, groups=dict(zip(training.split.test, "aabbcc")))
    training.flags["--groups"] = "."
    models.save_network(network, training, tmp_path / "w.keras")
    _, said = evaluate(trained, "--weights", tmp_path / "w.keras", "--results", tmp_path)
    report = load_json(tmp_path / "metrics.json")
    wide_low, wide_high = report["accuracy_95"]
    assert wide_low < low and report["n_groups"] == 3
    assert {row["group"] for row in report["groups"]} == {*"abc"} and not plain["groups"]
    worst = report["groups"][0]
    assert "Group  sounds  accuracy, lowest first\n" in said.out
    assert f"\n{worst['group']}           2    {worst['accuracy']:.4f}\n" in said.out
    assert f"(95 % interval {wide_low:.4f} to {wide_high:.4f} over 3 groups), bal" in said.out
    page = (tmp_path / "report.html").read_text()
    assert f"{wide_low:.2f} to\n{wide_high:.2f} over 3 groups.\n" in page
    assert "hold the accuracy on new groups" in page and "too narrow" not in page
    assert f"{worst['group']}</th><td>2</td><td>{worst['accuracy']:.2f}</td>" in page


# ---------------------------------------------------------------- calibration

def overconfident_case(sharpness, n=4000):
    """One-hot labels, and probabilities `sharpness` times as sharp as the labels were drawn."""
    rng = np.random.default_rng(0)
    p = models.apply_temperature(np.exp(rng.normal(0, 2, (n, 5))), 1)
    y = np.array([rng.choice(5, p=row) for row in p])
    return np.eye(5)[y], models.apply_temperature(p, 1 / sharpness)


@pytest.mark.parametrize("sharpness", [0.4, 1, 2.5])
def test_temperature_finds_how_overconfident_probabilities_are_and_mends_it(sharpness):
    labels, p = overconfident_case(sharpness)
    temperature = models.fit_temperature(labels, p)
    assert temperature == pytest.approx(sharpness, rel=0.08)
    mended = models.apply_temperature(p, temperature)
    found = eval_network.measure_calibration(labels.argmax(axis=1), mended)
    assert found["calibration_error"] < 0.03
    np.testing.assert_array_equal(mended.argmax(axis=1), p.argmax(axis=1))
    np.testing.assert_allclose(mended.sum(axis=1), 1)


def test_a_few_sounds_that_are_all_right_make_nothing_certain():
    labels = np.eye(4)
    p = 0.6 * labels + 0.1
    temperature = models.fit_temperature(labels, p)
    assert 0.5 < temperature < models.USUAL_TEMPERATURE
    assert 0.7 < models.apply_temperature(p, temperature).max() < 0.95


def test_calibration_that_made_the_test_worse_is_said(evaluate, trained, tmp_path):
    network, training = models.load_network(trained / "weights.keras")
    said = []
    for temperature in (1.0, 500.0):
        training.history[-1]["temperature"] = temperature
        models.save_network(network, training, tmp_path / "w.keras")
        said.append(evaluate(trained, "--weights", tmp_path / "w.keras", "--results", tmp_path)[1])
    words = "Calibration raised the log loss to "
    assert words not in said[0].out and words in said[1].out


def test_evaluation_calibrates_by_the_usual_temperature_without_validation_sounds(trained):
    report = load_json(trained / "Results/metrics.json")
    assert report["temperature"] == models.USUAL_TEMPERATURE
    assert report["uncalibrated"]["log_loss"] != report["log_loss"]


# ---------------------------------------------------------------- thresholds

def threshold_case():
    """Classes and predictions of 400 sounds; the 40 least confident and the 200th are wrong."""
    confidence = np.linspace(0.99, 0.6, 400)
    predictions = np.stack([confidence, 1 - confidence], axis=1)
    is_right = np.arange(400) < 360
    is_right[199] = False
    return np.where(is_right, 0, 1), predictions


def lower_limit(n_right, n):
    from scipy import stats
    return stats.binomtest(n_right, n, alternative="greater").proportion_ci(0.99, "exact").low


@pytest.mark.parametrize("target, n_kept", [(95, 367), (97.5, 361), (98, 360), (98.5, None),
                                            (93, 373), (0, 380)])
def test_threshold_is_the_lowest_whose_accuracy_is_confirmed_but_leaves_one_in_twenty_out(
        monkeypatch, target, n_kept):
    monkeypatch.setattr(models, "TARGET", target)
    y, p = threshold_case()
    limits = [lower_limit(int((y[:n] == 0).sum()), n) for n in range(1, 381)]
    expected = np.flatnonzero(np.array(limits) >= target / 100)
    threshold = models.choose_threshold(y, p)
    assert threshold == (p[expected[-1]].max() if len(expected) else None)
    assert threshold is None or (p.max(axis=1) >= threshold).sum() == n_kept
    assert models.choose_threshold(1 - y, p) is None or target == 0


def test_threshold_needs_as_many_sounds_as_the_message_says():
    p = np.linspace(0.9, 0.6, 95)[:, None] * [1, 0]
    right = np.zeros(95, int)
    assert models.choose_threshold(right, p) is not None
    assert models.choose_threshold(right[1:], p[1:]) is None
    explain = models.Training.explain_no_threshold
    training = SimpleNamespace(split=SimpleNamespace(validation=[""] * 94), history=[])
    assert explain(training) == "too few validation sounds (94; at least 95 are needed)"
    training.split.validation.append("")
    assert "too many mistakes" in explain(training)
    assert models.choose_threshold(np.tile(right, 2), np.tile(p, (2, 1)), 2.0) is not None
    assert models.choose_threshold(np.tile(right, 2)[2:], np.tile(p, (2, 1))[2:], 2.0) is None
    training.history.append({"inflation": 1.01})
    assert explain(training) == ("too few validation sounds (95, which share groups and count as "
                                 "94; at least 95 are needed)")


def test_thresholds_are_not_found_by_luck_and_keep_their_promise():
    rng = np.random.default_rng(0)
    guesses = [intervals.draw_guesses(rng) for _ in range(200)]
    assert sum(models.choose_threshold(*guess) is not None for guess in guesses) <= 10
    counts = [intervals.count_promises(rng, kind, n, n_trials=10)
              for kind in intervals.KINDS for n in (100, 200, 400)]
    n_offered, n_missed = np.sum(counts, axis=0)
    assert n_offered > 60 and n_missed <= 0.05 * n_offered


def test_sound_of_the_very_confidence_of_the_threshold_is_known():
    classifier = mock.Mock(classes=["a", "b"], threshold=0.7)
    rows = [0.9, 0.1], [0.3, 0.7], [0.4, 0.6]
    found = [models.Classifier.name(classifier, np.array(row)) for row in rows]
    assert found == ["a", "b", models.UNKNOWN]


def test_sounds_of_equal_confidence_are_kept_or_left_out_together():
    confidence = np.repeat([1.0, 0.9, 0.5], [200, 300, 100])
    p = np.stack([confidence, 1 - confidence], axis=1)
    for wrong, threshold in ((slice(200, 300), 1.0), (slice(200, 205), 0.9)):  # of the 300
        y = np.repeat([0, 1], [500, 100])
        y[wrong] = 1
        assert models.choose_threshold(y, p) == threshold


def test_coverage_and_accuracy_are_those_of_the_sounds_at_or_above_each_threshold():
    y, p = hand_case()
    thresholds, coverage, accuracy = models.measure_coverage(y, p)
    np.testing.assert_allclose(thresholds, [0.9, 0.7, 0.6, 0.5])
    np.testing.assert_allclose(coverage, [1 / 6, 3 / 6, 5 / 6, 1])
    np.testing.assert_allclose(accuracy, [0, 2 / 3, 3 / 5, 4 / 6])


@pytest.fixture
def with_threshold(trained, tmp_path):
    """Weights with a threshold that some test sounds do not reach. Returns their path and it."""
    rows = read_scores(trained / "Results")
    threshold = float(np.median([float(row[row["predicted"]]) for row in rows]))
    network, training = models.load_network(trained / "weights.keras")
    training.history[-1]["threshold"] = threshold
    models.save_network(network, training, tmp_path / "known.keras")
    return tmp_path / "known.keras", threshold


def test_evaluation_scores_the_threshold_of_the_weights_on_the_test_sounds(
        trained, evaluate, with_threshold, tmp_path):
    weights, threshold = with_threshold
    _, said = evaluate(trained, "--weights", weights, "--results", tmp_path)
    rows = read_scores(trained / "Results")
    kept = [row for row in rows if float(row[row["predicted"]]) >= threshold]
    accuracy = np.mean([row["class"] == row["predicted"] for row in kept])
    assert 0 < len(kept) < len(rows)
    assert load_json(tmp_path / "metrics.json")["threshold"] == pytest.approx(
        {"threshold": threshold, "coverage": len(kept) / len(rows), "accuracy": accuracy})
    assert (f"\nThreshold  coverage  accuracy\n{threshold:9.4f}  {len(kept) / len(rows):8.4f}  "
            f"{accuracy:8.4f}  chosen for 95 % accuracy on 0 validation sounds\n") in said.out
    assert f"default, threshold {threshold:.4f}." in (tmp_path / "report.html").read_text()


def test_evaluation_says_why_there_is_no_threshold(trained):
    assert load_json(trained / "Results/metrics.json")["threshold"] is None
    said = (trained / "eval.txt").read_text()
    reason = "too few validation sounds (0; at least 95 are needed)"
    assert f"\nNo threshold for 95 %: {reason}\n" in said
    assert "Threshold  coverage" not in said


def read_steps(line, x):
    """The height at x of a line that was drawn in steps, from right to left."""
    assert line.get_drawstyle() == "steps-post"  # a height holds from its point to the next
    points = line.get_xdata()
    return line.get_ydata()[np.flatnonzero(points >= x)[-1]]


def test_coverage_is_drawn_with_the_threshold_marked(tmp_path, figures):
    predictions, _ = random_case()
    eval_network.plot_coverage(tmp_path / "coverage.png", predictions, 0.5)
    panel = figures["coverage"].axes[0]
    shares, right, mark = panel.lines
    confidence = predictions.confidence
    for threshold in (0.2, 0.4, 0.6, np.sort(confidence)[10], confidence.max() + 1e-6):
        reached = confidence >= threshold
        assert read_steps(shares, threshold) == pytest.approx(reached.mean())
        expected = predictions.is_right[reached].mean() if reached.any() else np.nan
        assert read_steps(right, threshold) == pytest.approx(expected, nan_ok=True)
    assert list(mark.get_xdata()) == [0.5, 0.5]
    eval_network.plot_coverage(tmp_path / "none.png", predictions, None)
    assert len(figures["none"].axes[0].lines) == 2


# ---------------------------------------------------------------- tables and pictures

def test_mistakes_are_those_of_the_scores_and_most_confident_first(trained, evaluate, tmp_path):
    for name, other in (("low", "high"), ("high", "low"), ("middle", "middle")):
        shutil.copytree(trained / "Samples" / name, tmp_path / "swapped" / other)
    _, said = evaluate(tmp_path, "--data", "swapped", "--weights", trained / "weights.keras")
    mistakes = read_table(tmp_path / "Results/swapped/mistakes.csv")
    assert len(mistakes) >= 15  # of 20 whose folders were swapped
    assert {row["file"] for row in mistakes} == {
        row["file"] for row in read_scores(tmp_path / "Results/swapped")
        if row["class"] != row["predicted"]}
    probabilities = [float(row["probability"]) for row in mistakes]
    assert probabilities == sorted(probabilities, reverse=True)
    assert all(float(row["probability_of_class"]) <= float(row["probability"]) for row in mistakes)
    first = mistakes[0]
    assert f"Mistakes: {len(mistakes)}, most confident first\n  {first['file']}: predicted " \
           f"{first['predicted']} ({float(first['probability']):.3f})\n" in said.out


@pytest.mark.parametrize("kind, head", [("pdf", b"%PDF"), ("svg", b"<?xml")])
def test_pictures_come_in_the_format_that_is_asked_for(trained, evaluate, tmp_path, kind, head):
    evaluate(trained, "--results", tmp_path, "--format", kind)
    found = {path.stem for path in tmp_path.glob(f"*.{kind}") if path.read_bytes().startswith(head)}
    assert found == {"roc_curves", "precision_recall", "confusion_matrix", "reliability",
                     "coverage"}


@pytest.fixture
def figures(monkeypatch):
    """The figures that are drawn, by the stem of their file."""
    drawn = {}
    new_figure = utils.new_figure

    @contextlib.contextmanager
    def watched(path, width, height):
        with new_figure(path, width, height) as figure:
            drawn[path.stem] = figure
            yield figure
    monkeypatch.setattr(utils, "new_figure", watched)
    return drawn


def test_curves_of_a_hundred_classes_name_the_worst_and_draw_all(tmp_path, figures):
    rng = np.random.default_rng(0)
    y = np.arange(300) % 100
    p = rng.dirichlet(np.ones(100), 300)
    p[np.arange(300), y] += np.linspace(0, 1, 100)[y]
    predictions = predictions_of(y, p / p.sum(axis=1, keepdims=True))
    report = eval_network.measure_scores(predictions)
    eval_network.plot_roc(tmp_path / "roc.png", predictions, report)
    panel = figures["roc"].axes[1]  # which has no line of chance
    labels = [line.get_label() for line in panel.lines if not line.get_label().startswith("_")]
    assert len(panel.lines) == 100 + 2 and len(labels) == eval_network.MAX_CURVES + 3
    worst = min(report["auc"], key=report["auc"].get)
    assert any(f"  {worst} (3)" in label for label in labels)
    assert "79 others, at least" in labels[0]


def random_case():
    """Sixty sounds of three of four classes, some probabilities tied, and their scores."""
    rng = np.random.default_rng(0)
    y = np.arange(60) % 3
    p = np.stack([rng.multinomial(32, row) for row in 0.2 + 0.2 * np.eye(4)[y]]) / 32
    predictions = predictions_of(y, p)
    return predictions, eval_network.measure_scores(predictions)


def test_curves_that_are_drawn_are_scikit_learn_s(tmp_path, figures):
    from sklearn import metrics
    predictions, report = random_case()
    y, p = predictions.y, predictions.probabilities
    eval_network.plot_roc(tmp_path / "roc.png", predictions, report)
    eval_network.plot_precision_recall(tmp_path / "pr.png", predictions, report)
    lines = {}
    for name, figure in figures.items():
        for line in figure.axes[0].lines:
            lines[name, line.get_label().split("  ")[1]] = line.get_data()
    assert {label for name, label in lines if name == "roc"} == {
        "a (20)", "b (20)", "c (20)", "micro average", "macro average", "chance"}
    for k, name in enumerate("abc"):
        roc = metrics.roc_curve(y == k, p[:, k])[:2]
        np.testing.assert_allclose(lines["roc", f"{name} (20)"], roc)
        precision, recall, _ = metrics.precision_recall_curve(y == k, p[:, k])
        found = lines["pr", f"{name} (20)"]
        assert {*zip(*found)} <= {*zip(recall, precision)} and {*found[0]} == {*recall}
        assert report["auc"][name] == pytest.approx(metrics.roc_auc_score(y == k, p[:, k]))
        assert report["average_precision"][name] == pytest.approx(
            metrics.average_precision_score(y == k, p[:, k]))
    assert metrics.auc(*lines["roc", "micro average"]) == pytest.approx(report["micro_auc"])
    x, height = lines["roc", "macro average"]
    assert metrics.auc(x, height) == pytest.approx(report["macro_auc"])
    assert (np.diff(height) >= -1e-12).all() and height[0] == 0 and height[-1] == 1


def test_confusion_matrix_is_scikit_learn_s_and_marks_rows_without_sounds(tmp_path, figures):
    from sklearn.metrics import confusion_matrix
    predictions, _ = random_case()
    y, p = predictions.y, predictions.probabilities
    p[:20] = np.roll(p[:20], 1, axis=1)  # so that it is not symmetric
    eval_network.plot_confusion(tmp_path / "confusion.png", predictions)
    axes = figures["confusion"].axes[0]
    counts = confusion_matrix(y, p.argmax(axis=1), labels=range(4))
    assert not np.array_equal(counts, counts.T)
    totals = counts.sum(axis=1, keepdims=True)
    cells = axes.collections[0]
    np.testing.assert_allclose(cells.get_array(), counts / np.maximum(1, totals))
    assert cells.get_coordinates()[0, 0].tolist() == [-0.5, -0.5] and axes.yaxis_inverted()
    written = {text.get_position(): text.get_text() for text in axes.texts}
    assert written == {
        (column, row): f"{counts[row, column]}\n{counts[row, column] / totals[row, 0]:.0%}"
        for row, column in np.argwhere(counts)}
    assert axes.get_xlabel() == "Predicted"
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert names == ["a", "b", "c", "d (no test sounds)"]


def test_reliability_of_few_sounds_has_few_bins_each_with_its_interval(tmp_path, figures):
    predictions, report = random_case()
    report["temperature"] = 1.0
    eval_network.plot_reliability(tmp_path / "reliability.png", predictions, report)
    above = figures["reliability"].axes[0]
    confidence = predictions.confidence
    right = predictions.is_right
    expected = []
    for low, high in ((0, 1 / 3), (1 / 3, 2 / 3), (2 / 3, 1.1)):
        inside = (confidence >= low) & (confidence < high)
        if inside.any():
            expected.append((confidence[inside].mean(), right[inside].mean()))
    np.testing.assert_allclose(above.lines[1].get_xydata(), expected)
    intervals = above.collections[0].get_segments()
    assert len(intervals) == len(expected)
    assert all(0 <= low < high <= 1 for (_, low), (_, high) in intervals)


def test_scores_in_pictures_have_no_more_digits_than_their_sounds_can_tell():
    rounded = [eval_network.round_score(0.98765, n) for n in (1, 3, 60, 300, 3000, 10**6)]
    assert rounded == ["0.99", "0.99", "0.99", "0.988", "0.9877", "0.9877"]
    assert eval_network.round_score(float("nan"), 3) == "none"


# ---------------------------------------------------------------- which sounds

def test_sounds_that_came_or_went_after_training_are_printed(trained, evaluate, tmp_path):
    shutil.copytree(trained / "Preproc", tmp_path / "Preproc")
    test = models.load_training(trained / "weights.keras").split.test
    weights = "--weights", trained / "weights.keras"
    assert "Preproc: sounds" not in evaluate(tmp_path, *weights)[1].out
    (tmp_path / f"Preproc/{test[0]}.npy").rename(tmp_path / "Preproc/low/new.wav.npy")
    said = evaluate(tmp_path, *weights)[1].out
    assert f"Preproc: 1 of {len(test)} test sounds missing" in said
    assert "1 sounds are new since training and are not tested; train_network.py --fresh" in said
    assert [row["file"] for row in read_scores(tmp_path / "Results")] == test[1:]


def test_other_folder_of_sounds_or_spectrograms_gets_the_same_scores_and_results_of_its_own(
        trained, evaluate, tmp_path):
    places = "--weights", trained / "weights.keras", "--results", tmp_path / "r"
    (tmp_path / "r").mkdir()
    (tmp_path / "r/metrics.json").write_text("mine")
    (tmp_path / "other").symlink_to(trained)
    for name in ("Samples", "Preproc"):
        status, said = evaluate(tmp_path, "--data", f"other/{name}", *places)
        assert not status and ": training used " in said.out and "sounds; the scores on" in said.out
    of_sounds = read_scores(tmp_path / "r/other_Samples")
    assert len(of_sounds) == 30  # the originals, no copies
    assert of_sounds == read_scores(tmp_path / "r/other_Preproc")
    assert (tmp_path / "r/metrics.json").read_text() == "mine"


def test_other_folder_may_lack_classes_but_not_have_unknown_ones(trained, evaluate, tmp_path):
    shutil.copytree(trained / "Samples/low", tmp_path / "some/low")
    weights = "--weights", trained / "weights.keras"
    (tmp_path / "some/empty").mkdir()
    _, said = evaluate(tmp_path, "--data", "some", *weights)
    assert "high         0    none       none    none  no test sounds" in said.out
    report = load_json(tmp_path / "Results/some/metrics.json")
    assert report["n_test"] == 10 and report["data"] == "some"
    (tmp_path / "some/low").rename(tmp_path / "some/unknown")
    expected = "some: holds .* not know, unknown; rename its folders to .*: high, low"
    with pytest.raises(utils.UserError, match=expected):
        evaluate(tmp_path, "--data", "some", *weights)


def test_other_folder_of_spectrograms_of_other_settings_is_one_line(trained, evaluate, tmp_path):
    shutil.copytree(trained / "Preproc", tmp_path / "p")
    settings = load_json(tmp_path / "p/settings.json")
    settings["features"]["hop_length"] = 64
    utils.save_json(tmp_path / "p/settings.json", settings)
    with pytest.raises(utils.UserError, match="p: expected spectrograms made with .*128, .*64"):
        evaluate(tmp_path, "--data", "p", "--weights", trained / "weights.keras")


def test_test_sounds_that_exceed_the_memory_get_the_same_scores(trained, evaluate, tmp_path,
                                                                monkeypatch):
    monkeypatch.setattr(utils, "half_of_memory", lambda: 1)
    assert "are memory-mapped" in evaluate(trained, "--results", tmp_path)[1].out
    assert read_scores(tmp_path) == read_scores(trained / "Results")


# ---------------------------------------------------------------- folds

@pytest.fixture(scope="module")
def folded(tmp_path_factory, trained):
    """A folder in which two folds were trained and evaluated."""
    def make(folder):
        shutil.copytree(trained / "Samples", folder / "Samples")
        run("train_network.py", "--folds", 2, "--epochs", 2, *SMALL, cwd=folder)
        (folder / "eval.txt").write_text(run("eval_network.py", "--folds", cwd=folder).stdout)
    return made_once(tmp_path_factory, "folded", make)


def test_each_sound_is_tested_once_by_the_network_that_did_not_learn_from_it(folded):
    trainings = [models.load_training(folded / f"weights-fold{k}.keras") for k in (1, 2)]
    rows = {row["file"]: row for row in read_scores(folded / "Results")}
    splits = [training.split for training in trainings]
    assert len(rows) == 30 and list(rows) == splits[0].test + splits[1].test
    for k, (training, split) in enumerate(zip(trainings, splits), 1):
        assert training.fold == [k, 2] and len(split.test) == 15
        learned = {*split.train, *split.validation}
        copies = utils.find_copies(learned.union(split.test))
        assert len(learned) > 15 and len(copies) == len(learned) - 15  # copies of the 15 others
        assert not {copies.get(name, name) for name in learned} & set(split.test)


def test_scores_of_folds_are_pooled_and_their_mean_and_spread_printed(folded, evaluate, tmp_path):
    report = load_json(folded / "Results/metrics.json")
    assert report["n_test"] == 30 and report["accuracy"] == pytest.approx(
        np.mean([row["class"] == row["predicted"] for row in read_scores(folded / "Results")]))
    for fold, k in zip(report["folds"], (1, 2)):
        evaluate(folded, "--weights", f"weights-fold{k}.keras", "--results", tmp_path)
        alone = load_json(tmp_path / "metrics.json")
        assert fold == {key: alone[key] for key in fold}
        assert read_scores(tmp_path) == read_scores(folded / "Results")[15 * k - 15:15 * k]
    assert report["n_groups"] == 30
    accuracies = [fold["accuracy"] for fold in report["folds"]]
    said = (folded / "eval.txt").read_text()
    assert f"mean                {np.mean(accuracies):.4f}" in said
    assert f"std                 {np.std(accuracies, ddof=1):.4f}" in said


def test_groups_of_folds_are_pooled():
    folds = [predictions_of(np.zeros(2, int), np.eye(2), groups=[*groups])
             for groups in ("xx", "yz")]
    assert eval_network.pool_folds(folds).groups == [*"xxyz"]


def test_folds_of_different_trainings_are_not_pooled(folded, evaluate, tmp_path):
    for k in (1, 2):
        shutil.copy(folded / "weights-fold1.keras", tmp_path / f"weights-fold{k}.keras")
    with pytest.raises(utils.UserError, match="weights-fold2.keras: is not fold 2 of one cross-"):
        evaluate(tmp_path, "--folds")
    network, training = models.load_network(folded / "weights-fold2.keras")
    split = training.split
    more = dataclasses.replace(split, unused=[*split.unused, "low/new.wav"],
                               contents=split.contents | {"low/new.wav": "0"})
    eq = dataclasses.replace(training.hyperparameters, eq=0.0)
    for change in ({"seed": 1}, {"flags": training.flags | {"--groups": "x"}}, {"split": more},
                   {"fold": None}, {"hyperparameters": eq}):
        other = dataclasses.replace(training, **change)
        models.save_network(network, other, tmp_path / "weights-fold2.keras")
        with pytest.raises(utils.UserError, match="weights-fold2.keras: is not fold 2 of one"):
            evaluate(tmp_path, "--folds")
    (tmp_path / "weights-fold2.keras").unlink()
    with pytest.raises(utils.UserError, match="weights-fold2.keras: expected the weights"):
        evaluate(tmp_path, "--folds")


def test_mean_of_the_folds_is_ready_for_new_sounds_and_calibrated_by_all_tested_ones(
        folded, evaluate, tmp_path):
    classifier = models.Classifier(folded / "weights.keras")
    folds = [models.Classifier(folded / f"weights-fold{k}.keras") for k in (1, 2)]
    tested = [name for fold in folds for name in fold.training.split.test]
    sounds = [folded / "Samples" / name for name in tested]
    rows = []  # of each fold, before calibration
    for fold in folds:
        fold.training.history[-1]["temperature"] = 1.0
        rows.append(fold.predict(sounds))
    apart = np.concatenate([rows[0][:15], rows[1][15:]])  # each by the network that tested it
    temperature = models.fit_temperature(models.one_hot(tested, classifier.classes), apart)
    assert classifier.training.temperature == pytest.approx(temperature, rel=1e-3)
    np.testing.assert_allclose(
        classifier.predict(sounds), models.apply_temperature(np.mean(rows, axis=0), temperature),
        atol=1e-4)
    split = classifier.training.split
    assert set(tested) == set(split.validation) and not split.test
    assert not evaluate(folded, "--data", "Samples", "--results", tmp_path)[0]
    assert "--folds tests the networks that it is" in one_line("eval_network.py", cwd=folded)
    assert "is the mean of several networks; name one of them, such as weights-fold1" in one_line(
        "train_network.py", "--weights", "weights.keras", "--save", "new.keras", cwd=folded)


def test_a_fold_without_auc_does_not_hide_the_mean_of_the_others(capsys):
    folds = [{"accuracy": x, "balanced_accuracy": x, "macro_auc": auc, "n_test": 5}
             for x, auc in ((0.5, 0.75), (0.75, 0.25), (1.0, np.nan))]
    eval_network.print_folds(folds)
    said = capsys.readouterr().out
    assert "mean                0.7500    0.7500     0.5000" in said
    assert "Folds without a macro AUC, for they test one class only: 1." in said


def test_new_classes_are_trained_with_all_folds_again(folded, evaluate, tmp_path):
    shutil.copytree(folded / "Samples", tmp_path / "Samples")
    shutil.copytree(tmp_path / "Samples/low", tmp_path / "Samples/new")
    with pytest.raises(utils.UserError, match="--save .*/weights.keras --folds 2"):
        evaluate(tmp_path, "--weights", folded / "weights-fold2.keras")


# ---------------------------------------------------------------- new sounds

def test_new_sound_gets_the_scores_of_evaluation_alone_and_in_a_batch(trained, evaluate, tmp_path):
    rows = {row["file"]: row for row in read_scores(trained / "Results")}
    files = [f"Samples/{name}" for name in rows]
    status, said = evaluate(trained, *files, "--csv", tmp_path / "new.csv")
    *lines, _, summary = said.out.splitlines()
    assert not status and len(lines) == len(files)
    assert summary.startswith("Predicted for 6 sounds: ")
    together = read_table(tmp_path / "new.csv")
    evaluate(trained, files[3], "--csv", tmp_path / "one.csv")
    assert read_table(tmp_path / "one.csv") == [together[3]]
    for row in together:
        known = rows[row["file"].removeprefix("Samples/")]
        assert list(row) == ["file", "predicted", "high", "low", "middle"]
        assert row["predicted"] == known["predicted"]
        for name in ("high", "low", "middle"):
            assert float(row[name]) == pytest.approx(float(known[name]), abs=1e-5)


def test_sounds_below_the_threshold_are_unknown(trained, evaluate, with_threshold, tmp_path):
    weights, threshold = with_threshold
    sounds = [f"Samples/{row['file']}" for row in read_scores(trained / "Results")]
    _, said = evaluate(trained, *sounds, "--threshold", 0.999999, "--csv", tmp_path / "all.csv")
    assert {row["predicted"] for row in read_table(tmp_path / "all.csv")} == {"unknown"}
    *lines, _, summary = said.out.splitlines()
    assert all(line.endswith("  unknown") for line in lines)
    assert summary == "Predicted for 6 sounds at threshold 0.999999: unknown (6)"
    evaluate(trained, *sounds, "--csv", tmp_path / "plain.csv")
    evaluate(trained, *sounds, "--weights", weights, "--threshold", "auto",
             "--csv", tmp_path / "auto.csv")
    plain, auto = (read_table(tmp_path / name) for name in ("plain.csv", "auto.csv"))
    for row, thresholded in zip(plain, auto, strict=True):
        is_known = float(row[row["predicted"]]) >= threshold
        assert thresholded["predicted"] == (row["predicted"] if is_known else "unknown")


def test_weights_without_threshold_say_why_and_what_to_do(trained):
    training = models.load_training(trained / "weights.keras")
    split = training.split
    for n, reason in ((0, "too few validation sounds"), (400, "too many mistakes")):
        training.split = dataclasses.replace(split, validation=split.test[:1] * n)
        with pytest.raises(utils.UserError, match=f"auto: no threshold for 95 %: .*{reason}"):
            models.find_threshold("auto", training)
    assert models.find_threshold(0.5, training) == 0.5
    assert models.find_threshold(0, training) == 0


def test_weights_with_a_class_named_unknown_take_no_threshold(trained, evaluate, tmp_path):
    network, training = models.load_network(trained / "weights.keras")
    training.classes[-1] = "unknown"
    models.save_network(network, training, tmp_path / "w.keras")
    sound = trained / "Samples/low/00.wav"
    evaluate(tmp_path, sound, "--weights", "w.keras")
    with pytest.raises(utils.UserError, match="has a class named unknown"):
        evaluate(tmp_path, sound, "--weights", "w.keras", "--threshold", 0.5)


def test_new_sounds_of_any_rate_and_channels_are_classified_and_bad_ones_named(
        trained, evaluate, tmp_path):
    y = tone(np.random.default_rng(3), 600, 1)
    stereo = np.repeat(np.stack([y, y], axis=1), 4, axis=0)
    (tmp_path / "new/deep").mkdir(parents=True)
    soundfile.write(tmp_path / "new/a.wav", y, SAMPLE_RATE)
    soundfile.write(tmp_path / "new/deep/b.flac", stereo, 4 * SAMPLE_RATE)
    (tmp_path / "new/bad.wav").write_text("no sound")
    (tmp_path / "new/notes.txt").write_text("passed over")
    status, said = evaluate(tmp_path, "new", "gone.wav", "--weights", trained / "weights.keras")
    assert status == 2 and "notes" not in said.err
    for name in ("bad.wav", "gone.wav"):
        assert f"{name}: expected a sound" in said.err
    assert said.out.endswith("\n\nPredicted for 2 sounds: middle (2)\n")
    a, b = [line.split() for line in said.out.splitlines()[:2]]
    assert a[:2] == ["new/a.wav", "middle"] and b[:2] == ["new/deep/b.flac", "middle"]


def test_an_empty_folder_is_named(trained, evaluate, tmp_path):
    (tmp_path / "empty").mkdir()
    status, said = evaluate(tmp_path, "--weights", trained / "weights.keras", "empty",
                            trained / "Samples/low/00.wav")
    assert status == 1 and said.err == "skipped empty: holds no sounds; name another folder\n"
    assert len(said.out.splitlines()) == 1


@pytest.mark.parametrize("flags, message", [
    (["--csv", "x"], "--csv: no new sounds given"),
    (["--threshold", "0.9"], "--threshold: no new sounds given"),
    (["--folds", "a.wav"], "--folds: scores only the test sounds of the folds"),
    (["--folds", "--data", "b"], "leave out --data"),
    (["a.wav", "--threshold", "high"], "expected auto, or a number, at least 0 and below 1, found"),
    (["a.wav", "--data", "b"], "new sounds and --data exclude each other")])
def test_flags_that_do_not_go_together_are_one_line(tmp_path, flags, message):
    assert message in one_line("eval_network.py", *flags, cwd=tmp_path, status=2)
