// lifion-kinesis: a consumer with enhanced fan-out, through a split and a merge.
//
// It connects to the service's own host, on the endpoint's port; the name leads here. Its parser
// takes one message of what arrives together and loses its place when there are more: the consumer
// then subscribes anew, some seconds later, from its checkpoint. So each round is read before the
// next one is put. Then every event that it was given is below its checkpoint when that happens, or
// records would come twice; and the last event of a shard comes alone, or it would be lost.

import './resolve.mjs';

import { readThrough } from './lifion.mjs';

await readThrough(
  'lifion-deltas',
  { maxEnhancedConsumers: 1, useEnhancedFanOut: true },
  () => true,
);
