"""aiokpl: records that are aggregated as the KPL does it, through a split and a merge.

They are read with boto3 and taken apart by aws-kinesis-agg.
"""

import asyncio
import base64
import hashlib
import os

import aws_kinesis_agg
from aiokpl import Config, Producer
from aws_kinesis_agg.deaggregator import iter_deaggregate_records

from common import (
    KEYS,
    MERGE_AT,
    PATIENCE_S,
    ROUND_PAUSE_S,
    ROUNDS,
    SPLIT_AT,
    active,
    check_once_and_in_order,
    client,
    create,
    delete,
    parse,
    poll,
    reshard_at,
)

STREAM = "aiokpl-rivers"


def config():
    return Config(
        region=os.environ["AWS_DEFAULT_REGION"],
        endpoint_url=os.environ["AWS_ENDPOINT_URL_KINESIS"],
        record_max_buffered_time_ms=50,
    )


async def put_rounds(producer, numbers):
    """A round is put when all of the one before are there; answers the shards that took them."""
    shards = set()
    for number in numbers:
        outcomes = [
            await producer.put_record(
                stream=STREAM, partition_key=key, data=f"{key} {number}".encode()
            )
            for key in KEYS
        ]
        for outcome in outcomes:
            result = await outcome.wait()
            assert result.success, result
            shards.add(result.shard_id)
        await asyncio.sleep(ROUND_PAUSE_S)
    return shards


async def produce(kinesis):
    """A producer each time the stream has other shards: version 0.2.0 asks for them at its begin
    only, and puts what belongs to a child it does not know again until its time is over."""
    shards = set()
    for begin, end in ((0, SPLIT_AT), (SPLIT_AT, MERGE_AT), (MERGE_AT, ROUNDS)):
        await asyncio.to_thread(reshard_at, kinesis, STREAM, begin)
        await asyncio.to_thread(active, kinesis, STREAM)
        async with Producer(config()) as producer:
            shards |= await put_rounds(producer, range(begin, end))
    assert len(shards) == 4, f"a shard, two children, their merged child: {shards}"


class Aggregates:
    """Takes apart what was read."""

    def __init__(self, kinesis):
        self.kinesis = kinesis
        self.ranges = {}
        self.read = []
        self.aggregates = 0

    def range_of(self, shard):
        if shard not in self.ranges:
            for found in self.kinesis.list_shards(StreamName=STREAM)["Shards"]:
                bounds = found["HashKeyRange"]
                self.ranges[found["ShardId"]] = range(
                    int(bounds["StartingHashKey"]), int(bounds["EndingHashKey"]) + 1
                )
        return self.ranges[shard]

    def add(self, records, shard):
        self.aggregates += sum(
            record["Data"].startswith(aws_kinesis_agg.MAGIC) for record in records
        )
        for record in iter_deaggregate_records(records, data_format="Boto3"):
            record = record["kinesis"]
            # It has explicit hash keys for all records of an aggregate, or for none.
            assert record.get("explicitHashKey") is None, record
            key, data = record["partitionKey"], record["data"]
            if record.get("aggregated"):
                data = base64.b64decode(data)
            hash_key = int.from_bytes(hashlib.md5(key.encode()).digest(), "big")
            # The KCL leaves out what an aggregate has for another shard.
            assert hash_key in self.range_of(shard), (key, shard)
            self.read.append(parse(data))
        return len(self.read) >= len(KEYS) * ROUNDS


async def main():
    kinesis = client()
    (root,) = create(kinesis, STREAM)
    aggregates = Aggregates(client())
    async with asyncio.timeout(PATIENCE_S):
        await asyncio.gather(
            produce(kinesis), asyncio.to_thread(poll, client(), STREAM, root, aggregates.add)
        )
    check_once_and_in_order(aggregates.read)
    assert aggregates.aggregates >= ROUNDS // 2, f"only {aggregates.aggregates} were aggregated"
    delete(kinesis, STREAM)


if __name__ == "__main__":
    asyncio.run(main())
