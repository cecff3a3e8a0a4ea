// The AWS SDK for JavaScript, which speaks HTTP/2 without TLS: a stream read with GetRecords and
// with SubscribeToShard through a split and a merge.

import assert from 'node:assert/strict';
import { setTimeout as sleep } from 'node:timers/promises';

import {
  DeregisterStreamConsumerCommand,
  DescribeStreamConsumerCommand,
  DescribeStreamSummaryCommand,
  GetRecordsCommand,
  GetShardIteratorCommand,
  ListShardsCommand,
  PutRecordsCommand,
  RegisterStreamConsumerCommand,
  SubscribeToShardCommand,
} from '@aws-sdk/client-kinesis';

import {
  KEYS,
  Lineage,
  PATIENCE_S,
  ROUNDS,
  ROUND_PAUSE_MS,
  checkOnceAndInOrder,
  create,
  newClient,
  parse,
  remove,
  reshardAt,
  waitFor,
} from './common.mjs';

const STREAM = 'sdk-javascript-rivers';
// A shard can be asked five times a second.
const POLL_PAUSE_MS = 300;
const TOTAL = KEYS.length * ROUNDS;
const DEADLINE = Date.now() + PATIENCE_S * 1000;

const kinesis = newClient();

async function write() {
  for (let number = 0; number < ROUNDS; number += 1) {
    await reshardAt(kinesis, STREAM, number);
    const Records = KEYS.map((key) => ({
      PartitionKey: key,
      Data: Buffer.from(`${key} ${number}`),
    }));
    const put = await kinesis.send(new PutRecordsCommand({ StreamName: STREAM, Records }));
    assert.equal(put.FailedRecordCount, 0, JSON.stringify(put));
    await sleep(ROUND_PAUSE_MS);
  }
}

function add(read, records) {
  for (const { Data, PartitionKey } of records) {
    const record = parse(Buffer.from(Data).toString());
    assert.equal(record.key, PartitionKey);
    read.push(record);
  }
}

async function poll(root) {
  const read = [];
  const lineage = new Lineage(root);
  const iterators = new Map();
  const start = async (shard) => {
    const input = { StreamName: STREAM, ShardId: shard, ShardIteratorType: 'TRIM_HORIZON' };
    const { ShardIterator } = await kinesis.send(new GetShardIteratorCommand(input));
    iterators.set(shard, ShardIterator);
  };
  await start(root);
  // Once more when everything is there: nothing may follow.
  for (let isLast = false; ; isLast = read.length >= TOTAL) {
    for (const [shard, ShardIterator] of [...iterators]) {
      const got = await kinesis.send(new GetRecordsCommand({ ShardIterator }));
      add(read, got.Records);
      if (got.NextShardIterator) {
        iterators.set(shard, got.NextShardIterator);
      } else {
        iterators.delete(shard);
        for (const child of lineage.end(shard, got.ChildShards)) await start(child);
      }
    }
    if (isLast) return read;
    assert(Date.now() < DEADLINE, `only ${read.length} records are read`);
    await sleep(POLL_PAUSE_MS);
  }
}

async function fanOut(root, consumer) {
  const read = [];
  const lineage = new Lineage(root);
  const follow = async (shard) => {
    const input = {
      ConsumerARN: consumer,
      ShardId: shard,
      StartingPosition: { Type: 'TRIM_HORIZON' },
    };
    const { EventStream } = await kinesis.send(new SubscribeToShardCommand(input));
    for await (const { SubscribeToShardEvent: event } of EventStream) {
      assert(event, 'an event of another kind');
      add(read, event.Records);
      if (!event.ContinuationSequenceNumber) {
        const children = lineage.end(shard, event.ChildShards);
        await Promise.all(children.map(follow));
        return;
      }
      if (read.length >= TOTAL) return;
      assert(Date.now() < DEADLINE, `only ${read.length} records are pushed`);
    }
    assert.fail(`the subscription to ${shard} ended before the shard`);
  };
  await follow(root);
  return read;
}

await create(kinesis, STREAM);
const summary = await kinesis.send(new DescribeStreamSummaryCommand({ StreamName: STREAM }));
const { StreamARN } = summary.StreamDescriptionSummary;
const { Consumer } = await kinesis.send(
  new RegisterStreamConsumerCommand({ StreamARN, ConsumerName: 'gauge' }),
);
const { ConsumerARN } = Consumer;
await waitFor('the consumer', async () => {
  const found = await kinesis.send(new DescribeStreamConsumerCommand({ ConsumerARN }));
  return found.ConsumerDescription.ConsumerStatus === 'ACTIVE';
});
const { Shards } = await kinesis.send(new ListShardsCommand({ StreamName: STREAM }));
const root = Shards[0].ShardId;
const [, polled, pushed] = await Promise.all([write(), poll(root), fanOut(root, ConsumerARN)]);
checkOnceAndInOrder(polled);
checkOnceAndInOrder(pushed);
await assert.rejects(
  kinesis.send(new DescribeStreamSummaryCommand({ StreamName: 'no-such' })),
  { name: 'ResourceNotFoundException' },
);
await kinesis.send(new DeregisterStreamConsumerCommand({ ConsumerARN }));
await remove(kinesis, STREAM);
kinesis.destroy();
