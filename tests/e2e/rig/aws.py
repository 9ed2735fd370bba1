#!/usr/bin/env python3
"""A fake AWS for tests: CloudWatch, CloudWatch Logs, CloudFormation, Auto Scaling, EC2, SNS, EventBridge, and a webhook.

    aws.py [--netns PATH] [--port N] [--ready FILE]

As a program it says on one line of standard output (and in FILE) where it listens and whose keys it knows, as JSON, and
ends when its standard input does.  As a module, `Aws.start()` starts that program with the right packages, and the
methods of what it returns are those of the control path, which any language can use:

    curl -d '{"call": "fault", "with": {"kind": "throttle", "seconds": 60}}' http://127.0.0.1:PORT/control

aws_faults.py has the faults, aws_door.py the calls, aws_store.py what is read back.  Needs nothing but Python to be
imported, so that tests can use it where the packages are not."""
import argparse
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, HERE)
import environments  # noqa: E402

# Never through a proxy: it is on this machine.
OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))
ENDPOINTS = ("CLOUDWATCH", "CLOUDWATCH_LOGS", "CLOUDFORMATION", "AUTO_SCALING", "EC2", "SNS", "EVENTBRIDGE")
START_SECONDS = 120


class Aws:
    """A fake AWS that runs somewhere, by its address.  Whatever the control path knows is a method:
    `aws.metrics(namespace=…)`, `aws.fault(kind="slow", delay=30)`, `aws.clear()`, `aws.calls(service="logs")`, …"""

    def __init__(self, url, process=None):
        self.url, self.process = url, process

    @classmethod
    def start(cls, *arguments):
        environment = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
        process = subprocess.Popen([environments.python(*environments.MOTO), "-B", os.path.join(HERE, "aws.py"), *arguments],
                                   stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
        line = process.stdout.readline()
        if not line:
            raise SystemExit(f"the fake AWS did not start: status {process.wait()}")
        return cls(json.loads(line)["url"], process)

    def close(self):
        if self.process:
            self.process.stdin.close()
            self.process.wait(timeout=10)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def __getattr__(self, name):
        if name.startswith("_"):
            raise AttributeError(name)
        return lambda **arguments: self.ask(name, arguments)

    def ask(self, name, arguments):
        body = json.dumps({"call": name, "with": arguments}).encode()
        try:
            with OPENER.open(f"{self.url}/control", body, timeout=60) as answer:
                return json.load(answer)["result"]
        except urllib.error.HTTPError as error:
            raise ValueError(json.load(error)["error"]) from error

    def wait(self, seconds=START_SECONDS):
        """Until it listens."""
        until = time.monotonic() + seconds
        host, port = self.url.removeprefix("http://").split(":")
        while True:
            try:
                socket.create_connection((host, int(port)), timeout=1).close()
                return self
            except OSError:
                if time.monotonic() > until:
                    raise
                time.sleep(0.05)

    # -- what a test hands to the program under test -----------------------------------------------------------------

    def environment(self, who="writer"):
        """The variables by which a program becomes that user; `None` gives it no credentials."""
        found = {"AWS_ENDPOINT_URL": self.url}
        if who:
            key, secret, token = self.keys()[who]
            found |= {"AWS_ACCESS_KEY_ID": key, "AWS_SECRET_ACCESS_KEY": secret}
            found |= {"AWS_SESSION_TOKEN": token} if token else {}
        return found

    def role_items(self, who="role", role="gpu-node"):
        """What the metadata service of an instance with a role says, by path; `powerless` has a role that may do nothing."""
        key, secret, token = self.keys()[who]
        answer = {"Code": "Success", "LastUpdated": "2026-11-23T00:00:00Z", "Type": "AWS-HMAC", "AccessKeyId": key,
                  "SecretAccessKey": secret, "Token": token, "Expiration": "2099-01-01T00:00:00Z"}
        path = "meta-data/iam/security-credentials"
        return {path: role, f"{path}/{role}": json.dumps(answer)}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--netns", help="network namespace in which the socket is made")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--ready", help="a file that is written once it listens")
    args = parser.parse_args()
    environments.become(environments.MOTO)
    from aws_door import Door  # noqa: PLC0415 (needs the packages)
    from aws_store import Store  # noqa: PLC0415
    door = Door(Store())
    port = door.listen(args.netns, args.port)
    line = json.dumps({"url": f"http://127.0.0.1:{port}", "port": port, **door.keys()})
    if args.ready:
        with open(f"{args.ready}.new", "w", encoding="utf-8") as out:
            out.write(line)
        os.replace(f"{args.ready}.new", args.ready)
    print(line, flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
