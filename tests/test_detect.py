"""The example that finds what is heard when in recordings."""
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from conftest import (
    ROOT,
    SAMPLE_RATE,
    SMALL,
    made_once,
    one_line,
    read_table,
    run,
    tone,
    write_sounds,
)

import utils

sys.path.insert(0, str(ROOT / "examples"))
import detect
from detect import Rules, Steps
from label_tables import Event, read_labels

FOLDER = "Results/detections"


@pytest.fixture
def call(monkeypatch, capsys, trained):
    """A function that runs detect.py in this process, in a folder."""
    def call(folder, *args, weights=trained / "weights.keras"):
        monkeypatch.chdir(folder)
        monkeypatch.setattr(sys, "argv", ["detect.py", "--weights", str(weights), *map(str, args)])
        capsys.readouterr()
        return detect.main(), capsys.readouterr()
    return call


def write_recording(path, seconds=3.0):
    """Write three tones one after another, as the classes low, high and middle are."""
    rng = np.random.default_rng(1)
    tones = [tone(rng, hertz, seconds) for hertz in (200, 1800, 600)]
    soundfile.write(path, np.concatenate(tones), SAMPLE_RATE)


def make_steps(probabilities, classes):
    """Steps of half a second."""
    return Steps(Path("a.wav"), np.arange(len(probabilities) + 1) / 2,
                 np.array(probabilities, np.float32), classes)


def times_of(events):
    return [event[:3] for event in events]


def test_detections_say_what_is_heard_when(call, tmp_path):
    write_recording(tmp_path / "tones.wav")
    status, said = call(tmp_path, "tones.wav", "--gap", 0.3, "--min-length", 1)
    assert not status and "has no background class" in said.out
    assert "tones.wav: 3 detections" in said.out and f"Wrote {FOLDER}" in said.out
    rows = read_table(tmp_path / FOLDER / "detections.csv")
    assert [row["class"] for row in rows] == ["low", "high", "middle"]
    assert {row["file"] for row in rows} == {"tones.wav"}
    for row, start in zip(rows, (0, 3, 6)):
        times = float(row["start"]), float(row["end"])
        assert times == pytest.approx((start, start + 3), abs=0.4)
        assert 0.5 <= float(row["confidence"]) <= 1
    labels, errors = read_labels([tmp_path / FOLDER / "tones.wav.txt"], [Path("tones.wav")])
    assert not errors
    assert [event.label for event in labels[Path("tones.wav")]] == ["low", "high", "middle"]
    assert (tmp_path / FOLDER / "tones.wav_000.png").stat().st_size > 10000
    steps = read_table(tmp_path / FOLDER / "tones.wav.steps.csv")
    assert steps[0]["start"] == "0.000" and float(steps[-1]["end"]) == pytest.approx(9, abs=0.02)
    assert all(row["class"] == max(("high", "low", "middle"), key=lambda name: float(row[name]))
               for row in steps)


def test_a_table_of_steps_gives_the_detections_of_a_new_run(call, tmp_path):
    write_recording(tmp_path / "tones.wav")
    steps = make_steps(np.random.default_rng(0).random((9, 3)), ["start", "a, b", "end"])
    utils.save_csv(tmp_path / "named.csv", detect.list_steps(steps))  # as columns are named
    read = detect.load_steps(tmp_path / "named.csv")
    assert (read.recording, read.classes) == (steps.recording, steps.classes)
    np.testing.assert_allclose(read.probabilities, steps.probabilities, atol=1e-4)
    np.testing.assert_allclose(read.times, steps.times)
    call(tmp_path, "tones.wav", "--threshold", 0.9)
    expected = read_table(tmp_path / FOLDER / "detections.csv")
    call(tmp_path, "tones.wav", "--threshold", 0.3)
    assert read_table(tmp_path / FOLDER / "detections.csv") != expected
    call(tmp_path, f"{FOLDER}/tones.wav.steps.csv", "--threshold", 0.9)
    assert read_table(tmp_path / FOLDER / "detections.csv") == expected
    (tmp_path / "bad.steps.csv").write_text("a,b\n1,2\n")
    status, said = call(tmp_path, "bad.steps.csv")
    assert status == 1 and "bad.steps.csv: expected a table of steps" in said.err


def test_neighbouring_steps_are_merged_and_short_detections_dropped():
    p = [0.9, 0.9, 0.1, 0.1, 0.6, 0.1, 0.1, 0.1, 0.8]
    steps = make_steps([[value, 1 - value] for value in p], ["robin", "_background"])
    assert times_of(detect.find_detections(steps, Rules(0.5, 0, 0))) == [
        (0, 1, "robin"), (2, 2.5, "robin"), (4, 4.5, "robin")]
    (first, last) = detect.find_detections(steps, Rules(0.5, 1, 0))
    assert first == (0, 2.5, "robin", pytest.approx(0.9)) and last[:2] == (4, 4.5)
    assert times_of(detect.find_detections(steps, Rules(0.5, 0, 0.75))) == [(0, 1, "robin")]
    assert detect.find_detections(steps, Rules(0.95, 0, 0)) == []
    assert times_of(detect.find_detections(steps, Rules(0, 0, 0))) == [(0, 4.5, "robin")]


def test_classes_that_overlap_in_time_are_both_found():
    steps = make_steps([[0.6, 0.4], [0.5, 0.5], [0.3, 0.7]], ["robin", "wren"])
    assert times_of(detect.find_detections(steps, Rules(0.4, 0, 0))) == [
        (0, 1, "robin"), (0, 1.5, "wren")]


def test_each_event_counts_for_one_detection():
    def events(*spans):
        return [Event(start, end, "") for start, end in spans]
    assert detect.count_right(events((0, 1), (2, 3)), events((0.5, 2.5))) == 1
    assert detect.count_right(events((0.5, 2.5)), events((0, 1), (2, 3))) == 1
    assert detect.count_right(events((0, 2), (0, 4)), events((1, 1), (3, 3))) == 2
    assert detect.count_right([], events((0, 1))) == detect.count_right(events((0, 1)), []) == 0
    rng = np.random.default_rng(0)
    for _ in range(20):  # of one length, those matched in order of time are as many as possible
        spans = [[(start, start + 1) for start in sorted(rng.uniform(0, 20, n))] for n in (12, 9)]
        n_right, rest = 0, list(spans[1])
        for start, end in spans[0]:
            rest = [span for span in rest if span[1] >= start]
            if rest and rest[0][0] <= end:
                n_right += 1
                rest.pop(0)
        assert detect.count_right(events(*spans[0]), events(*spans[1])) == n_right


def test_truth_gives_precision_and_recall_at_all_thresholds(call, tmp_path):
    write_recording(tmp_path / "tones.wav")
    (tmp_path / "tones.txt").write_text("0\t3\tlow\n7\t8\tmiddle\n8.5\t8.6\tmiddle\n1\t2\tbird\n")
    status, said = call(tmp_path, "tones.wav", "--truth", "tones.txt", "--gap", 0.3,
                        "--min-length", 1, "--threshold", 0.4)
    assert not status and "no class of the weights, left out: 1, such as bird" in said.out
    assert said.out.splitlines()[-2].split() == ["all", "classes", "3", "3", "2", *["0.6667"] * 3]
    rows = read_table(tmp_path / FOLDER / "scores.csv")
    (row,) = [row for row in rows if (row["threshold"], row["class"]) == ("0.4", "middle")]
    assert [row[key] for key in ("detections", "events", "right", "precision", "recall", "f1")] == [
        "1", "2", "1", "1.0000", "0.5000", "0.6667"]
    assert len({row["threshold"] for row in rows}) == 19
    assert (tmp_path / FOLDER / "scores.png").stat().st_size > 10000


def test_raven_and_cut_write_each_detection(call, tmp_path):
    write_recording(tmp_path / "tones.wav")
    call(tmp_path, "tones.wav", "--raven", "--cut", "cut")
    rows = read_table(tmp_path / FOLDER / "detections.csv")
    table = tmp_path / FOLDER / "tones.wav.Table.1.selections.txt"
    assert table.read_text().splitlines()[0].split("\t")[:7] == [
        "Selection", "View", "Channel", "Begin Time (s)", "End Time (s)", "Low Freq (Hz)",
        "High Freq (Hz)"]
    labels, _ = read_labels([table], [Path("tones.wav")])
    assert [event.label for event in labels[Path("tones.wav")]] == [row["class"] for row in rows]
    recording, _ = soundfile.read(tmp_path / "tones.wav")
    for row in rows:
        start = float(row["start"])
        y, rate = soundfile.read(tmp_path / f"cut/{row['class']}/tones_{start:08.3f}.flac")
        assert rate == SAMPLE_RATE
        assert len(y) == pytest.approx((float(row["end"]) - start) * rate, abs=16)
        offset = round(start * rate)
        assert min(np.abs(y - recording[offset + k:offset + k + len(y)]).max()
                   for k in range(-8, 9) if offset + k >= 0) < 1e-3


def test_detections_stay_whatever_happens_to_their_sounds(call, tmp_path):
    write_recording(tmp_path / "tones.wav")
    call(tmp_path, "tones.wav")
    (tmp_path / "tones.wav").rename(tmp_path / "gone.wav")
    expected = (tmp_path / FOLDER / "detections.csv").read_text()
    table = f"{FOLDER}/tones.wav.steps.csv"
    status, said = call(tmp_path, table, table, "--cut", "cut")
    assert status == 1 and "tones.wav: expected a sound, found nothing there" in said.err
    assert (tmp_path / FOLDER / "detections.csv").read_text() == expected
    assert call(tmp_path, "tones.wav")[0] == 1  # a wrong path replaces nothing
    assert (tmp_path / FOLDER / "detections.csv").read_text() == expected
    (tmp_path / "copy.steps.csv").write_bytes((tmp_path / table).read_bytes())
    status, said = call(tmp_path, table, "copy.steps.csv")
    assert status == 1 and "copy.steps.csv: tones.wav is given twice" in said.err
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        shutil.copy(tmp_path / "gone.wav", tmp_path / name / "x.wav")
    status, said = call(tmp_path, "a", "b", "--cut", "cut")
    assert status == 1 and "b/x.wav: has the name of a/x.wav" in said.err


def test_labels_and_classes_in_other_unicode_forms_are_the_same():
    composed, decomposed = "K\u00f6nig", "Ko\u0308nig"
    found = detect.find_detections(make_steps([[0.9, 0.1]], [decomposed, "wren"]),
                                   Rules(0.5, 0, 0))
    events = [Event(0, 1, composed)]
    counts = detect.score_detections({0: found}, {0: events}, [composed, "wren"])
    assert counts.tolist() == [[1, 1, 1], [0, 0, 0]]


def test_background_is_never_detected_and_missed_or_false_alarm_in_evaluation(
        call, evaluate, tmp_path_factory, tmp_path):
    def make(folder):
        write_sounds(folder, ("low", "middle"))
        (folder / "Samples/_background").mkdir()
        for k in range(10):  # longer than the windows, which hold the sounds of the classes
            y = tone(np.random.default_rng(k), 1800, 3.0)
            soundfile.write(folder / f"Samples/_background/{k}.wav", y, SAMPLE_RATE)
        run("preprocess_data.py", cwd=folder)
        said = run("train_network.py", "--epochs", 2, *SMALL, cwd=folder).stdout
        assert "Background: 8 sounds" in said
        assert int(re.search(r"window (\d+) frames", said)[1]) < 45
    folder = shutil.copytree(made_once(tmp_path_factory, "background", make), tmp_path / "copy")
    write_recording(folder / "tones.wav")
    status, said = call(folder, "tones.wav", "--threshold", 0, weights="weights.keras")
    assert not status and "background class" not in said.out
    rows = read_table(folder / FOLDER / "detections.csv")
    assert {row["class"] for row in rows} == {"low", "middle"}
    assert "_background" in read_table(folder / FOLDER / "tones.wav.steps.csv")[0]
    _, said = evaluate(folder)
    missed = said.out.count("missed, predicted _background")
    alarms = said.out.count("false alarm, predicted")
    assert (f"Background: {missed} sounds of the classes are predicted as background, {alarms} of "
            "background") in said.out
    _, said = evaluate(folder, *sorted((folder / "Samples").glob("*/*")), "--csv", "new.csv")
    for row in read_table(folder / "new.csv"):
        best = max(("_background", "low", "middle"), key=lambda name: float(row[name]))
        assert row["predicted"] == ("unknown" if best == "_background" else best)


def test_pictures_hold_half_an_hour_each(trained, tmp_path):
    import models
    training = models.load_training(trained / "weights.keras")
    columns = np.random.default_rng(0).integers(-90, -10, (96, 7000), np.int8)
    detect.plot_recording(tmp_path / "a.wav.png", columns, 31 * 60, [
        Event(5, 65, "low", 0.9), Event(1805, 1806, "high", 0.9)], training)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.wav_000.png", "a.wav_030.png"]


@pytest.mark.parametrize("flags", [{}, {"fmin": 1000, "fmax": 9900}])
def test_frequencies_stand_at_their_bands(flags):
    from matplotlib.figure import Figure
    settings = utils.default_settings(44100, **flags)
    axes = Figure().subplots()
    detect.mark_frequencies(axes, settings)
    bins = [round(float(text.get_text()) / 44100 * 2048) for text in axes.get_yticklabels()]
    bands = settings.filters.toarray()[:, bins].argmax(axis=0)
    assert len(bands) > 1 and np.abs(bands + 0.5 - axes.get_yticks()).max() < 1


def test_sounds_shorter_than_a_window_and_steps_longer_than_one(call, tmp_path):
    write_recording(tmp_path / "short.wav", 0.05)
    write_recording(tmp_path / "long.wav", 1)
    status, said = call(tmp_path, "short.wav", "long.wav", "none.wav", "--step", 2)
    assert status == 1 and "none.wav" in said.err and "short.wav: " in said.out
    tables = [read_table(tmp_path / FOLDER / f"{name}.wav.steps.csv") for name in ("short", "long")]
    assert [len(table) for table in tables] == [1, 2]


@pytest.mark.parametrize("channels, n_frames, step", [(1, 40, 7), (2, 40, 40), (1, 40, 60)])
@pytest.mark.parametrize("size", [1, 64, 500])
def test_steps_see_the_recording_as_sounds_of_their_own_and_cover_it(n_frames, step, channels,
                                                                     size):
    rng = np.random.default_rng(0)
    decibels = rng.uniform(-100, -50, (channels, 4, 300)).astype(np.float32)
    decibels[..., :100] += 50  # the rest is not cut at 80 dB below this
    blocks = [decibels[..., first:first + size].copy() for first in range(0, 300, size)]
    found = list(detect.cut_steps(blocks, step, n_frames))
    starts = list(range(0, 299, step))
    assert [times for times, _ in found] == list(zip(starts, [*starts[1:], 299]))
    length = max(step, n_frames)
    for (start, _), spectrogram in found:
        first = start - (length - step) // 2
        own = decibels[:, :, max(0, first):first + length]
        expected = np.maximum(own, own.max() - 80)  # 80 dB below its own loudest bin
        np.testing.assert_array_equal(spectrogram, expected if channels > 1 else expected[0])


def test_a_step_longer_than_the_recording_scores_as_evaluation_does(call, evaluate, trained,
                                                                    tmp_path):
    write_recording(tmp_path / "r.wav", 0.7)
    evaluate(tmp_path, "--weights", trained / "weights.keras", "r.wav", "--csv", "r.csv")
    call(tmp_path, "r.wav", "--step", 60)
    (row,), (known,) = (read_table(tmp_path / name)
                        for name in (f"{FOLDER}/r.wav.steps.csv", "r.csv"))
    assert row["class"] == known["predicted"]
    assert float(row[row["class"]]) == pytest.approx(float(known[row["class"]]), abs=1e-4)


def test_recordings_that_would_replace_one_another_are_refused(call, tmp_path):
    (tmp_path / "a").mkdir()
    for name in ("a/b.wav", "a_b.wav"):
        write_recording(tmp_path / name, 0.5)
    with pytest.raises(utils.UserError, match=r"several recordings .* a_b\.wav\.txt"):
        call(tmp_path, "a/b.wav", "a_b.wav")


def test_the_command_needs_recordings_and_weights(tmp_path):
    assert "RECORDING" in one_line("examples/detect.py", cwd=tmp_path, status=2)
    assert "weights.keras: expected" in one_line("examples/detect.py", "a.wav", cwd=tmp_path)
