"""boto3, made to speak CBOR as the Java SDKs do: a stream read in both ways through a split and a
merge.

What is put in and taken out stays boto3's; its requests are encoded anew by botocore's own CBOR
before they are signed, and answers are made JSON before they are parsed.
"""

import base64
import json
import os
import time

from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.eventstream import EventStreamBuffer
from botocore.httpsession import URLLib3Session
from botocore.serialize import CBORSerializer
from botocore.session import get_session

from boto3_client import both_ways
from common import PATIENCE_S, client
from deviations import Cbor, Milliseconds


def encoded(value, shape):
    out = bytearray()
    CBORSerializer()._serialize_data_item(out, value, shape)
    return bytes(out)


def as_json(value):
    """What JSON has for a value of CBOR."""
    if isinstance(value, dict):
        return {name: as_json(member) for name, member in value.items()}
    if isinstance(value, list):
        return [as_json(element) for element in value]
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, Milliseconds):
        return value / 1000
    return value


def speak_cbor(kinesis):
    def keep(params, context, **_):
        context["asked"] = params

    def encode(params, model, context, **_):
        params["body"] = encoded(context["asked"], model.input_shape)
        params["headers"]["Content-Type"] = Cbor.content_type

    def decode(response_dict, **_):
        if response_dict["body"]:
            value = as_json(Cbor.decode(response_dict["body"]))
            response_dict["body"] = json.dumps(value).encode()

    kinesis.meta.events.register("before-parameter-build.kinesis", keep)
    kinesis.meta.events.register("before-call.kinesis", encode)
    kinesis.meta.events.register("before-parse.kinesis", decode)
    return kinesis


def subscribe(kinesis, consumer_arn, shard, add):
    """As boto3's, which reads event streams in JSON only."""
    asked = {
        "ConsumerARN": consumer_arn,
        "ShardId": shard,
        "StartingPosition": {"Type": "TRIM_HORIZON"},
    }
    shape = kinesis.meta.service_model.operation_model("SubscribeToShard").input_shape
    headers = {
        "Content-Type": Cbor.content_type,
        "X-Amz-Target": "Kinesis_20131202.SubscribeToShard",
    }
    request = AWSRequest(
        "POST",
        os.environ["AWS_ENDPOINT_URL_KINESIS"] + "/",
        headers=headers,
        data=encoded(asked, shape),
        stream_output=True,
    )
    session = get_session()
    region = os.environ["AWS_DEFAULT_REGION"]
    SigV4Auth(session.get_credentials(), "kinesis", region).add_auth(request)
    response = URLLib3Session(timeout=PATIENCE_S).send(request.prepare())
    assert response.status_code == 200, response.content
    buffer = EventStreamBuffer()
    deadline = time.monotonic() + PATIENCE_S
    for data in response.raw.stream():
        buffer.add_data(data)
        for message in buffer:
            if message.headers[":event-type"] == "initial-response":
                continue
            event = Cbor.decode(message.payload)
            if add(event["Records"]):
                response.raw.close()
                return []
            if event.get("ContinuationSequenceNumber") is None:
                return event["ChildShards"]
            assert time.monotonic() < deadline, f"what was put into {shard} is not read"
    raise AssertionError(f"the subscription to {shard} ended before the shard")


if __name__ == "__main__":
    both_ways(speak_cbor(client()), "cbor-both-ways", subscribe)
