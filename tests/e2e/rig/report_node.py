"""An instance with a role, for tests of what it reports: a rehearsal's machine with a metadata service of its own, and the
deliverer that it leaves behind when its run is over."""
import json
import os
import signal
import subprocess
import sys
import time

import rehearsed
from check import equal, true

GROUP = "/gpu-bootstrap"
CONFIG = "/etc/gpu-bootstrap/reports.toml"
RESULT, DELIVERY = "/run/gpu-bootstrap/result.json", "/run/gpu-bootstrap/delivery.json"
SPOOL = "/var/lib/gpu-bootstrap/spool"
INSTANCE_TYPE, REGION = "g4dn.xlarge", "us-east-1"
TAG_KEY, HEARTBEAT_SECONDS = "gpu-bootstrap:state", 1
CONVERGED = 0
PATIENCE_SECONDS = 240


class Metadata:
    """The machine's metadata service; `items` can be changed while it lives."""

    port = 20_000

    def __init__(self, name, items):
        self.folder = os.path.join("/tmp", f"metadata-{name}")
        os.makedirs(self.folder)
        self.items = items
        self.write()
        Metadata.port = self.port = Metadata.port + 1
        ready = os.path.join(self.folder, "ready")
        program = os.path.join(os.path.dirname(os.path.abspath(__file__)), "metadata.py")
        self.process = subprocess.Popen(
            [sys.executable, "-B", program, "--netns", "/proc/self/ns/net", "--bind", "127.0.0.1", "--port", str(self.port),
             "--user-data", os.path.join(self.folder, "user-data"), "--log", os.path.join(self.folder, "log"),
             "--items", os.path.join(self.folder, "items"), "--ready", ready], stdin=subprocess.DEVNULL)
        until = time.monotonic() + 20
        while not os.path.exists(ready):
            true(time.monotonic() < until and self.process.poll() is None, "the metadata service does not start")
            time.sleep(0.01)

    def write(self, **more):
        self.items = {**self.items, **more}
        path = os.path.join(self.folder, "items")
        with open(f"{path}.new", "w", encoding="utf-8") as out:
            json.dump(self.items, out)
        os.replace(f"{path}.new", path)

    def url(self):
        return f"http://127.0.0.1:{self.port}"

    def close(self):
        self.process.kill()
        self.process.wait()


class Node:
    """An instance with a role, and its runs.  Its name makes its instance id, its namespace and its group."""

    count = 0

    def __init__(self, aws, name, report="", role=True):
        Node.count += 1
        self.aws, self.name, self.namespace = aws, name, f"Test/{name}"
        self.instance = f"i-{Node.count:017x}"
        self.machine = rehearsed.Machine(name)
        document = {"accountId": "123456789012", "architecture": "x86_64", "availabilityZone": f"{REGION}a",
                    "imageId": "ami-0abcdef1234567890", "instanceId": self.instance, "instanceType": INSTANCE_TYPE,
                    "privateIp": "10.0.0.23", "region": REGION, "version": "2017-09-30"}
        self.document = json.dumps(document, indent=2)
        items = {"dynamic/instance-identity/document": self.document, "meta-data/instance-id": self.instance}
        self.metadata = Metadata(name, {**items, **(aws.role_items() if role else {})})
        self.deliveries = []
        self.configure(report)

    def configure(self, report):
        """`report`: the lines of [report] besides the namespace."""
        own = "" if "cloudwatch =" in report else f'[report.cloudwatch]\nnamespace = "{self.namespace}"\n'
        self.put(CONFIG, f"[report]\n{report}\n{own}")

    def put(self, path, text, mode="w"):
        os.makedirs(os.path.dirname(self.machine.path(path)), exist_ok=True)
        with open(self.machine.path(path), mode, encoding="utf-8") as out:
            out.write(text)

    def environment(self):
        return {"AWS_ENDPOINT_URL": self.aws.url, "AWS_EC2_METADATA_SERVICE_ENDPOINT": self.metadata.url()}

    def run(self, *flags, expect=CONVERGED):
        """A run to its end: (its seconds, how many of them came after the work)."""
        began = time.monotonic()
        status, output = self.machine.run(*flags, **self.environment())
        seconds = time.monotonic() - began
        equal(status, expect, f"exit code ({output[-1500:]})")
        return seconds, seconds - self.result()["seconds"]

    def result(self):
        return json.loads(self.machine.read(RESULT))

    def channels(self):
        """{channel: how it stands}, of the last run's deliverer."""
        told = json.loads(self.machine.read(DELIVERY) or '{"channels": []}')
        return {about["channel"]: about for about in told["channels"]}

    def delivered(self, seconds=PATIENCE_SECONDS):
        """Waits until the last run's deliverer has ended; {channel: how it stands}."""
        until = time.monotonic() + seconds
        while self.deliverers():
            true(time.monotonic() < until, f"the deliverer does not end: {self.channels()}")
            time.sleep(0.05)
        self.deliveries.append(self.channels())
        return self.deliveries[-1]

    def all_sent(self):
        """Everything was delivered, and nothing waits."""
        for channel, about in self.delivered().items():
            equal((about["sentence"], about["waiting"], about["lost"]), ("sent", 0, 0), channel)
        self.spool_is_empty()

    def spool(self):
        folder = self.machine.path(SPOOL)
        return sorted(name for name in (os.listdir(folder) if os.path.isdir(folder) else []) if name.endswith(".json"))

    def spool_is_empty(self):
        equal(self.spool(), [], "the spool")

    def events(self):
        """What lies in the machine's log stream."""
        return [json.loads(event["message"]) for event in self.aws.log_events(group=GROUP, stream=self.instance)]

    def deliverers(self):
        """Processes that deliver for this machine."""
        found = []
        for pid in filter(str.isdigit, os.listdir("/proc")):
            try:
                with open(f"/proc/{pid}/cmdline", "rb") as source:
                    words = source.read().split(b"\0")
                if words[1:2] == [b"deliver"] and os.readlink(f"/proc/{pid}/root") == self.machine.root:
                    found.append(int(pid))
            except (FileNotFoundError, ProcessLookupError):
                continue
        return found

    def end_deliverers(self, by=signal.SIGKILL):
        for process in self.deliverers():
            os.kill(process, by)

    def close(self):
        self.end_deliverers()
        self.metadata.close()
        self.machine.close()
