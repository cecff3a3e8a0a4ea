"""What the Python clients have in common: numbered records, a stream that is split and merged while
they are put, and what must have been read of it.

Where the endpoint is and who calls stands in the environment, in the variables of AWS's SDKs.
"""

import threading
import time

import boto3
from botocore.config import Config

PATIENCE_S = 60
# In each round one record of each key is put, with the number of the round.
KEYS = [f"key-{number}" for number in range(5)]
ROUNDS = 30
ROUND_PAUSE_S = 0.1
# The number of the round in which the stream is split, and merged.
SPLIT_AT, MERGE_AT = ROUNDS // 3, 2 * ROUNDS // 3
# A shard can be asked five times a second.
POLL_PAUSE_S = 0.3


def client():
    """boto3's client. All clients together call more often than an account may: it tries again."""
    retries = {"mode": "standard", "max_attempts": 10}
    return boto3.client("kinesis", config=Config(read_timeout=PATIENCE_S, retries=retries))


def wait_for(what, holds, pause_s=0.5):
    deadline = time.monotonic() + PATIENCE_S
    while True:
        found = holds()
        if found:
            return found
        assert time.monotonic() < deadline, f"{what} does not come"
        time.sleep(pause_s)


def create(kinesis, name, shards=1):
    """Makes a stream; answers its shards."""
    kinesis.create_stream(StreamName=name, ShardCount=shards)
    kinesis.get_waiter("stream_exists").wait(
        StreamName=name, WaiterConfig={"Delay": 1, "MaxAttempts": PATIENCE_S}
    )
    return [shard["ShardId"] for shard in kinesis.list_shards(StreamName=name)["Shards"]]


def delete(kinesis, name):
    kinesis.delete_stream(StreamName=name, EnforceConsumerDeletion=True)
    kinesis.get_waiter("stream_not_exists").wait(
        StreamName=name, WaiterConfig={"Delay": 1, "MaxAttempts": PATIENCE_S}
    )


def active(kinesis, name):
    def holds():
        found = kinesis.describe_stream_summary(StreamName=name)["StreamDescriptionSummary"]
        return found if found["StreamStatus"] == "ACTIVE" else None

    return wait_for(f"{name} ACTIVE", holds)


def open_shards(kinesis, name):
    shards = kinesis.list_shards(StreamName=name, ShardFilter={"Type": "AT_LATEST"})["Shards"]
    return sorted(shards, key=lambda shard: int(shard["HashKeyRange"]["StartingHashKey"]))


def split(kinesis, name):
    """Splits the one open shard in the middle."""
    active(kinesis, name)
    (shard,) = open_shards(kinesis, name)
    kinesis.split_shard(
        StreamName=name, ShardToSplit=shard["ShardId"], NewStartingHashKey=str(2**127)
    )


def merge(kinesis, name):
    """Merges the two open shards."""
    active(kinesis, name)
    lower, upper = open_shards(kinesis, name)
    kinesis.merge_shards(
        StreamName=name,
        ShardToMerge=lower["ShardId"],
        AdjacentShardToMerge=upper["ShardId"],
    )


def reshard_at(kinesis, name, number):
    """What is done to the stream before this round, while others may put."""
    if number == SPLIT_AT:
        split(kinesis, name)
    if number == MERGE_AT:
        merge(kinesis, name)


def write(kinesis, name):
    """All rounds, through a split and a merge. Nothing is put again: no put may fail."""
    for number in range(ROUNDS):
        reshard_at(kinesis, name, number)
        records = [{"PartitionKey": key, "Data": f"{key} {number}".encode()} for key in KEYS]
        put = kinesis.put_records(StreamName=name, Records=records)
        assert put["FailedRecordCount"] == 0, put
        time.sleep(ROUND_PAUSE_S)


def parse(data):
    key, _, number = data.decode().partition(" ")
    return key, int(number)


def check_once_and_in_order(read):
    """Of what was read, pairs of key and number in the order of reading: every record once, each
    key's in the order in which they were put."""
    found = {}
    for key, number in read:
        found.setdefault(key, []).append(number)
    expected = {key: list(range(ROUNDS)) for key in KEYS}
    assert found == expected, found


class Lineage:
    """Which shards are read: children when all their parents have come to their end."""

    def __init__(self, root):
        self.ended = set()
        self.started = {root}
        self.lock = threading.Lock()

    def end(self, shard, children):
        """The children that can be read now that this shard was read to its end."""
        with self.lock:
            self.ended.add(shard)
            ready = [
                child["ShardId"]
                for child in children
                if child["ShardId"] not in self.started
                and self.ended >= set(child["ParentShards"])
            ]
            self.started.update(ready)
            return ready


def poll(kinesis, name, root, handle):
    """Reads a stream with GetRecords, from the beginning of its first shard until `handle`, which
    gets each answer's records and their shard, says that it is enough, and once more."""
    lineage, iterators = Lineage(root), {}

    def start(shard):
        got = kinesis.get_shard_iterator(
            StreamName=name, ShardId=shard, ShardIteratorType="TRIM_HORIZON"
        )
        iterators[shard] = got["ShardIterator"]

    start(root)
    deadline = time.monotonic() + PATIENCE_S
    is_enough = False
    while True:
        is_last = is_enough
        for shard in list(iterators):
            got = kinesis.get_records(ShardIterator=iterators[shard])
            is_enough = handle(got["Records"], shard)
            iterators[shard] = got.get("NextShardIterator")
            if iterators[shard] is None:
                del iterators[shard]
                for child in lineage.end(shard, got["ChildShards"]):
                    start(child)
        if is_last:
            return
        assert time.monotonic() < deadline, f"what was put into {name} is not read"
        time.sleep(POLL_PAUSE_S)


class Reading:
    """What was read, by several threads."""

    def __init__(self):
        self.read = []
        self.lock = threading.Lock()

    def add(self, records, _shard=None):
        """Whether everything was read now."""
        with self.lock:
            self.read += [parse(record["Data"]) for record in records]
            for record in records:
                assert record["Data"].startswith(record["PartitionKey"].encode()), record
            return len(self.read) >= len(KEYS) * ROUNDS


def run_together(*works):
    """Runs functions in threads; the first failure is raised when all have ended."""
    failures = []

    def run(work):
        try:
            work()
        except BaseException as failure:
            failures.append(failure)

    threads = [threading.Thread(target=run, args=[work], daemon=True) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(2 * PATIENCE_S)
        assert not thread.is_alive(), "a part does not come to its end"
    if failures:
        raise failures[0]
