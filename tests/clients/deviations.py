"""Holds what a Kinesis endpoint answers against the service model that botocore comes with.

The model says of each answer which members it has, of which types, with which lengths, ranges,
values and patterns, which of them are required, and which errors an operation has. What it cannot
say, the API reference does: see `Answers`. Nothing here is shared with the router, which has a check
of its own.
"""

import base64
import io
import json
import re
import struct
import uuid

from botocore.eventstream import EventStreamBuffer
from botocore.eventstream import ParserError as EventStreamParserError
from botocore.loaders import Loader
from botocore.parsers import BaseCBORParser, ResponseParserError

TARGET_PREFIX = "Kinesis_20131202."
EVENT_STREAM = "application/vnd.amazon.eventstream"
# Deviations of one answer that are reported at most.
DEVIATIONS_MAX = 20
# Characters of a value that are shown.
SHOWN_MAX = 100

# Errors that every operation has (API reference, "Common Error Types"), and those that the front of
# the service answers with before there is an operation (the protocol's and Signature Version 4's).
COMMON_ERRORS = {
    "AccessDeniedException": 400,
    "ExpiredTokenException": 400,
    "IncompleteSignatureException": 400,
    "InternalFailure": 500,
    "InvalidSignatureException": 400,
    "MissingAuthenticationTokenException": 400,
    "RequestTimeoutException": 408,
    "SerializationException": 400,
    "ServiceUnavailable": 503,
    "ThrottlingException": 400,
    "UnknownOperationException": 400,
    "UnrecognizedClientException": 400,
    "ValidationException": 400,
}

# Of a record in the answer to PutRecords (API reference, PutRecords).
RECORD_ERRORS = {"InternalFailure", "ProvisionedThroughputExceededException"}

# Where the service sends what its own model forbids. `FailedRecordCount` is 0 when nothing failed,
# though the model's least is 1; the lists of metrics are empty when there are none.
BELOW_MIN = {
    ("PutRecordsOutput", "FailedRecordCount"),
    ("EnhancedMetrics", "ShardLevelMetrics"),
    ("EnhancedMonitoringOutput", "CurrentShardLevelMetrics"),
    ("EnhancedMonitoringOutput", "DesiredShardLevelMetrics"),
}
# At the end of a closed shard this one is missing, against the model: consumers without an SDK take
# null for a position.
MISSING_AT_THE_END = {("SubscribeToShardEvent", "ContinuationSequenceNumber")}


class Model:
    """The service model, as botocore has it."""

    def __init__(self):
        model = Loader().load_service_model("kinesis", "service-2")
        self.operations = model["operations"]
        self.shapes = model["shapes"]

    def errors(self, operation):
        """The errors of an operation and the status of each."""
        errors = dict(COMMON_ERRORS)
        for error in self.operations[operation].get("errors", []):
            is_fault = self.shapes[error["shape"]].get("fault", False)
            errors[error["shape"]] = 500 if is_fault else 400
        return errors


class Milliseconds(int):
    """A timestamp of CBOR."""


class Json:
    """Bodies in JSON 1.1."""

    content_type = "application/x-amz-json-1.1"

    @staticmethod
    def decode(body):
        def members(pairs):
            found = dict(pairs)
            if len(found) != len(pairs):
                raise ValueError("a member stands twice in an object")
            return found

        def constant(text):
            raise ValueError(f"{text} is not JSON")

        return json.loads(body.decode(), object_pairs_hook=members, parse_constant=constant)

    @staticmethod
    def blob_bytes(value):
        if not isinstance(value, str):
            return None
        try:
            return len(base64.b64decode(value, validate=True))
        except ValueError:
            return None

    @staticmethod
    def is_timestamp(value):
        """Seconds since 1970, with decimals."""
        return type(value) in (int, float)


class Cbor(BaseCBORParser):
    """Bodies in CBOR. The parser is botocore's, made strict; it keeps nulls."""

    content_type = "application/x-amz-cbor-1.1"

    @staticmethod
    def decode(body):
        stream = io.BufferedReader(io.BytesIO(body))
        value = Cbor().parse_data_item(stream)
        if rest := stream.read():
            raise ValueError(f"{len(rest)} bytes behind the value")
        return value

    def _read_from_stream(self, stream, num_bytes):
        # Where it is no CBOR, a length can be anything: memory for it is not asked for.
        return super()._read_from_stream(stream, min(num_bytes, stream.raw.getbuffer().nbytes + 1))

    def _parse_key_value_pair(self, stream, items):
        key = self.parse_data_item(stream)
        if not isinstance(key, str) or key in items:
            raise ValueError(f"a key is no text, or stands twice: {key!r}")
        items[key] = self.parse_data_item(stream)

    def _parse_datetime(self, value):
        if type(value) is not int:
            raise ValueError(f"a timestamp is not in whole milliseconds: {value!r}")
        return Milliseconds(value)

    @staticmethod
    def blob_bytes(value):
        return len(value) if isinstance(value, bytes) else None

    @staticmethod
    def is_timestamp(value):
        return isinstance(value, Milliseconds)


ENCODINGS = {encoding.content_type: encoding for encoding in (Json, Cbor)}


class Judge:
    """Gathers where values deviate from their shapes."""

    def __init__(self, model, encoding):
        self.model = model
        self.encoding = encoding
        self.deviations = []

    def add(self, path, what):
        if len(self.deviations) < DEVIATIONS_MAX:
            self.deviations.append(f"{path or 'the answer'}: {what}")

    def value(self, shape_name, value, path):
        shape = self.model.shapes[shape_name]
        kind = shape["type"]
        if not self.is_a(kind, value):
            self.add(path, f"{shown(value)} is no {kind} ({shape_name})")
            return
        self.size(shape, value, path)
        if "enum" in shape and value not in shape["enum"]:
            self.add(path, f"{shown(value)} is none of {shape['enum']}")
        # Patterns are of whole values.
        if "pattern" in shape and not re.fullmatch(shape["pattern"], value, re.ASCII):
            self.add(path, f"{shown(value)} does not match {shape['pattern']}")
        if kind == "structure":
            self.members(shape_name, shape, value, path)
        elif kind == "list":
            for number, element in enumerate(value):
                self.value(shape["member"]["shape"], element, f"{path}[{number}]")
        elif kind == "map":
            for key, element in value.items():
                self.value(shape["key"]["shape"], key, f"{path} key")
                self.value(shape["value"]["shape"], element, f"{path}[{key}]")

    def is_a(self, kind, value):
        if kind in ("integer", "long"):
            bits = 31 if kind == "integer" else 63
            return type(value) is int and -(2**bits) <= value < 2**bits
        if kind == "blob":
            return self.encoding.blob_bytes(value) is not None
        if kind == "timestamp":
            return self.encoding.is_timestamp(value)
        types = {"structure": dict, "map": dict, "list": list, "string": str, "boolean": bool}
        return isinstance(value, types[kind])

    def size(self, shape, value, path):
        if "min" not in shape and "max" not in shape:
            return
        if shape["type"] in ("integer", "long"):
            size = value
        elif shape["type"] == "blob":
            size = self.encoding.blob_bytes(value)
        else:
            size = len(value)
        if not shape.get("min", size) <= size <= shape.get("max", size):
            limits = f"{shape.get('min', '')}..{shape.get('max', '')}"
            self.add(path, f"{shown(value)} is or has {size}, not {limits}")

    def members(self, shape_name, shape, values, path):
        for name in values.keys() - shape["members"].keys():
            self.add(f"{path}.{name}", f"is no member of {shape_name}")
        for name, member in shape["members"].items():
            place = (shape_name, name)
            if name not in values:
                if name in shape.get("required", []) and place not in MISSING_AT_THE_END:
                    self.add(f"{path}.{name}", "is required and missing")
            elif place in BELOW_MIN and type(values[name]) in (int, list) and not values[name]:
                pass
            else:
                self.value(member["shape"], values[name], f"{path}.{name}")


class Answers:
    """Finds what deviates in an answer to a request.

    Beyond the model: headers and their agreement with the body, statuses of errors, the form of an
    event stream, and the rules of the API reference that the KCL and the KPL depend on: the answer
    to PutRecords has an entry a record, each with a sequence number or an error, and counts the
    errors; the last answer of a closed shard has its children, and no other has.
    """

    def __init__(self):
        self.model = Model()

    def whole(self, request, status, headers, body):
        """Deviations of an answer that is one document, and the error's name if it is one.

        `request` is an `exchanges.Request`, `headers` a dict with names in lower case.
        """
        operation = request.operation
        if operation not in self.model.operations:
            return [f"{operation} is an operation that the model does not have"], None
        encoding = ENCODINGS.get(request.headers.get("content-type"))
        if encoding is None:
            return [f"the request has an unknown type: {request.headers.get('content-type')}"], None
        judge = Judge(self.model, encoding)
        self.judge_headers(judge, headers)
        output = self.model.operations[operation].get("output")
        if status == 200 and output is None:
            if body:
                judge.add("", f"{operation} has no output, and {len(body)} bytes came")
            return judge.deviations, None
        if headers.get("content-type") != encoding.content_type:
            judge.add("content-type", f"{headers.get('content-type')} for {encoding.content_type}")
        value = decode(judge, body)
        if value is None:
            return judge.deviations, None
        if status == 200:
            judge.value(output["shape"], value, "")
            self.judge_rules(judge, request, value)
            return judge.deviations, None
        return judge.deviations, self.judge_error(judge, operation, status, headers, value)

    def judge_headers(self, judge, headers):
        request_id = headers.get("x-amzn-requestid", "")
        try:
            is_uuid = str(uuid.UUID(request_id)) == request_id
        except ValueError:
            is_uuid = False
        if not is_uuid:
            judge.add("x-amzn-requestid", f"{request_id!r} is no UUID")
        if not headers.get("x-amz-id-2"):
            judge.add("x-amz-id-2", "is missing")
        if not headers.get("date"):
            judge.add("date", "is missing")

    def judge_error(self, judge, operation, status, headers, value):
        error = value.get("__type") if isinstance(value, dict) else None
        statuses = self.model.errors(operation)
        if error not in statuses:
            judge.add("__type", f"{shown(error)} is no error of {operation}")
            return error
        if status != statuses[error]:
            judge.add("", f"{error} has status {status}, not {statuses[error]}")
        if headers.get("x-amzn-errortype") != error:
            judge.add("x-amzn-errortype", f"{headers.get('x-amzn-errortype')} for {error}")
        if not value.get("message"):
            judge.add("message", "is missing or empty")
        members = {name: member for name, member in value.items() if name != "__type"}
        if error in self.model.shapes:
            judge.value(error, members, error)
        elif set(members) != {"message"} or not isinstance(members["message"], str):
            judge.add(error, f"has {shown(members)}, not a message")
        return error

    def judge_rules(self, judge, request, value):
        if judge.deviations:
            # What has not its own shape is judged no further.
            return
        if request.operation == "PutRecords":
            judge_put_records(judge, judge.encoding.decode(request.body), value)
        elif request.operation == "GetRecords":
            judge_end(judge, value.get("NextShardIterator"), value.get("ChildShards"))


class Events:
    """Finds what deviates in an answer that is an event stream, as it comes."""

    def __init__(self, answers, request, headers):
        self.model = answers.model
        self.judge = Judge(self.model, ENCODINGS[request.headers["content-type"]])
        self.counts = {}
        self.exception = None
        self.has_begun = False
        self.has_ended = False
        self.is_broken = False
        self.buffer = EventStreamBuffer()
        self.bytes = 0
        answers.judge_headers(self.judge, headers)
        if headers.get("content-type") != EVENT_STREAM:
            self.judge.add("content-type", f"{headers.get('content-type')} for {EVENT_STREAM}")
        output = self.model.operations[request.operation]["output"]["shape"]
        members = self.model.shapes[output]["members"]
        streams = [
            member["shape"]
            for member in members.values()
            if self.model.shapes[member["shape"]].get("eventstream")
        ]
        self.stream = streams[0]

    @property
    def deviations(self):
        return self.judge.deviations

    def receive(self, data):
        if self.is_broken:
            return
        self.bytes += len(data)
        self.buffer.add_data(data)
        while True:
            try:
                message = next(self.buffer)
            except StopIteration:
                return
            except (EventStreamParserError, KeyError, UnicodeDecodeError, struct.error) as error:
                # Where the next message begins is not known any more.
                self.is_broken = True
                self.judge.add("event stream", repr(error))
                return
            self.bytes -= message.prelude.total_length
            self.message(message)

    def end(self):
        """The server ended the answer."""
        if not self.has_begun:
            self.judge.add("event stream", "it ended before its initial-response")
        if self.bytes and not self.is_broken:
            self.judge.add("event stream", f"it ended within a message, {self.bytes} bytes long")

    def message(self, message):
        headers = dict(message.headers)
        content_type = headers.pop(":content-type", None)
        if content_type != self.judge.encoding.content_type:
            self.judge.add("event :content-type", shown(content_type))
        if self.has_ended:
            self.judge.add("event stream", f"it goes on after its end: {headers}")
        value = decode(self.judge, message.payload)
        if not self.has_begun:
            self.has_begun = True
            expected = {":message-type": "event", ":event-type": "initial-response"}
            if headers != expected or value != {}:
                self.judge.add("initial-response", f"{headers} {shown(value)}")
        elif headers.get(":message-type") == "exception":
            self.has_ended = True
            self.exception = headers.get(":exception-type")
            expected = {":message-type": "exception", ":exception-type": self.exception}
            self.union_member("exception", headers, expected, self.exception, value)
        else:
            name = headers.get(":event-type")
            expected = {":message-type": "event", ":event-type": name}
            self.union_member("event", headers, expected, name, value)

    def union_member(self, kind, headers, expected, name, value):
        self.counts[name] = self.counts.get(name, 0) + 1
        member = self.model.shapes[self.stream]["members"].get(name)
        if headers != expected or member is None:
            self.judge.add(kind, f"{headers} is no member of {self.stream}")
        elif value is not None:
            is_exception = self.model.shapes[member["shape"]].get("exception", False)
            if is_exception != (kind == "exception"):
                self.judge.add(kind, f"{name} is sent as an {kind}")
            before = len(self.deviations)
            self.judge.value(member["shape"], value, name)
            if name == "SubscribeToShardEvent" and len(self.deviations) == before:
                number = value.get("ContinuationSequenceNumber")
                judge_end(self.judge, number, value.get("ChildShards"))
                self.has_ended = number is None


def judge_put_records(judge, asked, value):
    entries = value["Records"]
    if len(entries) != len(asked["Records"]):
        judge.add("Records", f"{len(entries)} entries for {len(asked['Records'])} records")
    failed = 0
    for number, entry in enumerate(entries):
        names = set(entry)
        if names == {"ErrorCode", "ErrorMessage"}:
            failed += 1
            if entry["ErrorCode"] not in RECORD_ERRORS:
                judge.add(f"Records[{number}].ErrorCode", shown(entry["ErrorCode"]))
        elif names != {"SequenceNumber", "ShardId"}:
            judge.add(f"Records[{number}]", f"it has {sorted(names)}")
    if value.get("FailedRecordCount") != failed:
        judge.add("FailedRecordCount", f"{value.get('FailedRecordCount')} for {failed}")


def judge_end(judge, position, children):
    if (position is None) != bool(children):
        judge.add("ChildShards", f"{len(children or [])} with the next position {shown(position)}")
    for child in children or []:
        if len(child["ParentShards"]) not in (1, 2):
            judge.add("ChildShards", f"{child['ShardId']} has parents {child['ParentShards']}")


def decode(judge, body):
    """A body's value; `None` when it has none, which is a deviation."""
    try:
        value = judge.encoding.decode(body)
    except (ValueError, ResponseParserError, RecursionError) as error:
        judge.add("body", f"it cannot be read: {error!r}")
        return None
    if value is None:
        judge.add("body", "it is null")
    return value


def shown(value):
    text = repr(value)
    return text if len(text) <= SHOWN_MAX else f"{text[:SHOWN_MAX]}..."
