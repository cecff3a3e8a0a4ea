"""async-kinesis: its producer, and its consumer that follows a stream through a split and a merge."""

import asyncio
import os

from kinesis import Consumer, JsonProcessor, MemoryCheckPointer, Producer

from common import (
    KEYS,
    MERGE_AT,
    PATIENCE_S,
    ROUND_PAUSE_S,
    ROUNDS,
    check_once_and_in_order,
    client,
    create,
    delete,
    reshard_at,
)

STREAM = "async-kinesis-rivers"
# How often it looks for children, and how long it rests when a shard has nothing.
REFRESH_S = 1
REST_S = 0.3


def where():
    return {
        "endpoint_url": os.environ["AWS_ENDPOINT_URL_KINESIS"],
        "region_name": os.environ["AWS_DEFAULT_REGION"],
    }


async def produce(kinesis, read):
    async with Producer(
        STREAM, processor=JsonProcessor(), buffer_time=0.05, use_list_shards=True, **where()
    ) as producer:
        for number in range(ROUNDS):
            # The consumer begins with a merged shard when one parent has come to its end: the other
            # one must have nothing left then, or its records would be late.
            while number == MERGE_AT and len(read) < number * len(KEYS):
                await asyncio.sleep(ROUND_PAUSE_S)
            await asyncio.to_thread(reshard_at, kinesis, STREAM, number)
            for key in KEYS:
                await producer.put({"key": key, "number": number}, partition_key=key)
            await producer.flush()
            await asyncio.sleep(ROUND_PAUSE_S)


async def consume(read):
    async with Consumer(
        STREAM,
        processor=JsonProcessor(),
        checkpointer=MemoryCheckPointer(),
        iterator_type="TRIM_HORIZON",
        shard_fetch_rate=4,
        sleep_time_no_records=REST_S,
        use_list_shards=True,
        **where(),
    ) as consumer:
        consumer._shard_refresh_interval = REFRESH_S
        is_last = False
        while not is_last:
            is_last = len(read) >= len(KEYS) * ROUNDS
            # It ends whenever it has nothing at the moment.
            async for item in consumer:
                read.append((item["key"], item["number"]))


async def main():
    kinesis = client()
    create(kinesis, STREAM)
    read = []
    async with asyncio.timeout(PATIENCE_S):
        await asyncio.gather(produce(kinesis, read), consume(read))
    check_once_and_in_order(read)
    delete(kinesis, STREAM)


if __name__ == "__main__":
    asyncio.run(main())
