"""Cut recordings into a folder of sounds for training, where tables say what is heard when.

Reads recordings, and labels of Audacity, selection tables of Raven, or CSV (see label_tables.py).
Writes FLAC files with the rate, channels and bit depth of the recording, named after the recording
and the start in seconds, for example, for bay.wav:

    OUT/robin/bay_0012.345.flac         an event
    OUT/_background/bay_0020.000.flac   a stretch without any event

Stretches are as long as the median event, but 1 to 5 s, and at least 0.5 s away from events. A
recording gives as many seconds of them as of events, at least a minute, spread over its length.
So its table should hold all events. Samples of float recordings beyond full scale are clipped.
Memory holds the events at one time, not the recording. Existing files stay: the same command does
what is missing. After a correction of the tables, cut into a new folder.

    python examples/cut_recordings.py Recordings --labels Recordings --out Samples
"""
import itertools
import math
import os
import re
import statistics
import sys
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from label_tables import Event, read_labels, to_nfc

import utils
from eval_network import list_sounds
from utils import UserError, say

BACKGROUND = "_background"
MIN_LENGTH = 1  # s, of a stretch of background
MAX_LENGTH = 5  # s
MARGIN = 0.5  # s between background and events: labels are not exact
MIN_BACKGROUND = 60  # s of a recording
SLACK = 0.1  # s by which a label may end after its recording: programs round
FINE = "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ALAC_24", "ALAC_32"  # become 24 bit, others 16
LABEL = re.compile(r"[^._/\\][^/\\]*")  # can be the name of a class folder
GROUPS = r"^(.+)_\d+\.\d{3}"  # the recording, in the name of a sound


class Cut(NamedTuple):
    """What was cut from a recording."""

    events: list  # Events, also of background
    n_written: int  # the others were there before
    errors: dict  # from "recording: event" to its UserError


def plan_background(events, seconds, length):
    """Choose stretches of a recording without events. Returns their starts, in s.

    seconds: length of the recording. length: of a stretch, in s.
    """
    starts = []
    free = 0  # the end of the events so far
    for event in [*events, Event(math.inf, math.inf, "")]:
        n = int((min(event.start - MARGIN, seconds) - free) / length + 1e-9)
        starts += [free + k * length for k in range(n)]
        free = max(free, event.end + MARGIN)
    wanted = max(MIN_BACKGROUND, sum(event.end - event.start for event in events))
    n = min(len(starts), math.ceil(wanted / length))
    return [starts[k] for k in np.linspace(0, len(starts) - 1, n).astype(int)]


def find_problem(event, seconds):
    """Say why an event cannot be cut from a recording of that length. Returns None if it can."""
    label = event.label
    is_name = LABEL.fullmatch(label) and label.isprintable() and len(os.fsencode(label)) < 256
    if not is_name and label != BACKGROUND:
        return "this label cannot name a class; use a short one without / and a leading . or _"
    if event.start == event.end:
        return "is a point in time; give it an end"
    if event.start >= seconds or event.end > seconds + SLACK:
        return f"ends after the recording, which has {seconds:.3f} s; correct one of them"
    return None


def read_spans(path, spans):
    """Yield (target, samples [shape=(n, n_channels)]) of parts of a recording, in one pass.

    spans: dict from each target to its first sample and the one after its last.
    """
    waiting = sorted(spans.items(), key=lambda item: item[1], reverse=True)
    begun = []  # (target, first, last, parts) of spans that are read
    position = 0
    with closing(utils.read_blocks(path)) as blocks:
        for y, _ in blocks:
            while waiting and waiting[-1][1][0] < position + len(y):
                target, (first, last) = waiting.pop()
                begun.append((target, first, last, []))
            for _, first, last, parts in begun:
                parts.append(y[max(0, first - position):last - position])
            position += len(y)
            for target, _, last, parts in begun:
                if last <= position:
                    yield target, np.concatenate(parts)
            begun = [span for span in begun if span[2] > position]
            if not (begun or waiting):
                return


def cut_recording(path, events, out, lengths):
    """Cut the Events events[path] into the folder `out`. Returns a Cut.

    lengths[path]: of stretches of background, in s; none are cut if it is not there. Raises
    UserError if the recording cannot be read or written.
    """
    with utils.reading(path), utils.open_sound(path) as file:
        rate = file.samplerate
        subtype = file.subtype
    n_samples = sum(len(y) for y, _ in utils.read_blocks(path))  # the header may be wrong
    seconds = n_samples / rate
    digits = max(4, len(str(int(seconds))))  # so that names sort by time
    background = []
    if length := lengths.get(path):
        starts = plan_background(events[path], seconds, length)
        background = [Event(start, start + length, BACKGROUND) for start in starts]
    spans = {}
    errors = {}
    done = []
    for event in events[path] + background:
        first = min(round(event.start * rate), n_samples - 1)
        last = min(n_samples, max(first + 1, round(event.end * rate)))
        target = out / event.label / f"{path.stem}_{event.start:0{digits + 4}.3f}.flac"
        problem = find_problem(event, seconds)
        if not problem and abs(spans.get(target, (0, last))[1] - last) > rate / 1000:
            problem = "begins with another event of this label; join them"
        if problem:
            where = f"{path}: {event.label or 'no label'} at {event.start:.3f} s"
            errors[f"{where} to {event.end} s"] = UserError(f"{where}: {problem}")
        elif target not in spans:  # else it is in two tables
            spans[target] = first, last
            done.append(event)
    missing = {target: span for target, span in spans.items() if not os.path.exists(target)}
    try:
        for target, y in read_spans(path, missing) if missing else ():
            data = utils.encode_sound(y, rate, "FLAC", "PCM_24" if subtype in FINE else "PCM_16")
            with utils.whole_file(target) as temporary:
                temporary.write_bytes(data)
    except soundfile.SoundFileError as error:
        raise UserError(f"{path}: FLAC cannot hold its {rate} Hz or its channels "
                        f"({utils.reason_of(error)}); convert it to at most 8 channels, and a rate "
                        "up to 655350 Hz that ends in 0") from None
    return Cut(done, len(missing), errors)


def find_twins(recordings):
    """Find recordings whose sounds would have the names of others. Returns a dict of UserErrors."""
    first = {}
    errors = {}
    for path in recordings:
        twin = first.setdefault(to_nfc(path.stem).casefold(), path)
        if twin != path:
            errors[path] = UserError(f"{path}: has the name of {twin}; rename one of them")
    return errors


def find_moved(out):
    """Find the sounds in `out` whose names are in an earlier class too, by a corrected label."""
    first = {}
    paths = sorted(path for path in out.glob("*/*.flac") if re.search(GROUPS, path.name))
    return [path for path in paths if first.setdefault(path.name, path) != path]


def print_classes(cuts):
    """Print how much was cut of each class. cuts: dict from recording to its Cut."""
    done = [(path, event) for path, one in cuts.items() for event in one.events]
    width = max(len("Class"), *(len(event.label) for _, event in done))
    say(f"{'Class':{width}}  sounds  seconds  recordings")
    lonely = []
    for name in sorted({event.label for _, event in done}):
        some = [(path, event.end - event.start) for path, event in done if event.label == name]
        n_recordings = len({path for path, _ in some})
        say(f"{name:{width}}  {len(some):6}  {sum(length for _, length in some):7.1f}  "
            f"{n_recordings:10}")
        if n_recordings < 2:
            lonely.append(name)
    if lonely:
        say(f"In one recording only: {', '.join(lonely)}. Training with --groups needs two or more "
            "of each class; add recordings, or remove these folders")


def parse_args():
    """Read the command line."""
    parser = utils.Parser(__doc__)
    parser.add_argument("recordings", nargs="+", type=Path, metavar="RECORDING",
                        help="recordings, or folders of them")
    parser.add_argument("--labels", nargs="+", type=Path, required=True, metavar="TABLE",
                        help="tables of events, or folders of them")
    parser.add_argument("--column", metavar="NAME",
                        help="column of the label (default: Annotation, Species, ...)")
    parser.add_argument("--out", type=Path, required=True, metavar="PATH",
                        help="folder for a subfolder of sounds for each label")
    return parser.parse_args()


def main():
    """Cut all recordings that have a table. Returns how many files and events were skipped."""
    args = parse_args()
    sounds, errors = list_sounds(args.recordings)
    out = args.out.resolve()
    gone = [path for path in sounds if not path.exists()]
    errors |= {path: UserError(f"{path}: no such file; correct the path") for path in gone}
    sounds = [path for path in sounds
              if path not in gone and not path.resolve().is_relative_to(out)]
    events, unread = read_labels(args.labels, sounds, args.column)
    errors |= unread
    without = [path for path in sounds if path not in events]
    if without:
        say(f"Recordings without a table, left out: {len(without)}, such as {without[0]}")
    twins = find_twins(events)
    errors |= twins
    events = {path: some for path, some in events.items() if path not in twins}
    lengths = [event.end - event.start for some in events.values() for event in some
               if event.start < event.end]
    if not lengths:
        utils.name_skipped(errors)
        raise UserError(f"{args.labels[0]}: no events of the recordings; name their tables")
    length = min(max(MIN_LENGTH, statistics.median(lengths)), MAX_LENGTH)
    doubtful = {key[0] for key in unread if isinstance(key, tuple)}  # may have unknown events
    if doubtful := doubtful.intersection(events):
        say(f"Recordings with errors in their tables, which give no background: {len(doubtful)}")
    lengths = dict.fromkeys(set(events) - doubtful, length)
    overlaps = []
    for path, some in events.items():
        longest = itertools.accumulate(some, partial(max, key=lambda event: event.end))
        overlaps += [f"{a.label} and {b.label} at {b.start:.3f} s of {path}"
                     for a, b in zip(longest, some[1:]) if b.start < min(a.end, b.end)]
    if overlaps:
        say(f"Overlapping events, each of which is cut: {len(overlaps)}, such as {overlaps[0]}")
    cut = partial(cut_recording, events=events, out=args.out, lengths=lengths)
    cuts, unreadable = utils.map_files(cut, list(events), "Cutting")
    errors |= unreadable
    for one in cuts.values():
        errors |= one.errors
    print_classes(cuts)
    n_written = sum(one.n_written for one in cuts.values())
    n = sum(len(one.events) for one in cuts.values())
    say(f"{args.out}: {n_written} sounds written, {n - n_written} kept")
    if moved := find_moved(args.out):
        say(f"Sounds in two classes, after a change of the tables: {len(moved)}, such as "
            f"{moved[0]}; remove the wrong ones, or cut into a new folder")
    n_skipped = utils.name_skipped(errors)
    utils.say_next("../preprocess_data.py", samples=args.out)
    training = utils.command("../train_network.py", "--groups", GROUPS, samples=args.out)
    say(f"Then, with each recording in one subset: {training}")
    return n_skipped


if __name__ == "__main__":
    utils.run(main)
