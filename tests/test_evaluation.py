"""What evaluation measures, draws, says of new sounds, and hands to other tools."""
import contextlib
import dataclasses
import itertools
import shutil
import tracemalloc

import numpy as np
import pytest
import soundfile
from conftest import ROOT, SAMPLE_RATE, load_json, one_line, read_scores, read_table, run, tone

import eval_network
import models
import train_network
import utils
from preprocess_data import default_settings, sound_to_spectrogram, spans

INFO = {"classes": ["a", "b", "c", "d"], "train": ["a/1.wav"] * 5, "validation": ["b/1.wav"] * 2, "temperature": 0.5,
        "features": {}, "network": "default", "recipe": {}, "seed": 0}


# ---------------------------------------------------------------- numbers

def hand_case():
    """Six sounds of three of four classes: four right, the surest guess wrong."""
    y = np.array([0, 0, 0, 1, 1, 2])
    scores = np.array([[0.7, 0.1, 0.1, 0.1], [0.6, 0.2, 0.1, 0.1], [0.1, 0.2, 0.1, 0.6], [0.1, 0.7, 0.1, 0.1],
                       [0.9, 0.05, 0.03, 0.02], [0.2, 0.2, 0.5, 0.1]])
    return y, scores


def test_metrics_of_a_case_computed_by_hand():
    y, scores = hand_case()
    report = eval_network.measure(y, scores, scores**2 / (scores**2).sum(axis=1, keepdims=True), INFO)
    assert report["accuracy"] == pytest.approx(4 / 6) and report["n_test"] == 6 and report["n_train"] == 7
    # Wilson's interval at z = 1.95996: centre (p + z^2 / 2n) / (1 + z^2 / n).
    assert report["accuracy_95"] == pytest.approx([0.29999, 0.90323], abs=1e-4)
    assert report["recall"] == pytest.approx({"a": 2 / 3, "b": 0.5, "c": 1, "d": np.nan}, nan_ok=True)
    assert report["precision"]["a"] == pytest.approx(2 / 3) and report["precision"]["b"] == 1
    assert report["balanced_accuracy"] == pytest.approx((2 / 3 + 0.5 + 1) / 3)
    assert report["macro_f1"] == pytest.approx((2 / 3 + 2 / 3 + 1) / 3)
    # Of 0.7, 0.6 and 0.1 against 0.1, 0.9 and 0.2: four of nine pairs are in order, one is a tie.
    assert report["auc"]["a"] == pytest.approx(4.5 / 9)
    assert report["auc"]["c"] == 1 and np.isnan(report["auc"]["d"])
    assert report["top_3_accuracy"] == pytest.approx(5 / 6) and report["support"] == {"a": 3, "b": 2, "c": 1, "d": 0}
    assert report["log_loss"] == pytest.approx(-np.log([0.7, 0.6, 0.1, 0.7, 0.05, 0.5]).mean())
    # Probabilities of the guesses: 0.5, 0.6 twice, 0.7 twice, 0.9: four bins of fifteen.
    expected = (abs(1 - 0.5) + 2 * abs(0.5 - 0.6) + 2 * abs(1 - 0.7) + abs(0 - 0.9)) / 6
    assert report["calibration_error"] == pytest.approx(expected)
    assert report["uncalibrated"]["calibration_error"] != report["calibration_error"]


def test_metrics_are_those_of_scikit_learn_where_every_class_is_present():
    from sklearn import metrics
    rng = np.random.default_rng(0)
    y, scores = np.arange(200) % 4, rng.dirichlet(np.ones(4), 200)
    report, guesses, truth = eval_network.measure(y, scores, scores, INFO), scores.argmax(axis=1), np.eye(4)[y]
    assert report["macro_auc"] == pytest.approx(metrics.roc_auc_score(y, scores, multi_class="ovr"))
    assert report["micro_auc"] == pytest.approx(metrics.roc_auc_score(truth, scores, average="micro"))
    assert report["macro_average_precision"] == pytest.approx(metrics.average_precision_score(truth, scores))
    assert report["macro_f1"] == pytest.approx(metrics.f1_score(y, guesses, average="macro"))
    assert report["macro_precision"] == pytest.approx(metrics.precision_score(y, guesses, average="macro"))
    assert report["balanced_accuracy"] == pytest.approx(metrics.balanced_accuracy_score(y, guesses))
    assert report["top_3_accuracy"] == pytest.approx(metrics.top_k_accuracy_score(y, scores, k=3))


def test_class_that_is_never_guessed_has_precision_zero():
    y, scores = np.array([0, 0, 1, 1]), np.full((4, 4), 0.1) + [0.6, 0, 0, 0]
    report = eval_network.measure(y, scores, scores, INFO)
    assert report["macro_precision"] == 0.25 and report["precision"]["b"] == 0


def test_absent_class_is_null_in_json_and_nothing_else_is(tmp_path):
    y, scores = hand_case()
    utils.save_json(tmp_path / "m.json", eval_network.measure(y, scores, scores, INFO))
    report = load_json(tmp_path / "m.json")
    nulls = [(key, name) for key, row in report.items() if isinstance(row, dict) for name in row if row[name] is None]
    assert nulls == [(key, "d") for key in ("precision", "recall", "f1", "auc", "average_precision")]
    assert "NaN" not in (tmp_path / "m.json").read_text()


# ---------------------------------------------------------------- calibration

def drawn(sharpness, n=4000):
    """Probabilities that are `sharpness` times as sharp as the chance with which the classes were drawn."""
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, (n, 5))
    p = models.calibrated(np.exp(logits), 1)
    y = np.array([rng.choice(5, p=row) for row in p])
    return np.eye(5)[y], models.calibrated(p, 1 / sharpness)


@pytest.mark.parametrize("sharpness", [0.4, 1, 2.5])
def test_temperature_finds_how_much_too_sure_probabilities_are_and_mends_it(sharpness):
    truth, scores = drawn(sharpness)
    temperature = models.best_temperature(truth, scores)
    assert temperature == pytest.approx(sharpness, rel=0.08)
    mended, y = models.calibrated(scores, temperature), truth.argmax(axis=1)
    assert eval_network.calibration(y, mended)["calibration_error"] < 0.03
    np.testing.assert_array_equal(mended.argmax(axis=1), scores.argmax(axis=1))
    np.testing.assert_allclose(mended.sum(axis=1), 1)


def test_a_few_sounds_that_are_all_right_make_nothing_certain():
    truth = np.eye(4)[[0, 1, 2, 3]]
    scores = 0.6 * truth + 0.1
    mended = models.calibrated(scores, models.best_temperature(truth, scores))
    assert 0.7 < mended.max() < 0.9  # four right and one unknown: 4.25 of 5


def test_training_keeps_the_temperature_that_its_validation_sounds_want(trained):
    info = models.load(trained / "weights.keras", models.load_info)
    log = [{key: float(value) for key, value in row.items()} for row in read_table(
        trained / "Results/training_log.csv")]
    assert info["temperature"] == pytest.approx(log[train_network.chosen(log, info["recipe"])]["temperature"])
    assert len({row["temperature"] for row in log}) == len(log)
    report = load_json(trained / "Results/metrics.json")
    assert report["temperature"] == info["temperature"]
    assert report["uncalibrated"]["log_loss"] != report["log_loss"]


# ---------------------------------------------------------------- tables and pictures

def test_mistakes_are_those_of_the_scores_the_surest_first(trained, evaluate, tmp_path):
    shutil.copytree(trained / "Samples", tmp_path / "swapped")
    (tmp_path / "swapped/low").rename(tmp_path / "swapped/x")
    (tmp_path / "swapped/high").rename(tmp_path / "swapped/low")
    (tmp_path / "swapped/x").rename(tmp_path / "swapped/high")
    evaluate(tmp_path, "--data", "swapped", "--weights", trained / "weights.keras")
    folder = tmp_path / "Results/swapped"
    mistakes = read_table(folder / "mistakes.csv")
    assert len(mistakes) >= 15  # of 20 whose folders were swapped
    assert {row["file"] for row in mistakes} == {
        row["file"] for row in read_scores(folder) if row["class"] != row["predicted"]}
    probabilities = [float(row["probability"]) for row in mistakes]
    assert probabilities == sorted(probabilities, reverse=True)
    assert all(float(row["probability_of_class"]) <= float(row["probability"]) for row in mistakes)


@pytest.mark.parametrize("kind, head", [("pdf", b"%PDF"), ("svg", b"<?xml")])
def test_pictures_come_in_the_format_that_is_asked_for(trained, evaluate, tmp_path, kind, head):
    evaluate(trained, "--results", tmp_path, "--format", kind)
    names = {"roc_curves", "precision_recall", "confusion_matrix", "reliability", "mistakes"}
    assert {path.stem for path in tmp_path.glob(f"*.{kind}") if path.read_bytes().startswith(head)} == names


def test_curves_of_a_hundred_classes_name_the_worst_and_draw_all(tmp_path):
    rng, n = np.random.default_rng(0), 100
    y, scores = np.arange(300) % n, rng.dirichlet(np.ones(n), 300)
    scores[np.arange(300), y] += np.linspace(0, 1, n)[y]
    scores /= scores.sum(axis=1, keepdims=True)
    curves = eval_network.find_curves(y, scores)
    report = eval_network.measure(y, scores, scores, INFO | {"classes": [f"class {k}" for k in range(n)]}, curves)
    with eval_network.new_figure(tmp_path / "curves.png", 5, 5) as figure:
        panel = figure.subplots()
        eval_network.draw_curves([panel], curves.roc, curves.micro_roc, report, "auc")
    labels = [line.get_label() for line in panel.lines if not line.get_label().startswith("_")]
    assert len(panel.lines) == n + 1 and len(labels) == eval_network.MOST_CURVES + 2
    worst = min(report["auc"], key=report["auc"].get)
    assert any(f"  {worst} (3)" in label for label in labels) and "micro average" in labels[-1]
    looks = {(line.get_color(), line.get_linestyle()) for line in panel.lines}
    assert len(looks) == eval_network.MOST_CURVES + 2  # those of the others and of the average


@pytest.fixture
def figures(monkeypatch):
    """The figures that are drawn, by the stem of their file."""
    drawn, new_figure = {}, eval_network.new_figure

    @contextlib.contextmanager
    def watched(path, width, height):
        with new_figure(path, width, height) as figure:
            drawn[path.stem] = figure
            yield figure
    monkeypatch.setattr(eval_network, "new_figure", watched)
    return drawn


def drawn_case(tmp_path):
    """Sixty sounds of three of four classes, some scores tied, and what evaluation makes of them."""
    rng = np.random.default_rng(0)
    y = np.arange(60) % 3
    scores = np.stack([rng.multinomial(32, row) for row in 0.2 + 0.2 * np.eye(4)[y]]) / 32
    curves = eval_network.find_curves(y, scores)
    return y, scores, curves, eval_network.measure(y, scores, scores, INFO, curves)


def test_curves_that_are_drawn_are_scikit_learn_s(tmp_path, figures):
    from sklearn import metrics
    y, scores, curves, report = drawn_case(tmp_path)
    eval_network.plot_roc(tmp_path / "roc.png", curves, report)
    eval_network.plot_precision_recall(tmp_path / "pr.png", curves, report)
    lines = {name: {line.get_label().split("  ")[1]: line.get_data() for line in figures[name].axes[0].lines
                    if "  " in line.get_label()} for name in figures}
    assert set(lines["roc"]) == {"a (20)", "b (20)", "c (20)", "micro average", "macro average", "chance"}
    truth = np.eye(4)[y]
    for k, name in enumerate("abc"):
        np.testing.assert_allclose(lines["roc"][f"{name} (20)"], metrics.roc_curve(y == k, scores[:, k])[:2])
        precision, recall, _ = metrics.precision_recall_curve(y == k, scores[:, k])
        found = lines["pr"][f"{name} (20)"]
        assert {*zip(*found)} <= {*zip(recall, precision)} and {*found[0]} == {*recall}
        assert report["auc"][name] == pytest.approx(metrics.roc_auc_score(y == k, scores[:, k]))
        assert report["average_precision"][name] == pytest.approx(
            metrics.average_precision_score(y == k, scores[:, k]))
    assert metrics.auc(*lines["roc"]["micro average"]) == pytest.approx(
        metrics.roc_auc_score(truth.ravel(), scores.ravel()))
    x, height = lines["roc"]["macro average"]
    assert metrics.auc(x, height) == pytest.approx(report["macro_auc"])
    assert (np.diff(height) >= -1e-12).all() and height[0] == 0 and height[-1] == 1
    assert [line.get_xydata().tolist() for line in figures["roc"].axes[1].lines] == [
        line.get_xydata().tolist() for line in figures["roc"].axes[0].lines[:-1]]  # the second panel has no chance


def test_confusion_matrix_that_is_drawn_is_scikit_learn_s_and_marks_rows_without_sounds(tmp_path, figures):
    from sklearn.metrics import confusion_matrix
    y, scores, _, report = drawn_case(tmp_path)
    scores[:20] = np.roll(scores[:20], 1, axis=1)  # so that it is not symmetric
    eval_network.plot_confusion(tmp_path / "confusion.png", y, scores, report)
    axes = figures["confusion"].axes[0]
    counts = confusion_matrix(y, scores.argmax(axis=1), labels=range(4))
    assert not np.array_equal(counts, counts.T)
    np.testing.assert_allclose(axes.images[0].get_array(), counts / np.maximum(1, counts.sum(axis=1, keepdims=True)))
    written = {text.get_position(): text.get_text() for text in axes.texts}
    assert written == {(column, row): f"{counts[row, column]}\n{counts[row, column] / counts[row].sum():.0%}"
                       for row, column in np.argwhere(counts)}
    assert axes.get_xlabel() == "Predicted"
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a", "b", "c", "d (no test sound)"]


def test_reliability_of_few_sounds_has_few_bins_each_with_its_interval(tmp_path, figures):
    y, scores, _, report = drawn_case(tmp_path)
    eval_network.plot_reliability(tmp_path / "reliability.png", y, scores, scores, report)
    points = figures["reliability"].axes[0].lines[1].get_xydata()
    sure, right = scores.max(axis=1), scores.argmax(axis=1) == y
    inside = [(sure >= low) & (sure < high) for low, high in ((0, 1 / 3), (1 / 3, 2 / 3), (2 / 3, 1.1))]
    np.testing.assert_allclose(points, [(sure[some].mean(), right[some].mean()) for some in inside if some.any()])
    bars = figures["reliability"].axes[0].collections[0].get_segments()
    assert len(bars) == len(points) and all(0 <= low < high <= 1 for (_, low), (_, high) in bars)


@pytest.mark.parametrize("n, title", [(0, "No mistakes among 60 test sounds"), (1, "1 mistake among 60 test sounds"),
                                      (30, "30 mistakes among 60 test sounds, the surest")])
def test_mistakes_have_legible_titles_and_no_empty_places(tmp_path, figures, n, title):
    settings = default_settings(SAMPLE_RATE)
    mistakes = [(f"a/{'long' * 20} $x_1$ {k}.wav", "a", "b", 0.9, 0.1) for k in range(n)]
    sounds = {name: np.zeros((96, 9), np.float32) for name, *_ in mistakes}
    report = {"features": dataclasses.asdict(settings), "n_test": 60}
    eval_network.plot_mistakes(tmp_path / "mistakes.png", mistakes, sounds, report)
    figure = figures["mistakes"]
    assert figure.get_suptitle() == title and len(figure.axes) == min(n, 12)
    for axes in figure.axes:
        first, second = axes.get_title().split("\n")
        assert first == "a, taken for b (0.90)" and len(second) < 50
        assert [label.get_text() for label in axes.get_yticklabels()] == ["2000", "1000", "500", "250"]
    widths = [figure.get_size_inches()[0]]
    assert widths == [5] if n < 2 else widths == [12]


def test_scores_in_pictures_have_no_more_digits_than_their_sounds_can_tell():
    assert [eval_network.rounded(0.98765, n) for n in (1, 3, 60, 300, 3000, 10**6)] == [
        "0.99", "0.99", "0.99", "0.988", "0.9877", "0.9877"]
    assert eval_network.rounded(float("nan"), 3) == "none"


def test_scores_of_many_sounds_are_written_row_by_row(tmp_path):
    rows = (("a/b.wav", "a", "b", *np.full(200, 0.005)) for _ in range(3000))
    tracemalloc.start()
    eval_network.write_scores(tmp_path / "scores.csv", [f"c{k}" for k in range(200)], rows)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2e6 < (tmp_path / "scores.csv").stat().st_size


# ---------------------------------------------------------------- another labelled folder

def test_other_folder_of_sounds_or_of_spectrograms_gets_the_same_scores_and_leaves_the_results(trained, evaluate,
                                                                                              tmp_path):
    places = "--weights", trained / "weights.keras", "--results", tmp_path / "r"
    (tmp_path / "r").mkdir()
    (tmp_path / "r/metrics.json").write_text("mine")
    (tmp_path / "other").symlink_to(trained)
    for name in ("Samples", "Preproc"):
        status, said = evaluate(tmp_path, "--data", f"other/{name}", *places)
        assert not status and "training used sounds named as 24 of these" in said.out
    before, after = (read_scores(tmp_path / f"r/other_{name}") for name in ("Samples", "Preproc"))
    assert len(before) == 30 and before == after  # the originals, no copies
    assert (tmp_path / "r/metrics.json").read_text() == "mine"


def test_other_folder_may_lack_classes_but_not_have_unknown_ones(trained, evaluate, tmp_path):
    shutil.copytree(trained / "Samples/low", tmp_path / "some/low")
    weights = "--weights", trained / "weights.keras"
    (tmp_path / "some/empty").mkdir()
    _, said = evaluate(tmp_path, "--data", "some", *weights)
    assert "high         0    none       none    none  no test sound" in said.out
    report = load_json(tmp_path / "Results/some/metrics.json")
    assert report["n_test"] == 10 and report["data"] == "some"
    (tmp_path / "some/low").rename(tmp_path / "some/unknown")
    with pytest.raises(utils.UserError, match="some: holds .* not know, unknown; name its folders as .*: high, low"):
        evaluate(tmp_path, "--data", "some", *weights)


def test_other_folder_of_spectrograms_of_other_settings_is_one_line(trained, evaluate, tmp_path):
    shutil.copytree(trained / "Preproc", tmp_path / "p")
    settings = load_json(tmp_path / "p/settings.json")
    utils.save_json(tmp_path / "p/settings.json", settings | {"hop_length": 64})
    with pytest.raises(utils.UserError, match="p: expected spectrograms made with .*128, found .*64"):
        evaluate(tmp_path, "--data", "p", "--weights", trained / "weights.keras")


def test_test_sounds_that_do_not_fit_into_memory_get_the_same_scores(trained, evaluate, tmp_path, monkeypatch):
    monkeypatch.setattr(train_network, "half_of_memory", lambda: 1)
    assert "do not fit into memory" in evaluate(trained, "--results", tmp_path)[1].out
    assert read_scores(tmp_path) == read_scores(trained / "Results")


# ---------------------------------------------------------------- new sounds

def test_new_sound_gets_the_scores_of_evaluation_alone_and_in_a_batch(trained, evaluate, tmp_path):
    rows = {row["file"]: row for row in read_scores(trained / "Results")}
    files = [f"Samples/{name}" for name in rows]
    status, said = evaluate(trained, *files, "--csv", tmp_path / "new.csv")
    assert not status and len(said.out.splitlines()) == len(files)
    together = read_table(tmp_path / "new.csv")
    evaluate(trained, files[3], "--csv", tmp_path / "one.csv")
    assert read_table(tmp_path / "one.csv") == [together[3]]
    for row in together:
        known = rows[row["file"].removeprefix("Samples/")]
        assert list(row) == ["file", "predicted", "high", "low", "middle"] and row["predicted"] == known["predicted"]
        for name in ("high", "low", "middle"):
            assert float(row[name]) == pytest.approx(float(known[name]), abs=1e-5)


def test_new_sounds_of_any_rate_and_channels_are_heard_and_bad_ones_named(trained, evaluate, tmp_path):
    y = tone(np.random.default_rng(3), 600, 1)
    (tmp_path / "new/deep").mkdir(parents=True)
    soundfile.write(tmp_path / "new/a.wav", y, SAMPLE_RATE)
    soundfile.write(tmp_path / "new/deep/b.flac", np.repeat(np.stack([y, y], axis=1), 4, axis=0), 4 * SAMPLE_RATE)
    (tmp_path / "new/bad.wav").write_text("no sound")
    (tmp_path / "new/notes.txt").write_text("passed over")
    status, said = evaluate(tmp_path, "new", "gone.wav", "--weights", trained / "weights.keras")
    assert status == 2 and "bad.wav: expected a sound" in said.err and "gone.wav: expected a sound" in said.err
    a, b = said.out.splitlines()
    assert a.split()[0] == "new/a.wav" and b.split()[0] == "new/deep/b.flac" and "notes" not in said.err
    assert a.split()[1] == b.split()[1] == "middle"


def test_an_empty_folder_is_named_and_flags_that_do_not_go_together_are_one_line(trained, evaluate, tmp_path):
    (tmp_path / "empty").mkdir()
    status, said = evaluate(tmp_path, "--weights", trained / "weights.keras", "empty", trained / "Samples/low/00.wav")
    assert status == 1 and said.err == "skipped empty: expected sounds, found a folder of none\n"
    assert len(said.out.splitlines()) == 1
    for args, words in ((["--csv", "x"], "--csv: expected new sounds"),
                        (["a.wav", "--step", 1], "--step: expected --timeline"),
                        (["a.wav", "--data", "b"], "found new sounds and --data"),
                        (["--export", "m.h5"], "expected a name that ends in .onnx or .tflite")):
        assert words in one_line("eval_network.py", *args, cwd=tmp_path, status=2)


# ---------------------------------------------------------------- what is heard when

def recording(path, seconds=3.0):
    """Write three tones one after another, as the classes low, high and middle are."""
    rng = np.random.default_rng(1)
    soundfile.write(path, np.concatenate([tone(rng, hertz, seconds) for hertz in (200, 1800, 600)]), SAMPLE_RATE)
    return path


def test_timeline_says_what_is_heard_when(trained, evaluate, figures, tmp_path):
    recording(tmp_path / "tones.wav")
    args = "--weights", trained / "weights.keras", "--timeline", "tones.wav"
    status, _ = evaluate(tmp_path, *args, "--step", 0.25)
    rows = read_table(tmp_path / "Results/tones.wav.csv")
    starts, ends = ([float(row[key]) for row in rows] for key in ("start", "end"))
    assert not status and starts[0] == 0 and ends[:-1] == starts[1:] and ends[-1] == pytest.approx(9, abs=0.02)
    for row, truth in ((rows[4], "low"), (rows[len(rows) // 2], "high"), (rows[-4], "middle")):
        assert row["class"] == truth
    labels = [line.split("\t") for line in (tmp_path / "Results/tones.wav.txt").read_text().splitlines()]
    assert len(labels) < len(rows) and all(before[2] != after[2] for before, after in itertools.pairwise(labels))
    assert float(labels[-1][1]) == pytest.approx(ends[-1], abs=1e-3)
    assert (tmp_path / "Results/tones.wav.png").stat().st_size > 10000
    above, below, *bars = figures["tones.wav"].axes
    shown = above.collections[0].get_array()  # (n_classes, n_steps), the lowest row first
    names = [label.get_text() for label in above.get_yticklabels()]
    for step, truth in ((4, "low"), (len(rows) // 2, "high"), (len(rows) - 4, "middle")):
        assert names[shown[:, step].argmax()] == truth
    assert [bar.get_ylabel() for bar in bars] == ["Probability", "dB"] and below.get_ylabel() == "Hz"


def test_timeline_takes_sounds_shorter_than_a_window_and_steps_longer_than_one(trained, evaluate, tmp_path):
    recording(tmp_path / "short.wav", 0.05)
    recording(tmp_path / "long.wav", 1)
    status, said = evaluate(tmp_path, "--weights", trained / "weights.keras", "--timeline", "short.wav", "long.wav",
                            "none.wav", "--step", 2)
    assert status == 1 and "none.wav" in said.err
    assert [len(read_table(tmp_path / f"Results/{name}.wav.csv")) for name in ("short", "long")] == [1, 2]


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("length, step", [(40, 20), (40, 7), (40, 40), (60, 60), (7, 1)])
def test_spans_are_the_recording_s_own_frames_and_cover_it(tmp_path, length, step, channels):
    settings = default_settings(SAMPLE_RATE, channels=channels)
    path = recording(tmp_path / "r.wav", 0.7)
    whole = sound_to_spectrogram("r.wav", tmp_path, settings)
    n_frames = whole.shape[-1]
    found = list(spans(path, settings, length, step))
    assert [start for (start, _), _ in found] == list(range(0, max(1, n_frames - 1), step))
    assert [end for (_, end), _ in found] == [*(start for (start, _), _ in found[1:]), n_frames - 1]
    for (start, _), span in found:
        first = start - (length - step) // 2
        heard = whole[..., max(0, first):first + length]
        assert span.shape == heard.shape
        np.testing.assert_allclose(span, np.maximum(heard, heard.max() - 80), atol=1e-4)


def test_recordings_whose_timelines_would_replace_one_another_are_refused(trained, evaluate, tmp_path):
    (tmp_path / "a").mkdir()
    for name in ("a/b.wav", "a_b.wav"):
        recording(tmp_path / name, 0.5)
    with pytest.raises(utils.UserError, match=r"found several a_b\.wav"):
        evaluate(tmp_path, "--weights", trained / "weights.keras", "--timeline", "a/b.wav", "a_b.wav")
    evaluate(tmp_path, "--weights", trained / "weights.keras", "--timeline", "a/b.wav")
    assert (tmp_path / "Results/a_b.wav.txt").exists()


def test_a_timeline_s_memory_does_not_grow_with_the_recording(trained, tmp_path):
    network, info = models.load(trained / "weights.keras")
    peaks = []
    for minutes in (1, 8):  # whose whole spectrogram takes 12 MB
        y = np.random.default_rng(0).normal(0, 0.1, minutes * 60 * SAMPLE_RATE).astype(np.float32)
        soundfile.write(tmp_path / "long.wav", y, SAMPLE_RATE)
        del y
        tracemalloc.start()
        times, scores, columns = eval_network.hear(tmp_path / "long.wav", network, info, 1)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert times[-1] == pytest.approx(minutes * 60) and len(scores) == len(times) - 1 and columns.shape[-1] < 5000
    assert peaks[1] < peaks[0] + 4e6


def test_a_step_longer_than_the_recording_scores_as_the_recording_does(trained, evaluate, tmp_path):
    recording(tmp_path / "r.wav", 0.7)
    weights = "--weights", trained / "weights.keras"
    evaluate(tmp_path, *weights, "r.wav", "--csv", "r.csv")
    evaluate(tmp_path, *weights, "--timeline", "r.wav", "--step", 60)
    (row,), (known,) = (read_table(tmp_path / name) for name in ("Results/r.wav.csv", "r.csv"))
    assert row["class"] == known["predicted"] and float(row["probability"]) == pytest.approx(
        float(known[row["class"]]), abs=1e-4)


# ---------------------------------------------------------------- the network for other tools

def test_exported_network_gives_the_same_scores_without_keras(trained, evaluate, tmp_path):
    pytest.importorskip("onnxruntime")
    evaluate(trained, "--export", tmp_path / "model.onnx")
    network, info = models.load(trained / "weights.keras")
    rng = np.random.default_rng(3)
    for rate in (SAMPLE_RATE, 44100):
        y = tone(rng, 600 * SAMPLE_RATE / rate, 2 * rate / SAMPLE_RATE) + rng.normal(0, 0.05, 2 * rate)
        soundfile.write(tmp_path / "new.wav", np.stack([y, 0.5 * y], axis=1), rate)  # some windows long
        said = run("examples/classify_onnx.py", "model.onnx", "new.wav", cwd=tmp_path).stdout
        exported = {line.split()[1]: float(line.split()[0]) for line in said.splitlines()}
        sound = sound_to_spectrogram("new.wav", tmp_path, default_settings(SAMPLE_RATE))
        (_, scores), = models.predict(network, [("new", sound)], info["temperature"])
        assert exported == pytest.approx(dict(zip(info["classes"], scores)), abs=1e-4)
    (tmp_path / "text.wav").write_text("no sound")
    for name, words in ((".", "is a folder; name a file"), ("gone.wav", "not there"), ("text.wav", "is not a sound")):
        assert words in one_line("examples/classify_onnx.py", "model.onnx", name, cwd=tmp_path)
    source = (ROOT / "examples/classify_onnx.py").read_text()
    assert not any(f"import {name}" in source for name in ("keras", "librosa", "utils", "preprocess_data"))


@pytest.mark.filterwarnings("ignore:.*Interpreter is deprecated")
def test_lite_network_gives_the_same_scores(trained, evaluate, tmp_path):
    evaluate(trained, "--export", tmp_path / "model.tflite")
    info = load_json(tmp_path / "model.json")
    assert info["classes"] == ["high", "low", "middle"] and info["features"]["sample_rate"] == SAMPLE_RATE
    assert {"temperature", "n_frames", "mel_filters", "normalisation"} <= info.keys()
    tensorflow = pytest.importorskip("tensorflow")
    if not hasattr(tensorflow.lite, "Interpreter"):
        pytest.skip("this TensorFlow has no interpreter")
    network, _ = models.load(trained / "weights.keras")
    x = np.random.default_rng(0).normal(-40, 20, (1, *network.input_shape[1:])).astype(np.float32)
    lite = tensorflow.lite.Interpreter(str(tmp_path / "model.tflite"))
    place = lite.get_input_details()[0]["index"]
    lite.resize_tensor_input(place, x.shape)
    lite.allocate_tensors()
    lite.set_tensor(place, x)
    lite.invoke()
    np.testing.assert_allclose(lite.get_tensor(lite.get_output_details()[0]["index"]), network.predict_on_batch(x),
                               atol=1e-4)


def test_export_without_its_packages_is_one_line_and_leaves_nothing(trained, evaluate, tmp_path, monkeypatch):
    def lacking(*args, **kwargs):
        raise ImportError("no tf2onnx")

    monkeypatch.setattr(models.keras.Model, "export", lacking)
    with pytest.raises(utils.UserError, match="pip install onnx tf2onnx"):
        evaluate(trained, "--export", tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())
