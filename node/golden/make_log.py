"""Makes data directories of format version 1 from docs/format.md alone, independently of the Rust
code: a superblock, a sealed segment and an open one behind it, as a crash leaves them. The open one
comes in five versions: one that only goes on, one that releases the segment before it, one in which
a merged segment takes that one's place, one that names an archive, and one in which the shard is deleted. Of the segments only the parts that are not zero are
kept: what they begin and what they end with."""
import pathlib
import struct
import sys

HERE = pathlib.Path(__file__).parent
sys.path.append(str(HERE.parent.parent / "wire" / "golden"))
from make import batch, crc32c  # noqa: E402

BLOCK = 4096
SEGMENT = 16 << 20
DISK = bytes(range(1, 17))
BOOT = 21
TIME = 1_700_000_000_000


def block(magic, fields):
    rest = fields.ljust(BLOCK - 16, b"\0")
    head = struct.pack("<8sHH", magic, 1, 0)
    return head + struct.pack("<I", crc32c(head + rest)) + rest


def frame(kind, generation, lsn, durable, payload, extent=0):
    crc = 0 if kind == 1 else crc32c(payload)
    head = struct.pack(
        "<4sHHQQQQIIIQ",
        *(b"TWLF", kind, 1, generation, BOOT, lsn, durable, extent, len(payload), crc, 0),
    )
    whole = head + struct.pack("<I", crc32c(head)) + payload
    return whole + bytes(-len(whole) % 64)


def segment_header(sequence, base, previous_end, merged=False):
    first_live = 0 if merged else 1
    fields = (DISK, 0, int(merged), sequence, first_live, base, previous_end, SEGMENT, BOOT)
    return block(b"THALWEGS", struct.pack("<16sIIQQQQQQ", *fields))


def write(generation, base, at, durable, frames):
    """Frames of one write, which begins at byte `at` of its segment; padded to whole blocks."""
    bytes_ = b""
    for kind, payload in frames:
        bytes_ += frame(kind, generation, base + at + len(bytes_), durable, payload)
    return bytes_ + bytes(-len(bytes_) % BLOCK)


# Extent 0: shard 3 of stream 7, all hash keys, epoch 5, from offset 42 on.
command = struct.pack("<QIBBBBQQ", 7, 3, 0, 1, 1, 0, 5, 42)
command += bytes(16) + b"\xff" * 16 + struct.pack("<QQ", 1_600_000_000, 1) + bytes(32 + 48 + 32)


def record(end, first_kept, last_append, producers, number=0, state=1, opened_by=command):
    fields = (number, state, len(producers), 0, end, first_kept, last_append, BOOT)
    fixed = struct.pack("<IHHQQQQQ", *fields) + bytes(16)
    return fixed + opened_by + b"".join(producers)


first, second = batch(4, 13, 42, TIME), batch(2, 14, 46, TIME + 5)

# The first segment: the extent is opened, takes a batch, is trimmed.
front = segment_header(1, 0, 0)
opened = record(end=42, first_kept=42, last_append=0, producers=[])
front += write(1, 0, 4096, 0, [(6, struct.pack("<Q", 0)), (2, opened)])
front += write(1, 0, 8192, 8192, [(1, first), (4, struct.pack("<Q", 43))])
end = len(front)


def footer(sequence, end, position):
    """Footer and trailer of a segment that has the first batch at byte `position`."""
    directory = struct.pack("<IIIIQQ", 0, 0, 1, 0, 42, TIME)
    entry = struct.pack("<QQIIII", 42, TIME, 4, len(first), position, 0)
    crc = crc32c(directory + entry)
    fields = struct.pack("<QQQIII", sequence, end, SEGMENT - 2 * BLOCK, 1, 1, crc)
    return (directory + entry).ljust(BLOCK, b"\0") + block(b"THALWEGF", fields)


back = footer(1, end, 8192)

# The second: its snapshot, another batch, and no footer.
producer = struct.pack("<QQQQQQ", 11, 14, 1, 1, 42, TIME)
snapshot = record(end=46, first_kept=43, last_append=TIME, producers=[producer])
newest = segment_header(2, SEGMENT, end)
newest += write(2, SEGMENT, 4096, end, [(5, snapshot), (6, struct.pack("<Q", 1))])
newest += write(2, SEGMENT, 8192, SEGMENT + 8192, [(1, second)])

# The same where the snapshot lists the first segment. It is trimmed and released ...
listed = struct.pack("<QQQ", 1, end, 1)
begin = [(5, snapshot), (7, listed), (6, struct.pack("<Q", 1))]
released = segment_header(2, SEGMENT, end)
released += write(2, SEGMENT, 4096, end, begin)
release = [(4, struct.pack("<Q", 46)), (8, struct.pack("<Q", 1))]
released += write(2, SEGMENT, 8192, SEGMENT + 8192, release + [(1, second)])

# ... or what it has is in a third, merged one.
third = segment_header(3, 2 * SEGMENT, 0, merged=True)
third += write(3, 2 * SEGMENT, 4096, 0, [(1, first)])
third_end = 2 * SEGMENT + len(third)
third_back = footer(3, third_end, 4096)
merged = segment_header(2, SEGMENT, end)
merged += write(2, SEGMENT, 4096, end, begin)
merge = struct.pack("<QQQ", 3, third_end, 1) + struct.pack("<Q", 1)
merged += write(2, SEGMENT, 8192, SEGMENT + 8192, [(9, merge), (1, second)])

# ... or its extent has ended and is in an archive, which the snapshot names.
archive = segment_header(3, 2 * SEGMENT, 0, merged=True)
ended = record(end=46, first_kept=43, last_append=TIME, producers=[], state=3)
archive += write(3, 2 * SEGMENT, 4096, 0, [(5, ended)])
archive_end = 2 * SEGMENT + len(archive)
nothing = struct.pack("<QQQIII", 3, archive_end, SEGMENT - BLOCK, 0, 0, crc32c(b""))
archive_back = block(b"THALWEGF", nothing)
# Extent 1: the same shard, epoch 6, from offset 46 on.
next_command = command[:16] + struct.pack("<QQ", 6, 46) + command[32:]
follows = record(46, 46, TIME, [producer], number=1, opened_by=next_command)
listed = struct.pack("<QQQQQQ", 1, end, 1, 3, archive_end, 3)
named = struct.pack("<QII", 3, 0, 0)
begin = [(5, follows), (7, listed), (10, named), (6, struct.pack("<Q", 2))]
archived = segment_header(2, SEGMENT, end)
archived += write(2, SEGMENT, 4096, end, begin)

# ... or its extent is sealed and trimmed, and its shard deleted.
deleted = segment_header(2, SEGMENT, end)
deleted += write(2, SEGMENT, 4096, end, [(5, snapshot), (7, listed[:24]), (6, struct.pack("<Q", 1))])
sealed = struct.pack("<HHIQQ", 3, 0, 0, 5, 46)
gone = [(3, sealed), (4, struct.pack("<Q", 46)), (11, struct.pack("<QII", 7, 3, 0))]
deleted += write(2, SEGMENT, 8192, SEGMENT + 8192, gone)

superblock = block(b"THALWEGD", struct.pack("<16sQ", DISK, SEGMENT))
for name, bytes_ in [
    ("disk", superblock),
    ("segment-1-front", front),
    ("segment-1-back", back),
    ("segment-2-front", newest),
    ("segment-2-released-front", released),
    ("segment-2-merged-front", merged),
    ("segment-3-front", third),
    ("segment-3-back", third_back),
    ("segment-2-archived-front", archived),
    ("segment-2-deleted-front", deleted),
    ("segment-3-archive-front", archive),
    ("segment-3-archive-back", archive_back),
]:
    (HERE / f"{name}-v1.bin").write_bytes(bytes_)
