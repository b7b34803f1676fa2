"""Odd sets, damaged sounds and files, pickles, and hostile names."""
import contextlib
import functools
import io
import json
import random
import re
import shutil
import struct
import subprocess
import sys
import zipfile

import numpy as np
import soundfile
from common import (
    MOST_MEMORY,
    SMALL,
    copy_of,
    end,
    fault,
    files_of,
    originals,
    real_sounds,
    refused,
    run,
    sounds_of,
    undisturbed,
    write_tone,
)
from conftest import ROOT, SAMPLE_RATE, read_table, tone
from mutate import damage, damage_archive, damage_json, packed

# ---------------------------------------------------------------- odd sets

def run_all(folder):
    run("preprocess_data.py", cwd=folder)
    run("train_network.py", "--epochs", 1, *SMALL, cwd=folder)
    return run("eval_network.py", cwd=folder)[0]


def thousand_classes(folder, n=1000):
    rng = np.random.default_rng(0)
    for k in range(n):
        for i in range(3):
            write_tone(folder / f"Samples/{k:04d}/{i}.wav", 100 + 3 * k, rng)
    out = run_all(folder)
    assert f"on {n} sounds" in out, out


def lonely_sounds(folder):
    for k in range(100):
        for i in range(1 if k else 20):
            write_tone(folder / f"Samples/{k:02d}/{i}.wav", 100 + 20 * k, np.random.default_rng(k))
    run("preprocess_data.py", cwd=folder)
    assert "expected at least 2 sounds, found 1" in refused("train_network.py", cwd=folder)


def identical_sounds(folder):
    for k in range(30):
        write_tone(folder / f"Samples/{'abc'[k % 3]}/{k}.wav", 440, np.random.default_rng(0))
    refuse_twins(folder)


def refuse_twins(folder):
    """Where all sounds are identical, none can be tested without having been trained on."""
    run("preprocess_data.py", cwd=folder)
    assert "no test sounds are left, because they are identical" in refused("train_network.py", cwd=folder)


def silent_sounds(folder):
    for k in range(30):
        (folder / f"Samples/{'abc'[k % 3]}").mkdir(parents=True, exist_ok=True)
        soundfile.write(folder / f"Samples/{'abc'[k % 3]}/{k}.wav", np.zeros(1000 + k), SAMPLE_RATE)
    _, err = run("augment_data.py", 1, "Samples/a/0.wav", cwd=folder, statuses=(1,))
    assert "found silence" in err
    refuse_twins(folder)


def tiny_files(folder, n=100_000):
    for k in range(n):
        path = folder / f"Samples/{k % 10}/{k:06d}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        y = np.int16(10000 * np.sin(np.arange(80) * (0.1 + 0.2 * (k % 10)))) + np.int16(k % 997)
        path.write_bytes(HEADER + y.tobytes())
    out, _ = run("preprocess_data.py", cwd=folder)
    assert f"{n} spectrograms written" in out
    out, _ = run("preprocess_data.py", cwd=folder)
    assert f"0 spectrograms written, {n} kept" in out
    run("train_network.py", "--epochs", 1, *SMALL, "--batch-size", 512, cwd=folder)
    assert f"on {n // 5} sounds" in run("eval_network.py", cwd=folder)[0]


HEADER = struct.pack("<4sI8sIHHIIHH4sI", b"RIFF", 196, b"WAVEfmt ", 16, 1, 1, 8000, 16000, 2, 16, b"data", 160)
ODD = [lonely_sounds, silent_sounds, thousand_classes, identical_sounds, tiny_files]  # `make test` takes the first


@fault("1,000 classes; one sound in 99 % of classes; identical; silent; 100,000 files", len(ODD))
def odd_sets(place, folder, rng):
    number = rng.number if rng.short else -1 - rng.number  # the longest first
    ODD[number](folder)


# ---------------------------------------------------------------- damaged sounds

SUBTYPES = {".wav": "PCM_16", ".flac": "PCM_24", ".ogg": "VORBIS", ".aiff": "PCM_16", ".mp3": "MPEG_LAYER_III"}


@functools.cache
def sources():
    """The bytes of sounds to be damaged, by extension: real ones as they are, and written anew in each format."""
    found = {suffix: [] for suffix in SUBTYPES}
    y = tone(np.random.default_rng(0), 440)
    loud = random.Random(0).sample(real_sounds(), min(20, len(real_sounds())))
    for path in loud:
        found.get(path.suffix.lower(), []).append(path.read_bytes())
    for suffix, data in found.items():
        for samples, rate in [(y, SAMPLE_RATE), *(soundfile.read(path) for path in loud[:3])]:
            with contextlib.suppress(soundfile.SoundFileError):  # a rate that the format does not know
                soundfile.write(file := io.BytesIO(), samples, rate, SUBTYPES[suffix], format=suffix[1:].upper())
                data.append(file.getvalue())
    return found


def write_damaged(folder, n, rng):
    """n damaged sounds of all formats in Samples/; their names."""
    names = []
    for k in range(n):
        suffix = rng.choice(list(SUBTYPES))
        names.append(f"{'ab'[k % 2]}/{k:04d}{suffix}")
        path = folder / "Samples" / names[-1]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(damage(rng.choice(sources()[suffix]), rng, suffix))
    return names


def measured(script, *args, cwd):
    """The output of a script that may skip files, after checking its memory."""
    code = ("import resource, subprocess, sys; status = subprocess.run(sys.argv[1:]).returncode\n"
            "print('peak', resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss); sys.exit(status)")
    process = subprocess.Popen([sys.executable, "-c", code, sys.executable, ROOT / script, *map(str, args)], cwd=cwd,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True)
    out, err = end(process, 0, 1)
    *lines, peak = out.splitlines()
    assert int(peak.split()[1]) * 1024 < MOST_MEMORY, f"{script}: {peak} kB"
    expected = rf"skipped |and \d+ more|{script}: "
    assert not (strange := [line for line in err.splitlines() if not re.match(expected, line)]), strange
    return lines, err


@fault("damaged sounds: preprocess, augment and eval read each, or name it", 2000, 60)
def damaged_sounds(place, folder, rng):
    n = rng.room
    names = set(write_damaged(folder, n, rng))
    measured("preprocess_data.py", "--sample-rate", 44100, cwd=folder)
    table = folder / "Preproc/skipped.csv"
    skipped = {row["file"] for row in read_table(table)} if table.exists() else set()
    written = {str(path.relative_to(folder / "Preproc"))[:-4] for path in folder.glob("Preproc/*/*.npy")}
    assert skipped | written == names and not skipped & written, (skipped | written) ^ names
    lines, _ = measured("augment_data.py", 1, *sounds_of(folder), cwd=folder)
    n_written, n_bad = (int(re.search(rf"(\d+) {text}", lines[-2])[1]) for text in ("copies", "files skipped"))
    copies = list(folder.glob("Samples/*/*_aug1*"))
    assert n_written + n_bad == n and len(copies) == n_written, lines
    for path in copies:
        path.unlink()
    weights = undisturbed(place, "trained") / "weights.keras"
    lines, _ = measured("eval_network.py", "--weights", weights, "Samples", cwd=folder)
    said = {line.split()[0].removeprefix("Samples/") for line in lines}
    assert said | skipped == names and not said & skipped, (said | skipped) ^ names
    return n


# ---------------------------------------------------------------- damaged spectrograms, settings, weights

KINDS = {"spectrograms": 0.45, "settings": 0.15, "weights": 0.25, "state": 0.15}  # shares of the tries


def write_damaged_file(kind, k, folder, place, rng):
    path = folder / kind / {"spectrograms": f"{k:04d}x.npy", "settings": f"{k:04d}/settings.json",
                            "weights": f"{k:04d}x.keras", "state": f"{k:04d}x.unfinished.npz"}[kind]
    path.parent.mkdir(parents=True, exist_ok=True)
    how = {"spectrograms": damage, "settings": damage_json}.get(kind, damage_archive)
    path.write_bytes(how(originals(place)[kind], rng))
    return path


@fault("damaged .npy, settings, weights and states: read, or named in one line", 500, 60)
def damaged_files(place, folder, rng):
    paths = [write_damaged_file(kind, k, folder, place, rng)
             for kind, share in KINDS.items() for k in range(max(1, round(share * rng.room)))]
    judge = subprocess.Popen([sys.executable, ROOT / "tests/torture/judge.py", undisturbed(place, "trained"), *paths],
                             cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True)
    out, _ = end(judge, 0)
    found = [json.loads(line) for line in out.splitlines()]
    assert len(found) == len(paths), f"the process died at {paths[len(found)]}"
    assert not (bad := [pair for pair in found if pair[1] not in ("read", "named")]), bad
    assert {verdict for _, verdict in found} == {"read", "named"}
    return rng.room


class Bomb:
    """What creates a file when it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


@fault("pickles, and layers that run code: never run", 6)
def pickles(place, folder, rng):
    whole, bomb = undisturbed(place, "trained"), folder / "ran"
    copy_of(whole, folder)
    with zipfile.ZipFile(whole / "weights.keras") as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    network = json.loads(members["config.json"])
    kind = (rng.number + 2) % 6
    if kind == 0:
        np.save(folder / "Preproc/low/00.wav.npy", np.array([Bomb(bomb)]), allow_pickle=True)
        _, err = run("train_network.py", "--fresh", "--epochs", 1, *SMALL, cwd=folder, statuses=(1,))
        assert "skipped Preproc/low/00.wav.npy: expected a spectrogram" in err
    elif kind == 1:
        with np.load(place / "stopped/weights.unfinished.npz") as state:
            np.savez(folder / "weights.unfinished.npz", np.array([Bomb(bomb)]), said=state["said"])
        assert "unfinished.npz: expected a training" in refused("train_network.py", "--epochs", 3, *SMALL, cwd=folder)
    elif kind == 2:
        import pickle
        (folder / "weights.keras").write_bytes(pickle.dumps(Bomb(bomb)))
        assert "weights.keras: expected the weights" in refused("eval_network.py", cwd=folder)
    else:
        code = f"open({str(bomb)!r}, 'w')"
        layer = {3: {"module": "keras.layers", "class_name": "Lambda", "registered_name": None,
                     "config": {"name": "x", "function": {"class_name": "__lambda__", "config": {"code": code}}}},
                 4: {"module": "builtins", "class_name": "exec", "registered_name": "exec", "config": code},
                 5: {"module": "keras.layers", "class_name": "TFSMLayer", "registered_name": None,
                     "config": {"name": "x", "filepath": "../elsewhere"}}}[kind]
        network["config"]["layers"].insert(1, layer | {"name": "x", "inbound_nodes": []})
        (folder / "weights.keras").write_bytes(packed(members | {"config.json": json.dumps(network).encode()}))
        assert f"(it holds {layer['class_name']}" in refused("eval_network.py", cwd=folder).replace("__lambda__, ", "")
    assert not bomb.exists(), "it was run"


# ---------------------------------------------------------------- names

NAMES = ["line\nbreak", "\x1b[31mred\x1b]0;title\x07", "-rf", "--help", "=1+1", "=cmd|'calc'!A0", "+1", "@SUM(1)",
         "..x", "$(touch ran)", "`touch ran`", "a;touch ran", "%s%n{}{0}", "[red]x[bold]", "$x^2$", "tab\there",
         "\u202egnp", "caf\xe9 \u96e8", "x" * 120, " space ", "\x9b31m", "back\\slash", "quote'\"", "\r over"]
FORMULA = re.compile(r"[=+@\t\r\n]|-[^0-9]")


def assert_fit_to_show(text):
    assert all(c.isprintable() or c == "\n" for c in text), f"shown raw: {text!r}"


def assert_no_formula(folder):
    for path in folder.rglob("*.csv"):
        rows = [line for line in read_table(path)] if path.stat().st_size else []
        cells = [cell for row in rows for pair in row.items() for cell in pair]
        assert not (bad := [cell for cell in cells if FORMULA.match(cell or "")]), f"{path.name}: {bad}"


@fault("hostile names: 24, each of a class and of files", 4)
def hostile_names(place, folder, rng):
    classes, inner = NAMES[rng.number % 4::4], folder / "inner"
    for n, class_name in enumerate(classes):
        (inner / "Samples" / class_name).mkdir(parents=True)
        for k, name in enumerate(classes):
            write_tone(inner / "Samples" / class_name / f"{name}{k}.wav", 200 + 200 * n, np.random.default_rng(k), 0.4)
    for suffix in (".wav", ".m4a"):
        (inner / "Samples" / classes[0] / f"{classes[1]}{suffix}").write_text("no sound")
    before, name = files_of(folder).keys(), classes[0]
    for script, *args in (["augment_data.py", 1, *sounds_of(inner)], ["preprocess_data.py"],
                          ["train_network.py", "--epochs", 1, *SMALL], ["eval_network.py"],
                          ["eval_network.py", "--csv", "new.csv", f"Samples/{name}"],
                          ["eval_network.py", "--timeline", f"Samples/{name}/{name}0.wav", "Samples/gone/\x1b"],
                          ["eval_network.py", "--data", "../inner/Samples"])[:4 if rng.short else None]:
        out, err = run(script, *args, cwd=inner, statuses=(0, 1))
        assert_fit_to_show(out + err)
        assert len(err.splitlines()) <= 4, err
    assert_no_formula(inner)
    outside = [path for path in files_of(folder).keys() - before if not path.startswith("inner/")]
    assert not outside and not list(folder.rglob("ran")), outside
    assert (inner / "Results/roc_curves.png").exists() and not (folder / "Samples").exists()


@fault("weights that name files elsewhere, flags with escape sequences", 2)
def hostile_weights(place, folder, rng):
    whole = undisturbed(place, "trained")
    copy_of(whole, folder / "inner")
    if rng.number == 0:
        err = refused("eval_network.py", "--weights", "\x1b[31m.keras", "--samples", "a\nb", cwd=folder)
        err += refused("train_network.py", "--\x1b[31m", cwd=folder)
        return assert_fit_to_show(err)
    with zipfile.ZipFile(whole / "weights.keras") as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    info = json.loads(members["training.json"])
    (folder / "secret").mkdir()
    shutil.copy(folder / "inner/Samples/low/00.wav", folder / "secret/00.wav")
    info["test"] += ["../secret/00.wav", "../../secret/00.wav", str(folder / "secret/00.wav")]
    (folder / "inner/weights.keras").write_bytes(packed(members | {"training.json": json.dumps(info).encode()}))
    out, _ = run("eval_network.py", cwd=folder / "inner")
    assert "secret" not in (folder / "inner/Results/scores.csv").read_text() and "3 of" in out, out
