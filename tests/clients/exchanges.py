"""Requests and answers out of the bytes of a connection, HTTP/1.1 or HTTP/2, as a bystander reads
them.

`Connection` is fed with what passes in both directions and tells an exchange (see `tap.py`) of the
head, the data and the end of its answer. Nothing is ever sent from here: settings, flow control and
retries are the business of the two who talk.
"""

from dataclasses import dataclass, field

import h11
import hpack
from hyperframe.frame import (
    ContinuationFrame,
    DataFrame,
    Frame,
    HeadersFrame,
    RstStreamFrame,
    SettingsFrame,
)

# What a client begins with that knows beforehand that HTTP/2 is spoken (RFC 9113, 3.4).
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
FRAME_HEADER_BYTES = 9
# More than any head has here.
HEAD_BYTES_MAX = 64 << 10


@dataclass
class Request:
    """A request: `headers` with names in lower case, `body` as far as it came."""

    http: str
    method: str
    headers: dict
    body: bytearray = field(default_factory=bytearray)

    @property
    def operation(self):
        """Behind the prefix of the target; empty without a target."""
        return self.headers.get("x-amz-target", "").rpartition(".")[2]


class Connection:
    """A connection of a client. `begin` is called with each `Request` and gives its exchange, which
    has `head(status, headers)`, `data(bytes)`, `end()` and, when the answer does not come to its
    end, `cut(by_client)`."""

    def __init__(self, begin):
        self.begin = begin
        self.first = bytearray()
        self.protocol = None
        self.is_cut = False

    def from_client(self, data):
        if self.protocol is None:
            # The first bytes tell which protocol it is.
            self.first += data
            if len(self.first) < len(PREFACE) and PREFACE.startswith(self.first):
                return
            is_http2 = self.first.startswith(PREFACE)
            self.protocol = (Http2 if is_http2 else Http1)(self.begin)
            data = bytes(self.first[len(PREFACE) if is_http2 else 0 :])
        self.protocol.from_client(data)

    def from_server(self, data):
        if self.protocol is None:
            raise ValueError(f"the server speaks first: {data[:40]!r}")
        # What was on its way when the client left, nobody takes.
        if not self.is_cut:
            self.protocol.from_server(data)

    def cut(self, by_client):
        """The connection ended."""
        self.is_cut = True
        if self.protocol is not None:
            self.protocol.cut(by_client)


class Http1:
    """Two state machines of h11, each of which is told what the other one read."""

    def __init__(self, begin):
        self.begin = begin
        self.client = h11.Connection(h11.SERVER, max_incomplete_event_size=HEAD_BYTES_MAX)
        self.server = h11.Connection(h11.CLIENT, max_incomplete_event_size=HEAD_BYTES_MAX)
        self.request = None
        self.exchange = None

    def from_client(self, data):
        self.client.receive_data(data)
        self.read_client()

    def read_client(self):
        for event in events(self.client):
            if isinstance(event, h11.ConnectionClosed):
                return
            self.server.send(event)
            if isinstance(event, h11.Request):
                self.request = Request("1.1", event.method.decode(), names_lowered(event.headers))
                self.exchange = self.begin(self.request)
            elif isinstance(event, h11.Data):
                self.request.body += event.data

    def from_server(self, data):
        self.server.receive_data(data)
        self.read_server()

    def read_server(self):
        for event in events(self.server):
            if isinstance(event, h11.ConnectionClosed):
                return
            self.client.send(event)
            if isinstance(event, h11.Response):
                self.exchange.head(event.status_code, names_lowered(event.headers))
            elif isinstance(event, h11.Data):
                self.exchange.data(bytes(event.data))
            elif isinstance(event, h11.EndOfMessage):
                self.exchange.end()
                self.exchange = None
        if self.server.our_state is h11.DONE and self.server.their_state is h11.DONE:
            self.server.start_next_cycle()
            self.client.start_next_cycle()
            # A request that came early.
            self.read_client()

    def cut(self, by_client):
        if self.exchange is not None:
            self.exchange.cut(by_client)
            self.exchange = None


def events(connection):
    while (event := connection.next_event()) not in (h11.NEED_DATA, h11.PAUSED):
        yield event
        if isinstance(event, h11.ConnectionClosed):
            return


class Http2:
    """Frames of both directions, by streams."""

    def __init__(self, begin):
        self.begin = begin
        self.client = Direction()
        self.server = Direction()
        # Exchanges without the end of their answer, by stream.
        self.exchanges = {}
        self.requests = {}

    def from_client(self, data):
        for frame in self.client.frames(data):
            stream = frame.stream_id
            if isinstance(frame, SettingsFrame):
                self.server.allow(frame)
            elif isinstance(frame, RstStreamFrame):
                if exchange := self.exchanges.pop(stream, None):
                    exchange.cut(by_client=True)
            elif isinstance(frame, DataFrame):
                if stream in self.requests:
                    self.requests[stream].body += frame.data
            elif (headers := self.client.headers(frame)) is not None and ":method" in headers:
                self.requests[stream] = Request("2", headers[":method"], headers)
                self.exchanges[stream] = self.begin(self.requests[stream])

    def from_server(self, data):
        for frame in self.server.frames(data):
            exchange = self.exchanges.get(frame.stream_id)
            if isinstance(frame, SettingsFrame):
                self.client.allow(frame)
            elif isinstance(frame, RstStreamFrame):
                if exchange is not None:
                    self.forget(frame.stream_id)
                    exchange.cut(by_client=False)
            elif isinstance(frame, DataFrame):
                if exchange is not None:
                    exchange.data(frame.data)
            elif (headers := self.server.headers(frame)) is not None and exchange is not None:
                # Not trailers, not an interim answer.
                if int(headers.get(":status", 100)) >= 200:
                    exchange.head(int(headers[":status"]), headers)
            if self.server.has_ended(frame) and exchange is not None:
                self.forget(frame.stream_id)
                exchange.end()

    def forget(self, stream):
        self.exchanges.pop(stream, None)
        self.requests.pop(stream, None)

    def cut(self, by_client):
        exchanges, self.exchanges = self.exchanges, {}
        for exchange in exchanges.values():
            exchange.cut(by_client)


class Direction:
    """Frames and head blocks of one direction."""

    def __init__(self):
        self.buffer = bytearray()
        self.decoder = hpack.Decoder()
        # Pieces of a head, and whether the stream ends with it.
        self.block = bytearray()
        self.block_ends_stream = False

    def frames(self, data):
        self.buffer += data
        while len(self.buffer) >= FRAME_HEADER_BYTES:
            head = bytes(self.buffer[:FRAME_HEADER_BYTES])
            frame, length = Frame.parse_frame_header(memoryview(head))
            end = FRAME_HEADER_BYTES + length
            if len(self.buffer) < end:
                return
            frame.parse_body(memoryview(bytes(self.buffer[FRAME_HEADER_BYTES:end])))
            del self.buffer[:end]
            yield frame

    def headers(self, frame):
        """A head, once its last piece is there."""
        if not isinstance(frame, (HeadersFrame, ContinuationFrame)):
            return None
        if isinstance(frame, HeadersFrame):
            self.block_ends_stream = "END_STREAM" in frame.flags
        self.block += frame.data
        if "END_HEADERS" not in frame.flags:
            return None
        block, self.block = bytes(self.block), bytearray()
        return {name.lower(): value for name, value in self.decoder.decode(block)}

    def has_ended(self, frame):
        """Whether the stream ends with this frame."""
        if isinstance(frame, DataFrame):
            return "END_STREAM" in frame.flags
        if isinstance(frame, (HeadersFrame, ContinuationFrame)):
            return self.block_ends_stream and "END_HEADERS" in frame.flags
        return False

    def allow(self, settings):
        """What the receiver allows the table of this direction to become."""
        size = settings.settings.get(SettingsFrame.HEADER_TABLE_SIZE)
        if size is not None:
            self.decoder.max_allowed_table_size = max(self.decoder.max_allowed_table_size, size)


def names_lowered(headers):
    return {name.decode().lower(): value.decode() for name, value in headers}
