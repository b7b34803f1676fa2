"""Tables of events are read and written, and recordings are cut by them."""
import re
import sys
import tracemalloc
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import soundfile
from conftest import ROOT, SAMPLE_RATE, one_line, run

import utils

sys.path.insert(0, str(ROOT / "examples"))
import cut_recordings
from label_tables import Event, format_audacity, format_raven, read_labels

RECORDINGS = Path("r/a.wav"), Path("r/bo.b.flac"), Path("s/c.wav"), Path("t/c.wav")
RAVEN = "Selection\tView\tChannel\tBegin Time (s)\tEnd Time (s)\tLow Freq (Hz)\tHigh Freq (Hz)"


@pytest.fixture
def read(tmp_path, monkeypatch):
    """A function that writes tables and reads them. Returns the events by recording, and errors."""
    monkeypatch.chdir(tmp_path)

    def read(column=None, encoding="utf-8", recordings=RECORDINGS, **tables):
        for name, text in tables.items():
            Path(name).parent.mkdir(exist_ok=True)
            Path(name).write_bytes(text if isinstance(text, bytes) else text.encode(encoding))
        events, errors = read_labels(list(map(Path, tables)), recordings, column)
        return {str(path): some for path, some in events.items()}, list(map(str, errors.values()))
    return read


def test_audacity_labels(read):
    text = "0,5\t1.25\t\"bo x\r\n\\\t100,0\t2000,0\r\n\r\n0.250000\t0.250000\t\r\n7\t8\n"
    expected = [Event(0.25, 0.25, ""), Event(0.5, 1.25, '"bo x'), Event(7, 8, "")]
    for name in ("a.txt", "a.wav.txt", "x/a.label"):
        assert read(**{name: text}) == ({"r/a.wav": expected}, [])
    assert read(**{"bo.b.txt": "\ufeff1\t2\tx"}) == ({"r/bo.b.flac": [Event(1, 2, "x")]}, [])
    assert read(**{"a.txt": ""}) == ({"r/a.wav": []}, [])


def test_raven_selections_count_once_and_choose_their_column(read):
    text = f"{RAVEN}\tSpecies\tTag 1\tConfidence\r\n"
    for view in ("Waveform 1", "Spectrogram 1"):
        text += f"1\t{view}\t1\t0,500\t1,500\t0,0\t9,5\trobin\tsong\t0,75\r\n"
    text += "2\tSpectrogram 1\t1\t0.100\t0.200\t0.0\t9.5\twren\tcall\t\r\n"
    for name in ("a.Table.1.selections.txt", "a.BirdNET.selection.table.txt", "a.txt"):
        assert read(**{name: text}) == (
            {"r/a.wav": [Event(0.1, 0.2, "wren"), Event(0.5, 1.5, "robin", 0.75)]}, [])
    events, _ = read("tag 1", **{"a.txt": text})
    assert [event.label for event in events["r/a.wav"]] == ["call", "song"]
    for events, errors in (read("Kind", **{"a.txt": text}),
                           read(**{"a.txt": f"{RAVEN}\tKind\n1\tx\t1\t1\t2\t0\t9\ty\n"})):
        assert not events
        assert re.match(r"a\.txt: has no .*--column: Selection, View, .*(Kind|Tag 1)", errors[0])


def test_raven_tables_of_several_recordings(read):
    text = (f"{RAVEN}\tBegin File\tFile Offset (s)\tAnnotation\n"
            "1\tSpectrogram 1\t1\t70\t70.5\t0\t9\ta.wav\t10.0\tx\n"
            "2\tSpectrogram 1\t1\t90\t91\t0\t9\tbo.b.flac\t3.0\ty\n")
    assert read(**{"all.txt": text}) == (
        {"r/a.wav": [Event(10, 10.5, "x")], "r/bo.b.flac": [Event(3, 4, "y")]}, [])


@pytest.mark.parametrize("separator, encoding", [
    (",", "utf-8"), (";", "utf-8-sig"), (";", "utf-16"), ("\t", "utf-16"), (";", "latin-1")])
def test_csv_in_every_encoding(read, separator, encoding):
    point = "." if separator == "," else ","
    text = (f"File;Start;End;Class;Confidence\r\nr/a.wav;1{point}5;2;Zaunkönig;0{point}5\r\n"
            ";;;;\r\nbo.b;3;4;x\r\nt\\c;5;6;y;\r\n").replace(";", separator)
    assert read(encoding=encoding, **{"all.csv": text}) == (
        {"r/a.wav": [Event(1.5, 2, "Zaunkönig", 0.5)], "r/bo.b.flac": [Event(3, 4, "x")],
         "t/c.wav": [Event(5, 6, "y")]}, [])


def test_names_in_other_unicode_forms_are_the_same(read):
    composed, decomposed = (unicodedata.normalize(form, "é") for form in ("NFC", "NFD"))
    for name, other in ((composed, decomposed), (decomposed, composed)):
        recording = Path(f"{name}.wav")
        for table in ({f"{other}.txt": f"1\t2\t{decomposed}"},
                      {"all.csv": f"file,start,end,{other}\n{other}.wav,1,2,{decomposed}\n"}):
            found = read(name if "all.csv" in table else None, recordings=[recording], **table)
            assert found == ({str(recording): [Event(1, 2, composed)]}, [])


def test_a_recording_beside_its_table_is_meant_and_else_its_folder_is_needed(read):
    assert read(**{"t/c.txt": "1\t2\tx"}) == ({"t/c.wav": [Event(1, 2, "x")]}, [])
    events, (error,) = read(**{"c.txt": "1\t2\tx"})
    assert not events and "c.txt: c may be s/c.wav or t/c.wav; name" in error
    table = "file,start,end,label\n../{}/c.wav,1,2,x\n"
    assert read(**{"r/l.csv": table.format("s")}) == ({"s/c.wav": [Event(1, 2, "x")]}, [])
    events, (error,) = read(**{"l.csv": table.format("elsewhere")})
    assert not events and "l.csv: found no recording named ../elsewhere/c.wav" in error


def test_bad_tables_and_rows_are_named_and_the_others_read(read):
    rows = "1\t2\tx\n3\t2\tx\nbad\t2\tx\n-1\t2\tx\nnan\t2\tx\n1\tinf\tx\n5\n6\t7\ty\n"
    events, errors = read(**{
        "a.txt": rows, "no.txt": "1\t2\tx", "b.txt": "a text", "b.wav": b"RIFF\0\xff\t\0",
        "bo.b.csv": "start,end,label\n1,5,2,5,x\n", "c.csv": "file,start,end,label\nno,1,2,x\n" * 9,
        "huge.csv": "x" * 200_000})
    assert events == {"r/a.wav": [Event(1, 2, "x"), Event(6, 7, "y")]}
    found = [error.split(":")[0] for error in errors]
    assert found[:6] == [f"a.txt, line {line}" for line in range(2, 8)]
    assert "a.txt, line 7: expected start and end in seconds, found 5 and none" in errors[5]
    assert found[6:10] == ["no.txt", "b.txt", "b.wav", "bo.b.csv, line 2"]
    assert "found 5; quote cells that hold a comma" in errors[9]
    assert [error for error in errors if "c.csv: found no recording named no" in error]
    assert found[-1] == "huge.csv, line 1" and "field limit" in errors[-1]


def test_folders_of_tables(read):
    read(**{"t/a.txt": "1\t2\tx", "t/._a.txt": b"\0", "t/n.md": "x"})
    events, errors = read_labels([Path("t"), Path("t/a.txt"), Path("none")], RECORDINGS)
    assert events == {RECORDINGS[0]: [Event(1, 2, "x")]}
    assert list(map(str, errors.values())) == [
        "none: No such file or directory; name a table that can be read"]
    Path("empty").mkdir()
    assert "holds no tables" in str(read_labels([Path("empty")], RECORDINGS)[1][Path("empty")])


def test_what_is_written_is_read_back(read):
    events = [Event(0, 0.000001, "x\ty"), Event(1.5, 2, "é \"z\"", 0.25),
              Event(3601.123456, 4000, "")]
    read_as = [event._replace(label=" ".join(event.label.split())) for event in events]
    text = format_raven(events, 0, 12000)
    assert text.splitlines()[0] == f"{RAVEN}\tSpecies\tConfidence"
    assert text.splitlines()[2] == (
        "2\tSpectrogram 1\t1\t1.500000\t2.000000\t0.0\t12000.0\té \"z\"\t0.25")
    assert read(**{"a.txt": text}) == ({"r/a.wav": read_as}, [])
    read_as = [event._replace(confidence=None) for event in read_as]
    assert read(**{"a.txt": format_audacity(events)}) == ({"r/a.wav": read_as}, [])


# ---------------------------------------------------------------- cutting

@pytest.fixture
def cut(monkeypatch, capsys, tmp_path):
    """A function that runs cut_recordings.py in this process. Returns its result and its texts."""
    monkeypatch.chdir(tmp_path)

    def cut(*args):
        monkeypatch.setattr(sys, "argv", ["examples/cut_recordings.py", *map(str, args)])
        return cut_recordings.main(), capsys.readouterr()
    return cut


def write_recording(path, seconds=20, rate=SAMPLE_RATE, n_channels=1, subtype="PCM_16"):
    """Write noise. Returns its samples [shape=(n, n_channels)] as they are read."""
    y = np.random.default_rng(len(path)).uniform(-1, 1, (int(seconds * rate), n_channels))
    soundfile.write(path, y, rate, subtype)
    return soundfile.read(path, dtype="float32", always_2d=True)[0]


def list_cut(folder="S"):
    return sorted(path.relative_to(folder).as_posix() for path in Path(folder).rglob("*.flac"))


@pytest.mark.parametrize("name, rate, n_channels, subtype, cut_as", [
    ("a.wav", 8000, 1, "PCM_16", "PCM_16"), ("a.wav", 384000, 1, "PCM_16", "PCM_16"),
    ("a.flac", 44100, 2, "PCM_24", "PCM_24"), ("a.wav", 8000, 8, "PCM_U8", "PCM_16")])
def test_events_and_background_equal_the_recording(cut, monkeypatch, name, rate, n_channels,
                                                   subtype, cut_as):
    monkeypatch.setattr(utils, "READ_SAMPLES", 30011)
    y = write_recording(name, 8, rate, n_channels, subtype)
    Path("a.txt").write_text("0\t0.1\tx\n1.0003\t1.5\tx\n1.25\t3.5\ty z\n5\t5.00001\tx\n"
                             "7.1\t8.05\tx\n")
    status, said = cut(name, "--labels", "a.txt", "--out", "S")
    assert not status and not said.err
    assert "each of which is cut: 1, such as x and y z at 1.250 s of a." in said.out
    spans = {"x/a_0000.000": (0, 0.1), "x/a_0001.000": (1.0003, 1.5), "x/a_0005.000": (5, 5.00001),
             "x/a_0007.100": (7.1, 8), "y z/a_0001.250": (1.25, 3.5),
             "_background/a_0005.500": (5.50001, 6.50001)}
    assert list_cut() == sorted(f"{target}.flac" for target in spans)
    for target, (start, end) in spans.items():
        info = soundfile.info(f"S/{target}.flac")
        assert (info.samplerate, info.channels, info.subtype) == (rate, n_channels, cut_as)
        found, _ = soundfile.read(f"S/{target}.flac", dtype="float32", always_2d=True)
        first = round(start * rate)
        np.testing.assert_array_equal(found, y[first:max(first + 1, round(end * rate))])


def test_background_is_spread_over_the_recording_away_from_events():
    events = [Event(k * 30.0, k * 30.0 + 3, "x") for k in range(120)]
    starts = cut_recordings.plan_background(events, 3600, 2)
    assert len(starts) == 180  # of 2 s, as 120 events of 3 s
    assert min(starts) < 40 and max(starts) > 3550 and sorted(set(starts)) == starts
    for start in starts:
        assert 3.5 <= start % 30 <= 27.5 and start + 2 <= 3600
    assert np.diff(starts).min() >= 2
    assert len(cut_recordings.plan_background([], 3600, 2)) == 30  # a minute
    assert cut_recordings.plan_background([], 0.5, 1) == []
    long = [Event(0, 9, "x"), Event(1, 2, "y"), Event(12, 12, ""), Event(20, 99, "z")]
    assert cut_recordings.plan_background(long, 14, 1) == [9.5, 10.5, 12.5]


def test_second_run_does_what_is_missing_and_never_overwrites(cut):
    write_recording("a.wav")
    Path("a.txt").write_text("1\t2\tx\n5\t6\ty\n")
    _, said = cut(".", "--labels", ".", "--out", "S")
    names = list_cut()
    assert f"S: {len(names)} sounds written, 0 kept" in said.out
    Path("S/x/a_0001.000.flac").write_bytes(b"mine")
    Path("S/y/a_0005.000.flac").unlink()
    _, said = cut(".", "--labels", ".", "--out", "S")
    assert f"S: 1 sounds written, {len(names) - 1} kept" in said.out and list_cut() == names
    assert Path("S/x/a_0001.000.flac").read_bytes() == b"mine" and "two classes" not in said.out
    Path("a.txt").write_text("1\t2\tz\n5\t6\ty\n")  # a corrected label
    _, said = cut(".", "--labels", ".", "--out", "S")
    assert "Sounds in two classes, after a change of the tables: 1, such as S/z/a_0001" in said.out


def test_mistakes_are_named_and_the_rest_is_done(cut):
    Path("sub").mkdir()
    for name in ("a.wav", "sub/A.flac", "9.wav", "alone.wav"):
        write_recording(name, n_channels=9 if name == "9.wav" else 1)
    Path("bad.wav").write_text("a text")
    bad_labels = "", "..", ".x", "_x", "a/b", "a\\b", "y" * 256
    rows = ["file,start,end,label", *(f"a,2,3,{label}" for label in bad_labels), "a,4,4,point",
            "a,19,20.2,beyond", "a,20.01,20.09,after", "a,2,3,x", "a,2,4,x", "a,5,6,_background",
            *(f"{name},1,2,x" for name in ("9", "bad", "none", "sub/A"))]
    Path("l.csv").write_text("\n".join(rows))
    n_skipped, said = cut("a.wav", "sub", "9.wav", "bad.wav", "alone.wav", "gone.wav",
                          "--labels", "l.csv", "--out", "S")
    lines = said.err.splitlines()
    expected = [  # in any order
        *[f"a.wav: {label} at 2.000 s: this label" for label in ("no label", *bad_labels[1:])],
        "a.wav: point at 4.000 s: is a point", "a.wav: beyond at 19.000 s: ends after",
        "a.wav: after at 20.010 s: ends after", "a.wav: x at 2.000 s: begins with another event",
        "sub/A.flac: has the name of a.wav", "9.wav: FLAC cannot hold", "bad.wav: expected a sound",
        "l.csv: found no recording named none", "gone.wav: no such file"]
    for text in expected:
        assert sum(line.startswith(f"skipped {text}") for line in lines) == 1, text
    assert n_skipped == len(lines) == len(expected)
    assert "Recordings without a table, left out: 1, such as alone.wav" in said.out
    made = {name for name in list_cut() if not re.match(r"_background/a_00(0[6-9]|1)", name)}
    assert made == {"_background/a_0000.000.flac", "_background/a_0005.000.flac",
                    "x/a_0002.000.flac"}


def test_no_background_is_cut_where_rows_are_wrong_and_lonely_classes_are_named(cut):
    for name in "ab":
        write_recording(f"{name}.wav")
    Path("a.txt").write_text("1\t2\tx\n9\t6\tx\n")  # the second may be anywhere
    Path("b.txt").write_text("1\t2\tx\n5\t6\ty\n")
    status, said = cut(".", "--labels", ".", "--out", "S")
    assert status == 1 and "a.txt, line 2: expected start and end" in said.err
    assert "errors in their tables, which give no background: 1" in said.out
    assert "In one recording only: _background, y. Training" in said.out
    assert {name[:14] for name in list_cut() if "_background" in name} == {"_background/b_"}


def test_memory_does_not_grow_with_the_recording(cut, tmp_path):
    peaks = []
    for seconds in (300, 1200):
        write_recording("a.wav", seconds, 16000)
        events = {Path("a.wav"): [Event(k, k + 0.5, "x") for k in range(0, seconds, 10)]}
        tracemalloc.start()
        done = cut_recordings.cut_recording(Path("a.wav"), events, tmp_path / f"{seconds}",
                                            {Path("a.wav"): 1})
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert not done.errors and done.n_written > seconds / 10
    assert peaks[1] < 1.2 * peaks[0] < 20e6, peaks


def test_the_command_cuts_what_the_scripts_train_with(tmp_path):
    for k, name in enumerate(("bay", "cliff", "dune", "lake")):
        write_recording(str(tmp_path / f"{name}.wav"), 6 + k)
        (tmp_path / f"{name}.txt").write_text("1\t2\tx\n4\t5\ty\n")
    script = "examples/cut_recordings.py"
    said = run(script, ".", "--labels", ".", "--out", "My samples", cwd=tmp_path).stdout
    head = r"Class +sounds  seconds  recordings\n"
    assert re.search(head + r"_background +\d+ .*\nx +4      4\.0 +4\n", said)
    following = f"Next: python {ROOT}/preprocess_data.py --samples 'My samples'"
    assert following in said
    groups = re.search(r"train_network.py --groups '(.*?)' --samples", said)[1]
    names = list_cut(tmp_path / "My samples")
    found = {utils.find_group(name, re.compile(groups)) for name in names}
    assert found == {"bay", "cliff", "dune", "lake"}
    run("preprocess_data.py", "--samples", "My samples", cwd=tmp_path)

    assert "--labels" in one_line(script, ".", "--out", "S", cwd=tmp_path, status=2)
    (tmp_path / "bay.txt").write_text("")
    line = one_line(script, "bay.wav", "--labels", "bay.txt", "--out", "S", cwd=tmp_path)
    assert "bay.txt: no events of the recordings" in line and not (tmp_path / "S").exists()
