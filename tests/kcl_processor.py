"""A record processor for the KCL's MultiLangDaemon that writes down what it is given.

The file that KCL_EVENTS names gets a line of JSON for each event: a shard's begin, a record, a
shard's end, its loss. The processors of all shards append to the same file, each batch in one
write, so that the order of its lines is the order of delivery.
"""

import json
import os
import time

from amazon_kclpy import kcl
from amazon_kclpy.v3 import processor

CHECKPOINT_INTERVAL_S = 1.0


class Recorder(processor.RecordProcessorBase):
    def __init__(self, path):
        self.file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        self.shard = None
        # The last record that no checkpoint has reached.
        self.unchecked = None
        self.checkpointed_s = time.monotonic()

    def write(self, events):
        lines = "".join(json.dumps({"shard": self.shard} | event) + "\n" for event in events)
        written = os.write(self.file, lines.encode())
        # What is thrown here reaches the daemon's log as an error, and that fails the test.
        assert written == len(lines.encode()), "events are cut off"

    def initialize(self, initialize_input):
        self.shard = initialize_input.shard_id
        self.write([{"event": "begin", "sequence": initialize_input.sequence_number}])

    def process_records(self, process_records_input):
        records = process_records_input.records
        if records:
            self.write(
                {
                    "event": "record",
                    "sequence": record.sequence_number,
                    "key": record.partition_key,
                    "data": record.data,
                }
                for record in records
            )
            self.unchecked = records[-1]
        now_s = time.monotonic()
        # Without records it is called as well, and catches up.
        if self.unchecked and now_s - self.checkpointed_s >= CHECKPOINT_INTERVAL_S:
            last, self.unchecked, self.checkpointed_s = self.unchecked, None, now_s
            checkpointer = process_records_input.checkpointer
            checkpointer.checkpoint(last.sequence_number, last.sub_sequence_number)

    def shard_ended(self, shard_ended_input):
        self.write([{"event": "end"}])
        shard_ended_input.checkpointer.checkpoint()

    def lease_lost(self, lease_lost_input):
        self.write([{"event": "lost"}])


kcl.KCLProcess(Recorder(os.environ["KCL_EVENTS"])).run()
