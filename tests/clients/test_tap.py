"""The tap finds what deviates, and nothing where nothing does: `python -m unittest`."""

import asyncio
import json
import unittest
from binascii import crc32
from struct import pack

import hpack
from hyperframe.frame import DataFrame, HeadersFrame, RstStreamFrame, SettingsFrame

from deviations import EVENT_STREAM, Answers, Cbor, Events, Json
from exchanges import PREFACE, Connection, Request
from tap import Exchange, Tap

REQUEST_ID = "6d7f0d2e-0d4f-4a52-8a38-5a1c1d6f0f11"
HEADERS = {
    "x-amzn-requestid": REQUEST_ID,
    "x-amz-id-2": "b2s=",
    "date": "Tue, 24 Nov 2026 00:00:00 GMT",
    "content-type": Json.content_type,
}
ANSWERS = Answers()
SEQUENCE_NUMBER = "49600000000000000000000000000000000000000000000000000000"
SHARD = "shardId-000000000000"
RECORD = {
    "SequenceNumber": SEQUENCE_NUMBER,
    "ApproximateArrivalTimestamp": 1_795_521_600.123,
    "Data": "AAH/",
    "PartitionKey": "k",
}
CHILD = {
    "ShardId": "shardId-000000000001",
    "ParentShards": [SHARD],
    "HashKeyRange": {"StartingHashKey": "0", "EndingHashKey": "9"},
}


def request(operation, body=None, encoding=Json):
    headers = {
        "x-amz-target": f"Kinesis_20131202.{operation}",
        "content-type": encoding.content_type,
    }
    return Request("1.1", "POST", headers, bytearray(json.dumps(body or {}).encode()))


def judge(operation, value, status=200, asked=None, **headers):
    headers = {**HEADERS, **{name.replace("_", "-"): text for name, text in headers.items()}}
    body = value if isinstance(value, bytes) else json.dumps(value).encode()
    return ANSWERS.whole(request(operation, asked), status, headers, body)[0]


def cbor(value):
    """A short text or some bytes in CBOR."""
    major, data = (0x60, value.encode()) if isinstance(value, str) else (0x40, value)
    head = [major | len(data)] if len(data) < 24 else [major | 24, len(data)]
    return bytes(head) + data


def message(headers, payload):
    """A message of an event stream."""
    encoded = b"".join(
        pack("!B", len(name)) + name.encode() + b"\7" + pack("!H", len(value)) + value.encode()
        for name, value in headers.items()
    )
    prelude = pack("!II", 16 + len(encoded) + len(payload), len(encoded))
    prelude += pack("!I", crc32(prelude))
    body = prelude + encoded + payload
    return body + pack("!I", crc32(body))


def event(name, value, kind="event", encoding=Json):
    """An event of a value for JSON, or of bytes."""
    headers = {f":{kind}-type": name, ":content-type": encoding.content_type}
    headers[":message-type"] = kind
    return message(headers, value if isinstance(value, bytes) else json.dumps(value).encode())


BEGINNING = event("initial-response", {})


def watch(exchange_of, *pieces):
    """Feeds a connection: bytes are the client's, lists of bytes the server's."""
    connection = Connection(exchange_of)
    for piece in pieces:
        if isinstance(piece, list):
            for data in piece:
                connection.from_server(data)
        else:
            connection.from_client(piece)
    return connection


def http1_request(operation, body=b"{}"):
    head = (
        f"POST / HTTP/1.1\r\nHost: a\r\nX-Amz-Target: Kinesis_20131202.{operation}\r\n"
        f"Content-Type: {Json.content_type}\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def http1_answer(body, headers=HEADERS, framing=None):
    framing = framing or f"Content-Length: {len(body)}"
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return f"HTTP/1.1 200 OK\r\n{lines}{framing}\r\n\r\n".encode() + body


class Deviations(unittest.TestCase):
    def test_an_answer_as_the_model_has_it_does_not_deviate(self):
        end = {"Records": [RECORD], "ChildShards": [CHILD]}
        self.assertEqual(judge("GetRecords", {**end, "MillisBehindLatest": 0}), [])
        self.assertEqual(judge("CreateStream", b"", content_type=None), [])
        put = {"FailedRecordCount": 0, "Records": [put_entry()]}
        self.assertEqual(judge("PutRecords", put, asked={"Records": [{}]}), [])

    def test_every_kind_of_deviation_is_found(self):
        good = {"Records": [RECORD], "NextShardIterator": "i", "MillisBehindLatest": 0}

        def record(**change):
            return {**good, "Records": [{**RECORD, **change}]}

        end = {"Records": [RECORD], "MillisBehindLatest": 0}
        without_data = {name: value for name, value in RECORD.items() if name != "Data"}
        for what, value in {
            "an unknown member": {**good, "Novel": 1},
            "an unknown member within": record(Novel=1),
            "a missing member": {**good, "Records": [without_data]},
            "null for a value": record(Data=None),
            "null for a number": {**good, "MillisBehindLatest": None},
            "another type": record(SequenceNumber=1),
            "a number as text": {**good, "MillisBehindLatest": "0"},
            "a number with decimals": {**good, "MillisBehindLatest": 0.5},
            "a truth for a number": {**good, "MillisBehindLatest": True},
            "a number that is too low": {**good, "MillisBehindLatest": -1},
            "no base64": record(Data="AAH"),
            "a text as a timestamp": record(ApproximateArrivalTimestamp="1795521600"),
            "a pattern that is not matched": record(SequenceNumber="049"),
            "a pattern that is matched in part": record(SequenceNumber="49\n"),
            "a text that is too long": record(PartitionKey="k" * 257),
            "a text that is too short": record(PartitionKey=""),
            "a value that is not in the list": record(EncryptionType="AES"),
            "no end where children are": {**good, "ChildShards": [CHILD]},
            "null for an iterator": {**end, "NextShardIterator": None, "ChildShards": [CHILD]},
            "an end without children": end,
            "children without parents": {**end, "ChildShards": [{**CHILD, "ParentShards": []}]},
            "a list": [],
            "null": b"null",
            "no JSON": b"{",
            "NaN": b'{"Records":[],"NextShardIterator":"i","MillisBehindLatest":NaN}',
            "a member twice": b'{"Records":[],"NextShardIterator":"i","NextShardIterator":"i"}',
            "no UTF-8": b'{"Records":[],"NextShardIterator":"\xff"}',
            "nothing": b"",
        }.items():
            with self.subTest(what):
                self.assertEqual(len(judge("GetRecords", value)), 1)
        self.assertEqual(judge("GetRecords", good), [])

    def test_headers_are_judged(self):
        good = {"StreamNames": [], "HasMoreStreams": False}
        self.assertEqual(judge("ListStreams", good), [])
        for headers in (
            {"x_amzn_requestid": "1"},
            {"x_amz_id_2": ""},
            {"date": ""},
            {"content_type": Cbor.content_type},
        ):
            self.assertEqual(len(judge("ListStreams", good, **headers)), 1, headers)
        self.assertEqual(len(judge("CreateStream", b"{}")), 1)
        self.assertEqual(len(judge("Novel", {})), 1)

    def test_put_records_has_an_entry_a_record(self):
        failed = {
            "ErrorCode": "ProvisionedThroughputExceededException",
            "ErrorMessage": "Rate exceeded",
        }
        asked = {"Records": [{}, {}]}

        def found(count, *entries):
            value = {"FailedRecordCount": count, "Records": entries}
            return len(judge("PutRecords", value, asked=asked))

        self.assertEqual(found(1, put_entry(), failed), 0)
        self.assertEqual(found(0, put_entry(), failed), 1)
        self.assertEqual(found(0, put_entry()), 1)
        self.assertEqual(found(1, put_entry(), {**failed, "ErrorCode": "Novel"}), 1)
        self.assertEqual(found(1, put_entry(), {**failed, **put_entry()}), 2)

    def test_errors_are_those_of_the_operation(self):
        def found(error, status=400, **change):
            value = {"__type": error, "message": "m", **change}
            return len(judge("ListShards", value, status, x_amzn_errortype=error))

        self.assertEqual(found("ResourceNotFoundException"), 0)
        self.assertEqual(found("ValidationException"), 0)
        self.assertEqual(found("InternalFailure", 500), 0)
        self.assertEqual(found("InternalFailure", 400), 1)
        self.assertEqual(found("ResourceNotFoundException", 404), 1)
        # Of another operation, and of none.
        self.assertEqual(found("ExpiredIteratorException"), 1)
        self.assertEqual(found("NovelException"), 1)
        self.assertEqual(found("ResourceNotFoundException", message=""), 1)
        self.assertEqual(found("ResourceNotFoundException", Novel=1), 1)
        self.assertEqual(found("InternalFailure", 500, Novel=1), 1)
        missing = {"__type": "ResourceNotFoundException", "message": "m"}
        self.assertEqual(len(judge("ListShards", missing, 400)), 1)

    def test_cbor_has_bytes_and_milliseconds(self):
        def found(body):
            headers = {**HEADERS, "content-type": Cbor.content_type}
            return ANSWERS.whole(request("GetRecords", encoding=Cbor), 200, headers, body)[0]

        # A map of three: Records, a list of one record; MillisBehindLatest; NextShardIterator.
        def answer(record):
            behind = cbor("MillisBehindLatest") + b"\0" + cbor("NextShardIterator") + cbor("i")
            return b"\xa3" + cbor("Records") + b"\x81" + record + behind

        def record(time=b"\xc1\x1b\0\0\1\x8d\0\0\0\0", data=cbor(b"d")):
            number = cbor("SequenceNumber") + cbor(SEQUENCE_NUMBER)
            time = cbor("ApproximateArrivalTimestamp") + time
            return b"\xa3" + number + time + cbor("Data") + data

        self.assertEqual(found(answer(record())), [])
        self.assertEqual(len(found(answer(record(time=b"\x1b\0\0\1\x8d\0\0\0\0")))), 1)
        self.assertEqual(len(found(answer(record(time=b"\xc1\xfb\0\0\1\x8d\0\0\0\0")))), 1)
        self.assertEqual(len(found(answer(record(data=cbor("d"))))), 1)
        self.assertEqual(len(found(answer(record()) + b"\0")), 1)
        self.assertEqual(len(found(answer(record())[:-1])), 1)
        twice = cbor("Records") + b"\x80"
        self.assertEqual(len(found(b"\xa2" + twice + twice)), 1)


    def test_event_streams_come_in_cbor_as_well(self):
        def found(*payloads, encoding=Cbor):
            asked = request("SubscribeToShard", encoding=Cbor)
            events = Events(ANSWERS, asked, {**HEADERS, "content-type": EVENT_STREAM})
            events.receive(event("initial-response", b"\xa0", encoding=Cbor))
            for payload in payloads:
                events.receive(event("SubscribeToShardEvent", payload, encoding=encoding))
            events.end()
            return events.deviations

        # A map of three: Records, a list of none; MillisBehindLatest; ContinuationSequenceNumber.
        def payload(behind=b"\0", number=cbor(SEQUENCE_NUMBER)):
            end = cbor("MillisBehindLatest") + behind + cbor("ContinuationSequenceNumber") + number
            return b"\xa3" + cbor("Records") + b"\x80" + end

        self.assertEqual(found(payload(), payload()), [])
        self.assertEqual(len(found(payload(), payload(behind=cbor("0")))), 1)
        self.assertEqual(len(found(payload(number=b"\xf6"))), 1)
        self.assertEqual(len(found(payload() + b"\0")), 1)
        self.assertEqual(len(found(payload(), encoding=Json)), 1)
        self.assertEqual(len(found(b'{"Records":[]}')), 1)


def put_entry():
    return {"SequenceNumber": SEQUENCE_NUMBER, "ShardId": SHARD}


class Transport(unittest.TestCase):
    def setUp(self):
        self.tap = Tap(0)

    def begin(self, request):
        return Exchange(self.tap, "c", request)

    def test_http1_is_followed_over_several_requests(self):
        good = json.dumps({"StreamNames": [], "HasMoreStreams": False}).encode()
        answer, asked = http1_answer(good), http1_request("ListStreams")
        chunked = http1_answer(
            f"{len(good):x}\r\n".encode() + good + b"\r\n0\r\n\r\n",
            framing="Transfer-Encoding: chunked",
        )
        # In pieces, with an interim answer, and one request before the answer to the other.
        watch(
            self.begin,
            asked[:10],
            asked[10:],
            [b"HTTP/1.1 100 Continue\r\n\r\n", answer[:50], answer[50:]],
            asked + asked,
            [chunked, answer],
        )
        self.assertEqual(self.tap.deviations, [])
        self.assertEqual(self.tap.observed, {("c", "1.1", "json", "ListStreams", "ok"): 3})

    def test_http2_is_followed_stream_by_stream(self):
        client, server = hpack.Encoder(), hpack.Encoder()
        good = json.dumps({"StreamNames": [], "HasMoreStreams": False}).encode()

        def asked(stream):
            head = HeadersFrame(stream, client.encode(http2_request("ListStreams")))
            head.flags.add("END_HEADERS")
            return head.serialize() + data(stream, b"{}", end=True)

        def data(stream, body, end):
            frame = DataFrame(stream, body)
            if end:
                frame.flags.add("END_STREAM")
            return frame.serialize()

        def head(stream, headers=HEADERS):
            block = server.encode([(":status", "200"), *headers.items()])
            frame = HeadersFrame(stream, block)
            frame.flags.add("END_HEADERS")
            return frame.serialize()

        settings = SettingsFrame(settings={SettingsFrame.HEADER_TABLE_SIZE: 8192}).serialize()
        both = head(3) + head(1) + data(1, good[:7], False) + data(3, good, True)
        watch(
            self.begin,
            PREFACE[:5],
            PREFACE[5:] + settings,
            [settings],
            asked(1) + asked(3),
            [both[:11], both[11:], data(1, good[7:], True)],
            asked(5),
            [head(5, {**HEADERS, "x-amzn-requestid": "1"}) + data(5, good, True)],
            asked(7),
            RstStreamFrame(7).serialize(),
            asked(9),
            [RstStreamFrame(9, error_code=2).serialize()],
        )
        self.assertEqual(self.tap.observed, {("c", "2", "json", "ListStreams", "ok"): 3})
        self.assertEqual(len(self.tap.deviations), 2, self.tap.deviations)
        self.assertIn("no UUID", self.tap.deviations[0])
        self.assertIn("before the end", self.tap.deviations[1])

    def events(self, *messages, cut=None):
        headers = {**HEADERS, "content-type": EVENT_STREAM}
        chunks = b"".join(
            f"{len(message):x}\r\n".encode() + message + b"\r\n" for message in messages
        )
        answer = http1_answer(chunks, headers, framing="Transfer-Encoding: chunked")
        if cut is None:
            answer += b"0\r\n\r\n"
        asked = http1_request("SubscribeToShard")
        connection = watch(self.begin, asked, [answer[:300], answer[300:]])
        if cut is not None:
            connection.cut(by_client=cut == "client")
            connection.from_server(b"what nobody takes")
        found, self.tap.deviations = self.tap.deviations, []
        return found

    def test_event_streams_are_judged_message_by_message(self):
        body = {
            "Records": [RECORD],
            "ContinuationSequenceNumber": SEQUENCE_NUMBER,
            "MillisBehindLatest": 0,
        }
        good = event("SubscribeToShardEvent", body)
        last = event(
            "SubscribeToShardEvent",
            {"Records": [], "MillisBehindLatest": 0, "ChildShards": [CHILD]},
        )
        error = event("ResourceInUseException", {"message": "m"}, "exception")
        self.assertEqual(self.events(BEGINNING, good, last), [])
        self.assertEqual(self.events(BEGINNING, good, error), [])
        self.assertEqual(self.events(BEGINNING, good, good[:50], cut="client"), [])
        place = ("c", "1.1", "json", "SubscribeToShard")
        self.assertEqual(self.tap.observed[*place, "SubscribeToShardEvent"], 4)
        self.assertEqual(self.tap.observed[*place, "ResourceInUseException"], 1)

        damaged = bytearray(good)
        damaged[-10] ^= 1
        for what, messages in {
            "no beginning": [good],
            "nothing": [],
            "a beginning with members": [event("initial-response", {"EventStream": {}})],
            "events behind an error": [BEGINNING, error, good],
            "events behind the end": [BEGINNING, last, good],
            "an error as an event": [BEGINNING, event("ResourceInUseException", {"message": "m"})],
            "an event as an error": [BEGINNING, event("SubscribeToShardEvent", body, "exception")],
            "an unknown event": [BEGINNING, event("Novel", {})],
            "null for a list": [
                BEGINNING,
                event("SubscribeToShardEvent", {**body, "Records": None}),
            ],
            "an end without children": [
                BEGINNING,
                event("SubscribeToShardEvent", {"Records": [], "MillisBehindLatest": 0}),
            ],
            "null for a continuation": [
                BEGINNING,
                event("SubscribeToShardEvent", {**body, "ContinuationSequenceNumber": None}),
            ],
            "a wrong checksum": [BEGINNING, bytes(damaged)],
            "half a message": [BEGINNING, good[:50]],
        }.items():
            with self.subTest(what):
                self.assertEqual(len(self.events(*messages)), 1)
        self.assertEqual(len(self.events(BEGINNING, good, cut="server")), 1)

    def test_what_cannot_be_read_deviates(self):
        async def served(answer):
            async def serve(reader, writer):
                await reader.readuntil(b"\r\n\r\n")
                writer.write(answer)
                writer.close()

            server = await asyncio.start_server(serve, "127.0.0.1", 0)
            tap = Tap(server.sockets[0].getsockname()[1])
            reader, writer = await asyncio.open_connection("127.0.0.1", await tap.listen("c"))
            writer.write(http1_request("ListStreams"))
            received = await reader.read()
            writer.close()
            server.close()
            return received, await tap.finish()

        received, report = asyncio.run(served(b"no HTTP\r\n\r\n"))
        self.assertEqual(received, b"no HTTP\r\n\r\n")
        self.assertEqual(len(report["deviations"]), 1, report)
        received, report = asyncio.run(served(b""))
        self.assertIn("before the end", report["deviations"][0])
        good = http1_answer(b'{"StreamNames":[],"HasMoreStreams":false}')
        received, report = asyncio.run(served(good))
        self.assertEqual((received, report["deviations"]), (good, []))
        self.assertEqual(report["observed"], [[("c", "1.1", "json", "ListStreams", "ok"), 1]])


def http2_request(operation):
    return [
        (":method", "POST"),
        (":path", "/"),
        (":scheme", "http"),
        ("x-amz-target", f"Kinesis_20131202.{operation}"),
        ("content-type", Json.content_type),
    ]


if __name__ == "__main__":
    unittest.main()
