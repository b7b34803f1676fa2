"""The example that shows which class is heard when in a recording."""
import itertools
import sys

import numpy as np
import pytest
import soundfile
from conftest import ROOT, SAMPLE_RATE, one_line, read_table, tone

import utils

sys.path.insert(0, str(ROOT / "examples"))
import timeline


@pytest.fixture
def call(monkeypatch, capsys, trained):
    """A function that runs timeline.py in this process, in a folder."""
    def call(folder, *args):
        monkeypatch.chdir(folder)
        flags = ["--weights", trained / "weights.keras", *args]
        monkeypatch.setattr(sys, "argv", ["timeline.py", *map(str, flags)])
        return timeline.main(), capsys.readouterr()
    return call


def write_recording(path, seconds=3.0):
    """Write three tones one after another, as the classes low, high and middle are."""
    rng = np.random.default_rng(1)
    tones = [tone(rng, hertz, seconds) for hertz in (200, 1800, 600)]
    soundfile.write(path, np.concatenate(tones), SAMPLE_RATE)


def read_labels(path):
    return [line.split("\t") for line in path.read_text().splitlines()]


def test_timeline_says_what_is_heard_when(call, tmp_path):
    write_recording(tmp_path / "tones.wav")
    status, said = call(tmp_path, "tones.wav", "--step", 0.25)
    rows = read_table(tmp_path / "Results/tones.wav.csv")
    assert not status and f"tones.wav: 9.0 s in {len(rows)} steps. Wrote Results/tones" in said.out
    starts, ends = ([float(row[key]) for row in rows] for key in ("start", "end"))
    assert starts[0] == 0 and ends[:-1] == starts[1:] and ends[-1] == pytest.approx(9, abs=0.02)
    heard = {4: "low", len(rows) // 2: "high", len(rows) - 4: "middle"}
    assert {step: rows[step]["class"] for step in heard} == heard

    labels = read_labels(tmp_path / "Results/tones.wav.txt")
    assert len(labels) < len(rows) and float(labels[-1][1]) == pytest.approx(ends[-1], abs=1e-3)
    assert all(one[1] == next_one[0] and one[2] != next_one[2]
               for one, next_one in itertools.pairwise(labels))
    assert (tmp_path / "Results/tones.wav.png").stat().st_size > 10000

    threshold = np.median([float(row["probability"]) for row in rows])
    call(tmp_path, "tones.wav", "--step", 0.25, "--threshold", threshold)
    known = 0
    for row, before in zip(read_table(tmp_path / "Results/tones.wav.csv"), rows, strict=True):
        is_known = float(row["probability"]) >= threshold
        known += is_known * (float(row["end"]) - float(row["start"]))
        assert row == before | ({} if is_known else {"class": "unknown"})
    labels = read_labels(tmp_path / "Results/tones.wav.txt")
    labelled = sum(float(end) - float(start) for start, end, _ in labels)
    assert labelled == pytest.approx(known, abs=0.05)
    assert "unknown" not in {label for _, _, label in labels}


def test_sounds_shorter_than_a_window_and_steps_longer_than_one(call, tmp_path):
    write_recording(tmp_path / "short.wav", 0.05)
    write_recording(tmp_path / "long.wav", 1)
    status, said = call(tmp_path, "short.wav", "long.wav", "none.wav", "--step", 2)
    assert status == 1 and "none.wav" in said.err and "short.wav: 0.1 s in 1 step." in said.out
    tables = [read_table(tmp_path / f"Results/{name}.wav.csv") for name in ("short", "long")]
    assert [len(table) for table in tables] == [1, 2]


@pytest.mark.parametrize("channels, n_frames, step", [(1, 40, 7), (2, 40, 40), (1, 40, 60)])
def test_steps_see_the_recording_as_sounds_of_their_own_and_cover_it(n_frames, step, channels):
    rng = np.random.default_rng(0)
    decibels = rng.uniform(-100, -50, (channels, 4, 300)).astype(np.float32)
    decibels[..., :100] += 50  # the rest is not cut at 80 dB below this
    found = list(timeline.cut_steps(decibels.copy(), step, n_frames))
    assert [start for start, _ in found] == list(range(0, 299, step))
    length = max(step, n_frames)
    for start, spectrogram in found:
        first = start - (length - step) // 2
        own = decibels[:, :, max(0, first):first + length]
        expected = np.maximum(own, own.max() - 80)  # 80 dB below its own loudest bin
        np.testing.assert_array_equal(spectrogram, expected if channels > 1 else expected[0])


def test_a_step_longer_than_the_recording_scores_as_evaluation_does(call, evaluate, trained,
                                                                    tmp_path):
    write_recording(tmp_path / "r.wav", 0.7)
    evaluate(tmp_path, "--weights", trained / "weights.keras", "r.wav", "--csv", "r.csv")
    call(tmp_path, "r.wav", "--step", 60)
    (row,), (known,) = (read_table(tmp_path / name) for name in ("Results/r.wav.csv", "r.csv"))
    assert row["class"] == known["predicted"]
    assert float(row["probability"]) == pytest.approx(float(known[row["class"]]), abs=1e-4)


@pytest.mark.parametrize("flags", [{}, {"fmin": 1000, "fmax": 9900}])
def test_frequencies_stand_at_their_bands(flags):
    from matplotlib.figure import Figure
    settings = utils.default_settings(44100, **flags)
    axes = Figure().subplots()
    timeline.draw_spectrogram(axes, np.zeros((96, 9)), settings, 1.0)
    bins = [round(float(text.get_text()) / 44100 * 2048) for text in axes.get_yticklabels()]
    bands = settings.filters.toarray()[:, bins].argmax(axis=0)
    assert len(bands) > 1 and np.abs(bands + 0.5 - axes.get_yticks()).max() < 1


def test_recordings_whose_timelines_would_replace_one_another_are_refused(call, tmp_path):
    (tmp_path / "a").mkdir()
    for name in ("a/b.wav", "a_b.wav"):
        write_recording(tmp_path / name, 0.5)
    with pytest.raises(utils.UserError, match=r"several recordings .* a_b\.wav\.csv"):
        call(tmp_path, "a/b.wav", "a_b.wav")


def test_the_command_needs_sounds_and_weights(tmp_path):
    assert "SOUND" in one_line("examples/timeline.py", cwd=tmp_path, status=2)
    assert "weights.keras: expected" in one_line("examples/timeline.py", "a.wav", cwd=tmp_path)
