"""New sounds in a program, and sorted into folders."""
import shutil

import numpy as np
import pytest
import soundfile
from conftest import SAMPLE_RATE, one_line, read_table, tone

import models
import utils


@pytest.fixture(scope="module")
def classifier(trained):
    return models.Classifier(trained / "weights.keras")


def test_samples_of_every_form_give_the_scores_of_their_file(classifier, evaluate, trained,
                                                             tmp_path):
    rate = 2 * SAMPLE_RATE
    y = np.stack([np.repeat(tone(np.random.default_rng(k), 600, 3), 2) for k in (0, 1)], axis=1)
    soundfile.write(tmp_path / "new.wav", y, rate, "PCM_16")
    evaluate(tmp_path, "new.wav", "--weights", trained / "weights.keras", "--csv", "new.csv")
    (row,) = read_table(tmp_path / "new.csv")
    expected = [float(row[name]) for name in classifier.classes]
    whole, _ = soundfile.read(tmp_path / "new.wav", dtype="int16")  # (n, 2)
    samples, _ = soundfile.read(tmp_path / "new.wav", dtype="float32")
    for form in (whole, whole.astype(np.int32) * 2**16, samples, samples.astype(float), samples.T,
                 tmp_path / "new.wav", str(tmp_path / "new.wav")):
        np.testing.assert_allclose(classifier.predict(form, rate), expected, atol=1e-5)
    np.testing.assert_allclose(classifier.predict(samples.mean(axis=1), rate), expected, atol=1e-5)
    rows = classifier.predict([samples, tmp_path / "new.wav", 0.1 * samples], rate)
    assert rows.shape == (3, 3)
    np.testing.assert_allclose(rows[:2], [expected, expected], atol=1e-5)
    assert classifier.predict([]).shape == (0, 3)
    assert samples.flags.writeable and np.abs(samples).max() < 1


@pytest.mark.parametrize("y, rate, words", [
    ([[0.1, 0.2], [0.1, 0.2]], 8000, "either axis may be time"), (np.zeros(0), 8000, "no samples"),
    ([0.1, np.nan], 8000, "hold NaN"), (np.ones(9, bool), 8000, "found bool of shape"),
    (np.zeros((2, 3, 4)), 8000, "of shape .2, 3, 4."), (np.zeros(9), None, "rate .* found None"),
    (np.zeros(9), 1, "rate of 100 to")])
def test_samples_that_cannot_be_meant_are_refused(classifier, y, rate, words):
    with pytest.raises(ValueError, match=words):
        classifier.predict(np.asarray(y), rate)


def test_a_file_that_cannot_be_read_is_a_user_error(classifier, tmp_path):
    with pytest.raises(utils.UserError, match="nothing there"):
        classifier.predict([np.zeros(900), tmp_path / "none.wav"], SAMPLE_RATE)


def test_sounds_are_sorted_into_folders_and_none_is_replaced(evaluate, trained, tmp_path):
    for kit in ("a", "b"):
        (tmp_path / f"kits/{kit}").mkdir(parents=True)
        for name, hertz in (("low", 200), ("high", 1800)):
            y = tone(np.random.default_rng(ord(kit)), hertz)
            soundfile.write(tmp_path / f"kits/{kit}/{name}.wav", y, SAMPLE_RATE)
    shutil.copy(tmp_path / "kits/a/low.wav", tmp_path / "kits/same.wav")
    flags = "--weights", trained / "weights.keras", "--copy-to", "sorted", "--csv", "new.csv"
    for _ in range(2):  # a second run adds nothing
        status, said = evaluate(tmp_path, "kits", *flags)
        assert not status and "Copied into sorted" in said.out
        rows = read_table(tmp_path / "new.csv")
        copies = {str(path.relative_to(tmp_path)) for path in tmp_path.glob("sorted/*/*")}
        assert copies == {row["copy"] for row in rows} and len(copies) == 5
    for row in rows:
        assert row["copy"].startswith(f"sorted/{row['predicted']}/")
        assert (tmp_path / row["copy"]).read_bytes() == (tmp_path / row["file"]).read_bytes()
    evaluate(tmp_path, "kits", *flags[:2], "--copy-to", "new", "--threshold", 0.999999)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["unknown"]
    with pytest.raises(utils.UserError, match="--copy-to kits/sorted: is kits, or a folder in it"):
        evaluate(tmp_path, "kits", *flags[:2], "--copy-to", "kits/sorted")
    assert "--copy-to: no new sounds" in one_line("eval_network.py", "--copy-to", "x",
                                                  cwd=tmp_path, status=2)
