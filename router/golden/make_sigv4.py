"""Makes sigv4-botocore.json: requests signed by the real botocore, which the router must accept.

    pip install botocore==1.43.11
    python3 make_sigv4.py > sigv4-botocore.json

Nothing is sent: requests of the client are caught when they are ready to leave, the others are
signed by botocore's signers alone. The clock stands still, so the output never changes.
"""

import datetime
import json
import sys
from unittest import mock

import botocore.auth
import botocore.session
from botocore.awsrequest import AWSRequest, AWSResponse
from botocore.config import Config
from botocore.credentials import Credentials

NOW = datetime.datetime(2026, 2, 3, 4, 5, 6, tzinfo=datetime.timezone.utc)
ACCESS_KEY_ID = "AKIATHALWEGEXAMPLE01"
# The documentation's example of a secret, and a token made for this file: neither opens anything.
SECRET = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY"
TOKEN = "IQoJb3JpZ2luX2VjEXAMPLE//////////token+with/signs=="
TARGET = "Kinesis_20131202.ListStreams"
JSON = "application/x-amz-json-1.1"

vectors = []


def text(value):
    return value.decode("utf-8") if isinstance(value, bytes) else str(value)


def record(name, method, url, headers, body, token, accepted=True):
    scheme_end = url.index("://") + 3
    path_at = url.find("/", scheme_end)
    path_at = len(url) if path_at < 0 else path_at
    pairs = [[text(key), text(value)] for key, value in headers.items()]
    if not any(key.lower() == "host" for key, _ in pairs):
        pairs.insert(0, ["Host", botocore.auth._host_from_url(url)])
    vectors.append(
        {
            "name": name,
            "accepted": accepted,
            "session_token": token,
            "method": method,
            "uri": url[path_at:] or "/",
            "headers": pairs,
            "body": text(body or b""),
        }
    )


def from_client(name, endpoint, token, operation, **arguments):
    session = botocore.session.Session()
    session.set_credentials(ACCESS_KEY_ID, SECRET, token)
    client = session.create_client(
        "kinesis",
        region_name="eu-central-1",
        endpoint_url=endpoint,
        # The client's own would name the machine.
        config=Config(user_agent="botocore"),
    )

    def catch(request, **_):
        record(name, request.method, request.url, request.headers, request.body, token)
        answer = AWSResponse(request.url, 200, {"content-type": JSON}, None)
        answer._content = b"{}"
        return answer

    client.meta.events.register("before-send.kinesis", catch)
    getattr(client, operation)(**arguments)


def signed(name, signer, method, url, headers, body, token=None, accepted=True, context=None):
    request = AWSRequest(method=method, url=url, data=body)
    for key, value in headers:
        request.headers.add_header(key, value)
    request.context.update(context or {})
    signer(Credentials(ACCESS_KEY_ID, SECRET, token)).add_auth(request)
    # The query signer moves what the body says into the query and leaves the body empty.
    record(name, method, request.url, request.headers, request.data, token, accepted)


def by_header(credentials):
    return botocore.auth.SigV4Auth(credentials, "kinesis", "us-east-1")


def by_query(expires):
    def signer(credentials):
        return botocore.auth.SigV4QueryAuth(credentials, "kinesis", "us-east-1", expires=expires)

    return signer


def main():
    headers = [("Content-Type", JSON), ("X-Amz-Target", TARGET)]
    local = "http://localhost:4567/"
    from_client("client, list", "http://localhost:4567", None, "list_streams", Limit=3)
    from_client(
        "client, https and session token, put",
        "https://streams.example.com",
        TOKEN,
        "put_record",
        StreamName="orders",
        PartitionKey="schlüssel",
        Data=b"\x00\x01\x02\xff" * 64,
    )
    from_client(
        "client, IPv6, many records",
        "http://[::1]:4567",
        None,
        "put_records",
        StreamARN="arn:aws:kinesis:eu-central-1:123456789012:stream/orders",
        Records=[{"PartitionKey": f"key {n}", "Data": b"x" * n} for n in range(1, 20)],
    )
    signed("header", by_header, "POST", local, headers, b'{"Limit":1}')
    signed("header, empty body", by_header, "POST", local, headers, b"")
    signed("header, session token", by_header, "POST", local, headers, b"{}", TOKEN)
    signed("header, Date instead of X-Amz-Date", by_header, "POST", local,
           headers + [("Date", "replaced")], b"{}")
    signed("header, values folded and joined", by_header, "POST", local,
           headers + [("My-Header", "  a   b  "), ("My-Header", 'c   "d   e"'), ("My-Header", "")],
           b"{}")
    signed("header, payload hash named", by_header, "POST", local,
           headers + [("X-Amz-Content-SHA256",
                       "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a")], b"{}")
    signed("header, query of any order", by_header, "POST",
           local + "?b=2&a=1&a=0&B=3&empty=&none&x=%2F%20~", headers, b"{}")
    signed("header, path encoded twice and normalized", by_header, "POST",
           local + "a%20b/./c/../d//e%2Ff/", headers, b"{}")
    signed("header, payload not signed", by_header, "POST", "https://localhost:4567/", headers,
           b"{}", accepted=False, context={"payload_signing_enabled": False})
    signed("query", by_query(300), "POST", local, headers[1:], b'{"Limit":1}')
    signed("query, session token", by_query(60), "POST", local, headers[1:], b"{}", TOKEN)
    signed("query, further parameters", by_query(3600), "POST", local + "?z=1&A=b%20c&a=",
           headers[1:], b"{}")
    json.dump(vectors, sys.stdout, indent=1, ensure_ascii=False)
    sys.stdout.write("\n")


if __name__ == "__main__":
    with (
        mock.patch("botocore.auth.get_current_datetime", lambda *_, **__: NOW),
        mock.patch("botocore.endpoint.uuid.uuid4", lambda: "00000000-0000-4000-8000-000000000000"),
    ):
        main()
