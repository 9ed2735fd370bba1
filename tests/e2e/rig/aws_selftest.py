#!/usr/bin/env python3
"""Proves with boto3 that the fake AWS is one: right signatures pass, wrong ones and denied actions are refused, every fault
does what it says, and nothing that was written cannot be read back.  The last line is passed=K/N."""
import base64
import datetime
import gzip
import json
import os
import sys
import time
import urllib.error
import urllib.request

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import environments  # noqa: E402
from aws import OPENER, Aws  # noqa: E402

environments.become(environments.MOTO)

import boto3  # noqa: E402
import botocore.exceptions  # noqa: E402
from botocore.config import Config  # noqa: E402

INSTANCE = "i-0123456789abcdef0"
SERVICES = ["cloudwatch", "logs", "cloudformation", "autoscaling", "ec2", "sns", "events"]
# EC2 has its own answer to a signature that is wrong.
BY_EC2 = {"ec2": (401, "AuthFailure")}
QUERY = {"cloudformation", "autoscaling", "ec2", "sns"}


class Shop:
    """The fake AWS, with boto3 in front of it that never tries again."""

    def __init__(self, aws):
        self.aws, self.keys, self.count = aws, aws.keys(), 0

    def client(self, service, key=None, **options):
        key, secret, token = key or self.keys["writer"]
        config = Config(retries={"max_attempts": 0}, proxies={}, read_timeout=20, **options)
        return boto3.client(service, endpoint_url=self.aws.url, region_name="us-east-1", aws_access_key_id=key,
                            aws_secret_access_key=secret, aws_session_token=token, config=config)

    def name(self, what):
        self.count += 1
        return f"{what}{self.count}"

    def do(self, service, key=None, **options):
        """One call of each service, as the program under test makes it; what boto3 answers."""
        client = self.client(service, key, **options)
        if service == "cloudwatch":
            return client.put_metric_data(Namespace=self.name("N"), MetricData=[datum(1)])
        if service == "logs":
            return client.create_log_group(logGroupName=self.name("/gpu-bootstrap-"))
        if service == "cloudformation":
            return client.signal_resource(StackName="S", LogicalResourceId="R", UniqueId=INSTANCE, Status="SUCCESS")
        if service == "autoscaling":
            return client.complete_lifecycle_action(AutoScalingGroupName=self.name("G"), LifecycleHookName="H",
                                                    InstanceId=INSTANCE, LifecycleActionResult="CONTINUE")
        if service == "ec2":
            return client.create_tags(Resources=[INSTANCE], Tags=[{"Key": self.name("k"), "Value": "ready"}])
        if service == "sns":
            return client.publish(TopicArn=self.keys["topic"], Subject="S", Message="M")
        return client.put_events(Entries=[entry("{}")])


def datum(value):
    return {"MetricName": "Seconds", "Dimensions": [{"Name": "InstanceType", "Value": "g5.xlarge"}], "Value": value,
            "Unit": "Seconds", "Timestamp": datetime.datetime.now(datetime.timezone.utc)}


def entry(detail):
    return {"Source": "gpu-bootstrap", "DetailType": "T", "Detail": detail, "Resources": [f"arn:aws:ec2:::{INSTANCE}"]}


def equal(got, wanted, what):
    if got != wanted:
        raise AssertionError(f"{what}: got {got!r}, expected {wanted!r}")


def refused(call, status, *codes):
    """The call is refused in this way.  moto speaks XML even where JSON was asked for: then the code is in the message."""
    try:
        call()
    except botocore.exceptions.ClientError as error:
        got = error.response
        text = f"{got['Error'].get('Code')} {got['Error'].get('Message')}"
        equal(got["ResponseMetadata"]["HTTPStatusCode"], status, "status")
        if not any(code in text for code in codes):
            raise AssertionError(f"refused with {text}, expected one of {codes}") from error
        return got
    raise AssertionError(f"not refused, expected {codes}")


def cut(call):
    """The connection is closed before there is an answer."""
    try:
        call()
    except botocore.exceptions.HTTPClientError:
        return
    raise AssertionError("answered, though the connection was to be closed")


# -- signatures and rights -----------------------------------------------------------------------------------------------


def right_signatures_pass(shop):
    for who in ("writer", "role"):
        for service in SERVICES:
            shop.do(service, shop.keys[who])


def wrong_secrets_are_refused(shop):
    key, secret, _ = shop.keys["writer"]
    forged = (key, secret[:-1] + ("B" if secret.endswith("A") else "A"), None)
    for service in SERVICES:
        refused(lambda: shop.do(service, forged), *BY_EC2.get(service, (403, "SignatureDoesNotMatch")))
    refused(lambda: shop.do("cloudwatch", forged, request_min_compression_size_bytes=1), 403, "SignatureDoesNotMatch")


def unknown_keys_are_refused(shop):
    for service in SERVICES:
        unknown = ("AKIAUNKNOWNUNKNOWN00", "x", None)
        refused(lambda: shop.do(service, unknown), *BY_EC2.get(service, (403, "InvalidClientTokenId")))


def foreign_tokens_are_refused(shop):
    key, secret, token = shop.keys["role"]
    for service in ("cloudwatch", "cloudformation"):
        refused(lambda: shop.do(service, (key, secret, token[:-1])), 403, "InvalidClientTokenId", "InvalidToken")


def denied_actions_are_refused(shop):
    for who in ("stranger", "powerless"):
        for service in SERVICES:
            refused(lambda: shop.do(service, shop.keys[who]), 403, "AccessDenied")
    # The published policy is all that the writer has.
    refused(lambda: shop.client("ec2").describe_instances(), 403, "AccessDenied", "UnauthorizedOperation")
    refused(lambda: shop.client("logs").delete_log_group(logGroupName="/x"), 403, "AccessDenied")
    refused(lambda: shop.client("cloudwatch").list_metrics(), 403, "AccessDenied")


def what_was_signed_is_what_counts(shop):
    """A body or a host that is changed on its way is noticed."""
    for service in ("sns", "cloudformation", "cloudwatch"):
        client = shop.client(service)

        def tamper(request, **_):
            is_bytes = isinstance(request.body, bytes)
            request.body = request.body.replace(b"true", b"fals") if is_bytes else request.body.replace("true", "fals")

        client.meta.events.register("before-send.*", tamper)
        calls = {"sns": lambda: client.publish(TopicArn=shop.keys["topic"], Subject="S", Message="true"),
                 "cloudformation": lambda: client.signal_resource(StackName="true", LogicalResourceId="R", UniqueId="U",
                                                                  Status="SUCCESS"),
                 "cloudwatch": lambda: client.put_metric_data(Namespace="true", MetricData=[datum(1)])}
        refused(calls[service], 403, "SignatureDoesNotMatch")


def packed_bodies_pass(shop):
    namespace = shop.name("N")
    client = shop.client("cloudwatch", request_min_compression_size_bytes=1)
    client.put_metric_data(Namespace=namespace, MetricData=[datum(3)])
    found = shop.aws.metrics(namespace=namespace)
    equal([(m["name"], m["count"], m["sum"]) for m in found], [("Seconds", 1.0, 3.0)], "metrics")
    last = shop.aws.calls(service="cloudwatch", bodies=True)[-1]
    equal((last["packed"], json.loads(last["body"])["Namespace"]), (True, namespace), "the call that was written down")


# -- reading back --------------------------------------------------------------------------------------------------------


def everything_can_be_read_back(shop):
    aws, group, stream = shop.aws, shop.name("/gpu-bootstrap-"), INSTANCE
    logs, now = shop.client("logs"), int(time.time() * 1000)
    one = [{"timestamp": now, "message": "x"}]
    refused(lambda: logs.put_log_events(logGroupName=group, logStreamName=stream, logEvents=one), 400, "ResourceNotFound")
    logs.create_log_group(logGroupName=group)
    logs.put_retention_policy(logGroupName=group, retentionInDays=30)
    logs.create_log_stream(logGroupName=group, logStreamName=stream)
    refused(lambda: logs.create_log_stream(logGroupName=group, logStreamName=stream), 400, "ResourceAlreadyExistsException")
    messages = [json.dumps({"seq": number, "text": "é"}) for number in range(2500)]
    for begin in range(0, len(messages), 1000):
        logs.put_log_events(logGroupName=group, logStreamName=stream,
                            logEvents=[{"timestamp": now, "message": text} for text in messages[begin:begin + 1000]])
    equal([event["message"] for event in aws.log_events(group=group, stream=stream)], messages, "log events")
    equal((aws.retention(group=group), aws.log_streams(group=group)), (30, [stream]), "retention and streams")
    namespace = shop.name("N")
    for value in (1, 2):
        shop.client("cloudwatch").put_metric_data(Namespace=namespace, MetricData=[datum(value)])
    wanted = {"name": "Seconds", "dimensions": {"InstanceType": "g5.xlarge"}, "unit": "Seconds", "count": 2.0, "sum": 3.0,
              "minimum": 1.0, "maximum": 2.0}
    equal(aws.metrics(namespace=namespace), [wanted], "metrics")
    shop.client("ec2").create_tags(Resources=["i-0aaaaaaaaaaaaaaaa"], Tags=[{"Key": "gpu", "Value": "ready"}])
    equal(aws.tags(instance="i-0aaaaaaaaaaaaaaaa"), {"gpu": "ready"}, "tags")
    aws.sns_messages(), aws.events()
    shop.client("sns").publish(TopicArn=shop.keys["topic"], Subject="S", Message="é")
    equal(aws.sns_messages(), [{"subject": "S", "message": "é"}], "messages")
    shop.client("events").put_events(Entries=[entry('{"a":1}')])
    equal([(e["source"], e["detail-type"], e["detail"]) for e in aws.events()], [("gpu-bootstrap", "T", {"a": 1})], "events")


def embedded_metrics_are_checked(shop):
    """An event as the specification has it, and mistakes in each part of it."""
    group, logs, now = shop.name("/gpu-bootstrap-"), shop.client("logs"), int(time.time() * 1000)
    logs.create_log_group(logGroupName=group)

    def told(stream, **changed):
        directive = {"Namespace": "N", "Dimensions": [["Step"], ["Step", "Kind"]],
                     "Metrics": [{"Name": "StepSeconds", "Unit": "Seconds"}]}
        event = {"_aws": {"Timestamp": now, "CloudWatchMetrics": [directive]}, "Step": "driver", "Kind": "g5.xlarge",
                 "StepSeconds": 1.5, "event": "step-finished"}
        directive.update({name: value for name, value in changed.items() if name in directive})
        event.update({name: value for name, value in changed.items() if name not in directive})
        logs.create_log_stream(logGroupName=group, logStreamName=stream)
        messages = [json.dumps({"event": "plain"}), json.dumps(event)]
        logs.put_log_events(logGroupName=group, logStreamName=stream,
                            logEvents=[{"timestamp": now, "message": message} for message in messages])
        return shop.aws.embedded(group=group, stream=stream)

    metric = {"namespace": "N", "name": "StepSeconds", "unit": "Seconds", "value": 1.5}
    equal(told("right"), {"mistakes": [], "metrics": [{**metric, "dimensions": {"Step": "driver"}},
                                                      {**metric, "dimensions": {"Step": "driver", "Kind": "g5.xlarge"}}]},
          "a right event")
    for number, change in enumerate(EMBEDDED_WRONGLY):
        got = told(f"wrong{number}", **change)
        if len(got["mistakes"]) < 1 or got["metrics"]:
            raise AssertionError(f"{change} was taken: {got}")


EMBEDDED_WRONGLY = [
    {"Namespace": "AWS/EC2"}, {"Namespace": ""}, {"Dimensions": []}, {"Dimensions": ["Step"]}, {"Dimensions": [["None"]]},
    {"Metrics": []}, {"Metrics": [{"Name": "StepSeconds", "Unit": "seconds"}]}, {"Metrics": [{"Name": "Other"}]},
    {"Metrics": [{"Name": "StepSeconds", "StorageResolution": 5}]}, {"StepSeconds": "1.5"}, {"StepSeconds": [1] * 101},
    {"StepSeconds": True}, {"Step": 1}, {"Step": ""}, {"_aws": {}}, {"_aws": {"Timestamp": 1.5e12, "CloudWatchMetrics": []}},
]


def calls_are_written_down(shop):
    shop.aws.forget()
    shop.do("sns")
    call = shop.aws.calls()[0]
    equal((call["service"], call["action"], call["status"], call["key"], call["fault"]),
          ("sns", "Publish", 200, shop.keys["writer"][0], None), "the call")
    if not call["bytes"] > 20 or abs(call["at"] - time.time()) > 10:
        raise AssertionError(f"{call}")


def broken_limits_are_refused(shop):
    cloudwatch, logs, now = shop.client("cloudwatch"), shop.client("logs"), int(time.time() * 1000)
    refused(lambda: cloudwatch.put_metric_data(Namespace="N", MetricData=[datum(1)] * 1001), 400, "InvalidParameter")
    many = [{"timestamp": now, "message": "x"}] * 10_001
    refused(lambda: logs.put_log_events(logGroupName="g", logStreamName="s", logEvents=many), 400, "InvalidParameter")
    long = [{"timestamp": now, "message": "x" * 600_000}] * 2
    refused(lambda: logs.put_log_events(logGroupName="g", logStreamName="s", logEvents=long), 400, "InvalidParameter")
    apart = [{"timestamp": now - 25 * 3600_000, "message": "x"}, {"timestamp": now, "message": "x"}]
    refused(lambda: logs.put_log_events(logGroupName="g", logStreamName="s", logEvents=apart), 400, "InvalidParameter")
    refused(lambda: shop.client("events").put_events(Entries=[entry("{}")] * 11), 400, "InvalidParameter")


# -- signals -------------------------------------------------------------------------------------------------------------


def signals_are_checked_and_kept(shop):
    aws, group = shop.aws, shop.name("G")
    aws.forget()
    shop.do("cloudformation")
    scaling = shop.client("autoscaling")
    of = {"AutoScalingGroupName": group, "LifecycleHookName": "H", "InstanceId": INSTANCE}
    scaling.record_lifecycle_action_heartbeat(**of)
    scaling.complete_lifecycle_action(**of, LifecycleActionResult="ABANDON")
    refused(lambda: scaling.complete_lifecycle_action(**of, LifecycleActionResult="CONTINUE"), 400, "ValidationError")
    refused(lambda: scaling.record_lifecycle_action_heartbeat(**of), 400, "ValidationError")
    got = [{name: value for name, value in signal.items() if name != "at"} for signal in aws.signals()]
    key = shop.keys["writer"][0]
    equal(got, [{"action": "SignalResource", "key": key, "StackName": "S", "LogicalResourceId": "R", "UniqueId": INSTANCE,
                 "Status": "SUCCESS"},
                {"action": "RecordLifecycleActionHeartbeat", "key": key, **of},
                {"action": "CompleteLifecycleAction", "key": key, **of, "LifecycleActionResult": "ABANDON"}], "signals")
    refused(lambda: shop.client("cloudformation").signal_resource(StackName="S", LogicalResourceId="R", UniqueId="U",
                                                                  Status="GOOD"), 400, "ValidationError")


def an_instance_signals_by_its_document(shop):
    document, signature = json.dumps({"instanceId": INSTANCE, "region": "us-east-1"}, indent=2), "abc\ndef="
    shop.aws.identity(document=document, signature=signature)
    shop.aws.forget()

    def send(text, signed, unique=INSTANCE):
        form = f"Action=SignalResource&Version=2010-05-15&StackName=S&LogicalResourceId=R&UniqueId={unique}&Status=FAILURE"
        authorization = f"CFN_V1 {base64.b64encode(text.encode()).decode()}:{signed}"
        return post(shop.aws.url, form.encode(), {"Authorization": authorization,
                                                  "Content-Type": "application/x-www-form-urlencoded"})[0]

    equal(send(document, "abcdef="), 200, "the instance's own document")
    equal(send(document, "abcdefg="), 403, "a wrong signature")
    equal(send(document.replace("0123", "3210"), "abcdef="), 403, "another document")
    equal(send(document, "abcdef=", "i-0bbbbbbbbbbbbbbbb"), 400, "for another instance")
    equal([(signal["key"], signal["Status"]) for signal in shop.aws.signals()], [("CFN_V1", "FAILURE")], "signals")


def post(url, body, headers):
    """(status, headers, body); (0, …) if the connection is closed."""
    request = urllib.request.Request(url, data=body, headers=headers)
    try:
        with OPENER.open(request, timeout=20) as answer:
            return answer.status, dict(answer.headers), answer.read()
    except urllib.error.HTTPError as error:
        return error.code, dict(error.headers), error.read()
    except OSError:
        return 0, {}, b""


def webhooks_are_kept(shop):
    shop.aws.forget()
    url, head = f"{shop.aws.url}/webhook/a/b", {"Content-Type": "application/json"}
    equal(post(url, b'{"a":1}', head)[0], 204, "status")
    packed = post(url, gzip.compress(b'{"a":2}'), {**head, "Content-Encoding": "gzip"})
    equal(packed[0], 204, "status of a packed one")
    equal([(h["path"], json.loads(h["body"])) for h in shop.aws.webhooks()],
          [("/webhook/a/b", {"a": 1}), ("/webhook/a/b", {"a": 2})], "webhooks")
    shop.aws.fault(kind="refuse", services=["webhook"], status=410, code="Gone", times=1)
    equal(post(url, b"{}", head)[0], 410, "refused")
    shop.aws.fault(kind="lost", services=["webhook"], times=1)
    equal(post(url, b"{}", head)[0], 0, "lost")
    shop.aws.fault(kind="down", services=["webhook"], times=1)
    equal(post(url, b"{}", head)[0], 0, "down")
    equal(len(shop.aws.webhooks()), 3, "webhooks after faults: the lost one came")


# -- faults --------------------------------------------------------------------------------------------------------------


def written(shop, namespace):
    return sum(metric["count"] for metric in shop.aws.metrics(namespace=namespace))


def put(shop, namespace):
    return shop.client("cloudwatch").put_metric_data(Namespace=namespace, MetricData=[datum(1)])


def down(shop):
    namespace = shop.name("N")
    shop.aws.fault(kind="down", services=["cloudwatch"])
    cut(lambda: put(shop, namespace))
    shop.do("sns")  # the others work
    shop.aws.clear()
    equal(written(shop, namespace), 0, "written while it was down")
    put(shop, namespace)
    equal(written(shop, namespace), 1.0, "written afterwards")
    shop.aws.fault(kind="down", seconds=0.5)
    cut(lambda: put(shop, namespace))
    time.sleep(0.6)
    put(shop, namespace)


def slow(shop):
    namespace, began = shop.name("N"), time.monotonic()
    shop.aws.fault(kind="slow", delay=1.0, times=1)
    put(shop, namespace)
    if not 1.0 <= time.monotonic() - began < 3:
        raise AssertionError(f"answered after {time.monotonic() - began} s")
    equal(written(shop, namespace), 1.0, "written")


def throttle(shop):
    namespace = shop.name("N")
    shop.aws.fault(kind="throttle", services=["cloudwatch"], times=3)
    refused(lambda: put(shop, namespace), 400, "ThrottlingException")
    refused(lambda: put(shop, namespace), 429, "TooManyRequests")
    answer = refused(lambda: put(shop, namespace), 503, "ServiceUnavailable")
    equal(answer["ResponseMetadata"]["HTTPHeaders"].get("retry-after"), "1", "Retry-After")
    equal(written(shop, namespace), 0, "written while it was throttled")
    put(shop, namespace)
    for service in QUERY:  # XML, by the service's own name
        shop.aws.clear()
        shop.aws.fault(kind="throttle", services=[service], times=1)
        status, code = (503, "RequestLimitExceeded") if service == "ec2" else (400, "Throttling")
        equal(refused(lambda: shop.do(service), status, code)["Error"]["Code"], code, f"{service}'s code")


def rate(shop):
    namespace = shop.name("N")
    shop.aws.fault(kind="rate", per_second=2, services=["cloudwatch"])
    passed, began = 0, time.monotonic()
    client = shop.client("cloudwatch")
    while time.monotonic() - began < 2:
        try:
            client.put_metric_data(Namespace=namespace, MetricData=[datum(1)])
            passed += 1
        except botocore.exceptions.ClientError:
            pass
        time.sleep(0.02)
    shop.aws.clear()
    if not 4 <= passed <= 7:
        raise AssertionError(f"{passed} calls in 2 s at 2 a second and a bucket of 2")
    equal(written(shop, namespace), float(passed), "written")


def half(shop):
    group, logs, now = shop.name("/gpu-bootstrap-"), shop.client("logs"), int(time.time() * 1000)
    batch = {"logGroupName": group, "logStreamName": "s",
             "logEvents": [{"timestamp": now, "message": str(number)} for number in range(5)]}
    shop.aws.fault(kind="half")
    refused(lambda: logs.put_log_events(**batch), 400, "ResourceNotFoundException")
    logs.create_log_group(logGroupName=group)
    logs.create_log_stream(logGroupName=group, logStreamName="s")
    key, secret, _ = shop.keys["writer"]
    refused(lambda: shop.client("logs", (key, secret[::-1], None)).put_log_events(**batch), 403, "SignatureDoesNotMatch")
    refused(lambda: shop.client("logs", shop.keys["stranger"]).put_log_events(**batch), 403, "AccessDenied")
    answer = logs.put_log_events(**batch)
    equal(answer.get("rejectedLogEventsInfo"), {"tooNewLogEventStartIndex": 3}, "rejected")
    equal(shop.aws.calls(action="PutLogEvents")[-1]["items"], 3, "items of the call")
    equal([event["message"] for event in shop.aws.log_events(group=group, stream="s")], ["0", "1", "2"], "kept")
    answer = logs.put_log_events(**{**batch, "logEvents": batch["logEvents"][:1]})
    equal(answer.get("rejectedLogEventsInfo"), None, "rejected of one event")


def lost(shop):
    namespace = shop.name("N")
    shop.aws.fault(kind="lost", times=1)
    cut(lambda: put(shop, namespace))
    equal(written(shop, namespace), 1.0, "written, though the answer was lost")
    put(shop, namespace)


def partial(shop):
    shop.aws.events()
    shop.aws.fault(kind="partial", times=2)
    client = shop.client("events")
    answer = client.put_events(Entries=[entry(json.dumps({"n": number})) for number in range(3)])
    equal((answer["FailedEntryCount"], [("ErrorCode" in e, "EventId" in e) for e in answer["Entries"]]),
          (2, [(False, True), (True, False), (True, False)]), "answer")
    equal(client.put_events(Entries=[entry("{}")])["FailedEntryCount"], 1, "failed of one entry")
    equal([event["detail"] for event in shop.aws.events()], [{"n": 0}], "sent")


def refuse(shop):
    shop.aws.fault(kind="refuse", status=400, code="ExpiredTokenException", services=["logs"], times=1)
    refused(lambda: shop.do("logs"), 400, "ExpiredTokenException")
    shop.do("logs")


def urls_of_s3_are_checked(shop):
    """Who signed, for what, until when; what the sum says of the bytes; and that moto then does it."""
    def url(method, key=None, seconds=60, **more):
        s3 = shop.client("s3", key or shop.keys["bundler"], signature_version="s3v4", s3={"addressing_style": "path"})
        return s3.generate_presigned_url(method, Params={"Bucket": "gpu-bundles", "Key": "a/b+c.deb", **more}, ExpiresIn=seconds)

    def ask(method, address, body=None, headers=None):
        # Without a type urllib says that it is a form, which moto then reads.
        headers = {"Content-Type": "application/octet-stream", **(headers or {})}
        request = urllib.request.Request(address, data=body, headers=headers, method=method)
        try:
            with OPENER.open(request, timeout=20) as answer:
                return answer.status, answer.read(), dict(answer.headers.items())
        except urllib.error.HTTPError as error:
            return error.code, error.read(), dict(error.headers.items())

    body = b"0123456789"
    sent = ask("PUT", url("put_object"), body)
    equal(sent[0], 200, f"a signed upload {sent[1]}")
    got = ask("GET", url("get_object"), headers={"Range": "bytes=2-4"})
    equal((got[0], got[1], got[2].get("Content-Range")), (206, b"234", "bytes 2-4/10"), "a part")
    equal(ask("HEAD", url("head_object"))[2]["Content-Length"], "10", "a length")
    right = url("get_object")
    for what, address, wanted in [
            ("another object", right.replace("b%2Bc", "b%2Bd"), b"SignatureDoesNotMatch"),
            ("another signature", right[:-1] + ("0" if right[-1] != "0" else "1"), b"SignatureDoesNotMatch"),
            ("more time", right.replace("Expires=60", "Expires=61"), b"SignatureDoesNotMatch"),
            ("a parameter that was not signed", right + "&versionId=1", b"SignatureDoesNotMatch"),
            ("nobody's key", right.replace(shop.keys["bundler"][0], "AKIANOBODY"), b"InvalidAccessKeyId"),
            ("no right", url("get_object", shop.keys["stranger"]), b"AccessDenied"),
            ("none", right.partition("?")[0], b"")]:
        status, said, _ = ask("GET", address)
        equal((status // 100, wanted in said), (4, True), f"{what}: {status} {said}")
    equal(ask("GET", right, headers={"x-amz-meta-x": "1"})[0], 403, "a header that was not signed")
    short = url("get_object", seconds=1)
    time.sleep(1.1)
    equal(b"expired" in ask("GET", short)[1], True, "a URL that is over")
    wrong = base64.b64encode(b"\0" * 32).decode()
    address = url("put_object", ChecksumSHA256=wrong)
    equal(b"BadDigest" in ask("PUT", address, b"else", {"x-amz-checksum-sha256": wrong})[1], True, "a wrong sum")
    equal(ask("GET", right)[1], body, "what is kept")


def impossible_faults_are_mistakes(shop):
    for how in ({"kind": "sleepy"}, {"kind": "slow"}, {"kind": "down", "delay": 1}):
        try:
            shop.aws.fault(**how)
        except ValueError:
            continue
        raise AssertionError(f"{how} was taken")


TESTS = [right_signatures_pass, wrong_secrets_are_refused, unknown_keys_are_refused, foreign_tokens_are_refused,
         denied_actions_are_refused, what_was_signed_is_what_counts, packed_bodies_pass, everything_can_be_read_back,
         calls_are_written_down, embedded_metrics_are_checked, broken_limits_are_refused, signals_are_checked_and_kept,
         an_instance_signals_by_its_document, webhooks_are_kept, down, slow, throttle, rate, half, lost, partial, refuse,
         urls_of_s3_are_checked, impossible_faults_are_mistakes]


def run():
    """How many tests there are; says which of them fail."""
    passed = 0
    with Aws.start() as aws:
        shop = Shop(aws)
        for test in TESTS:
            aws.clear()
            try:
                test(shop)
                passed += 1
            except (AssertionError, ValueError, botocore.exceptions.BotoCoreError, botocore.exceptions.ClientError) as error:
                print(f"aws-selftest: {test.__name__}: {type(error).__name__}: {error}", flush=True)
    return passed


if __name__ == "__main__":
    COUNT = run()
    print(f"passed={COUNT}/{len(TESTS)}")
    sys.exit(0 if COUNT == len(TESTS) else 1)
