// lifion-kinesis: a consumer that polls, through a split and a merge.

import { MERGE_AT } from './common.mjs';
import { readThrough } from './lifion.mjs';

// It begins with a merged shard when one parent has come to its end: the other one must have
// nothing left then, or its records would be late.
await readThrough(
  'lifion-rivers',
  { noRecordsPollDelay: 300, pollDelay: 300 },
  (number) => number === MERGE_AT,
);
