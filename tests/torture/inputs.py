"""Odd sets, damaged sounds and files, pickles, and hostile names."""
import contextlib
import functools
import io
import json
import pickle
import random
import re
import shutil
import subprocess
import sys

import numpy as np
import soundfile
from common import (
    SMALL,
    STOPPED,
    copy_of,
    end,
    fault,
    files_of,
    originals,
    real_sounds,
    refused,
    run,
    sounds_of,
    stopped,
    undisturbed,
    write_tone,
)
from conftest import ROOT, SAMPLE_RATE, read_table, tone
from mutate import damage, damage_archive, damage_json, pack, unpack

# ---------------------------------------------------------------- odd sets

def run_all(folder):
    """Run preprocessing, training and evaluation. Returns what the last one printed."""
    run("preprocess_data.py", cwd=folder)
    run("train_network.py", "--epochs", 1, *SMALL, cwd=folder)
    return run("eval_network.py", cwd=folder)[0]


def thousand_classes(folder, n=1000):
    rng = np.random.default_rng(0)
    for k in range(n):
        for i in range(3):
            path = folder / f"Samples/{k:04d}/{i}.wav"
            path.parent.mkdir(parents=True, exist_ok=True)
            soundfile.write(path, rng.normal(0, 0.1, 2000), SAMPLE_RATE)  # tones would be alike
    out = run_all(folder)
    assert f"on {n} sounds" in out, out


def lonely_sounds(folder):
    """All classes but the first have one sound."""
    for k in range(100):
        for i in range(1 if k else 20):
            path = folder / f"Samples/{k:02d}/{i}.wav"
            write_tone(path, 100 + 20 * k, np.random.default_rng(k))
    run("preprocess_data.py", cwd=folder)
    err = refused("train_network.py", cwd=folder)
    assert "expected at least 2 sounds, found 1" in err, err


def identical_sounds(folder):
    for k in range(30):
        write_tone(folder / f"Samples/{'abc'[k % 3]}/{k}.wav", 440, np.random.default_rng(0))
    run("preprocess_data.py", cwd=folder)
    err = refused("train_network.py", cwd=folder)
    assert "no sounds are left to test on, for the sounds of each class hold the same" in err, err


def tiny_files(folder, n=100_000):
    rng = np.random.default_rng(0)
    for k in range(10):
        path = folder / f"Samples/{k}/0.wav"
        write_tone(path, 200 + 200 * k, rng, seconds=0.01)
        data = path.read_bytes()[:-2]
        for i in range(n // 10):
            (path.parent / f"{i}.wav").write_bytes(data + i.to_bytes(2, "little"))
    for counts in (f"{n} spectrograms written", f"0 spectrograms written, {n} kept"):
        out, _ = run("preprocess_data.py", cwd=folder)
        assert counts in out, out
    run("train_network.py", "--epochs", 1, *SMALL, "--batch-size", 512, cwd=folder)
    run("eval_network.py", cwd=folder)


ODD = [lonely_sounds, thousand_classes, identical_sounds, tiny_files]


@fault("1,000 classes; one sound in 99 % of classes; identical sounds; 100,000 files", len(ODD))
def odd_sets(place, folder, rng):
    """Each of ODD in its turn, the longest first."""
    number = -1 - rng.number
    ODD[number](folder)


# ---------------------------------------------------------------- damaged sounds

SUBTYPES = {".wav": "PCM_16", ".flac": "PCM_24", ".ogg": "VORBIS", ".aiff": "PCM_16",
            ".mp3": "MPEG_LAYER_III"}


@functools.cache
def sources():
    """The bytes of sounds to be damaged, by extension: real ones, and tones in each format."""
    found = {suffix: [] for suffix in SUBTYPES}
    paths = real_sounds()
    paths = random.Random(0).sample(paths, min(20, len(paths)))
    for path in paths:
        if path.suffix.lower() in found:
            found[path.suffix.lower()].append(path.read_bytes())
    sounds = [(tone(np.random.default_rng(0), 440), SAMPLE_RATE), *map(soundfile.read, paths[:3])]
    for suffix, data in found.items():
        for y, sample_rate in sounds:
            file = io.BytesIO()
            with contextlib.suppress(soundfile.SoundFileError):  # a rate that the format lacks
                soundfile.write(file, y, sample_rate, SUBTYPES[suffix], format=suffix[1:].upper())
                data.append(file.getvalue())
    return found


def write_damaged_sounds(folder, n, rng):
    """Write n damaged sounds of all formats into Samples/. Returns their names."""
    names = []
    for k in range(n):
        suffix = rng.choice(list(SUBTYPES))
        names.append(f"{'ab'[k % 2]}/{k:04d}{suffix}")
        path = folder / "Samples" / names[-1]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(damage(rng.choice(sources()[suffix]), rng, suffix))
    return names


def run_quietly(script, *args, cwd):
    """Run a script that may skip files. Returns the lines that it printed.

    Checks that stderr has no other lines than those on skipped files.
    """
    out, err = run(script, *args, cwd=cwd, statuses=(0, 1))
    expected = rf"skipped |and \d+ more|{script}: "
    strange = [line for line in err.splitlines() if not re.match(expected, line)]
    assert not strange, strange
    return out.splitlines()


@fault("damaged sounds: preprocess, augment and eval read each, or name it", 2000)
def damaged_sounds(place, folder, rng):
    n = rng.n_files
    names = set(write_damaged_sounds(folder, n, rng))
    run_quietly("preprocess_data.py", "--sample-rate", 44100, cwd=folder)
    table = folder / "Preproc/skipped.csv"
    skipped = {row["file"] for row in read_table(table)} if table.exists() else set()
    written = {path.relative_to(folder / "Preproc").as_posix().removesuffix(".npy")
               for path in folder.glob("Preproc/*/*.npy")}
    assert_each_once(skipped, written, names)

    lines = run_quietly("augment_data.py", 1, *sounds_of(folder), cwd=folder)
    n_written = int(re.search(r"(\d+) copies written", lines[-2])[1])
    n_skipped = int(re.search(r"(\d+) files skipped", lines[-2])[1])
    copies = list(folder.glob("Samples/*/*_aug1*"))
    assert n_written + n_skipped == n and len(copies) == n_written, lines
    for path in copies:
        path.unlink()

    weights = undisturbed(place, "trained") / "weights.keras"
    *lines, _, counts = run_quietly("eval_network.py", "--weights", weights, "Samples",
                                     cwd=folder)
    assert counts.startswith(f"Predicted for {len(lines)} sounds: "), counts
    classified = {line.split()[0].removeprefix("Samples/") for line in lines}
    assert_each_once(skipped, classified, names)
    return n


def assert_each_once(skipped, done, names):
    """Check that each name was either skipped or done."""
    assert skipped | done == names, (skipped | done) ^ names
    assert not skipped & done, skipped & done


# ---------------------------------------------------------------- damaged files

KINDS = [("spectrograms", "spectrograms/{:04d}x.npy", damage),
         ("settings", "settings/{:04d}/settings.json", damage_json),
         ("weights", "network/{:04d}x.keras", damage_archive),
         ("checkpoint", "network/{:04d}x.unfinished.keras", damage_archive)]


@fault("damaged .npy, settings, weights and checkpoints: read, or named in one line", 500)
def damaged_files(place, folder, rng):
    paths = []
    for k in range(rng.n_files):
        kind, name, damage_file = rng.choice(KINDS)
        path = folder / name.format(k)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(damage_file(originals(place)[kind], rng))
        paths.append(path)
    command = [sys.executable, ROOT / "tests/torture/judge.py", undisturbed(place, "trained")]
    judge = subprocess.Popen([*command, *paths], cwd=folder, stdout=subprocess.PIPE,
                             stderr=subprocess.PIPE, start_new_session=True)
    out, _ = end(judge, 0)
    found = [json.loads(line) for line in out.splitlines()]
    assert len(found) == len(paths), f"the process died at {paths[len(found)]}"
    bad = [pair for pair in found if pair[1] not in ("read", "named")]
    assert not bad, bad
    assert {verdict for _, verdict in found} == {"read", "named"}
    return rng.n_files


# ---------------------------------------------------------------- what would run code

class Bomb:
    """Creates a file when it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


def pickle_as_spectrogram(folder, bomb):
    path = folder / "Preproc/low/00.wav.npy"
    np.save(path, np.array([Bomb(bomb)]), allow_pickle=True)
    _, err = run("train_network.py", "--fresh", "--epochs", 1, *SMALL, cwd=folder, statuses=(1,))
    assert "skipped Preproc/low/00.wav.npy: expected a spectrogram" in err, err


def pickle_as_weights(folder, bomb):
    (folder / "weights.keras").write_bytes(pickle.dumps(Bomb(bomb)))
    err = refused("eval_network.py", cwd=folder)
    assert "weights.keras: expected the weights" in err, err


def change_network(path, change):
    """Call change() with the description of the network in a weights file, and write it."""
    members = unpack(path.read_bytes())
    network = json.loads(members["config.json"])
    change(network)
    path.write_bytes(pack(members | {"config.json": json.dumps(network).encode()}))


def foreign_layer(layer, folder, bomb):
    """Weights with a layer that is not one of ours."""
    layer = json.loads(json.dumps(layer).replace("CODE", f"open({str(bomb)!r}, 'w')"))

    def insert(network):
        network["config"]["layers"].insert(1, {**layer, "name": "x", "inbound_nodes": []})

    change_network(folder / "weights.keras", insert)
    err = refused("eval_network.py", cwd=folder)
    assert "(it holds " in err and layer["class_name"] in err, err


def foreign_loss(folder, bomb):
    """A checkpoint whose loss is a function, as continuing reads the optimizer and the loss."""
    def replace(network):
        network["compile_config"]["loss"] = {
            "module": "builtins", "class_name": "function", "registered_name": "function",
            "config": f"open({str(bomb)!r}, 'w')"}

    change_network(folder / "weights.unfinished.keras", replace)
    err = refused("train_network.py", *STOPPED, cwd=folder)
    assert "weights.unfinished.keras: expected the weights" in err, err
    assert "(it holds function" in err, err


LAMBDA = {"module": "keras.layers", "class_name": "Lambda", "registered_name": None, "config": {
    "name": "x", "function": {"class_name": "__lambda__", "config": {"code": "CODE"}}}}
EXEC = {"module": "builtins", "class_name": "exec", "registered_name": "exec", "config": "CODE"}
SAVED_MODEL = {"module": "keras.layers", "class_name": "TFSMLayer", "registered_name": None,
               "config": {"name": "x", "filepath": "../elsewhere"}}
BOMBS = [pickle_as_weights, foreign_loss, pickle_as_spectrogram,
         *(functools.partial(foreign_layer, layer) for layer in (LAMBDA, EXEC, SAVED_MODEL))]


@fault("pickles, layers and losses that run code: never run", len(BOMBS))
def pickles(place, folder, rng):
    """Each of BOMBS in its turn."""
    copy_of(stopped(place), folder)
    bomb = folder / "ran"
    BOMBS[rng.number % len(BOMBS)](folder, bomb)
    assert not bomb.exists(), "it was run"


# ---------------------------------------------------------------- names

NAMES = [
    "line\nbreak", "\x1b[31mred\x1b]0;title\x07", "-rf", "--help", "=1+1", "=cmd|'calc'!A0", "+1",
    "@SUM(1)", "..x", "$(touch ran)", "`touch ran`", "a;touch ran", "%s%n{}{0}", "[red]x[bold]",
    "$x^2$", "tab\there", "\u202egnp", "caf\xe9 \u96e8", "x" * 120, " space ", "\x9b31m",
    "back\\slash", "quote'\"", "\r over"]
def assert_fit_to_show(text):
    """Check that a text has no control characters but line breaks."""
    assert all(c.isprintable() or c == "\n" for c in text), f"shown raw: {text!r}"


@fault("hostile names: 24, each of a class and of files", 4)
def hostile_names(place, folder, rng):
    names = NAMES[rng.number % 4::4]
    inner = folder / "inner"
    for n, class_name in enumerate(names):
        for k, name in enumerate(names):
            path = inner / "Samples" / class_name / f"{name}{k}.wav"
            write_tone(path, 200 + 200 * n, np.random.default_rng(k), seconds=0.4)
    for suffix in (".wav", ".m4a"):
        (inner / "Samples" / names[0] / f"{names[1]}{suffix}").write_text("no sound")
    before = files_of(folder).keys()
    first = f"Samples/{names[0]}"
    commands = [["augment_data.py", 1, *sounds_of(inner)],
                ["preprocess_data.py"],
                ["train_network.py", "--epochs", 1, *SMALL],
                ["eval_network.py"],
                ["eval_network.py", "--csv", "new.csv", first],
                ["eval_network.py", "--data", "../inner/Samples"],
                ["examples/detect.py", f"{first}/{names[0]}0.wav", "Samples/gone/\x1b"]]
    for script, *args in commands:
        out, err = run(script, *args, cwd=inner, statuses=(0, 1))
        assert_fit_to_show(out + err)
        assert len(err.splitlines()) <= 4, err
    new = files_of(folder).keys() - before
    outside = [path for path in new if not path.startswith("inner/")]
    assert not outside and not list(folder.rglob("ran")), outside
    assert (inner / "Results/roc_curves.png").exists() and not (folder / "Samples").exists()


@fault("weights that name files elsewhere, flags with escape sequences", 2)
def hostile_weights(place, folder, rng):
    whole = undisturbed(place, "trained")
    inner = folder / "inner"
    copy_of(whole, inner)
    if rng.number == 0:
        err = refused("eval_network.py", "--weights", "\x1b[31m.keras", "--samples", "a\nb",
                      cwd=folder)
        err += refused("train_network.py", "--\x1b[31m", cwd=folder)
        assert_fit_to_show(err)
        return
    (folder / "secret").mkdir()
    shutil.copy(folder / "inner/Samples/low/00.wav", folder / "secret/00.wav")
    members = unpack((whole / "weights.keras").read_bytes())
    training = json.loads(members["training.json"])
    for name in ("../secret/00.wav", "../../secret/00.wav", str(folder / "secret/00.wav")):
        training["split"]["test"].append(name)
        training["split"]["groups"][name] = name
        training["split"]["contents"][name] = ""
    members["training.json"] = json.dumps(training).encode()
    (inner / "weights.keras").write_bytes(pack(members))
    out, _ = run("eval_network.py", cwd=inner)
    assert "secret" not in (inner / "Results/scores.csv").read_text()
    assert f"3 of {len(training['split']['test'])} test sounds missing" in out, out
