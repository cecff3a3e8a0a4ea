"""Makes batch-v1.bin from docs/format.md alone, independently of the Rust code."""
import hashlib
import pathlib
import struct


def crc32c(data):
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def batch(records, sequence, first_offset, append_time):
    """A batch of producer 11 for shard 3 of stream 7, as its leader of epoch 5 keeps it."""
    index = keys = data = b""
    for at in range(records):
        key = b"key-%d" % at
        keys += key
        data += bytes([at]) * (at % 5)
        index += hashlib.md5(key).digest() + struct.pack("<QII", 100 + at, len(keys), len(data))
    columns = index + keys + data
    columns += bytes(-len(columns) % 4)
    root = b""
    for place, (column_at, length) in enumerate(
        [(0, records), (len(index), len(keys)), (len(index) + len(keys), len(data))]
    ):
        root += struct.pack("<iI", column_at - (len(columns) + place * 8), length)
    body = columns + root
    client = struct.pack(
        "<4sHHIIIIQQQQI",
        *(b"TWB1", 1, 0, len(body), records, crc32c(body), 3, 7, 11, sequence, 17, 0),
    )
    client += struct.pack("<I", crc32c(client))
    server = struct.pack("<QQQ", first_offset, append_time, 5) + bytes(36)
    header = client + server
    header += struct.pack("<I", crc32c(header))
    assert len(header) == 128
    return header + body


if __name__ == "__main__":
    golden = batch(records=4, sequence=13, first_offset=42, append_time=1_700_000_000_000)
    pathlib.Path(__file__).with_name("batch-v1.bin").write_bytes(golden)
