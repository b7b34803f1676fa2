"""Lay out the twelve monophonic guitar classes of IDMT-SMT-Audio-Effects in Samples/.

Reads IDMT-SMT-AUDIO-EFFECTS.zip (Zenodo, DOI 10.5281/zenodo.7544032, CC BY-NC-ND 4.0) as it was
downloaded. Writes 20,592 WAV files of 2 s to Samples/<effect>/, 3.6 GB. Existing files stay.

    python examples/idmt.py IDMT-SMT-AUDIO-EFFECTS.zip
"""

import argparse
import os
import shutil
import sys
import tempfile
import zipfile
import zlib
from collections import Counter
from pathlib import Path, PurePosixPath

PARTS = "Gitarre monophon", "Gitarre monophon2"  # zips within the zip: six effects each
N_SOUNDS = 20592


def sounds_of(archive):
    """Yield a ZipInfo and effect/name for each <part>/Samples/<effect>/<name>.wav."""
    for member in archive.infolist():
        path = PurePosixPath(member.filename)
        hidden = any(part.startswith(".") for part in path.parts[-2:])  # also rejects ".."
        if path.suffix.lower() == ".wav" and path.parts[-3:-2] == ("Samples",) and not hidden:
            yield member, f"{path.parts[-2]}/{path.name}"


def extract(archive, member, target):
    """Write one sound, whole or not at all. An existing file of the right size stays."""
    if target.exists() and target.stat().st_size == member.file_size:
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}")
    with archive.open(member) as source, open(temporary, "wb") as file:
        shutil.copyfileobj(source, file)
    os.replace(temporary, target)


def lay_out(path, samples):
    """Extract the sounds of all parts into `samples`. Returns a Counter of effects."""
    counts = Counter()
    with zipfile.ZipFile(path) as outer:
        parts = {PurePosixPath(name).stem: name
                 for name in outer.namelist() if name.endswith(".zip")}
        if missing := set(PARTS) - set(parts):
            sys.exit(f"{path}: expected {' and '.join(sorted(missing))} (.zip) inside, "
                     f"found {', '.join(sorted(parts)) or 'no zip'}; download it again")
        samples.mkdir(parents=True, exist_ok=True)
        for part in PARTS:
            # Unpacked to disk first: each seek in a compressed file would unpack from its start.
            with tempfile.TemporaryFile(dir=samples) as unpacked:
                with outer.open(parts[part]) as packed:
                    shutil.copyfileobj(packed, unpacked, 2**24)
                with zipfile.ZipFile(unpacked) as archive:
                    for member, name in sounds_of(archive):
                        extract(archive, member, samples / name)
                        counts[name.split("/")[0]] += 1
            print(f"{part}: {counts.total()} sounds so far", flush=True)
    return counts


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("zip", type=Path, help="IDMT-SMT-AUDIO-EFFECTS.zip")
    parser.add_argument("samples", type=Path, nargs="?", default=Path("Samples"),
                        help="(default: Samples)")
    args = parser.parse_args()
    try:
        counts = lay_out(args.zip, args.samples)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        sys.exit(f"{args.zip}: expected the zip of IDMT-SMT-Audio-Effects, found {error}; "
                 "download it again")
    except OSError as error:
        sys.exit(f"{error.filename or args.samples}: {error.strerror}")
    for effect, n in sorted(counts.items()):
        print(f"{effect:14} {n:6}")
    print(f"{args.samples}: {counts.total()} sounds of {len(counts)} classes"
          + ("" if counts.total() == N_SOUNDS else f"; the whole set has {N_SOUNDS} sounds of 12"))
    print("Next: python preprocess_data.py; python train_network.py --groups '^G\\d\\d-\\d{5}'")


if __name__ == "__main__":
    main()
