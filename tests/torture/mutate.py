"""Damage to files, drawn from a random.Random: to bytes, members of archives, values of JSON."""
import io
import json
import zipfile

# Where the fields of a header are off by one, negative or too large; impossible rates, channels.
NUMBERS = (0, 1, 2, 3, 8, 16, 24, 127, 128, 255, 256, 1000, 1024, 32767, 32768, 44100, 65535,
           10**6, 2**31 - 1, 2**31, 2**32 - 1)
VALUES = (None, True, -1, 0, 1, 3, 2**70, 1e300, -0.5, float("nan"), "", "x", "../x", "\x1b[31m",
          [], {}, [[]], {"a": 1})
FIELDS = {  # (position, width) in bytes
    ".wav": ((4, 4), (16, 4), (20, 2), (22, 2), (24, 4), (28, 4), (32, 2), (34, 2), (40, 4)),
    ".aiff": ((4, 4), (16, 4), (20, 2), (22, 4), (26, 2), (28, 2), (30, 8)),
    ".flac": ((4, 4), (8, 2), (10, 2), (12, 3), (15, 3), (18, 4), (21, 5)),
    ".ogg": ((5, 1), (6, 8), (18, 4), (26, 1), (27, 1), (39, 1), (40, 4), (44, 4), (56, 1)),
    ".mp3": ((0, 1), (1, 1), (2, 1), (3, 1), (36, 4), (44, 4), (48, 4)),
}


# ---------------------------------------------------------------- bytes

def damage(data, rng, suffix=""):
    """A copy of bytes with one to four wounds, many of them near the start, in the header."""
    data = bytearray(data)
    for _ in range(rng.choice([1, 1, 2, 4])):
        where = rng.randrange(max(1, rng.choice([64, 128, 1024, len(data)])))
        wound = rng.choice([flip, cut, put_number, put_number, remove, repeat])
        wound(data, min(where, max(0, len(data) - 1)), rng)
    if suffix in FIELDS and rng.random() < 0.5:
        start, width = rng.choice(FIELDS[suffix])
        number = rng.choice(NUMBERS).to_bytes(8, "little")[:width]
        data[start:start + width] = number[::rng.choice([1, -1])]
    if suffix == ".ogg" and rng.random() < 0.8:
        return fix_checksums(data)
    return bytes(data)


def flip(data, where, rng):
    """Flip some bits."""
    for _ in range(rng.choice([1, 4, 32])):
        if data:
            data[min(len(data) - 1, where + rng.randrange(32))] ^= 1 << rng.randrange(8)


def cut(data, where, rng):
    """Cut the end off."""
    del data[rng.choice([where, len(data) // 2, max(0, len(data) - 7)]):]


def put_number(data, where, rng):
    """Put one of NUMBERS in."""
    width = rng.choice([1, 2, 4, 8])
    order = rng.choice(["little", "big"])
    data[where:where + width] = (rng.choice(NUMBERS) % 2**(8 * width)).to_bytes(width, order)


def remove(data, where, rng):
    """Remove some bytes."""
    del data[where:where + rng.randrange(1, 64)]


def repeat(data, where, rng):
    """Insert a copy of some other bytes."""
    start = rng.randrange(len(data) + 1)
    data[where:where] = data[start:start + rng.randrange(1, 64)]


def fix_checksums(data):
    """Correct the checksums of an Ogg file's pages, because decoders pass over a wrong page."""
    data = bytearray(data)
    start = data.find(b"OggS")
    while 0 <= start and start + 27 <= len(data):
        n_segments = data[start + 26]
        end = start + 27 + n_segments + sum(data[start + 27:start + 27 + n_segments])
        data[start + 22:start + 26] = bytes(4)
        data[start + 22:start + 26] = ogg_checksum(data[start:end]).to_bytes(4, "little")
        start = data.find(b"OggS", start + 27)
    return bytes(data)


def ogg_checksum(page):
    """The CRC-32 of an Ogg page."""
    total = 0
    for byte in page:
        total ^= byte << 24
        for _ in range(8):
            total = (total << 1 ^ 0x04C11DB7 * (total >> 31)) & 0xFFFFFFFF
    return total


# ---------------------------------------------------------------- JSON and archives

def damage_json(text, rng):
    """JSON with a value or two replaced or left out, or with damage to its bytes."""
    if rng.random() < 0.2:
        return damage(text, rng)
    value = json.loads(text)
    for _ in range(rng.choice([1, 1, 2])):
        holders = [part for part in iterate_parts(value) if part]
        if not holders:
            continue
        holder = rng.choice(holders)
        key = rng.choice(list(holder) if isinstance(holder, dict) else range(len(holder)))
        if rng.random() < 0.2:
            del holder[key]
        else:
            holder[key] = rng.choice(VALUES)
    return json.dumps(value).encode()


def iterate_parts(value):
    """Yield the lists and dicts of a JSON value, itself first."""
    if isinstance(value, (list, dict)):
        yield value
        for part in value.values() if isinstance(value, dict) else value:
            yield from iterate_parts(part)


def damage_archive(data, rng):
    """A zip archive with damage to its bytes, or to one member that is packed well."""
    if rng.random() < 0.4:
        return damage(data, rng)
    members = unpack(data)
    name = rng.choice(sorted(members))
    if name.endswith(".json"):
        members[name] = damage_json(members[name], rng)
    elif rng.random() < 0.1:
        del members[name]
    else:
        members[name] = damage(members[name], rng)
    return pack(members)


def unpack(data):
    """The members of a zip archive: a dict from name to bytes."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def pack(members):
    """The bytes of a zip archive of these members."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return file.getvalue()
