// What the JavaScript clients have in common; see common.py.

import assert from 'node:assert/strict';
import { setTimeout as sleep } from 'node:timers/promises';

import {
  CreateStreamCommand,
  DeleteStreamCommand,
  DescribeStreamSummaryCommand,
  KinesisClient,
  ListShardsCommand,
  MergeShardsCommand,
  SplitShardCommand,
  waitUntilStreamExists,
} from '@aws-sdk/client-kinesis';

export const PATIENCE_S = 60;
export const KEYS = [0, 1, 2, 3, 4].map((number) => `key-${number}`);
export const ROUNDS = 30;
export const ROUND_PAUSE_MS = 100;
const SPLIT_AT = ROUNDS / 3;
export const MERGE_AT = (2 * ROUNDS) / 3;
const STATUS_PAUSE_MS = 500;

// Endpoint, region and keys stand in the environment. All clients together call more often than an
// account may: it tries again.
export function newClient() {
  return new KinesisClient({ maxAttempts: 10 });
}

export async function create(kinesis, name) {
  await kinesis.send(new CreateStreamCommand({ StreamName: name, ShardCount: 1 }));
  const waiter = { client: kinesis, maxWaitTime: PATIENCE_S, minDelay: 1, maxDelay: 2 };
  await waitUntilStreamExists(waiter, { StreamName: name });
}

export async function remove(kinesis, name) {
  const input = { StreamName: name, EnforceConsumerDeletion: true };
  await kinesis.send(new DeleteStreamCommand(input));
}

export async function waitFor(what, holds) {
  const deadline = Date.now() + PATIENCE_S * 1000;
  for (;;) {
    const found = await holds();
    if (found) return found;
    assert(Date.now() < deadline, `${what} does not come`);
    await sleep(STATUS_PAUSE_MS);
  }
}

async function active(kinesis, name) {
  await waitFor(`${name} ACTIVE`, async () => {
    const found = await kinesis.send(new DescribeStreamSummaryCommand({ StreamName: name }));
    return found.StreamDescriptionSummary.StreamStatus === 'ACTIVE';
  });
}

async function openShards(kinesis, name) {
  const input = { StreamName: name, ShardFilter: { Type: 'AT_LATEST' } };
  const { Shards } = await kinesis.send(new ListShardsCommand(input));
  const start = (shard) => BigInt(shard.HashKeyRange.StartingHashKey);
  return Shards.sort((one, other) => (start(one) < start(other) ? -1 : 1));
}

// What is done to the stream before this round, while others may put.
export async function reshardAt(kinesis, name, number) {
  if (number !== SPLIT_AT && number !== MERGE_AT) return;
  await active(kinesis, name);
  const shards = await openShards(kinesis, name);
  if (number === SPLIT_AT) {
    assert.equal(shards.length, 1);
    const input = {
      StreamName: name,
      ShardToSplit: shards[0].ShardId,
      NewStartingHashKey: String(2n ** 127n),
    };
    await kinesis.send(new SplitShardCommand(input));
  } else {
    assert.equal(shards.length, 2);
    const input = {
      StreamName: name,
      ShardToMerge: shards[0].ShardId,
      AdjacentShardToMerge: shards[1].ShardId,
    };
    await kinesis.send(new MergeShardsCommand(input));
  }
}

export function parse(text) {
  const [key, number] = text.split(' ');
  return { key, number: Number(number) };
}

// Of what was read, in the order of reading: every record once, each key's in the order in which
// they were put.
export function checkOnceAndInOrder(read) {
  const found = Object.fromEntries(KEYS.map((key) => [key, []]));
  for (const { key, number } of read) found[key].push(number);
  const expected = Object.fromEntries(KEYS.map((key) => [key, [...Array(ROUNDS).keys()]]));
  assert.deepEqual(found, expected);
}

// Which shards are read: children when all their parents have come to their end.
export class Lineage {
  constructor(root) {
    this.started = new Set([root]);
    this.ended = new Set();
  }

  // The children that can be read now that this shard was read to its end.
  end(shard, children) {
    this.ended.add(shard);
    const ready = children
      .filter(({ ShardId }) => !this.started.has(ShardId))
      .filter(({ ParentShards }) => ParentShards.every((parent) => this.ended.has(parent)))
      .map(({ ShardId }) => ShardId);
    for (const child of ready) this.started.add(child);
    return ready;
  }
}
