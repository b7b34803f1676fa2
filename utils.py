"""What the four scripts share: the command line, work on many files, names and files.

Nothing here loads Keras: augmenting, preprocessing and every --help start at once.
A sound's name, everywhere in this project, is its path below Samples/, "kick/deep.wav".
"""
import argparse
import contextlib
import csv
import errno
import inspect
import itertools
import json
import math
import os
import random
import re
import shlex
import signal
import subprocess
import sys
import time
import traceback
import uuid
from collections import deque
from functools import partial
from pathlib import Path

import numpy as np

READABLE = frozenset(".wav .flac .ogg .oga .opus .aif .aiff .aifc .mp3 .au .snd .caf .w64 .rf64".split())
TO_CONVERT = frozenset(".m4a .mp4 .aac .wma .amr".split())  # libsndfile does not know these: never passed over
SETTINGS_FILE = "settings.json"
SKIPPED_FILE = "skipped.csv"  # beside it: the sounds that could not be read
RATES = 100, 10**7  # Hz, the lowest and the highest of sounds: what damaged headers claim takes hours and gigabytes
READ_SAMPLES = 2**18  # read at a time, of all channels: six seconds at 44.1 kHz
MOST_NAMED = 20  # of what is skipped, on the screen
DISK_FULL = errno.ENOSPC, errno.EFBIG, errno.EDQUOT  # the numbers of its errors
ASF = bytes.fromhex("3026b2758e66cf11")  # how a WMA file begins
TEMPORARY = re.compile(r"\.[0-9a-f]{12}(\.\w+)?")  # what whole_file leaves if the process is killed
COPY = re.compile(r"_aug(\d+)(?=(\.[^./]*)?$)")  # augment_data.py puts it before the extension
AUGMENTATIONS = "augmentations.csv"  # the list of the copies in a folder


# ---------------------------------------------------------------- the command line

class UserError(Exception):
    """A mistake that the user can mend: one line with the path, what was expected, what was found."""


class LockedError(UserError):
    """What may not be read, or is not there for now: what was made of it earlier is still of use."""


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that shows a script's docstring as its help and errors as one line."""

    PLACES = {"samples": ("Samples", "folder of sounds, one folder a class"),
              "preproc": ("Preproc", "folder of spectrograms"),
              "results": ("Results", "folder for figures and scores"),
              "weights": ("weights.keras", "the trained network")}

    def __init__(self, doc, places=()):
        super().__init__(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
        for place in places:
            default, text = self.PLACES[place]
            self.add_argument(f"--{place}", type=Path, default=Path(default), metavar="PATH",
                              help=f"{text} (default: {default})")

    def add_flags(self, *flags):
        for name, kind, default, metavar, text in flags:
            self.add_argument(f"--{name}", type=kind, default=default, metavar=metavar, help=text)

    def error(self, message):
        self.exit(2, shown(f"{self.prog}: {message} (--help shows the use)") + "\n")


def number(kind, low, high=2**32):
    """The argparse type of an int or float from `low` that is below `high`."""
    def parse(text):
        with contextlib.suppress(ValueError):
            value = kind(text)
            if low <= value < high:
                return value
        raise argparse.ArgumentTypeError(f"expected a {'whole ' * (kind is int)}number from {low}, below {high}, "
                                         f"found {text!r}")
    return parse


def regex(text):
    """The argparse type of a regular expression."""
    try:
        return re.compile(text)
    except re.error as error:
        raise argparse.ArgumentTypeError(f"expected a regular expression, found {text!r}: {error}") from None


def run(main):
    """Run main(), exit with status 1 if it returns a number of skipped files; mistakes become one line on stderr.

    A main() that returns None has skipped nothing.
    """
    script = Path(sys.argv[0]).name
    if None in (sys.stdout, sys.stderr):
        sys.exit(f"{script}: expected standard output and error that are open, found one closed")
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # a name may hold what a terminal cannot show
    try:
        n_bad = main() or 0
        named = ", named above" if n_bad <= MOST_NAMED else ", some of them named above"
        sys.exit(f"{script}: {n_bad} files skipped{named}" if n_bad else 0)
    except UserError as error:
        sys.exit(shown(f"{script}: {error}"))
    except MemoryError:
        sys.exit(f"{script}: expected what fits into memory, found more; what is written is whole and stays")
    except OSError as error:
        sys.exit(shown(f"{script}: {error.filename or 'file'}: {error.strerror or error}"))
    except KeyboardInterrupt as stop:
        where = f" {stop}" if str(stop) else ""
        print(f"\n{script}: stopped{where}; what is written is whole and stays"
              + ", the same command goes on" * (script != "eval_network.py")
              + ", without --fresh" * ("--fresh" in sys.argv), file=sys.stderr)
        sys.exit(130)


def say_next(script, **places):
    """Print the command to run next, with those of its places that are not the default ones."""
    say(f"Next: {command(script, **places)}")


def command(script, *flags, **places):
    """A command for the user to run, quoted for a shell, with those of its places that are not the default ones.

    The script is named by the path of the one that runs ("../project/eval_network.py").
    """
    words = ["python", os.path.join(os.path.dirname(sys.argv[0]), script), *map(str, flags)]
    for name, path in places.items():
        if str(path) != Parser.PLACES[name][0]:
            words += [f"--{name}", str(path)]
    return subprocess.list2cmdline(words) if os.name == "nt" else shlex.join(words)


def check_weights_path(path):
    """Raise UserError unless there may be weights at `path`: asked before Keras is loaded, which takes seconds."""
    if not Path(path).is_file():
        found = "a folder" if Path(path).is_dir() else "nothing there"
        raise UserError(f"{path}: expected the weights that train_network.py saves, found {found}")
    if Path(path).suffix != ".keras":  # Keras would read a .h5 in another way, without a look at its layers
        raise UserError(f"{path}: expected a name that ends in .keras, found another")


def shown(text):
    """Text as a terminal can show it: a name's line breaks, escape sequences and their like as Python writes them."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text))


def say(*lines, file=None):
    """Print lines at once, names in them as `shown` has them."""
    try:
        for line in lines:
            print(shown(line), file=file, flush=True)
    except OSError as error:  # a full disk, or a reader that has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), (file or sys.stdout).fileno())  # else Python's end fails once more
        error.filename = "standard error" if file else "standard output"
        raise


# ---------------------------------------------------------------- much work, item by item

def for_each(function, items, description, folder, jobs=None, cluster=None, strict=False):
    """Call function on every item, a name in `folder`, in processes as `work` does, and show how far it is.

    cluster: address of a Dask scheduler, whose workers take their place. Returns two dicts in the order of items, item
    to result and item to UserError, or raises the first of these if `strict`.
    """
    results, errors = {}, {}
    if not items:
        return results, errors
    found = work_on_cluster(function, items, cluster) if cluster else work(function, items, jobs)
    with contextlib.closing(found):
        for k, result, error in progress(found, items, description):
            if str(error).startswith(f"{items[k]}: "):  # of a process that died, which knew no folder
                error = UserError(Path(folder, str(error)))
            if error and (strict or not isinstance(error, UserError)):
                raise error
            (errors if error else results)[k] = error or result
    return tuple({items[k]: found[k] for k in sorted(found)} for found in (results, errors))


def attempt(function, item):
    """Yield (result, None), or (None, error), of an item; of a generator all that it yields."""
    try:
        result = function(item)
        yield from ((one, None) for one in (result if inspect.isgenerator(result) else [result]))
    except MemoryError:
        yield None, UserError(f"{item}: expected to fit into memory, found no more")
    except (UserError, OSError) as error:
        yield None, error
    except Exception:  # a mistake of ours: its traceback would be lost on the way from another process
        yield None, RuntimeError(traceback.format_exc())


def attempt_all(function, chunk):
    return [(k, *found) for k, item in chunk for found in attempt(function, item)]


def chunked(items, in_order=False):
    """Items with their numbers, up to 16 at a time, for short sounds: to hand over a task takes time."""
    numbered, size = list(enumerate(items)), max(1, min(16, len(items) // 64))
    chunks = [numbered[start:start + size] for start in range(0, len(numbered), size)]
    if not in_order:
        random.Random(0).shuffle(chunks)  # processes that write into one folder wait for one another
    return chunks


def work(function, items, jobs=None):
    """Yield (k, result, None) or (k, None, error) for item k, as they are done; of a generator all that it yields.

    jobs: how many processes, in the order of items if one; None: one a core; 0: this one, no other. In others because
    a damaged sound may crash its decoder, which then takes a process along: that sound is named, the rest done. They
    run ahead by one chunk: what is read need not be in memory together.
    """
    if jobs == 0:
        yield from itertools.chain.from_iterable(attempt_all(function, [pair]) for pair in enumerate(items))
        return
    from multiprocessing.connection import wait
    jobs = min(jobs or n_cores(), 60)  # Windows waits for no more at once
    chunks = deque(chunked(items, in_order=jobs == 1))
    pending, idle, processes, said = {}, [], [], []  # pending: what a process has still to do, by the pipe to it
    try:
        while chunks or pending or said:
            while chunks and len(pending) < jobs:
                pipe = idle.pop() if idle else start(function, processes, list(pending))
                pending[pipe] = deque(chunks.popleft())
                with contextlib.suppress(ConnectionError):  # it has died: receive will see
                    pipe.send(list(pending[pipe]))
            yield from said
            ready = wait(list(pending)) if pending else []
            said = [message for pipe in ready for message in receive(pipe, pending, idle, chunks)]
    finally:
        for pipe in (*pending, *idle):
            pipe.close()
        for process in processes:
            process.join(10)  # until its chunk is done: it may be writing


def done(function, items, errors, jobs=1):
    """Yield (item, result) as `work` has them; UserErrors go into the dict `errors`, others are raised."""
    with contextlib.closing(work(function, items, jobs)) as found:
        for k, result, error in found:
            if error and not isinstance(error, UserError):
                raise error
            if error:
                errors[items[k]] = error
            else:
                yield items[k], result


def start(function, processes, others):
    """The pipe to a new process, added to `processes`, that calls function on what arrives; others: earlier pipes."""
    import multiprocessing
    # To fork is quicker by half a second, but unsafe beside the threads that Keras starts, and on macOS.
    fork = sys.platform == "linux" and "keras" not in sys.modules
    context = multiprocessing.get_context("fork" if fork else "spawn")
    pipe, other_end = context.Pipe()
    process = context.Process(target=serve, args=(other_end, function, [pipe, *others] * fork), daemon=True)
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)  # which it inherits: Ctrl-C is for this process
    try:
        process.start()
    finally:
        signal.signal(signal.SIGINT, handler)
    other_end.close()
    processes.append(process)
    return pipe


def serve(pipe, function, inherited):
    """Call function on the items of each chunk that arrives, until the pipe is closed at its other end, or ends.

    inherited: that other end, and those of other processes, which a fork gets as well: held here, none would be closed.
    """
    for other_end in inherited:
        other_end.close()
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)  # where decoders chatter about damaged files
    with contextlib.suppress(EOFError, ConnectionError):
        while True:
            for k, item in pipe.recv():
                for result, error in attempt(function, item):
                    pipe.send((k, result, error, False))
                pipe.send((k, None, None, True))
    os._exit(0)  # a fork has copies of what the other process is still to write, and of its locks


def receive(pipe, pending, idle, chunks):
    """What a process says, as a list; if it died, that its item cannot be read: another will do the rest."""
    try:
        k, result, error, is_done = pipe.recv()
    except (EOFError, ConnectionError):
        (k, item), *rest = pending.pop(pipe)
        chunks.extendleft([rest] * bool(rest))
        return [(k, None, UserError(f"{item}: expected a file that can be read, found that it crashes its process, or "
                                    "takes more memory than there is"))]
    if not is_done:
        return [(k, result, error)]
    pending[pipe].popleft()
    if not pending[pipe]:
        del pending[pipe]
        idle.append(pipe)
    return []


def n_cores():
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def work_on_cluster(function, items, address):
    """The same on a Dask cluster. What a lost worker had to do, another does; one that comes later takes part."""
    client = connect(address)
    from distributed import CancelledError, KilledWorker, as_completed
    with contextlib.closing(client):
        futures = client.map(partial(attempt_all, function), chunked(items), pure=False)
        try:
            for _, results in as_completed(futures, with_results=True):
                yield from results
        except (CancelledError, KilledWorker) as error:
            raise UserError(f"--dask {address}: expected a scheduler and workers that live, found that they ended; "
                            f"what is written stays ({error})") from None


def progress(results, items, description, seconds=10):
    """Yield what `results` yields, (k, ...) of item k, behind a bar; off a terminal with a line every 10 seconds."""
    total, began, told, terminal = len(items), time.perf_counter(), time.perf_counter(), sys.stdout.isatty()
    with bar(description, total) as show:
        for n, result in enumerate(results, 1):
            yield result
            rate, folder = n / (time.perf_counter() - began), os.path.dirname(items[result[0]])
            status = f"{rate:.0f} sounds/s" + (f", {clock((total - n) / rate)} left, {folder}" if n < total else "")
            if terminal:
                show(n, status)
            elif n == total or time.perf_counter() - told >= seconds:
                told = time.perf_counter()
                say(f"{description}: {n} of {total}, {status}")


def clock(seconds):
    return f"{seconds // 60:.0f}:{seconds % 60:02.0f}"


@contextlib.contextmanager
def bar(description, total, transient=False):
    """A progress bar on a terminal, as a function of how many are done and what to say; a transient one vanishes."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
    columns = [TextColumn(text, markup=False) for text in ("{task.description}", "{task.fields[status]}")]
    with Progress(columns[0], BarColumn(), MofNCompleteColumn(), columns[1], transient=transient,
                  disable=not sys.stdout.isatty()) as screen:
        task = screen.add_task(shown(description), total=total, status="")
        yield lambda n, status="": screen.update(task, completed=n, status=shown(status))


def connect(address):
    """A client of the Dask scheduler at `address`, its workers given these modules. Raises UserError."""
    try:
        from distributed import Client
    except ImportError:
        raise UserError("--dask: expected the package distributed, found none: pip install distributed") from None
    try:
        client = Client(address, timeout=10)
        client.wait_for_workers(1, timeout=10)
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"--dask {address}: expected the address of a scheduler that has workers, such as "
                        f"tcp://host:8786, found: {error}") from None
    for module in ("utils.py", "augment_data.py", "preprocess_data.py"):  # in the order of their imports
        client.upload_file(str(Path(__file__).with_name(module)))
    return client


def name_skipped(errors, listed=""):
    """Print what was skipped and why, for_each's dict of UserErrors, and where all are `listed`. Returns how many."""
    say(*(f"skipped {error}" for error in list(errors.values())[:MOST_NAMED]), file=sys.stderr)
    if len(errors) > MOST_NAMED:
        say(f"and {len(errors) - MOST_NAMED} more{listed}", file=sys.stderr)
    return len(errors)


# ---------------------------------------------------------------- files

@contextlib.contextmanager
def whole_file(path):
    """Yield a temporary path beside `path` that replaces it on success: a file is whole or not there."""
    path = Path(path)
    if path.exists() and not (path.is_file() or path.is_dir()):  # as root one could replace /dev/null
        raise UserError(f"{path}: expected a place for a file, found a device or pipe")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{uuid.uuid4().hex[:12]}{path.suffix}")
    try:
        yield temporary
        os.replace(temporary, path)
    except OSError as error:  # on a full disk it names no file
        if error.filename in (None, str(temporary), temporary):
            error.filename = str(path)
        raise
    finally:
        temporary.unlink(missing_ok=True)


def sweep(folder):
    """Remove what killed runs left in a folder; a file that another run is at is younger than an hour."""
    for path in filter(lambda path: TEMPORARY.fullmatch(path.name), Path(folder).glob(".*")):
        with contextlib.suppress(FileNotFoundError):
            if time.time() - path.stat().st_mtime > 3600:
                path.unlink()


@contextlib.contextmanager
def alone_in(folder, waiting=None, shared=False):
    """Hold a folder: another process that wants it waits until this one leaves it or ends, and prints `waiting`.

    shared: with others that hold it so, to read; where there is no such folder, none is held.
    """
    try:
        import fcntl
    except ImportError:  # Windows knows no such lock
        fcntl = None
    if fcntl is None or (shared and not os.path.isdir(folder)):
        yield
        return
    descriptor, kind = os.open(folder, os.O_RDONLY), fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    try:
        try:
            fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            say(*[waiting] * bool(waiting))
            fcntl.flock(descriptor, kind)
        except OSError:  # nor do some network file systems, for a folder
            pass
        yield
    finally:
        os.close(descriptor)


def save_text(path, text):
    with whole_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def save_json(path, value):
    value = json.loads(json.dumps(value), parse_constant=lambda _: None)  # JSON knows no NaN
    save_text(path, json.dumps(value, indent=1) + "\n")


def save_csv(path, rows):
    with whole_file(path) as part, open(part, "w", newline="", encoding="utf-8", errors="backslashreplace") as file:
        csv.writer(file).writerows(list(map(harmless, row)) for row in rows)


def harmless(value):
    """A table's cell; a name that a spreadsheet would run as a formula ("=...") gets a ' before it."""
    is_formula = isinstance(value, (str, Path)) and str(value)[:1] in tuple("=+-@\t\r\n")
    return f"'{value}" if is_formula else value


def class_of(name):
    """The class of a sound: the first folder of its name."""
    return name.split("/", 1)[0]


def stem_of(name):
    """The name of a sound without its extension."""
    return os.path.splitext(name)[0]


def find_copies(names, samples=None):
    """Find the copies among sounds. Returns a dict from the name of each copy to the name of its source.

    A name such as x_aug1.wav is not enough: it may be an original that is named after August. A copy is a copy
    if its source, of any extension, is among `names`, or if augmentations.csv beside it in `samples` lists it.
    """
    names = sorted(names)
    by_stem = {stem_of(name): name for name in names}
    listed, copies = {}, {}
    for name in filter(COPY.search, names):
        copy = name
        while found := COPY.search(copy):  # a copy of a copy has several suffixes
            source = COPY.sub("", copy)
            folder = os.path.dirname(copy)
            if samples is not None and folder not in listed:
                listed[folder] = read_augmentations(Path(samples, folder))
            is_listed = (file_cell(os.path.basename(source)), found[1]) in listed.get(folder, ())
            if stem_of(source) in by_stem or is_listed:
                copies[name] = by_stem.get(stem_of(source), source)
            copy = source
    return copies


def read_augmentations(folder):
    """Read which copies augmentations.csv in `folder` lists, as a set of (source's file name, number); may be empty."""
    return {(row.get("file"), row.get("copy")) for row in read_csv(Path(folder, AUGMENTATIONS))}


def read_csv(path):
    """Read a table that one of the scripts wrote, as a list of dicts; empty where there is none that can be read."""
    try:
        with open(path, newline="", encoding="utf-8", errors="surrogateescape") as file:
            return list(csv.DictReader(file))
    except (OSError, csv.Error):
        return []


def file_cell(file_name):
    """The file name of a source as augmentations.csv has it: without line breaks, and harmless."""
    return harmless(file_name.translate({10: "\\n", 13: "\\r"}))


def list_classes(root):
    """Sorted names of the class folders in `root`. Raises UserError where there is no such folder."""
    root = Path(root)
    if not root.is_dir():
        found = "a file" if root.exists() else "nothing there"
        raise UserError(f"{root}: expected a folder with one folder a class, found {found}")
    return sorted(entry.name for entry in root.iterdir() if not entry.name.startswith(".")
                  and (entry.is_dir() or not (entry.exists() or entry.suffix)))  # a link to a drive that is not there


def walk(folder, name, above):
    """Yield the names of the files in `folder` and below; a link back to a folder above ends there.

    A folder that may not be read, or is a link to nowhere, is named too, with a / at its end.
    """
    here = os.path.realpath(folder)
    if here in above:
        return
    try:
        entries = list(os.scandir(folder))
    except (PermissionError, FileNotFoundError):
        yield f"{name}/"
        return
    for entry in entries:
        if not os.path.isdir(entry):  # a link to nowhere, or a pipe, is for reading to name
            yield f"{name}/{entry.name}"
        elif not entry.name.startswith("."):
            yield from walk(entry.path, f"{name}/{entry.name}", (*above, here))


def list_files(root):
    """Sorted names of all files in the class folders of `root` and below."""
    here = Path(os.path.realpath(root))
    above = *map(str, here.parents), str(here)
    return sorted(name for class_name in list_classes(root) for name in walk(Path(root, class_name), class_name, above))


def is_sound(name):
    """Whether the extension is a sound's and the file not hidden; whether it lies shows when the file is read.

    So it does of a folder that may not be read: it may hold sounds.
    """
    stem, extension = os.path.splitext(os.path.basename(name))
    return name.endswith("/") or (extension.lower() in READABLE | TO_CONVERT and not stem.startswith("."))


def find_sounds(samples):
    """Sorted names of the sounds in `samples` and of the other files there. Raises UserError for no sound."""
    files = list_files(samples)
    sounds, loose = list(filter(is_sound, files)), sorted(filter(is_sound, os.listdir(samples)))
    if not sounds:
        found = f"{len(loose)} in no class folder" if loose else f"none among {len(files)} files"
        raise UserError(f"{samples}: expected sounds in one folder a class, found {found}")
    return sounds, loose + list(itertools.filterfalse(is_sound, files))


def list_spectrograms(preproc):
    """Sorted names of the sounds whose spectrograms are in `preproc`. Raises UserError where some may not be read."""
    files = list_files(preproc)
    if locked := [name for name in files if name.endswith("/")]:
        raise UserError(f"{preproc}/{locked[0]}: expected a folder that may be read, found one that may not")
    return list(filter(is_sound, (name.removesuffix(".npy") for name in files if name.endswith(".npy"))))


# ---------------------------------------------------------------- sound files

@contextlib.contextmanager
def reading(path):
    """Raise what libsndfile says while it opens and reads `path` as a UserError."""
    import soundfile
    try:
        yield
    except (soundfile.SoundFileError, OSError, TypeError, ValueError) as error:  # .raw; a name not in UTF-8
        if is_locked(path):
            found = f"{'a folder' if os.path.isdir(path) else 'one'} that may not be read"
            raise LockedError(f"{path}: expected a sound, found {found}") from None
        if os.path.isfile(path):
            reason = str(getattr(error, "error_string", error)).rstrip(".")
            found = f"what libsndfile cannot read ({reason}){cure(path)}" if os.path.getsize(path) else "an empty file"
        elif os.path.isdir(path):
            found = "a folder"
        else:
            found = "a pipe or device" if os.path.exists(path) else "nothing there"
        raise UserError(f"{path}: expected a sound, found {found}") from None


def is_locked(path):
    """Whether a file is there, but may not be read, nor perhaps even be looked at."""
    try:
        os.stat(path)
    except OSError as error:
        return isinstance(error, PermissionError)
    return not os.access(path, os.R_OK)


def cure(path):
    """The command that converts a sound that libsndfile does not know, for M4A, WMA and their like."""
    with contextlib.suppress(OSError), open(path, "rb") as file:
        head = file.read(12)
        if head[4:8] == b"ftyp" or head.startswith(ASF) or Path(path).suffix.lower() in TO_CONVERT:
            target = Path(path).with_name(f"{Path(path).stem}.converted.wav")
            return f"; convert it and remove it: {shlex.join(['ffmpeg', '-i', str(path), str(target)])}"
    return ""


def read_blocks(path):
    """Yield a sound file in blocks of some seconds and its sample rate: an hour takes no more memory than that.

    Blocks: float32 [shape=(n_samples, n_channels)], full scale 1. Raises UserError for no sound, no sample, NaN or inf,
    a rate beyond RATES.
    """
    with reading(path), open_sound(path) as file:
        n_samples, most = 0, math.inf if is_compressed(file) else 16 * os.path.getsize(path)
        # Read as they are and scaled here, 16-bit samples take a third of the time.
        kind = "int16" if file.subtype == "PCM_16" else "float32"
        while len(y := file.read(READ_SAMPLES // file.channels, kind, always_2d=True)):
            n_samples += len(y)
            if n_samples > most:  # some decoders go on at the end of the file, for as long as its header says
                raise UserError(f"{path}: expected a sound, found a header that claims {file.frames} samples in a file "
                                f"of {os.path.getsize(path)} bytes")
            if kind == "int16":
                y = y * np.float32(2**-15)
            elif not np.abs(y).max() < 1e9:  # what is larger would be infinite when squared
                raise UserError(f"{path}: expected samples between -1 and 1, found NaN, infinity or some beyond 1e9")
            yield y, file.samplerate
    if not n_samples:
        raise UserError(f"{path}: expected a sound, found one of no samples")


def is_compressed(file):
    """Whether a soundfile.SoundFile may hold many samples in a byte."""
    return file.format in ("FLAC", "OGG", "MP3") or file.subtype.startswith(("ALAC", "MPEG"))


def open_sound(path):
    """A soundfile.SoundFile, of a file and nothing else: a pipe would be waited for. Raises UserError for odd rates."""
    import soundfile
    if not os.path.isfile(path):
        raise FileNotFoundError(path)
    file = soundfile.SoundFile(os.fsencode(path) if os.name == "posix" else path)  # a name need not be UTF-8
    if RATES[0] <= file.samplerate <= RATES[1]:
        return file
    raise UserError(f"{path}: expected a sample rate of {RATES[0]} to {RATES[1]} Hz, found {file.samplerate}")
