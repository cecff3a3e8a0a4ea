// lifion-kinesis: a consumer that polls, through a split and a merge. What it keeps of its progress is
// kept in DynamoDB: dynalite, in this process.
//
// Its consumer with enhanced fan-out is left out: that of version 1.3.3 connects to the service's own
// host, whatever the endpoint is, and the parser of those before loses its place in the event stream
// when two messages arrive together.

import assert from 'node:assert/strict';
import { once } from 'node:events';
import { setTimeout as sleep } from 'node:timers/promises';

import { PutRecordsCommand } from '@aws-sdk/client-kinesis';
import dynalite from 'dynalite';
import Kinesis from 'lifion-kinesis';

import {
  KEYS,
  MERGE_AT,
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

const STREAM = 'lifion-rivers';

const {
  AWS_ACCESS_KEY_ID: accessKeyId,
  AWS_DEFAULT_REGION: region,
  AWS_ENDPOINT_URL_KINESIS: endpoint,
  AWS_SECRET_ACCESS_KEY: secretAccessKey,
} = process.env;

const kinesis = newClient();
const tables = dynalite({ createTableMs: 0 });
tables.listen(0, '127.0.0.1');
await once(tables, 'listening');

await create(kinesis, STREAM);
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
  noRecordsPollDelay: 300,
  pollDelay: 300,
  region,
  secretAccessKey,
  streamName: STREAM,
  useAutoShardAssignment: false,
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
  // It begins with a merged shard when one parent has come to its end: the other one must have
  // nothing left then, or its records would be late.
  if (number === MERGE_AT) await areRead(number * KEYS.length);
  await reshardAt(kinesis, STREAM, number);
  const Records = KEYS.map((key) => ({
    PartitionKey: key,
    Data: Buffer.from(`${key} ${number}`),
  }));
  const put = await kinesis.send(new PutRecordsCommand({ StreamName: STREAM, Records }));
  assert.equal(put.FailedRecordCount, 0, JSON.stringify(put));
  await sleep(ROUND_PAUSE_MS);
}
await areRead(KEYS.length * ROUNDS);
consumer.stopConsumer();
checkOnceAndInOrder(read);
await remove(kinesis, STREAM);
// What is left of its timers would hold up the end.
process.exit(0);
