"""Has the Java KCL read a stream that is written to, split and merged all the while.

Two applications read the same stream side by side, one polls, one has enhanced fan-out. Each is a
MultiLangDaemon, as the KCL's users in other languages run it, with kcl_processor.py as its record
processor. Its leases are in a DynamoDB of this process (moto); Kinesis is Thalweg.

Arguments: URLs of the endpoint, one each for the producer, the application that polls and the one
with fan-out; a credentials file with two keys, the second of which is the KCL's; and an empty
directory.
"""

import base64
import collections
import json
import logging
import os
import subprocess
import sys
import threading
import time
import tomllib

import amazon_kclpy
import boto3
from botocore.config import Config
from moto.server import ThreadedMotoServer

# How long anything may take before the test gives up. A KCL waits up to 30 s before it makes the
# leases of an application that has none.
PATIENCE_S = 120
REGION = "us-east-1"
STREAM = "rivers"
KEYS = [f"key-{number}" for number in range(32)]
PAYLOAD_BYTES = 100
# Puts of a record for each key: some 300 records a second, below the limit of one shard.
ROUND_S = 0.1
# How long it is waited for what should not come.
LATE_S = 3
# Rounds between one change of the stream and the next, so that each shard has records.
ROUNDS = 20
# Beside what docs/kcl.md tells users to set.
PROPERTIES = {
    "executableName": "python3 kcl_processor.py",
    # The leases of ended shards stay, to be looked at.
    "cleanupLeasesUponShardCompletion": "false",
    # A busy machine is no failure, and without failures each record comes once.
    "failoverTimeMillis": "60000",
    # What the KCL waits for is short.
    "leaseAssignmentIntervalMillis": "1000",
    "shardSyncIntervalMillis": "5000",
    "parentShardPollIntervalMillis": "500",
    # So that a record processor can checkpoint what came last.
    "callProcessRecordsEvenForEmptyRecordList": "true",
}
POLLING = {
    "applicationName": "polling",
    "retrievalMode": "POLLING",
    "idleTimeBetweenReadsInMillis": "250",
    # What was put before the first read is more than a shard gives at a time: 2,000 records a
    # second. The KCL goes on after that is refused, and logs an error.
    "maxRecords": "400",
}
FAN_OUT = {"applicationName": "fan-out", "retrievalMode": "FANOUT"}
LOGBACK = """<configuration>
  <appender name="stderr" class="ch.qos.logback.core.ConsoleAppender">
    <target>System.err</target>
    <encoder><pattern>%d{HH:mm:ss.SSS} %-5level %logger{0}: %msg%n</pattern></encoder>
  </appender>
  <root level="INFO"><appender-ref ref="stderr"/></root>
</configuration>
"""


def documented_properties():
    """The properties that users are told to set."""
    here = os.path.dirname(os.path.abspath(__file__))
    with open(os.path.join(here, "../docs/kcl.md"), encoding="utf-8") as file:
        block = file.read().split("```properties\n")[1].split("```")[0]
    return dict(line.split(" = ") for line in block.splitlines())


def wait_for(what, holds, parties):
    """Waits until something holds, as long as all who take part are well. `what` may be asked for
    when it does not come."""
    deadline = time.monotonic() + PATIENCE_S
    while not holds():
        for party in parties:
            party.check()
        if time.monotonic() >= deadline:
            raise AssertionError(f"{what if isinstance(what, str) else what()} does not come")
        time.sleep(0.1)


def payload(key, number):
    """Bytes that are no text, from which key and number can be read."""
    return f"{key} {number} ".encode().ljust(PAYLOAD_BYTES, b"\xff")


def number_of(data):
    return int(data.split(b" ")[1])


class Producer:
    """Puts record after record of each key, in order, and keeps what was acknowledged."""

    def __init__(self, kinesis):
        self.kinesis = kinesis
        # (key, data) by (shard, sequence number).
        self.acked = {}
        self.rounds = 0
        self.error = None
        self.stopping = threading.Event()
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()

    def run(self):
        try:
            while not self.stopping.wait(ROUND_S):
                self.put([(key, payload(key, self.rounds)) for key in KEYS])
                self.rounds += 1
        except Exception as error:
            self.error = error

    def put(self, records):
        """Puts one record of each key; those that limits refused go again before the next."""
        while records:
            entries = [{"PartitionKey": key, "Data": data} for key, data in records]
            answer = self.kinesis.put_records(StreamName=STREAM, Records=entries)
            refused = []
            for record, entry in zip(records, answer["Records"], strict=True):
                if "ErrorCode" in entry:
                    # Any other failure leaves open whether the record is in the stream.
                    code = entry["ErrorCode"]
                    assert code == "ProvisionedThroughputExceededException", entry
                    refused.append(record)
                    continue
                place = (entry["ShardId"], entry["SequenceNumber"])
                assert place not in self.acked, f"two records are at {place}"
                self.acked[place] = record
            records = refused
            if records:
                time.sleep(ROUND_S)

    def check(self):
        if self.error:
            raise self.error

    def stop(self):
        self.stopping.set()
        self.thread.join(PATIENCE_S)
        assert not self.thread.is_alive(), "the producer does not stop"
        self.check()


class Application:
    """A MultiLangDaemon with a name of its own, hence with leases of its own."""

    def __init__(self, properties, directory, environment):
        self.name = name = properties["applicationName"]
        self.directory = os.path.join(directory, name)
        os.mkdir(self.directory)
        here = os.path.dirname(os.path.abspath(__file__))
        # The command of the record processor is cut at blanks: it has no paths.
        os.symlink(os.path.join(here, "kcl_processor.py"), self.path("kcl_processor.py"))
        properties = documented_properties() | PROPERTIES | properties
        with open(self.path("kcl.properties"), "w", encoding="utf-8") as file:
            file.writelines(f"{key} = {value}\n" for key, value in properties.items())
        with open(self.path("logback.xml"), "w", encoding="utf-8") as file:
            file.write(LOGBACK)
        self.events = []
        self.events_read_bytes = 0
        jars = os.path.join(os.path.dirname(amazon_kclpy.__file__), "jars", "*")
        command = [
            "java",
            # Little to compile and little to keep: it runs for a minute.
            *["-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Xmx256m"],
            *["-cp", jars],
            "software.amazon.kinesis.multilang.MultiLangDaemon",
            *["--properties-file", "kcl.properties", "--log-configuration", "logback.xml"],
        ]
        with open(self.path("log"), "wb") as log:
            self.process = subprocess.Popen(
                command,
                cwd=self.directory,
                env=environment | {"KCL_EVENTS": self.path("events")},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def path(self, name):
        return os.path.join(self.directory, name)

    def log(self):
        with open(self.path("log"), encoding="utf-8", errors="replace") as file:
            return file.read().splitlines()

    def check(self):
        assert self.process.poll() is None, f"{self.name} ended: {self.process.returncode}"

    def read(self):
        """All events so far."""
        if os.path.exists(self.path("events")):
            with open(self.path("events"), "rb") as file:
                file.seek(self.events_read_bytes)
                whole = file.read().rpartition(b"\n")
            self.events += [json.loads(line) for line in whole[0].splitlines()]
            self.events_read_bytes += len(whole[0]) + len(whole[1])
        return self.events

    def shards(self, event):
        return {found["shard"] for found in self.read() if found["event"] == event}

    def records(self):
        return [event for event in self.read() if event["event"] == "record"]

    def check_deliveries(self, acked, keys_rounds):
        """Each record that was acknowledged came once, and those of a key in order."""
        found, numbers = {}, collections.defaultdict(list)
        for record in self.records():
            place = (record["shard"], record["sequence"])
            assert place not in found, f"{self.name}: {place} came twice"
            data = base64.b64decode(record["data"])
            found[place] = (record["key"], data)
            numbers[record["key"]].append(number_of(data))
        missing = [place for place in acked if place not in found]
        assert not missing, f"{self.name}: {len(missing)} did not come: {missing[:10]}"
        other = [place for place in found if acked.get(place) != found[place]]
        assert not other, f"{self.name}: {len(other)} are not what was put: {other[:10]}"
        expected = list(range(keys_rounds))
        for key in KEYS:
            assert numbers[key] == expected, f"{self.name}: {key}: {numbers[key]}"

    def check_order_of_shards(self, parents):
        """Each shard began once, after its parents' end; those that are parents ended."""
        begun, ended = set(), set()
        for event in self.read():
            shard = event["shard"]
            match event["event"]:
                case "begin":
                    assert shard not in begun, f"{self.name}: {shard} began twice"
                    assert parents[shard] <= ended, f"{self.name}: {shard} began too early"
                    begun.add(shard)
                case "record":
                    assert shard in begun - ended, f"{self.name}: {event}"
                case "end":
                    ended.add(shard)
                case other:
                    # Its lease was lost: to nobody, for there is one worker.
                    raise AssertionError(f"{self.name}: {shard} {other}")
        assert begun == set(parents), f"{self.name}: {begun}"
        assert ended == set().union(*parents.values()), f"{self.name}: {ended}"

    def wrong_leases(self, dynamodb, parents):
        """Leases that are not where they should be: those of ended shards at the end, the others at
        the last record that came."""
        pages = dynamodb.get_paginator("scan").paginate(TableName=self.name)
        leases = {item["leaseKey"]["S"]: item for page in pages for item in page["Items"]}
        assert set(leases) == set(parents), f"{self.name}: {sorted(leases)}"
        last = {record["shard"]: record["sequence"] for record in self.records()}
        wrong = {}
        for shard, lease in leases.items():
            children = {child for child, of in parents.items() if shard in of}
            found = (lease["checkpoint"]["S"], set(lease.get("childShardIds", {}).get("SS", [])))
            expected = ("SHARD_END" if children else last[shard], children)
            if found != expected:
                wrong[shard] = f"{found} instead of {expected}"
        return wrong

    def check_log(self):
        errors = [line for line in self.log() if " ERROR " in line]
        assert not errors, f"{self.name}: {errors[:10]}"


def shards_of(kinesis):
    return {shard["ShardId"]: shard for shard in kinesis.list_shards(StreamName=STREAM)["Shards"]}


def parents_of(shards):
    names = ("ParentShardId", "AdjacentParentShardId")
    return {
        shard: {described[name] for name in names if name in described}
        for shard, described in shards.items()
    }


def open_shards(shards):
    """Open shards in the order of their hash keys."""
    found = [
        (int(shard["HashKeyRange"]["StartingHashKey"]), name)
        for name, shard in shards.items()
        if "EndingSequenceNumber" not in shard["SequenceNumberRange"]
    ]
    return [name for _, name in sorted(found)]


def is_active(kinesis):
    summary = kinesis.describe_stream_summary(StreamName=STREAM)["StreamDescriptionSummary"]
    return summary["StreamStatus"] == "ACTIVE"


def split_first(kinesis):
    shards = shards_of(kinesis)
    first = open_shards(shards)[0]
    keys = {name: int(key) for name, key in shards[first]["HashKeyRange"].items()}
    middle = (keys["StartingHashKey"] + keys["EndingHashKey"] + 1) // 2
    kinesis.split_shard(StreamName=STREAM, ShardToSplit=first, NewStartingHashKey=str(middle))


def merge_last_two(kinesis):
    lower, upper = open_shards(shards_of(kinesis))[-2:]
    kinesis.merge_shards(StreamName=STREAM, ShardToMerge=lower, AdjacentShardToMerge=upper)


def run(kinesis, dynamodb, start_applications):
    kinesis.create_stream(StreamName=STREAM, ShardCount=2)
    wait_for("the stream", lambda: is_active(kinesis), [])
    producer = Producer(kinesis)
    applications = start_applications()
    parties = [producer, *applications]

    def everybody_reads_every_open_shard():
        """Waits for it, then for some rounds more."""
        shards = set(open_shards(shards_of(kinesis)))
        for one in applications:
            what = f"{one.name}'s first record of each of {shards}"
            wait_for(what, lambda one=one: one.shards("record") >= shards, parties)
        until = producer.rounds + ROUNDS
        wait_for(f"round {until}", lambda: producer.rounds >= until, parties)

    everybody_reads_every_open_shard()
    for change in (split_first, merge_last_two):
        change(kinesis)
        wait_for(f"the end of {change.__name__}", lambda: is_active(kinesis), parties)
        everybody_reads_every_open_shard()
    producer.stop()
    acked = producer.acked
    parents = parents_of(shards_of(kinesis))
    # Two at the start, two by the split, one by the merge of one of those with an old one.
    assert sorted(map(len, parents.values())) == [0, 0, 1, 1, 2], parents
    for one in applications:
        wait_for(
            lambda one=one: f"the last of {one.name}'s records, {len(one.records())} of {len(acked)},",
            lambda one=one: len(one.records()) >= len(acked),
            applications,
        )
        one.check_deliveries(acked, producer.rounds)
        one.check_order_of_shards(parents)
        wait_for(
            lambda one=one: f"{one.name}'s last checkpoint: {one.wrong_leases(dynamodb, parents)}",
            lambda one=one: not one.wrong_leases(dynamodb, parents),
            applications,
        )
        one.check_log()
    # Nothing comes a second time later.
    time.sleep(LATE_S)
    for one in applications:
        one.check_deliveries(acked, producer.rounds)


def main():
    endpoint, polling_endpoint, fan_out_endpoint, credentials, directory = sys.argv[1:]
    with open(credentials, "rb") as file:
        key, kcl_key = tomllib.load(file)["key"]
    # One line a request is no news.
    logging.getLogger("werkzeug").setLevel(logging.WARNING)
    leases = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    leases.start()
    leases_url = "http://{}:{}".format(*leases.get_host_and_port())

    def client(service, url):
        return boto3.client(
            service,
            endpoint_url=url,
            region_name=REGION,
            aws_access_key_id=key["access_key_id"],
            aws_secret_access_key=key["secret_access_key"],
            # What is put again by itself would be in the stream twice.
            config=Config(proxies={}, read_timeout=PATIENCE_S, retries={"total_max_attempts": 1}),
        )

    environment = {
        # Its record processors run where this runs.
        "PATH": os.path.dirname(sys.executable) + ":" + os.environ["PATH"],
        "AWS_ACCESS_KEY_ID": kcl_key["access_key_id"],
        "AWS_SECRET_ACCESS_KEY": kcl_key["secret_access_key"],
    }
    applications = []

    def start_applications():
        for properties, url in ((POLLING, polling_endpoint), (FAN_OUT, fan_out_endpoint)):
            urls = {"kinesisEndpoint": url, "dynamoDBEndpoint": leases_url}
            applications.append(Application(properties | urls, directory, environment))
        return applications

    try:
        run(client("kinesis", endpoint), client("dynamodb", leases_url), start_applications)
    except BaseException:
        for one in applications:
            print(f"--- {one.name}'s log", *one.log()[-100:], sep="\n", file=sys.stderr)
        raise
    finally:
        for one in applications:
            one.process.kill()
            one.process.wait()


main()
