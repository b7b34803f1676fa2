"""Read and write tables of the events in recordings. The content of a table decides its format:

    Audacity  start, end and label, separated by tabs, without a header
    Raven     a selection table with a column for the annotation
    CSV       the columns start, end, label or class, and file, separated by commas or semicolons

Times are in seconds, with a decimal point or comma. A table without a column for the recording
belongs to the one of its name: a.txt, a.wav.txt and a.Table.1.selections.txt to a.wav.
"""
import csv
import io
import math
import os
import re
import sys
from functools import partial
from pathlib import Path
from typing import NamedTuple
from unicodedata import normalize

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import utils
from utils import UserError

# Tables in a folder; detect.py writes others, which hold no events of a single recording.
IN_FOLDER = re.compile(r"^(?!\.|.*\.steps\.csv$|(detections|scores)\.csv$).*\.(txt|csv|tsv)$",
                       re.IGNORECASE)
COLUMNS = {  # names in lower case; the first that a table has counts
    "start": ("start", "begin time (s)"),
    "end": ("end", "end time (s)"),
    "label": ("annotation", "species", "label", "class", "common name", "tag 1"),
    "file": ("file", "begin file", "begin path"),
    "offset": ("file offset (s)",),  # the start in `file`; Raven counts from the first of many
    "confidence": ("confidence",)}
RAVEN_ENDING = re.compile(r"(\.Table\.\d+|\.BirdNET)?\.selections?(\.table)?$")
to_nfc = partial(normalize, "NFC")  # macOS writes an accent as a character of its own


class Event(NamedTuple):
    """A stretch of a recording with a label. A point in time has start == end."""

    start: float  # s
    end: float  # s
    label: str
    confidence: float | None = None


def read_labels(tables, recordings, column=None):
    """Read tables of events.

    tables: paths of tables, and of folders of them. recordings: paths of sounds. column: the
    column of labels. Returns a dict from each recording with a table to its sorted Events, and a
    dict of UserErrors. The key of a wrong row is (recording, "table:line").
    """
    by_name = {}
    for path in recordings:
        for name in {to_nfc(path.name), to_nfc(path.stem)}:
            by_name.setdefault(name, []).append(path)
    events = {}
    errors = {}
    for table in list_tables(tables, errors):
        try:
            rows = read_rows(table, column)
        except UserError as error:
            errors[table] = error
            continue
        own_name = RAVEN_ENDING.sub("", table.stem)
        found = {}  # from each name in the table to its recording
        for name in dict.fromkeys(row.get("file", own_name) for row in rows.values()) or [own_name]:
            try:
                found[name] = find_recording(name, table, by_name)
                events.setdefault(found[name], set())  # stays empty for an empty table
            except UserError as error:
                errors[f"{table}: {name}"] = error
        for line, row in rows.items():
            event = make_event(row)
            recording = found.get(row.get("file", own_name))
            if not 0 <= event.start <= event.end < math.inf:
                errors[recording, f"{table}:{line}"] = UserError(
                    f"{table}, line {line}: expected start and end in seconds, found "
                    f"{row['start'] or 'none'} and {row['end'] or 'none'}; correct them")
            elif recording:
                events[recording].add(event)  # Raven has an equal row for each view
    return {path: sorted(events[path], key=lambda event: event[:3])
            for path in recordings if path in events}, errors


def list_tables(paths, errors):
    """List tables, and those in folders, once each. Adds UserErrors to the dict `errors`."""
    tables = {}
    for path in paths:
        found = map(Path, utils.walk_files(path)) if path.is_dir() else [path]
        found = [file for file in found if file == path or IN_FOLDER.search(file.name)]
        if not found:
            errors[path] = UserError(f"{path}: holds no tables; name another folder")
        tables |= dict.fromkeys(found)
    return list(tables)


def read_rows(table, column=None):
    """Read a table. Returns a dict from line numbers to dicts of cells, with the keys of COLUMNS.

    Raises UserError.
    """
    try:
        data = table.read_bytes()
        is_utf16 = data.startswith((b"\xff\xfe", b"\xfe\xff"))  # "Unicode text" of Excel
        text = data.decode("utf-16" if is_utf16 else "utf-8-sig")
    except OSError as error:
        raise UserError(f"{table}: {error.strerror}; name a table that can be read") from None
    except UnicodeDecodeError:
        text = data.decode("latin-1")
    first_line = text.lstrip().split("\n", 1)[0]
    separator = next((mark for mark in "\t;" if mark in first_line), ",")
    quoting = csv.QUOTE_NONE if separator == "\t" else csv.QUOTE_MINIMAL  # as Audacity does
    reader = csv.reader(io.StringIO(text, None), delimiter=separator, quoting=quoting)
    rows = {}
    try:
        for cells in reader:
            cells = [to_nfc(cell.strip()) for cell in cells]
            if any(cells) and cells[0] != "\\":  # the range of frequencies of an Audacity label
                rows[reader.line_num] = cells
    except csv.Error as error:
        raise UserError(f"{table}, line {reader.line_num}: {error}; name a table") from None
    has_header = rows and math.isnan(parse_number(rows[min(rows)][0]))  # not one of Audacity
    header = rows.pop(min(rows)) if has_header else ["start", "end", "label"]
    columns = find_columns(header, column if has_header else None, table)
    for line, cells in rows.items():
        if any(cells[len(header):]):
            raise UserError(f"{table}, line {line}: expected {len(header)} cells, found "
                            f"{len(cells)}; quote cells that hold a comma")
        cells += [""] * (len(header) - len(cells))
    return {line: {key: cells[k] for key, k in columns.items()} for line, cells in rows.items()}


def find_columns(header, column, table):
    """Find the columns of a table. Returns a dict from keys of COLUMNS to indices of cells.

    column: the name of the column of labels, or None. Raises UserError.
    """
    known = [to_nfc(name).casefold() for name in header]
    wanted = COLUMNS | ({"label": (to_nfc(column).casefold(),)} if column else {})
    columns = {key: known.index(name) for key, names in wanted.items()
               for name in reversed(names) if name in known}
    listed = f"{', '.join(header):.300}"
    if not {"start", "end"} <= columns.keys():
        raise UserError(f"{table}: expected labels of Audacity, a selection table of Raven, or a "
                        f"header with start and end, found {listed}; name another table")
    if "label" not in columns:
        raise UserError(f"{table}: has no column {column or ', '.join(COLUMNS['label'])}; name one "
                        f"of its columns with --column: {listed}")
    return columns


def find_recording(name, table, by_name):
    """Find the recording that a table names by path or file name. Raises UserError.

    by_name: dict from file names, with and without extension, to lists of paths.
    """
    parts = [part for part in re.split(r"[/\\]", to_nfc(name)) if part.strip(".")]
    ending = "/".join(["", *parts])
    found = []
    for path in by_name.get(parts[-1] if parts else "", []):
        whole = "/" + to_nfc(Path(os.path.abspath(path)).as_posix())
        if whole.endswith(ending) or utils.stem_of(whole).endswith(ending):
            found.append(path)
    if len(found) > 1:
        found = [path for path in found if path.parent == table.parent] or found
    if not found:
        raise UserError(f"{table}: found no recording named {name or 'by an empty cell'}; add it "
                        "to the recordings, or correct the name")
    if len(found) > 1:
        raise UserError(f"{table}: {name} may be {' or '.join(map(str, found))}; name its folder "
                        "and extension in the table")
    return found[0]


def make_event(row):
    """Make an Event of the cells of a row. Its times are NaN where they are no numbers."""
    start = parse_number(row["start"])
    end = parse_number(row["end"])
    if row.get("offset"):
        offset = parse_number(row["offset"])
        start, end = offset, offset + end - start
    confidence = parse_number(row.get("confidence", ""))
    return Event(start, end, row["label"], None if math.isnan(confidence) else confidence)


def parse_number(text):
    """Parse a number with a decimal point or comma. Returns NaN if it is none."""
    try:
        return float(text.replace(",", "."))
    except ValueError:
        return math.nan


def format_audacity(events):
    """Format Events as labels for Audacity (File, Import, Labels)."""
    return "".join(to_line(f"{event.start:.6f}", f"{event.end:.6f}", event.label)
                   for event in events)


def format_raven(events, fmin, fmax):
    """Format Events as a selection table for Raven. All selections are from fmin to fmax (Hz)."""
    lines = [to_line("Selection", "View", "Channel", "Begin Time (s)", "End Time (s)",
                     "Low Freq (Hz)", "High Freq (Hz)", "Species", "Confidence")]
    for k, (start, end, label, confidence) in enumerate(events, 1):
        lines.append(to_line(k, "Spectrogram 1", 1, f"{start:.6f}", f"{end:.6f}", f"{fmin:.1f}",
                             f"{fmax:.1f}", label, "" if confidence is None else confidence))
    return "".join(lines)


def to_line(*cells):
    """A line of a table. Tabs and line ends in cells become spaces."""
    return "\t".join(utils.shown(" ".join(str(cell).split())) for cell in cells) + "\n"
