"""The front door of the fake AWS: one port for all services, told apart as AWS's own names for them would do.

It hands requests on unchanged (the Host header, too, for it is signed), writes down each call, and meets them with faults.
What the server behind it lacks it answers itself, after it has checked the signature: SignalResource,
CompleteLifecycleAction, RecordLifecycleActionHeartbeat.  Bodies that are compressed are checked here and handed on
unpacked and signed anew, because that server checks the signature of the unpacked body.

`/webhook/…` takes JSON from anybody, and faults happen there as well (service `webhook`).  `/control` is for the tests."""
import gzip
import http.client
import http.server
import json
import socket
import socketserver
import struct
import threading
import time
import urllib.parse
import uuid
import zlib

import aws_limits
import aws_s3
import aws_signing
from aws_faults import Faults
from aws_signing import Refused
from network import listen_in

CONTROL, WEBHOOK = "/control", "/webhook/"
# Signing name: the service as the tests call it.
NAMES = {"monitoring": "cloudwatch"}
IAM_PREFIXES = {"cloudwatch": "cloudwatch", "autoscaling": "autoscaling", "cloudformation": "cloudformation"}
THROTTLED = {"ec2": "RequestLimitExceeded"}
RETRY_AFTER_SECONDS = 1
PATIENCE_SECONDS = 120
HANDED_ON = ("Content-Type", "x-amzn-RequestId", "x-amzn-query-error", "Date")
SIGNAL_STATES, LIFECYCLE_RESULTS = ("SUCCESS", "FAILURE"), ("CONTINUE", "ABANDON")


class Call:
    """A request, and what is known of it."""

    def __init__(self, method, path, headers, raw):
        self.method, self.path, self.headers, self.raw = method, path, headers, raw
        self.authorization = headers.get("Authorization", "")
        self.key, self.region, signing = aws_signing.scope(self.authorization)
        if self.key is None and "X-Amz-Credential=" in path:
            self.key, self.region, signing = aws_signing.query_scope(path)
        self.signing = signing
        self.service = NAMES.get(signing, signing)
        if self.authorization.startswith("CFN_V1 "):
            self.key, self.service = "CFN_V1", "cloudformation"
        self.is_packed = "gzip" in headers.get("Content-Encoding", "")
        try:
            self.body = gzip.decompress(raw) if self.is_packed else raw
        except (OSError, EOFError, zlib.error):
            self.body = b""
        target = headers.get("X-Amz-Target", "")
        self.is_json, self.parameters = bool(target), {}
        if target:
            self.action = target.rpartition(".")[2]
        elif path.startswith(WEBHOOK):
            self.service, self.action, self.is_json = "webhook", path.removeprefix(WEBHOOK), True
        else:
            self.parameters = dict(urllib.parse.parse_qsl(self.body.decode(errors="replace"), keep_blank_values=True))
            self.action = aws_s3.name_of(self) if signing == "s3" else self.parameters.get("Action", "")


class Answer:
    def __init__(self, status, body, headers=()):
        self.status, self.body, self.headers = status, body, dict(headers)


def error(call, status, code, message, headers=()):
    """An error in the form that the call's service gives it."""
    if call.service == "webhook":
        return Answer(status, message.encode(), {"Content-Type": "text/plain", **dict(headers)})
    if call.is_json:
        body = json.dumps({"__type": f"com.amazonaws#{code}", "message": message})
        return Answer(status, body.encode(), {"Content-Type": "application/x-amz-json-1.1", **dict(headers)})
    who = "Sender" if status < 500 else "Receiver"
    request = uuid.uuid4()
    if call.service == "ec2":
        body = (f"<Response><Errors><Error><Code>{code}</Code><Message>{message}</Message></Error></Errors>"
                f"<RequestID>{request}</RequestID></Response>")
    else:
        body = (f"<ErrorResponse><Error><Type>{who}</Type><Code>{code}</Code><Message>{message}</Message></Error>"
                f"<RequestId>{request}</RequestId></ErrorResponse>")
    return Answer(status, f'<?xml version="1.0"?>\n{body}'.encode(), {"Content-Type": "text/xml", **dict(headers)})


def throttled(call, turn):
    """Three ways in which AWS says that it is too much, in turns."""
    if turn % 3 == 0 and call.service != "webhook":
        code = THROTTLED.get(call.service, "ThrottlingException" if call.is_json else "Throttling")
        return error(call, 503 if call.service == "ec2" else 400, code, "Rate exceeded")
    if turn % 3 == 1:
        return error(call, 429, "TooManyRequestsException", "Too many requests")
    return error(call, 503, "ServiceUnavailable", "Please slow down", {"Retry-After": str(RETRY_AFTER_SECONDS)})


class Door:
    def __init__(self, store):
        self.store, self.faults, self.guard = store, Faults(), threading.Lock()
        self.all_calls, self.all_signals, self.hooks = [], [], []
        self.identity_of_instance, self.completed = None, set()
        self.servers = []

    # -- listening -----------------------------------------------------------------------------------------------------

    def listen(self, netns=None, port=0):
        """Listens on 127.0.0.1, of the network namespace at `netns` if there is one; the port."""
        server = listen_in(netns, lambda: Server(("127.0.0.1", port), Handler))
        server.door = self
        self.servers.append(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return server.server_address[1]

    # -- a call --------------------------------------------------------------------------------------------------------

    def handle(self, call):
        """The answer; None closes the connection."""
        began, entry = time.time(), {
            "at": time.time(), "service": call.service, "action": call.action, "bytes": len(call.raw), "key": call.key,
            "packed": call.is_packed, "fault": None, "body": call.body.decode(errors="replace")}
        met = self.faults.meet(call.service, call.action)
        if met:
            entry["fault"] = met[0]
        answer = self.answer(call, met)
        entry["seconds"] = time.time() - began
        entry["status"] = answer.status if answer else 0
        entry["items"] = taken(call, answer) if answer else 0
        with self.guard:
            self.all_calls.append(entry)
        return answer

    def answer(self, call, met):
        kind, values, turn = met or (None, {}, 0)
        if kind == "down":
            return None
        if kind == "throttle":
            return throttled(call, turn)
        if kind == "refuse":
            return error(call, values["status"], values["code"], "The test says so")
        try:
            answer = self.do(call, kind)
        except Refused as refused:
            answer = error(call, refused.status, refused.code, refused.message)
        if kind == "slow":
            time.sleep(values["delay"])
        return None if kind == "lost" else answer

    def do(self, call, kind):
        if call.service == "webhook":
            return self.webhook(call)
        if call.service == "s3":
            try:
                return Answer(*aws_s3.hand_on(self, call))
            except Refused as refused:
                return Answer(*aws_s3.error(refused))
        if sentence := aws_limits.broken(call.action, call.body):
            raise Refused(400, "InvalidParameterException" if call.is_json else "InvalidParameterValue", sentence)
        if call.action in OWN:
            return OWN[call.action](self, call)
        if kind == "half":
            return self.half(call)
        if kind == "partial":
            return self.partial(call)
        return self.hand_on(call)

    def hand_on(self, call):
        """To the server behind."""
        headers, body = dict(call.headers.items()), call.raw
        if call.is_packed:
            key = self.signer(call)
            body = call.body
            headers = aws_signing.sign(self.store.keys, key, call.region, call.signing, call.path, call.headers, body)
        # Its Werkzeug keeps a connection open or not; a new one for each call is the same for all.
        connection = http.client.HTTPConnection(*self.store.address, timeout=PATIENCE_SECONDS)
        try:
            connection.putrequest(call.method, call.path, skip_host=True, skip_accept_encoding=True)
            for name, value in headers.items():
                if name.lower() not in ("content-length", "connection", "transfer-encoding"):
                    connection.putheader(name, value)
            connection.putheader("Content-Length", str(len(body)))
            connection.endheaders(body)
            got = connection.getresponse()
            kept = {name: got.headers[name] for name in HANDED_ON if got.headers[name]}
            return Answer(got.status, got.read(), kept)
        finally:
            connection.close()

    def signer(self, call):
        return aws_signing.check(self.store.keys, call.method, call.path, call.headers, call.raw)

    def permitted(self, call):
        """The signer, if it may do this."""
        key, action = self.signer(call), f"{IAM_PREFIXES.get(call.service, call.service)}:{call.action}"
        if not self.store.may(key, action):
            code = "AccessDeniedException" if call.is_json else "AccessDenied"
            raise Refused(403, code, f"User is not authorized to perform: {action}")
        return key

    # -- faults that need to know what a call means ------------------------------------------------------------------

    def half(self, call):
        self.permitted(call)
        batch = json.loads(call.body)
        kept = (len(batch["logEvents"]) + 1) // 2
        if kept == len(batch["logEvents"]):
            return self.hand_on(call)
        logs = self.store.client("logs")
        try:
            self.store.put_log_events(batch, kept)
        except logs.exceptions.ResourceNotFoundException:
            return self.hand_on(call)  # its answer is the right one
        body = {"nextSequenceToken": "0", "rejectedLogEventsInfo": {"tooNewLogEventStartIndex": kept}}
        return Answer(200, json.dumps(body).encode(), {"Content-Type": "application/x-amz-json-1.1"})

    def partial(self, call):
        self.permitted(call)
        batch = json.loads(call.body)
        kept = len(batch["Entries"]) // 2
        done = self.store.put_events(batch, kept)
        failed = [{"ErrorCode": "InternalFailure", "ErrorMessage": "The test says so"}] * (len(batch["Entries"]) - kept)
        body = {"FailedEntryCount": len(failed), "Entries": [{"EventId": entry["EventId"]} for entry in done] + failed}
        return Answer(200, json.dumps(body).encode(), {"Content-Type": "application/x-amz-json-1.1"})

    # -- what the server behind lacks ----------------------------------------------------------------------------------

    def signal_resource(self, call):
        if call.key == "CFN_V1":
            instance = aws_signing.check_instance(self.identity_of_instance, call.authorization)
            if call.parameters.get("UniqueId") != instance:
                raise Refused(400, "ValidationError", f"{instance} cannot signal for {call.parameters.get('UniqueId')}")
        else:
            self.permitted(call)
        self.take_signal(call, {"StackName": None, "LogicalResourceId": None, "UniqueId": None, "Status": SIGNAL_STATES},
                         "2010-05-15")
        return query_answer(call, "http://cloudformation.amazonaws.com/doc/2010-05-15/", has_result=False)

    def lifecycle(self, call):
        self.permitted(call)
        of = tuple(call.parameters.get(name) for name in ("AutoScalingGroupName", "LifecycleHookName", "InstanceId"))
        with self.guard:
            if of in self.completed:
                raise Refused(400, "ValidationError", f"No active Lifecycle Action found with instance ID {of[2]}")
        wanted = {"AutoScalingGroupName": None, "LifecycleHookName": None, "InstanceId": None}
        if call.action == "CompleteLifecycleAction":
            wanted["LifecycleActionResult"] = LIFECYCLE_RESULTS
        self.take_signal(call, wanted, "2011-01-01")
        if call.action == "CompleteLifecycleAction":
            with self.guard:
                self.completed.add(of)
        return query_answer(call, "http://autoscaling.amazonaws.com/doc/2011-01-01/", has_result=True)

    def take_signal(self, call, wanted, version):
        for name, values in {**wanted, "Version": (version,)}.items():
            value = call.parameters.get(name)
            if not value or (values and value not in values):
                raise Refused(400, "ValidationError", f"{name} is {value!r}")
        with self.guard:
            self.all_signals.append({"at": time.time(), "action": call.action, "key": call.key,
                                     **{name: call.parameters[name] for name in wanted}})

    def webhook(self, call):
        if call.method != "POST":
            return Answer(405, b"")
        with self.guard:
            self.hooks.append({"at": time.time(), "path": call.path, "type": call.headers.get("Content-Type"),
                               "body": call.body.decode(errors="replace")})
        return Answer(204, b"")

    # -- the control path: {"call": name, "with": {…}} -------------------------------------------------------------------

    def control(self, body):
        asked = json.loads(body)
        name, arguments = asked["call"], asked.get("with", {})
        if name in READ_BACK:
            return getattr(self.store, name)(**arguments)
        if name not in CONTROLS:
            raise ValueError(f"there is no {name!r}")
        return CONTROLS[name](self, **arguments)

    def calls(self, service=None, action=None, bodies=False):
        with self.guard:
            found = [dict(call) for call in self.all_calls
                     if service in (None, call["service"]) and action in (None, call["action"])]
        for call in found:
            if not bodies:
                del call["body"]
        return found

    def signals(self):
        with self.guard:
            return list(self.all_signals)

    def webhooks(self):
        with self.guard:
            return list(self.hooks)

    def forget(self):
        """Calls, signals and webhooks; what was stored stays."""
        with self.guard:
            self.all_calls, self.all_signals, self.hooks = [], [], []

    def identity(self, document, signature):
        """The identity document of the instance that may signal without credentials, and its signature."""
        self.identity_of_instance = {"document": document, "signature": signature}

    def keys(self):
        names = "writer", "stranger", "role", "powerless", "bundler", "topic"
        return {name: getattr(self.store, name) for name in names}


OWN = {"SignalResource": Door.signal_resource, "CompleteLifecycleAction": Door.lifecycle,
       "RecordLifecycleActionHeartbeat": Door.lifecycle}
READ_BACK = {"flip", "metrics", "log_events", "embedded", "log_streams", "retention", "tags", "sns_messages", "events"}
NOTHING_TAKEN = {"CreateLogGroup", "CreateLogStream", "PutRetentionPolicy", "RecordLifecycleActionHeartbeat"}
CONTROLS = {"fault": lambda door, **how: door.faults.add(**how), "clear": lambda door: door.faults.clear(),
            "calls": Door.calls, "signals": Door.signals, "webhooks": Door.webhooks, "forget": Door.forget,
            "identity": Door.identity, "keys": Door.keys, "listen": Door.listen}


def taken(call, answer):
    """How many things the service has taken by this call: events, figures, signals."""
    if answer.status not in (200, 204) or call.action in NOTHING_TAKEN:
        return 0
    if call.action == "PutMetricData":
        return len(json.loads(call.body)["MetricData"])
    if call.action == "PutEvents":
        return len(json.loads(call.body)["Entries"]) - json.loads(answer.body)["FailedEntryCount"]
    if call.action == "PutLogEvents":
        rejected = json.loads(answer.body).get("rejectedLogEventsInfo", {})
        all_of_them = len(json.loads(call.body)["logEvents"])
        too_old = max(rejected.get("tooOldLogEventEndIndex", 0), rejected.get("expiredLogEventEndIndex", 0))
        return rejected.get("tooNewLogEventStartIndex", all_of_them) - too_old
    return 1


def query_answer(call, namespace, has_result):
    result = f"<{call.action}Result/>" if has_result else ""
    body = (f'<{call.action}Response xmlns="{namespace}">{result}<ResponseMetadata><RequestId>{uuid.uuid4()}</RequestId>'
            f"</ResponseMetadata></{call.action}Response>")
    return Answer(200, body.encode(), {"Content-Type": "text/xml"})


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *_):
        pass

    def body(self):
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        pieces = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            pieces.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(pieces)

    def do_POST(self):
        body = self.body()
        if self.path == CONTROL:
            return self.do_control(body)
        answer = self.server.door.handle(Call(self.command, self.path, self.headers, body))
        if answer is None:
            return self.hang_up()
        return self.send(answer)

    do_GET = do_PUT = do_DELETE = do_HEAD = do_POST

    def do_control(self, body):
        try:
            got, status = {"result": self.server.door.control(body)}, 200
        except Exception as told:  # whatever it is, the test shall see it
            got, status = {"error": f"{type(told).__name__}: {told}"}, 400
        self.send(Answer(status, json.dumps(got).encode(), {"Content-Type": "application/json"}))

    def send(self, answer):
        self.send_response_only(answer.status)
        for name, value in {"Date": self.date_time_string(), **answer.headers}.items():
            self.send_header(name, value)
        if answer.status != 204 and "Content-Length" not in answer.headers:
            self.send_header("Content-Length", str(len(answer.body)))
        self.end_headers()
        if answer.status != 204 and self.command != "HEAD":
            self.wfile.write(answer.body)

    def hang_up(self):
        """A reset, as from a server that died."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True


class Server(socketserver.ThreadingMixIn, http.server.HTTPServer):
    daemon_threads = allow_reuse_address = True
    request_queue_size = 128
    door = None

    def shutdown_request(self, request):
        self.close_request(request)  # without the polite end, which would come before the reset

    def handle_error(self, *_):
        pass  # a client that went away is part of the tests
