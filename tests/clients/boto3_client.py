"""boto3: streams, settings, tags and errors; a stream read in both ways through a split and a
merge.

Its answers come in JSON by HTTP/1.1, those of SubscribeToShard as well.
"""

import time

from botocore.exceptions import ClientError

from common import (
    PATIENCE_S,
    Lineage,
    Reading,
    active,
    check_once_and_in_order,
    client,
    create,
    delete,
    poll,
    run_together,
    wait_for,
    write,
)


def refused(code, operation, **arguments):
    try:
        operation(**arguments)
    except ClientError as error:
        found = error.response["Error"]["Code"]
        assert found == code, f"{found} instead of {code}: {error}"
        return
    raise AssertionError(f"{code} expected")


def read_now(kinesis, name, shard, **start):
    """Records of a shard up to now."""
    iterator = kinesis.get_shard_iterator(StreamName=name, ShardId=shard, **start)["ShardIterator"]
    records = []
    while iterator:
        got = kinesis.get_records(ShardIterator=iterator)
        records += got["Records"]
        iterator = got.get("NextShardIterator")
        if not got["Records"] and got["MillisBehindLatest"] == 0:
            break
    return records


def basics():
    kinesis = client()
    rivers = "boto3-rivers"
    create(kinesis, rivers, shards=2)
    described = kinesis.describe_stream(StreamName=rivers)["StreamDescription"]
    assert described["StreamStatus"] == "ACTIVE" and len(described["Shards"]) == 2
    assert described["StreamARN"].endswith(f":123456789012:stream/{rivers}")
    ranges = [shard["HashKeyRange"] for shard in described["Shards"]]
    assert ranges[0]["StartingHashKey"] == "0"
    assert int(ranges[0]["EndingHashKey"]) + 1 == int(ranges[1]["StartingHashKey"])
    assert int(ranges[1]["EndingHashKey"]) == 2**128 - 1

    one = kinesis.put_record(StreamName=rivers, PartitionKey="rhine", Data=b"\x00one\xff")
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
        shard = shard["ShardId"]
        for record in read_now(kinesis, rivers, shard, ShardIteratorType="TRIM_HORIZON"):
            found[shard, record["SequenceNumber"]] = record["Data"]
            assert abs(record["ApproximateArrivalTimestamp"].timestamp() - time.time()) < 120
    assert found == expected, (len(found), len(expected))
    again = read_now(
        kinesis,
        rivers,
        one["ShardId"],
        ShardIteratorType="AT_SEQUENCE_NUMBER",
        StartingSequenceNumber=one["SequenceNumber"],
    )
    assert again[0]["Data"] == b"\x00one\xff" and again[0]["PartitionKey"] == "rhine"

    kinesis.add_tags_to_stream(StreamName=rivers, Tags={"team": "red", "stage": "test"})
    kinesis.remove_tags_from_stream(StreamName=rivers, TagKeys=["stage"])
    tags = kinesis.list_tags_for_stream(StreamName=rivers)["Tags"]
    assert tags == [{"Key": "team", "Value": "red"}], tags

    refused("ResourceInUseException", kinesis.create_stream, StreamName=rivers, ShardCount=1)
    refused("ResourceNotFoundException", kinesis.describe_stream, StreamName="no-such")
    refused("ValidationException", kinesis.list_streams, Limit=100_000)
    refused("InvalidArgumentException", kinesis.get_records, ShardIterator="none")
    delete(kinesis, rivers)


def settings():
    kinesis = client()
    names = [f"boto3-brook-{number}" for number in range(3)]
    for name in names:
        create(kinesis, name)
    listed = kinesis.list_streams(Limit=2, ExclusiveStartStreamName="boto3-brook-")
    assert listed["HasMoreStreams"] and listed["StreamNames"] == names[:2], listed
    pages = kinesis.get_paginator("list_streams").paginate(PaginationConfig={"PageSize": 2})
    found = [name for page in pages for name in page["StreamNames"]]
    # Other clients have streams of their own.
    assert found == sorted(found) and set(found) >= set(names), found

    name = names[0]
    kinesis.increase_stream_retention_period(StreamName=name, RetentionPeriodHours=48)
    assert active(kinesis, name)["RetentionPeriodHours"] == 48
    kinesis.decrease_stream_retention_period(StreamName=name, RetentionPeriodHours=24)
    active(kinesis, name)
    kinesis.enable_enhanced_monitoring(StreamName=name, ShardLevelMetrics=["IncomingBytes"])
    active(kinesis, name)
    kinesis.disable_enhanced_monitoring(StreamName=name, ShardLevelMetrics=["IncomingBytes"])
    active(kinesis, name)
    counts = kinesis.update_shard_count(
        StreamName=name, TargetShardCount=2, ScalingType="UNIFORM_SCALING"
    )
    assert counts["TargetShardCount"] == 2
    assert active(kinesis, name)["OpenShardCount"] == 2
    assert len(kinesis.list_shards(StreamName=name)["Shards"]) == 3
    kinesis.describe_limits()
    for name in names:
        delete(kinesis, name)


def consumer(kinesis, name):
    """A registered consumer of the stream."""
    arn = kinesis.describe_stream_summary(StreamName=name)["StreamDescriptionSummary"]["StreamARN"]
    registered = kinesis.register_stream_consumer(StreamARN=arn, ConsumerName="gauge")["Consumer"]

    def is_active():
        found = kinesis.describe_stream_consumer(ConsumerARN=registered["ConsumerARN"])
        return found["ConsumerDescription"]["ConsumerStatus"] == "ACTIVE"

    wait_for("the consumer", is_active)
    listed = kinesis.list_stream_consumers(StreamARN=arn)["Consumers"]
    assert [one["ConsumerName"] for one in listed] == ["gauge"]
    return arn, registered["ConsumerARN"]


def subscribe(kinesis, consumer_arn, shard, add):
    """Reads a shard until `add` says that it is enough, or to its end; answers its children."""
    deadline = time.monotonic() + PATIENCE_S
    subscribed = kinesis.subscribe_to_shard(
        ConsumerARN=consumer_arn, ShardId=shard, StartingPosition={"Type": "TRIM_HORIZON"}
    )
    for event in subscribed["EventStream"]:
        event = event["SubscribeToShardEvent"]
        if add(event["Records"]):
            subscribed["EventStream"].close()
            return []
        if "ContinuationSequenceNumber" not in event:
            return event["ChildShards"]
        assert time.monotonic() < deadline, f"what was put into {shard} is not read"
    raise AssertionError(f"the subscription to {shard} ended before the shard")


def fan_out(kinesis, consumer_arn, root, add, subscribe):
    """Reads a stream with SubscribeToShard, side by side the shards that are open together."""
    lineage = Lineage(root)

    def follow(shard):
        children = lineage.end(shard, subscribe(kinesis, consumer_arn, shard, add))
        run_together(*[lambda child=child: follow(child) for child in children])

    follow(root)


def both_ways(kinesis, name, subscribe):
    """Puts, reads with GetRecords and reads with SubscribeToShard, all at the same time."""
    (root,) = create(kinesis, name)
    arn, consumer_arn = consumer(kinesis, name)
    polled, pushed = Reading(), Reading()
    run_together(
        lambda: write(kinesis, name),
        lambda: poll(kinesis, name, root, polled.add),
        lambda: fan_out(kinesis, consumer_arn, root, pushed.add, subscribe),
    )
    check_once_and_in_order(polled.read)
    check_once_and_in_order(pushed.read)
    shards = kinesis.list_shards(StreamName=name)["Shards"]
    assert len(shards) == 4 and sum("AdjacentParentShardId" in shard for shard in shards) == 1
    kinesis.deregister_stream_consumer(ConsumerARN=consumer_arn)
    wait_for("its end", lambda: not kinesis.list_stream_consumers(StreamARN=arn)["Consumers"])
    delete(kinesis, name)


if __name__ == "__main__":
    run_together(basics, settings, lambda: both_ways(client(), "boto3-both-ways", subscribe))
