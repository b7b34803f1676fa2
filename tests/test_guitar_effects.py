"""The example writes the twelve classes of the IDMT set, as named there."""
import re
import subprocess
import sys

import numpy as np
import soundfile
from conftest import ROOT

sys.path.insert(0, str(ROOT / "examples"))
import guitar_effects

CLASSES = {"NoFX": 1, "EQ": 2, "FeedbackDelay": 3, "SlapbackDelay": 3, "Reverb": 3, "Chorus": 3,
           "Flanger": 3, "Phaser": 3, "Tremolo": 3, "Vibrato": 3, "Distortion": 3, "Overdrive": 3}


def write(folder, *args):
    command = [sys.executable, ROOT / "examples/guitar_effects.py", folder, *args]
    subprocess.run(command, check=True, capture_output=True)
    paths = folder.rglob("*.wav")
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def test_every_note_goes_through_33_settings_of_12_effects(tmp_path):
    files = write(tmp_path / "a", "--notes", "2")
    for effect, n_settings in CLASSES.items():
        assert sum(name.startswith(effect + "/") for name in files) == 2 * n_settings
    assert all(re.fullmatch(r"\w+/G[6-9][13]-\d{5}-\d{4}-\d{5}\.wav", name) for name in files)
    notes = {re.search(r"G\d\d-\d{5}", name).group() for name in files}
    assert len(notes) == 2 and len(files) == 66 and len(set(files.values())) == 66
    info = soundfile.info(tmp_path / "a" / next(iter(files)))
    assert (info.samplerate, info.subtype) == (44100, "PCM_16")
    assert (info.channels, info.frames) == (1, 88200)


def test_names_are_those_of_the_recorded_set():
    open_low_e = guitar_effects.file_name(0, 11, 1, 1)  # no effect
    assert open_low_e == "G61-40100-1111-00001.wav"
    assert guitar_effects.file_name(13, 34, 2, 448) == "G61-45200-3342-00448.wav"
    assert len({guitar_effects.file_name(k, 11, 1, 0) for k in range(624)}) == 624


def test_no_effect_changes_the_dry_note():
    dry = guitar_effects.pluck(6, 1, 0, 0, np.random.default_rng(0))
    before = dry.copy()
    for _, function, settings in guitar_effects.EFFECTS.values():
        sound = function(dry, settings[0], np.random.default_rng(0))
        assert sound.shape == dry.shape and np.isfinite(sound).all()
        np.testing.assert_array_equal(dry, before)


def test_sounds_follow_from_the_seed_however_many_there_are(tmp_path):
    two, three = write(tmp_path / "a", "--notes", "2"), write(tmp_path / "b", "--notes", "3")
    assert two.items() <= three.items() and len(three) == 99
