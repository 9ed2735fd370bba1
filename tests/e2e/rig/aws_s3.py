"""S3 at the front door of the fake AWS: who signed the URL, whether they may, whether the bytes are those that the sum says;
then the request goes on to moto, signed anew by the auditor, because moto does not check signatures in a query."""
import base64
import hashlib
import http.client
import urllib.parse

import aws_signing
from aws_signing import Refused

# Headers of a request that count, and of an answer that its client needs.
ASKED = ("Host", "Range", "If-Range", "If-Match", "Content-Type")
KEPT = ("Content-Type", "Content-Range", "Content-Length", "ETag", "Last-Modified", "Accept-Ranges")
SUM = "x-amz-checksum-sha256"
PATIENCE_SECONDS = 120


def action(call):
    """The names of the actions that a policy must allow."""
    path, _, query = call.path.partition("?")
    is_object = path.strip("/").count("/") >= 1
    if call.method in ("GET", "HEAD"):
        return ["GetObject"] if is_object else ["ListBucket"]
    if call.method == "PUT":
        return ["PutObject", "GetObject"] if call.headers.get("x-amz-copy-source") else ["PutObject"]
    return ["DeleteObject"]


def hand_on(door, call):
    """(status, body, headers) of what moto says to a request that is in order."""
    key = aws_signing.check_query(door.store.keys, call.method, call.path, call.headers)
    for name in action(call):
        if not door.store.may(key, f"s3:{name}") and not door.store.may(key, "s3:*"):
            raise Refused(403, "AccessDenied", f"User is not authorized to perform: s3:{name}")
    wanted = call.headers.get(SUM)
    if wanted and base64.b64encode(hashlib.sha256(call.raw).digest()).decode() != wanted:
        raise Refused(400, "BadDigest", "The SHA256 you specified did not match the calculated checksum.")
    path = aws_signing.without_signature(call.path)
    headers = {name: call.headers[name] for name in ASKED if call.headers.get(name)}
    headers |= {name: value for name, value in call.headers.items() if name.lower().startswith("x-amz-")}
    headers = aws_signing.sign_s3(door.store.auditor, call.region, call.method, path, headers, call.raw)
    connection = http.client.HTTPConnection(*door.store.address, timeout=PATIENCE_SECONDS)
    try:
        connection.putrequest(call.method, path, skip_host=True, skip_accept_encoding=True)
        for name, value in headers.items():
            if name.lower() != "content-length":
                connection.putheader(name, value)
        connection.putheader("Content-Length", str(len(call.raw)))
        connection.endheaders(call.raw)
        got = connection.getresponse()
        kept = {name: got.headers[name] for name in KEPT if got.headers[name]}
        kept |= {name: value for name, value in got.headers.items() if name.lower().startswith("x-amz-")}
        body = got.read()
        if call.method != "HEAD":
            kept.pop("Content-Length", None)
        return got.status, body, kept
    finally:
        connection.close()


def error(refused):
    """An error as S3 says it."""
    body = f"<?xml version=\"1.0\"?>\n<Error><Code>{refused.code}</Code><Message>{refused.message}</Message></Error>"
    return refused.status, body.encode(), {"Content-Type": "application/xml"}


def name_of(call):
    """What the list of calls says of one."""
    return f"{call.method} {urllib.parse.unquote(call.path.partition('?')[0])}"
