"""Stands between clients and a Kinesis endpoint and hands on every byte as it is, in both
directions; what the endpoint answers is held against the service model on the way.

Arguments: the endpoint's port on 127.0.0.1, and a name for each client. Each client gets a port of
its own, so that what it did is known by its name: the ports are the first line on stdout, a JSON
object by names. When stdin ends a report follows, a JSON object:

- `observed`: how often each client saw which outcome of which operation, as pairs of
  [client, HTTP version, encoding, operation, outcome] and a count. An outcome is `ok`, an error's
  name, or the name of an event of an event stream.
- `deviations`: texts. None may be there.
"""

import asyncio
import json
import sys
import traceback
from collections import Counter

from deviations import TARGET_PREFIX, Answers, Events
from exchanges import Connection

# Deviations that are kept.
KEPT_MAX = 200
READ_BYTES = 64 << 10


async def read(reader):
    """The next bytes; none at the end, and none when the connection was reset."""
    try:
        return await reader.read(READ_BYTES)
    except OSError:
        return b""


class Exchange:
    """A request and its answer as it comes."""

    def __init__(self, tap, client, request):
        self.tap = tap
        self.client = client
        self.request = request
        self.status = None
        self.headers = None
        self.body = bytearray()
        self.events = None

    def head(self, status, headers):
        self.status, self.headers = status, headers
        if status == 200 and self.request.operation == "SubscribeToShard":
            self.events = Events(self.tap.answers, self.request, headers)

    def data(self, data):
        if self.events is not None:
            self.events.receive(data)
        else:
            self.body += data

    def end(self):
        if not self.request.headers.get("x-amz-target", "").startswith(TARGET_PREFIX):
            self.deviates(f"{self.request.method} without a target is no call of the API")
        elif self.events is not None:
            self.events.end()
            self.note_events()
        else:
            found, error = self.tap.answers.whole(
                self.request, self.status, self.headers, bytes(self.body)
            )
            self.note(error or "ok")
            for deviation in found:
                self.deviates(deviation)

    def cut(self, by_client):
        """A client may leave; the endpoint may not."""
        if not by_client:
            self.deviates("the endpoint ended the connection before the end of its answer")
        if self.events is not None:
            self.note_events()

    def note_events(self):
        self.note("ok")
        for name, count in self.events.counts.items():
            self.note(name, count)
        for deviation in self.events.deviations:
            self.deviates(deviation)

    def note(self, outcome, count=1):
        content_type = self.request.headers.get("content-type", "")
        encoding = "cbor" if "cbor" in content_type else "json"
        place = (self.client, self.request.http, encoding, self.request.operation, outcome)
        self.tap.observed[place] += count

    def deviates(self, what):
        self.tap.deviates(f"{self.client}: {self.request.operation} ({self.status}): {what}")


class Tap:
    """What was seen of all clients."""

    def __init__(self, port):
        self.port = port
        self.answers = Answers()
        self.observed = Counter()
        self.deviations = []
        self.under_way = set()

    def deviates(self, what):
        if len(self.deviations) < KEPT_MAX:
            self.deviations.append(what)

    async def listen(self, client):
        async def serve(reader, writer):
            task = asyncio.current_task()
            self.under_way.add(task)
            try:
                await self.serve(client, reader, writer)
            except asyncio.CancelledError:
                # `finish` waits for nobody.
                pass
            finally:
                self.under_way.discard(task)

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        return server.sockets[0].getsockname()[1]

    async def serve(self, client, client_reader, client_writer):
        server_reader, server_writer = await asyncio.open_connection("127.0.0.1", self.port)
        connection = Connection(lambda request: Exchange(self, client, request))
        broken = False

        def watch(see, *seen):
            # What cannot be read deviates; it is handed on all the same.
            nonlocal broken
            if broken:
                return
            try:
                see(*seen)
            except Exception:
                broken = True
                self.deviates(f"{client}: {traceback.format_exc()}")

        async def relay(reader, writer, see, by_client):
            try:
                while data := await read(reader):
                    watch(see, data)
                    writer.write(data)
                    await writer.drain()
                watch(connection.cut, by_client)
                writer.write_eof()
            except OSError:
                # Whom it was meant for is gone.
                watch(connection.cut, not by_client)

        try:
            await asyncio.gather(
                relay(client_reader, server_writer, connection.from_client, True),
                relay(server_reader, client_writer, connection.from_server, False),
            )
        finally:
            client_writer.close()
            server_writer.close()

    async def finish(self):
        """Waits for the connections of clients that are gone, and cuts the others."""
        if self.under_way:
            _, left = await asyncio.wait(self.under_way, timeout=1)
            for task in left:
                task.cancel()
            await asyncio.gather(*left, return_exceptions=True)
        observed = [[place, count] for place, count in sorted(self.observed.items())]
        return {"observed": observed, "deviations": self.deviations}


async def main():
    port, *clients = sys.argv[1:]
    tap = Tap(int(port))
    ports = {client: await tap.listen(client) for client in clients}
    print(json.dumps(ports), flush=True)
    await asyncio.to_thread(sys.stdin.read)
    print(json.dumps(await tap.finish()), flush=True)


if __name__ == "__main__":
    asyncio.run(main())
