"""Makes a data directory of format version 1 from docs/format.md alone, independently of the Rust
code: its superblock, a sealed segment and an open one behind it, as a crash leaves them. Of the
segments only the parts that are not zero are kept: what they begin and what they end with."""
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


def segment_header(sequence, base, previous_end):
    fields = (DISK, 0, 0, sequence, 1, base, previous_end, SEGMENT, BOOT)
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


def record(end, first_kept, last_append, producers):
    fields = (0, 1, len(producers), 0, end, first_kept, last_append, BOOT)
    fixed = struct.pack("<IHHQQQQQ", *fields) + bytes(16)
    return fixed + command + b"".join(producers)


first, second = batch(4, 13, 42, TIME), batch(2, 14, 46, TIME + 5)

# The first segment: the extent is opened, takes a batch, is trimmed.
front = segment_header(1, 0, 0)
opened = record(end=42, first_kept=42, last_append=0, producers=[])
front += write(1, 0, 4096, 0, [(6, struct.pack("<Q", 0)), (2, opened)])
front += write(1, 0, 8192, 8192, [(1, first), (4, struct.pack("<Q", 43))])
end = len(front)
directory = struct.pack("<IIIIQQ", 0, 0, 1, 0, 42, TIME)
entry = struct.pack("<QQIIII", 42, TIME, 4, len(first), 8192, 0)
footer_at = SEGMENT - 2 * BLOCK
crc = crc32c(directory + entry)
trailer = block(b"THALWEGF", struct.pack("<QQQIII", 1, end, footer_at, 1, 1, crc))
back = (directory + entry).ljust(BLOCK, b"\0") + trailer

# The second: its snapshot, another batch, and no footer.
producer = struct.pack("<QQQQQQ", 11, 14, 1, 1, 42, TIME)
snapshot = record(end=46, first_kept=43, last_append=TIME, producers=[producer])
newest = segment_header(2, SEGMENT, end)
newest += write(2, SEGMENT, 4096, end, [(5, snapshot), (6, struct.pack("<Q", 1))])
newest += write(2, SEGMENT, 8192, SEGMENT + 8192, [(1, second)])

superblock = block(b"THALWEGD", struct.pack("<16sQ", DISK, SEGMENT))
for name, bytes_ in [
    ("disk", superblock),
    ("segment-1-front", front),
    ("segment-1-back", back),
    ("segment-2-front", newest),
]:
    (HERE / f"{name}-v1.bin").write_bytes(bytes_)
