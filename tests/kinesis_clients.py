"""Drives a Kinesis endpoint with boto3 and the AWS CLI, which hold answers against their own model.

Arguments: the part to run, the endpoint's URL, a credentials file of `thalweg dev`.
"""

import base64
import json
import os
import subprocess
import sys
import time
import tomllib

import boto3
from botocore.config import Config
from botocore.exceptions import ClientError

PATIENCE_S = 60
REGION = "us-east-1"


def wait_for(what, holds):
    deadline = time.monotonic() + PATIENCE_S
    while True:
        found = holds()
        if found:
            return found
        assert time.monotonic() < deadline, f"{what} does not come"
        time.sleep(0.2)


def create(kinesis, name, shards):
    kinesis.create_stream(StreamName=name, ShardCount=shards)
    kinesis.get_waiter("stream_exists").wait(
        StreamName=name, WaiterConfig={"Delay": 1, "MaxAttempts": PATIENCE_S}
    )


def active(kinesis, name):
    def holds():
        found = kinesis.describe_stream_summary(StreamName=name)["StreamDescriptionSummary"]
        return found if found["StreamStatus"] == "ACTIVE" else None

    return wait_for(f"{name} ACTIVE", holds)


def read_all(kinesis, name, shard, **start):
    """Records of a shard up to its end, or to now."""
    start = start or {"ShardIteratorType": "TRIM_HORIZON"}
    iterator = kinesis.get_shard_iterator(StreamName=name, ShardId=shard, **start)["ShardIterator"]
    records = []
    while iterator:
        got = kinesis.get_records(ShardIterator=iterator)
        records += got["Records"]
        iterator = got.get("NextShardIterator")
        if iterator and not got["Records"] and got["MillisBehindLatest"] == 0:
            break
    return records


def refused(code, operation, **arguments):
    try:
        operation(**arguments)
    except ClientError as error:
        found = error.response["Error"]["Code"]
        assert found == code, f"{found} instead of {code}: {error}"
        return
    raise AssertionError(f"{code} expected")


def basics(kinesis):
    create(kinesis, "rivers", 2)
    described = kinesis.describe_stream(StreamName="rivers")["StreamDescription"]
    assert described["StreamStatus"] == "ACTIVE" and len(described["Shards"]) == 2
    assert described["StreamARN"] == f"arn:aws:kinesis:{REGION}:123456789012:stream/rivers"
    ranges = [shard["HashKeyRange"] for shard in described["Shards"]]
    assert ranges[0]["StartingHashKey"] == "0"
    assert int(ranges[0]["EndingHashKey"]) + 1 == int(ranges[1]["StartingHashKey"])
    assert int(ranges[1]["EndingHashKey"]) == 2**128 - 1

    one = kinesis.put_record(StreamName="rivers", PartitionKey="rhine", Data=b"\x00one\xff")
    many = kinesis.put_records(
        StreamARN=described["StreamARN"],
        Records=[{"PartitionKey": f"k{n}", "Data": b"%d" % n} for n in range(100)],
    )
    assert many["FailedRecordCount"] == 0
    expected = {(one["ShardId"], one["SequenceNumber"]): b"\x00one\xff"}
    for n, entry in enumerate(many["Records"]):
        expected[entry["ShardId"], entry["SequenceNumber"]] = b"%d" % n
    found = {}
    for shard in described["Shards"]:
        for record in read_all(kinesis, "rivers", shard["ShardId"]):
            found[shard["ShardId"], record["SequenceNumber"]] = record["Data"]
            assert abs(record["ApproximateArrivalTimestamp"].timestamp() - time.time()) < 120
    assert found == expected, (len(found), len(expected))
    again = read_all(
        kinesis,
        "rivers",
        one["ShardId"],
        ShardIteratorType="AT_SEQUENCE_NUMBER",
        StartingSequenceNumber=one["SequenceNumber"],
    )
    assert again[0]["Data"] == b"\x00one\xff" and again[0]["PartitionKey"] == "rhine"

    for n in range(3):
        kinesis.create_stream(StreamName=f"brook-{n}", ShardCount=1)
        active(kinesis, f"brook-{n}")
    listed = kinesis.list_streams(Limit=2)
    assert listed["HasMoreStreams"] and len(listed["StreamNames"]) == 2
    pages = kinesis.get_paginator("list_streams").paginate(PaginationConfig={"PageSize": 2})
    names = [name for page in pages for name in page["StreamNames"]]
    assert names == ["brook-0", "brook-1", "brook-2", "rivers"], names

    refused("ResourceInUseException", kinesis.create_stream, StreamName="rivers", ShardCount=1)
    refused("ResourceNotFoundException", kinesis.describe_stream, StreamName="no-such")
    refused("ValidationException", kinesis.list_streams, Limit=100_000)
    kinesis.delete_stream(StreamName="rivers")
    kinesis.get_waiter("stream_not_exists").wait(
        StreamName="rivers", WaiterConfig={"Delay": 1, "MaxAttempts": PATIENCE_S}
    )


def consumers(kinesis):
    create(kinesis, "rivers", 1)
    arn = kinesis.describe_stream_summary(StreamName="rivers")["StreamDescriptionSummary"]["StreamARN"]
    consumer = kinesis.register_stream_consumer(StreamARN=arn, ConsumerName="gauge")["Consumer"]

    def is_active():
        found = kinesis.describe_stream_consumer(ConsumerARN=consumer["ConsumerARN"])
        return found["ConsumerDescription"]["ConsumerStatus"] == "ACTIVE"

    wait_for("the consumer", is_active)
    listed = kinesis.list_stream_consumers(StreamARN=arn)["Consumers"]
    assert [one["ConsumerName"] for one in listed] == ["gauge"]

    shard = kinesis.put_record(StreamName="rivers", PartitionKey="a", Data=b"before")["ShardId"]
    subscribed = kinesis.subscribe_to_shard(
        ConsumerARN=consumer["ConsumerARN"],
        ShardId=shard,
        StartingPosition={"Type": "TRIM_HORIZON"},
    )
    stream, found = subscribed["EventStream"], []
    deadline = time.monotonic() + PATIENCE_S
    for event in stream:
        for record in event["SubscribeToShardEvent"]["Records"]:
            found.append(record["Data"])
            if record["Data"] == b"before":
                kinesis.put_record(StreamName="rivers", PartitionKey="a", Data=b"after")
        if found == [b"before", b"after"]:
            break
        assert time.monotonic() < deadline, found
    assert found == [b"before", b"after"], found
    stream.close()
    kinesis.deregister_stream_consumer(ConsumerARN=consumer["ConsumerARN"])
    wait_for("its end", lambda: not kinesis.list_stream_consumers(StreamARN=arn)["Consumers"])


def reshard(kinesis):
    create(kinesis, "rivers", 1)
    kinesis.put_record(StreamName="rivers", PartitionKey="a", Data=b"parent")
    parent = kinesis.list_shards(StreamName="rivers")["Shards"][0]["ShardId"]
    kinesis.split_shard(StreamName="rivers", ShardToSplit=parent, NewStartingHashKey=str(2**127))
    assert active(kinesis, "rivers")["OpenShardCount"] == 2
    shards = kinesis.list_shards(StreamName="rivers")["Shards"]
    children = [shard["ShardId"] for shard in shards if shard.get("ParentShardId") == parent]
    assert len(children) == 2 and "EndingSequenceNumber" in shards[0]["SequenceNumberRange"]
    assert [record["Data"] for record in read_all(kinesis, "rivers", parent)] == [b"parent"]
    kinesis.put_record(StreamName="rivers", PartitionKey="a", Data=b"child")
    kinesis.merge_shards(
        StreamName="rivers", ShardToMerge=children[0], AdjacentShardToMerge=children[1]
    )
    assert active(kinesis, "rivers")["OpenShardCount"] == 1
    merged = [
        shard
        for shard in kinesis.list_shards(StreamName="rivers")["Shards"]
        if shard.get("AdjacentParentShardId")
    ]
    assert len(merged) == 1
    found = [record["Data"] for child in children for record in read_all(kinesis, "rivers", child)]
    assert found == [b"child"], found

    kinesis.add_tags_to_stream(StreamName="rivers", Tags={"team": "red", "stage": "test"})
    kinesis.remove_tags_from_stream(StreamName="rivers", TagKeys=["stage"])
    tags = kinesis.list_tags_for_stream(StreamName="rivers")["Tags"]
    assert tags == [{"Key": "team", "Value": "red"}], tags
    kinesis.delete_stream(StreamName="rivers")


def cli(environment):
    def aws(*arguments):
        command = [os.path.join(os.path.dirname(sys.executable), "aws"), "kinesis", *arguments]
        done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE)
        return json.loads(done.stdout) if done.stdout.strip() else None

    aws("create-stream", "--stream-name", "rivers", "--shard-count", "1")
    aws("wait", "stream-exists", "--stream-name", "rivers")
    put = aws("put-record", "--stream-name", "rivers", "--partition-key", "a", "--data", "hello")
    start = ["--stream-name", "rivers", "--shard-iterator-type", "TRIM_HORIZON"]
    iterator = aws("get-shard-iterator", *start, "--shard-id", put["ShardId"])["ShardIterator"]
    got = aws("get-records", "--shard-iterator", iterator)["Records"]
    assert [base64.b64decode(record["Data"]) for record in got] == [b"hello"], got
    assert got[0]["SequenceNumber"] == put["SequenceNumber"]
    assert aws("list-streams")["StreamNames"] == ["rivers"]
    aws("delete-stream", "--stream-name", "rivers")
    aws("wait", "stream-not-exists", "--stream-name", "rivers")


def main():
    part, endpoint, credentials = sys.argv[1:]
    with open(credentials, "rb") as file:
        key = tomllib.load(file)["key"][0]
    if part == "cli":
        cli(
            {
                "PATH": os.environ["PATH"],
                "AWS_CONFIG_FILE": os.devnull,
                "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
                "AWS_ENDPOINT_URL_KINESIS": endpoint,
                "AWS_DEFAULT_REGION": REGION,
                "AWS_ACCESS_KEY_ID": key["access_key_id"],
                "AWS_SECRET_ACCESS_KEY": key["secret_access_key"],
            }
        )
        return
    kinesis = boto3.client(
        "kinesis",
        endpoint_url=endpoint,
        region_name=REGION,
        aws_access_key_id=key["access_key_id"],
        aws_secret_access_key=key["secret_access_key"],
        config=Config(proxies={}, read_timeout=PATIENCE_S),
    )
    {"basics": basics, "consumers": consumers, "reshard": reshard}[part](kinesis)


main()
