"""Who signed a request, checked with botocore: for what the server behind the fake AWS cannot check itself."""
import base64
import datetime
import json
import re
import urllib.parse

from botocore.auth import S3SigV4Auth, S3SigV4QueryAuth, SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

SCOPE = re.compile(r"Credential=([^/,\s]+)/(\d{8})/([^/,\s]+)/([^/,\s]+)/aws4_request")


class Refused(Exception):
    """What AWS answers: an HTTP status, an error code and a message."""

    def __init__(self, status, code, message):
        super().__init__(message)
        self.status, self.code, self.message = status, code, message


def scope(authorization):
    """(access key, region, signing name); Nones where there is no Signature Version 4."""
    found = SCOPE.search(authorization or "")
    return (found[1], found[3], found[4]) if found else (None, None, None)


def part(authorization, name):
    found = re.search(rf"{name}=([^,\s]+)", authorization)
    return found[1] if found else ""


def check(keys, method, path, headers, body):
    """The access key that signed; `keys` is {access key: (secret, session token or None)}.

    The body is what was sent, compressed or not: that is what is signed."""
    authorization = headers.get("Authorization", "")
    key, region, service = scope(authorization)
    if key is None:
        raise Refused(403, "MissingAuthenticationToken", "The request has no signature.")
    if key not in keys:
        raise Refused(403, "InvalidClientTokenId", "The security token included in the request is invalid.")
    secret, token = keys[key]
    names = part(authorization, "SignedHeaders").split(";")
    if headers.get("X-Amz-Security-Token") != token or (token and "x-amz-security-token" not in names):
        raise Refused(403, "InvalidClientTokenId", "The security token included in the request is invalid.")
    signed = {name: headers.get(name, "") for name in names}
    request = AWSRequest(method=method, url=f"http://{headers.get('Host')}{path}", data=body, headers=signed)
    request.context["timestamp"] = headers.get("X-Amz-Date", "")
    signer = SigV4Auth(Credentials(key, secret, token), service, region)
    right = signer.signature(signer.string_to_sign(request, signer.canonical_request(request)), request)
    if "host" not in names or "x-amz-date" not in names or right != part(authorization, "Signature"):
        raise Refused(403, "SignatureDoesNotMatch", "The request signature we calculated does not match the signature you "
                                                    "provided.")
    return key


LONGEST_SECONDS = 7 * 86400


def query_scope(path):
    """The same of a signature in the query, as S3's URLs have it."""
    credential = query_of(path).get("X-Amz-Credential", "").split("/")
    return (credential[0], credential[2], credential[3]) if len(credential) == 5 else (None, None, None)


def query_of(path):
    return dict(urllib.parse.parse_qsl(path.partition("?")[2], keep_blank_values=True))


def without_signature(path):
    """The path, and of its query what is not the signature's."""
    path, _, query = path.partition("?")
    rest = [pair for pair in query.split("&") if pair and not pair.startswith("X-Amz-")]
    return path + ("?" + "&".join(rest) if rest else "")


def check_query(keys, method, path, headers, now=None):
    """The access key that signed a URL of S3's. Every `x-amz-` header must be signed, and the URL must not be over."""
    query = query_of(path)
    key, region, service = query_scope(path)
    if key is None or query.get("X-Amz-Algorithm") != "AWS4-HMAC-SHA256":
        raise Refused(403, "AccessDenied", "The request has no signature.")
    if key not in keys:
        raise Refused(403, "InvalidAccessKeyId", "The AWS Access Key Id you provided does not exist in our records.")
    secret, token = keys[key]
    if query.get("X-Amz-Security-Token") != token:
        raise Refused(400, "InvalidToken", "The provided token is malformed or otherwise invalid.")
    names = query.get("X-Amz-SignedHeaders", "").split(";")
    unsigned = [name for name in headers.keys() if name.lower().startswith("x-amz-") and name.lower() not in names]
    if "host" not in names or unsigned:
        raise Refused(403, "AccessDenied", f"There were headers present in the request which were not signed: {unsigned}")
    seconds = int(query.get("X-Amz-Expires", "0"))
    began = datetime.datetime.strptime(query["X-Amz-Date"], "%Y%m%dT%H%M%SZ").replace(tzinfo=datetime.timezone.utc)
    now = now or datetime.datetime.now(datetime.timezone.utc)
    if not 0 < seconds <= LONGEST_SECONDS or not began - datetime.timedelta(minutes=15) < now < began + datetime.timedelta(seconds=seconds):
        raise Refused(403, "AccessDenied", "Request has expired")
    bare, _, text = path.partition("?")
    rest = "&".join(pair for pair in text.split("&") if not pair.startswith("X-Amz-Signature="))
    signed = {name: headers.get(name, "") for name in names}
    request = AWSRequest(method=method, url=f"http://{headers.get('Host')}{bare}?{rest}", headers=signed)
    request.context["timestamp"] = query["X-Amz-Date"]
    signer = S3SigV4QueryAuth(Credentials(key, secret, token), service, region, expires=seconds)
    right = signer.signature(signer.string_to_sign(request, signer.canonical_request(request)), request)
    if right != query.get("X-Amz-Signature"):
        raise Refused(403, "SignatureDoesNotMatch", "The request signature we calculated does not match the signature you "
                                                    "provided.")
    return key


def sign_s3(key, region, method, path, headers, body):
    """The headers of the same request to S3, signed anew in a header."""
    request = AWSRequest(method=method, url=f"http://{headers['Host']}{path}", data=body, headers=dict(headers.items()))
    S3SigV4Auth(Credentials(*key), "s3", region).add_auth(request)
    return dict(request.headers.items())


def sign(keys, key, region, service, path, headers, body):
    """The headers of the same POST with this body, signed anew."""
    secret, token = keys[key]
    kept = {name: headers[name] for name in ("Host", "Content-Type", "X-Amz-Target") if headers.get(name)}
    request = AWSRequest(method="POST", url=f"http://{headers['Host']}{path}", data=body, headers=kept)
    SigV4Auth(Credentials(key, secret, token), service, region).add_auth(request)
    return dict(request.headers.items())


def check_instance(identity, authorization):
    """The id of the instance that proves itself by its identity document, as cfn-signal does it without credentials."""
    if identity is None:
        raise Refused(403, "AccessDenied", "No instance is known by its identity document.")
    document, _, signature = authorization.removeprefix("CFN_V1 ").partition(":")
    try:
        text = base64.b64decode(document, validate=True).decode()
    except ValueError as error:
        raise Refused(403, "InvalidClientTokenId", "The identity document is not base64.") from error
    if text != identity["document"] or signature != identity["signature"].replace("\n", ""):
        raise Refused(403, "SignatureDoesNotMatch", "The identity document is not the instance's.")
    return json.loads(text)["instanceId"]
