"""Copies are honest: repeatable, all different, and the original untouched."""
import numpy as np
import pytest
import soundfile
from conftest import SAMPLE_RATE, run, tone

from augment_data import DEFORMATIONS, deform


@pytest.fixture
def y():
    rng = np.random.default_rng(0)
    return np.stack([tone(rng, 300), tone(rng, 500)], axis=1).astype(np.float32)


@pytest.mark.parametrize("deformation", DEFORMATIONS, ids=lambda function: function.__name__)
def test_deformation_changes_the_sound_and_not_its_input(deformation, y):
    before = y.copy()
    copy = deformation(y, SAMPLE_RATE, np.random.default_rng(1))
    np.testing.assert_array_equal(y, before)
    assert copy.shape[1] == 2 and np.isfinite(copy).all()
    assert copy.shape != y.shape or np.abs(copy - y).max() > 1e-3


def test_copies_all_differ_and_keep_shape_type_and_full_scale(y):
    copies = [deform(y * 3, SAMPLE_RATE, np.random.default_rng(k)) for k in range(40)]
    assert len({copy.tobytes() for copy in [y * 3, *copies]}) == 41
    for copy in copies:
        assert copy.dtype == np.float32 and copy.shape == y.shape and np.abs(copy).max() <= 1


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("n_samples", [1, 2, 50])
def test_shortest_sounds_can_be_altered(n_samples):
    y = np.full((n_samples, 1), 0.5, np.float32)
    assert all(deform(y, SAMPLE_RATE, np.random.default_rng(k)).shape == y.shape for k in range(40))


@pytest.mark.parametrize("extension, subtype, rate, channels", [
    ("wav", "PCM_16", 8000, 1), ("wav", "PCM_24", 44100, 2), ("flac", "PCM_16", 22050, 1), ("aiff", "PCM_16", 48000, 2),
    ("ogg", "VORBIS", 44100, 1), ("mp3", "MPEG_LAYER_III", 44100, 2)])
def test_copies_keep_format_rate_and_channels(tmp_path, extension, subtype, rate, channels):
    path = tmp_path / f"a.b.{extension}"
    soundfile.write(path, np.random.default_rng(0).uniform(-0.5, 0.5, (rate // 4, channels)), rate, subtype)
    run("augment_data.py", 2, path, cwd=tmp_path)
    for k in (1, 2):
        info = soundfile.info(tmp_path / f"a.b_aug{k}.{extension}")
        assert (info.subtype, info.samplerate, info.channels) == (subtype, rate, channels)


def test_minutes_of_ogg_are_written(tmp_path):
    """libsndfile 1.2.2 crashes on a minute of Vorbis in one write."""
    with soundfile.SoundFile(tmp_path / "a.ogg", "w", 44100, 2) as file:
        for _ in range(60):
            file.write(np.random.default_rng(0).uniform(-0.5, 0.5, (44100, 2)))
    run("augment_data.py", 1, "a.ogg", "--seed", 1, cwd=tmp_path)
    assert soundfile.info(tmp_path / "a_aug1.ogg").frames == 60 * 44100


def test_copies_depend_on_seed_name_and_number_alone(sounds):
    files = sorted((sounds / "Samples").glob("*/*"))
    run("augment_data.py", 2, *files, cwd=sounds)
    copies = {path: path.read_bytes() for path in sounds.rglob("*_aug*")}
    assert len(copies) == 60
    for path in copies:
        path.unlink()
    run("augment_data.py", 3, files[0], "--jobs", 1, cwd=sounds)
    for k in (1, 2):
        path = files[0].with_name(f"{files[0].stem}_aug{k}.wav")
        assert path.read_bytes() == copies[path]
    path.unlink()
    run("augment_data.py", 2, files[0], "--seed", 1, cwd=sounds)
    assert path.read_bytes() != copies[path]


def test_running_twice_augments_no_copy_and_keeps_what_is_there(sounds):
    files = sorted((sounds / "Samples/low").iterdir())
    run("augment_data.py", 1, *files, cwd=sounds)
    kept = sounds / "Samples/low/00_aug1.wav"
    kept.write_bytes(b"mine")
    said = run("augment_data.py", 1, *sorted((sounds / "Samples/low").iterdir()), cwd=sounds).stdout
    assert "10 files are copies themselves" in said and "0 copies written, 10 were there already" in said
    assert len(list((sounds / "Samples/low").iterdir())) == 20 and kept.read_bytes() == b"mine"
