"""The AWS CLI, a command after the other: a stream, its records, a split and a merge."""

import base64
import json
import os
import subprocess
import sys

STREAM = "cli-rivers"


def aws(*arguments):
    command = [os.path.join(os.path.dirname(sys.executable), "aws"), "kinesis", *arguments]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE)
    return json.loads(done.stdout) if done.stdout.strip() else None


def put(data):
    return aws("put-record", "--stream-name", STREAM, "--partition-key", "a", "--data", data)


def read(shard):
    """Data and sequence numbers of a shard."""
    start = ["--stream-name", STREAM, "--shard-iterator-type", "TRIM_HORIZON", "--shard-id", shard]
    iterator = aws("get-shard-iterator", *start)["ShardIterator"]
    records = aws("get-records", "--shard-iterator", iterator)["Records"]
    return [(base64.b64decode(one["Data"]).decode(), one["SequenceNumber"]) for one in records]


def main():
    aws("create-stream", "--stream-name", STREAM, "--shard-count", "1")
    aws("wait", "stream-exists", "--stream-name", STREAM)
    first, second = put("hello"), put("world")
    parent = first["ShardId"]
    expected = [("hello", first["SequenceNumber"]), ("world", second["SequenceNumber"])]
    assert read(parent) == expected, (read(parent), expected)
    aws(
        *("split-shard", "--stream-name", STREAM, "--shard-to-split", parent),
        *("--new-starting-hash-key", str(2**127)),
    )
    aws("wait", "stream-exists", "--stream-name", STREAM)
    assert read(parent) == expected, (read(parent), expected)
    shards = aws("list-shards", "--stream-name", STREAM)["Shards"]
    children = [one["ShardId"] for one in shards if one.get("ParentShardId") == parent]
    assert len(children) == 2, shards
    child = put("child")
    assert child["ShardId"] in children, (child, children)
    assert read(child["ShardId"]) == [("child", child["SequenceNumber"])]
    aws(
        *("merge-shards", "--stream-name", STREAM, "--shard-to-merge", children[0]),
        *("--adjacent-shard-to-merge", children[1]),
    )
    aws("wait", "stream-exists", "--stream-name", STREAM)
    merged = put("merged")
    assert merged["ShardId"] not in [parent, *children], merged
    assert read(merged["ShardId"]) == [("merged", merged["SequenceNumber"])]
    assert STREAM in aws("list-streams")["StreamNames"]
    aws("delete-stream", "--stream-name", STREAM)
    aws("wait", "stream-not-exists", "--stream-name", STREAM)


if __name__ == "__main__":
    main()
