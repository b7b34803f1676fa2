"""The example that shows which class is heard when in a recording."""
import contextlib
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
        capsys.readouterr()
        return timeline.main(), capsys.readouterr()
    return call


def write_recording(path, seconds=3.0):
    """Write three tones one after another, as the classes low, high and middle are."""
    rng = np.random.default_rng(1)
    tones = [tone(rng, hertz, seconds) for hertz in (200, 1800, 600)]
    soundfile.write(path, np.concatenate(tones), SAMPLE_RATE)
    return path


def test_timeline_says_what_is_heard_when(call, tmp_path, monkeypatch):
    figures = []
    new_figure = utils.new_figure

    @contextlib.contextmanager
    def watched(*args):
        with new_figure(*args) as figure:
            figures.append(figure)
            yield figure
    monkeypatch.setattr(utils, "new_figure", watched)
    write_recording(tmp_path / "tones.wav")
    status, said = call(tmp_path, "tones.wav", "--step", 0.25)
    table = tmp_path / "Results/tones.wav.csv"
    rows = read_table(table)
    assert not status and f"tones.wav: 9.0 s in {len(rows)} steps. Wrote Results/tones" in said.out
    starts, ends = ([float(row[key]) for row in rows] for key in ("start", "end"))
    assert starts[0] == 0 and ends[:-1] == starts[1:] and ends[-1] == pytest.approx(9, abs=0.02)
    heard = {4: "low", len(rows) // 2: "high", len(rows) - 4: "middle"}
    assert {step: rows[step]["class"] for step in heard} == heard

    labels = [line.split("\t") for line in table.with_suffix(".txt").read_text().splitlines()]
    assert len(labels) < len(rows) and float(labels[-1][1]) == pytest.approx(ends[-1], abs=1e-3)
    assert all(one[1] == next_one[0] and one[2] != next_one[2]
               for one, next_one in itertools.pairwise(labels))

    assert table.with_suffix(".png").stat().st_size > 10000
    above, below, *bars = figures[0].axes
    drawn = above.collections[0].get_array()  # (n_classes, n_steps), the lowest row first
    names = [label.get_text() for label in above.get_yticklabels()]
    assert {step: names[drawn[:, step].argmax()] for step in heard} == heard
    assert [bar.get_ylabel() for bar in bars] == ["Probability", "dB"]
    assert below.get_ylabel() == "Hz" and below.get_xlim() == pytest.approx((0, ends[-1]), abs=1e-3)


def test_steps_below_the_threshold_have_no_label_and_no_class(call, tmp_path):
    write_recording(tmp_path / "tones.wav")
    call(tmp_path, "tones.wav", "--step", 0.25)
    plain = read_table(tmp_path / "Results/tones.wav.csv")
    threshold = np.median([float(row["probability"]) for row in plain])
    call(tmp_path, "tones.wav", "--step", 0.25, "--threshold", threshold)
    table = tmp_path / "Results/tones.wav.csv"
    for row, before in zip(read_table(table), plain, strict=True):
        is_known = float(row["probability"]) >= threshold
        assert row == before | ({} if is_known else {"class": "unknown"})
    labels = [line.split("\t") for line in table.with_suffix(".txt").read_text().splitlines()]
    known = sum(float(row["end"]) - float(row["start"]) for row in plain
                if float(row["probability"]) >= threshold)
    assert sum(float(end) - float(start) for start, end, _ in labels) == pytest.approx(known,
                                                                                     abs=0.05)
    assert "unknown" not in {label for _, _, label in labels}


def test_sounds_shorter_than_a_window_and_steps_longer_than_one(call, tmp_path):
    write_recording(tmp_path / "short.wav", 0.05)
    write_recording(tmp_path / "long.wav", 1)
    status, said = call(tmp_path, "short.wav", "long.wav", "none.wav", "--step", 2)
    assert status == 1 and "none.wav" in said.err and "short.wav: 0.1 s in 1 step." in said.out
    tables = [read_table(tmp_path / f"Results/{name}.wav.csv") for name in ("short", "long")]
    assert [len(table) for table in tables] == [1, 2]


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("n_frames, step", [(40, 20), (40, 7), (40, 40), (40, 60), (7, 1)])
def test_steps_see_the_recording_as_sounds_of_their_own_and_cover_it(n_frames, step, channels):
    settings = utils.default_settings(SAMPLE_RATE, channels=channels)
    rng = np.random.default_rng(0)
    y = np.concatenate([tone(rng, 600), np.zeros(4000), 1e-5 * tone(rng, 200), tone(rng, 1800)])
    blocks = np.tile(y, (channels, 1)).astype(np.float32)[None]
    decibels = np.concatenate(list(utils.iterate_decibels(blocks, settings)), axis=2)
    before = decibels.copy()
    found = list(timeline.cut_steps(decibels, step, n_frames))
    assert [start for start, _ in found] == list(range(0, decibels.shape[2] - 1, step))
    length = max(step, n_frames)
    for start, spectrogram in found:
        first = start - (length - step) // 2
        own = decibels[:, :, max(0, first):first + length]
        expected = np.maximum(own, own.max() - 80)  # 80 dB below its own loudest bin
        assert spectrogram.shape == (expected.shape if channels > 1 else expected.shape[1:])
        np.testing.assert_array_equal(spectrogram.reshape(own.shape), expected)
    assert any(spectrogram.min() > before.min() for _, spectrogram in found)
    np.testing.assert_array_equal(decibels, before)


def test_a_step_longer_than_the_recording_scores_as_evaluation_does(call, evaluate, trained,
                                                                    tmp_path):
    write_recording(tmp_path / "r.wav", 0.7)
    evaluate(tmp_path, "--weights", trained / "weights.keras", "r.wav", "--csv", "r.csv")
    call(tmp_path, "r.wav", "--step", 60)
    (row,), (known,) = (read_table(tmp_path / name) for name in ("Results/r.wav.csv", "r.csv"))
    assert row["class"] == known["predicted"]
    assert float(row["probability"]) == pytest.approx(float(known[row["class"]]), abs=1e-4)


def test_long_recordings_are_drawn_in_few_columns_of_the_loudest_frames(tmp_path, monkeypatch):
    settings = {"sample_rate": 8000, "n_mels": 4, "n_fft": 512, "hop_length": 128}
    decibels = np.full((1, 4, 9000), -50, np.float32)
    decibels[..., 4321] = 0  # a click
    drawn = []

    def watched(axes, spectrogram, settings, seconds):
        drawn.append(spectrogram)
        return draw(axes, spectrogram, settings, seconds)
    draw = timeline.draw_spectrogram
    monkeypatch.setattr(timeline, "draw_spectrogram", watched)
    timeline.plot_timeline(tmp_path / "x.png", np.array([0, 144.0]), np.array([[0.9, 0.1]]),
                           np.array([0]), decibels, {"classes": ["a", "b"], "features": settings})
    assert drawn[0].shape == (1, 4, 1800) and (drawn[0][0, 0] == 0).sum() == 1


@pytest.mark.parametrize("rate, n_mels", [(100, 8), (1000, 4), (22050, 96), (10**6, 128)])
def test_spectrograms_of_any_rate_have_ticks_that_lie_apart(tmp_path, rate, n_mels):
    settings = utils.FeatureSettings(rate, n_mels, 4096, 512)
    with utils.new_figure(tmp_path / "x.png", 3, 3) as figure:
        axes = figure.subplots()
        timeline.draw_spectrogram(axes, np.zeros((2, n_mels, 9), np.float32), settings, 1)
    ticks = axes.get_yticks()
    assert 1 < len(ticks) < 9 and all(0 < tick < n_mels for tick in ticks)
    assert (-np.diff(ticks) > n_mels / 12).all()


def test_recordings_whose_timelines_would_replace_one_another_are_refused(call, tmp_path):
    (tmp_path / "a").mkdir()
    for name in ("a/b.wav", "a_b.wav"):
        write_recording(tmp_path / name, 0.5)
    with pytest.raises(utils.UserError, match=r"several recordings .* a_b\.wav\.csv"):
        call(tmp_path, "a/b.wav", "a_b.wav")
    call(tmp_path, "a/b.wav")
    assert (tmp_path / "Results/a_b.wav.txt").exists()


def test_a_name_too_long_for_a_table_is_skipped_and_the_rest_done(call, tmp_path):
    name = "n" * 250 + ".wav"
    write_recording(tmp_path / name, 0.5)
    write_recording(tmp_path / "r.wav", 0.5)
    status, said = call(tmp_path, name, "r.wav")
    assert status == 1 and "too long" in said.err and (tmp_path / "Results/r.wav.csv").exists()


def test_the_command_needs_sounds_and_weights(tmp_path):
    assert "SOUND" in one_line("examples/timeline.py", cwd=tmp_path, status=2)
    assert "weights.keras: expected" in one_line("examples/timeline.py", "a.wav", cwd=tmp_path)
