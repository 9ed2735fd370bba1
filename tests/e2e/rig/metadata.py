#!/usr/bin/env python3
"""An EC2 instance metadata service, version 2 only, for one simulated g4dn.xlarge.

    metadata.py --netns PATH --bind ADDRESS --port N --user-data FILE --log FILE --ready FILE [--items FILE]

Strict where EC2 is: a token must be asked for by PUT with a TTL header and sent with every GET; requests that
passed a proxy are refused; user-data that does not exist is 404.  The user-data file is read at each request, so a
test can change it while the instance lives; so is the file of --items, a JSON object of further items, or of others than
those that stand here, by path: {"meta-data/iam/security-credentials": "role", …}.
"""
import argparse
import base64
import http.server
import json
import os
import re
import secrets
import socketserver
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from network import listen_in  # noqa: E402

INSTANCE_ID, INSTANCE_TYPE, REGION, ZONE = "i-0123456789abcdef0", "g4dn.xlarge", "us-east-1", "us-east-1a"
MAX_TTL = 21600
META_DATA = {
    "ami-id": "ami-0abcdef1234567890", "instance-id": INSTANCE_ID, "instance-type": INSTANCE_TYPE,
    "hostname": "ip-10-0-0-23.ec2.internal", "local-hostname": "ip-10-0-0-23.ec2.internal",
    "local-ipv4": "10.0.0.23", "mac": "0a:ff:d2:11:22:33", "placement/availability-zone": ZONE,
    "placement/region": REGION, "reservation-id": "r-0123456789abcdef0", "security-groups": "default",
    "services/domain": "amazonaws.com", "services/partition": "aws", "system": "nitro",
}
DOCUMENT = {
    "accountId": "123456789012", "architecture": "x86_64", "availabilityZone": ZONE, "billingProducts": None,
    "imageId": META_DATA["ami-id"], "instanceId": INSTANCE_ID, "instanceType": INSTANCE_TYPE, "kernelId": None,
    "pendingTime": "2025-01-01T00:00:00Z", "privateIp": "10.0.0.23", "region": REGION, "version": "2017-09-30",
}
TOKENS = {}


def card(mac, name, address=META_DATA["local-ipv4"]):
    """Items of an instance's only network card; cloud-init asks for all of them."""
    about = {"device-number": "0", "interface-id": "eni-0123456789abcdef0", "local-hostname": f"{name}.ec2.internal",
             "local-ipv4s": address, "mac": mac, "owner-id": DOCUMENT["accountId"],
             "security-group-ids": "sg-0123456789abcdef0", "security-groups": "default",
             "subnet-id": "subnet-0123456789abcdef0", "subnet-ipv4-cidr-block": "10.0.0.0/24",
             "vpc-id": "vpc-0123456789abcdef0", "vpc-ipv4-cidr-block": "10.0.0.0/16", "vpc-ipv4-cidr-blocks": "10.0.0.0/16"}
    return {f"meta-data/network/interfaces/macs/{mac}/{item}": text for item, text in about.items()}


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "EC2ws", ""
    disable_nagle_algorithm = True

    def log_message(self, *_):
        pass

    def answer(self, status, body="", kind="text/plain", headers=()):
        content = body if isinstance(body, bytes) else body.encode()
        with open(ARGS.log, "a", encoding="utf-8") as log:
            line = {"t": time.time(), "method": self.command, "path": self.path, "status": status}
            log.write(json.dumps(line) + "\n")
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        for name, value in headers:
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def do_PUT(self):
        if not re.fullmatch(r"/(latest|\d{4}-\d\d-\d\d)/api/token", self.path):
            return self.answer(405)
        if self.headers.get("X-Forwarded-For"):
            return self.answer(403)
        ttl = self.headers.get("X-aws-ec2-metadata-token-ttl-seconds", "")
        if not ttl.isdigit() or not 1 <= int(ttl) <= MAX_TTL:
            return self.answer(400)
        token = base64.urlsafe_b64encode(secrets.token_bytes(40)).decode()
        TOKENS[token] = time.time() + int(ttl)
        return self.answer(200, token, headers=[("X-Aws-Ec2-Metadata-Token-Ttl-Seconds", ttl)])

    def do_GET(self):
        if TOKENS.get(self.headers.get("X-aws-ec2-metadata-token"), 0) < time.time():
            return self.answer(401)
        matched = re.fullmatch(r"/(?:latest|\d{4}-\d\d-\d\d)/(.*)", self.path.split("?")[0])
        if not matched:
            return self.answer(404)
        path = matched[1].rstrip("/")
        if (item := self.items().get(path)) is not None:
            return self.answer(200, item)
        if path == "user-data":
            return self.user_data()
        if path == "dynamic/instance-identity/document":
            return self.answer(200, json.dumps(DOCUMENT, indent=2))
        if path.startswith("meta-data/") and path.removeprefix("meta-data/") in META_DATA:
            return self.answer(200, META_DATA[path.removeprefix("meta-data/")])
        if names := self.listing(path):
            return self.answer(200, "\n".join(names))
        return self.answer(404)

    def listing(self, folder):
        """The names directly below a path, as EC2 lists them: what has names below itself ends with a slash."""
        known = [f"meta-data/{name}" for name in META_DATA] + ["dynamic/instance-identity/document", *self.items()]
        below = [path.removeprefix(f"{folder}/").partition("/") for path in known if path.startswith(f"{folder}/")]
        folders = {name for name, slash, _ in below if slash}
        return sorted(f"{name}/" if name in folders else name for name in {name for name, _, _ in below})

    @staticmethod
    def items():
        if ARGS.items is None:
            return {}
        with open(ARGS.items, encoding="utf-8") as source:
            return json.load(source)

    def user_data(self):
        try:
            with open(ARGS.user_data, "rb") as source:
                return self.answer(200, source.read(), "application/octet-stream")
        except FileNotFoundError:
            return self.answer(404)


class Server(socketserver.ThreadingMixIn, http.server.HTTPServer):
    daemon_threads = allow_reuse_address = True

    def handle_error(self, *_):
        pass  # a client that was killed in the middle of a request is part of the tests


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    for option in ("netns", "bind", "user-data", "log", "ready"):
        parser.add_argument(f"--{option}", required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--items")
    ARGS = parser.parse_args()
    SERVER = listen_in(ARGS.netns, lambda: Server((ARGS.bind, ARGS.port), Handler))
    with open(ARGS.ready, "w", encoding="utf-8"):
        pass
    SERVER.serve_forever()
