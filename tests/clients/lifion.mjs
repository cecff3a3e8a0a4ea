// What the two consumers of lifion-kinesis have in common, see lifion_client.mjs and
// lifion_fan_out_client.mjs. What it keeps of its progress is kept in DynamoDB: dynalite, in this
// process.

import assert from 'node:assert/strict';
import { once } from 'node:events';
import { setTimeout as sleep } from 'node:timers/promises';

import { PutRecordsCommand } from '@aws-sdk/client-kinesis';
import dynalite from 'dynalite';
import Kinesis from 'lifion-kinesis';

import {
  KEYS,
  PATIENCE_S,
  ROUNDS,
  ROUND_PAUSE_MS,
  checkOnceAndInOrder,
  create,
  newClient,
  parse,
  remove,
  reshardAt,
} from './common.mjs';

const {
  AWS_ACCESS_KEY_ID: accessKeyId,
  AWS_DEFAULT_REGION: region,
  AWS_ENDPOINT_URL_KINESIS: endpoint,
  AWS_SECRET_ACCESS_KEY: secretAccessKey,
} = process.env;

// A consumer with these options reads a stream that is split and merged while records are put.
// Before a round for which `waits` holds, everything that was put is read. Ends the process.
export async function readThrough(streamName, options, waits) {
  const kinesis = newClient();
  const tables = dynalite({ createTableMs: 0 });
  tables.listen(0, '127.0.0.1');
  await once(tables, 'listening');
  await create(kinesis, streamName);
  const consumer = new Kinesis({
    accessKeyId,
    createStreamIfNeeded: false,
    dynamoDb: {
      accessKeyId,
      endpoint: `http://localhost:${tables.address().port}`,
      region,
      secretAccessKey,
    },
    endpoint,
    initialPositionInStream: 'TRIM_HORIZON',
    leaseAcquisitionInterval: 1000,
    leaseAcquisitionRecoveryInterval: 500,
    logger: { error: console.error, warn: console.warn },
    region,
    secretAccessKey,
    streamName,
    ...options,
  });
  const read = [];
  consumer.on('data', ({ records }) => {
    for (const { data } of records) read.push(parse(data.toString()));
  });
  await consumer.startConsumer();

  async function areRead(total) {
    const deadline = Date.now() + PATIENCE_S * 1000;
    while (read.length < total) {
      assert(Date.now() < deadline, `${read.length} of ${total} are read`);
      await sleep(ROUND_PAUSE_MS);
    }
  }

  for (let number = 0; number < ROUNDS; number += 1) {
    if (waits(number)) await areRead(number * KEYS.length);
    await reshardAt(kinesis, streamName, number);
    const Records = KEYS.map((key) => ({
      PartitionKey: key,
      Data: Buffer.from(`${key} ${number}`),
    }));
    const put = await kinesis.send(new PutRecordsCommand({ StreamName: streamName, Records }));
    assert.equal(put.FailedRecordCount, 0, JSON.stringify(put));
    await sleep(ROUND_PAUSE_MS);
  }
  await areRead(KEYS.length * ROUNDS);
  checkOnceAndInOrder(read);
  await remove(kinesis, streamName);
  // Its `stopConsumer` throws when a shard has come to its end before.
  process.exit(0);
}
