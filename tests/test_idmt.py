"""The recorded guitar effects are laid out from a zip of the real one's layout."""
import io
import subprocess
import sys
import zipfile

import pytest
from conftest import ROOT, run, tone

PARTS = {"Gitarre monophon": ("NoFX", "Chorus"), "Gitarre monophon2": ("Reverb", "Phaser"),
         "Gitarre polyphon": ("NoFX",), "Bass monophon": ("Chorus",)}


def zipped(files, kind=zipfile.ZIP_DEFLATED):
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", kind) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return data.getvalue()


def wav(k):
    import numpy as np
    import soundfile
    data = io.BytesIO()
    soundfile.write(data, tone(np.random.default_rng(k), 200 + 100 * k), 8000, format="WAV")
    return data.getvalue()


@pytest.fixture
def archive(tmp_path):
    parts = {}
    for part, effects in PARTS.items():
        files = {f"{part}/Samples/{effect}/{part[0]}61-4{k}1{k}0-{n}111-0{n}{k}.wav": wav(k)
                 for n, effect in enumerate(effects) for k in range(6)}
        files[f"{part}/Lists/{part}.xml"] = "<list/>"
        for name in ("../escaped", "../../../escaped", "NoFX/._a"):
            files[f"{part}/Samples/{name}.wav"] = b"x"
        parts[f"IDMT-SMT-AUDIO-EFFECTS/{part}.zip"] = zipped(files)
    (tmp_path / "effects.zip").write_bytes(zipped(parts))
    return tmp_path


def lay_out(folder, status=0):
    command = [sys.executable, ROOT / "examples/idmt.py", "effects.zip"]
    result = subprocess.run(command, cwd=folder, text=True, capture_output=True)
    assert result.returncode == status and "Traceback" not in result.stderr, result.stderr
    return result


def test_monophonic_guitar_classes_are_laid_out_and_no_others_and_train(archive):
    said = lay_out(archive).stdout
    assert "Samples: 24 sounds of 4 classes; the whole set has 20592 sounds of 12" in said
    paths = archive.rglob("Samples/*/*")
    files = sorted(path.relative_to(archive / "Samples").as_posix() for path in paths)
    classes = {name.split("/")[0] for name in files}
    assert len(files) == 24 and classes == {"NoFX", "Chorus", "Reverb", "Phaser"}
    assert all(name.split("/")[1].startswith("G61-4") for name in files)
    assert not list(archive.rglob("escaped*")) and not list(archive.rglob(".*"))
    run("train_network.py", "--groups", r"^G\d\d-\d{5}", "--epochs", 1, "--layers", 1, cwd=archive)


def test_second_run_writes_only_what_is_missing(archive):
    lay_out(archive)
    kept, gone = sorted(archive.glob("Samples/NoFX/*"))[:2]
    before, content = kept.stat().st_mtime_ns, gone.read_bytes()
    gone.write_bytes(content[:50])
    lay_out(archive)
    assert kept.stat().st_mtime_ns == before and gone.read_bytes() == content


def test_what_is_not_the_set_is_refused_by_one_line(archive):
    whole = (archive / "effects.zip").read_bytes()
    (archive / "effects.zip").write_bytes(zipped({"Bass monophon.zip": b""}))
    said = lay_out(archive, status=1).stderr
    assert "Gitarre monophon and Gitarre monophon2 (.zip) inside, found Bass monophon" in said
    for content in (whole[:9000] + b"damaged" * 9 + whole[9063:], b"no zip"):
        (archive / "effects.zip").write_bytes(content)
        said = lay_out(archive, status=1).stderr
        assert "effects.zip: expected the zip of IDMT-SMT-Audio-Effects" in said
