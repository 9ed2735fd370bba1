"""What lies behind the fake AWS: a moto server that checks signatures and policies, its users, and reading back with boto3.

moto names the action that a policy must allow after the signing name (`monitoring:PutMetricData`), and compares resources
with `*` only, so the policy of packaging/iam-policy.json is given to it action by action, for every resource.  That its
resources and conditions are right is not tested here."""
import datetime
import json
import logging
import os
import threading
import urllib.request

import aws_emf
import boto3
from botocore.config import Config
from moto.server import ThreadedMotoServer

REGION, ROLE, SESSION = "us-east-1", "gpu-node", "i-0123456789abcdef0"
PROJECT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))
POLICY = os.path.join(PROJECT, "packaging", "iam-policy.json")
# IAM prefix: signing name, where they differ.
SIGNING = {"cloudwatch": "monitoring"}
BUCKET = "gpu-bundles"
TOPIC, BUS, QUEUES = "gpu-bootstrap", "default", {"sns": "messages", "events": "events"}
SOURCE = "gpu-bootstrap"


def actions_of(policy):
    """Every action that a policy names."""
    for statement in policy["Statement"]:
        yield from [statement["Action"]] if isinstance(statement["Action"], str) else statement["Action"]


def published():
    """The actions of the published policy."""
    with open(POLICY, encoding="utf-8") as source:
        return sorted(actions_of(json.load(source)))


def as_moto_reads_it(actions):
    signing = {f"{SIGNING.get(prefix, prefix)}:{name}" for prefix, name in (action.split(":") for action in actions)}
    return allow(sorted(signing | set(actions)))


def allow(actions):
    return {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Resource": "*", "Action": actions}]}


class Store:
    """Started when this returns."""

    def __init__(self):
        logging.getLogger("werkzeug").setLevel(logging.ERROR)  # it would say each call
        self.server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        self.server.start()
        self.address = self.server.get_host_and_port()
        self.url = f"http://{self.address[0]}:{self.address[1]}"
        self.keys, self.allowed = {}, {}
        self.clients, self.guard = {}, threading.Lock()
        setup = ("setup", "setup", None)
        self.auditor = self.user(setup, "auditor", ["*"])
        self.writer = self.user(setup, "writer", published())
        self.stranger = self.user(setup, "stranger", [])
        self.role = self.assume(setup, ROLE, published())
        self.powerless = self.assume(setup, "powerless", [])
        self.bundler = self.user(setup, "bundler", ["s3:*"])
        self.topic = self.subscribe(setup)
        self.client("s3", setup).create_bucket(Bucket=BUCKET)
        self.check_from_now_on()

    def user(self, setup, name, actions):
        iam = self.client("iam", setup)
        iam.create_user(UserName=name)
        if actions:
            policy = allow("*") if actions == ["*"] else as_moto_reads_it(actions)
            iam.put_user_policy(UserName=name, PolicyName="p", PolicyDocument=json.dumps(policy))
        made = iam.create_access_key(UserName=name)["AccessKey"]
        return self.know((made["AccessKeyId"], made["SecretAccessKey"], None), actions)

    def assume(self, setup, name, actions):
        """A role's temporary credentials, as an instance gets them."""
        trust = {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "sts:AssumeRole",
                                                         "Principal": {"Service": "ec2.amazonaws.com"}}]}
        iam = self.client("iam", setup)
        arn = iam.create_role(RoleName=name, AssumeRolePolicyDocument=json.dumps(trust))["Role"]["Arn"]
        if actions:
            policy = json.dumps(as_moto_reads_it(actions))
            iam.put_role_policy(RoleName=name, PolicyName="p", PolicyDocument=policy)
        made = self.client("sts", setup).assume_role(RoleArn=arn, RoleSessionName=SESSION)["Credentials"]
        return self.know((made["AccessKeyId"], made["SecretAccessKey"], made["SessionToken"]), actions)

    def know(self, key, actions):
        self.keys[key[0]] = (key[1], key[2])
        self.allowed[key[0]] = actions
        return key

    def may(self, key, action):
        return action in self.allowed[key] or self.allowed[key] == ["*"]

    def subscribe(self, setup):
        """What is published and put on the bus is kept in queues, to be read back."""
        sqs, sns, events = (self.client(name, setup) for name in ("sqs", "sns", "events"))
        arns = {}
        for name in QUEUES.values():
            url = sqs.create_queue(QueueName=name)["QueueUrl"]
            arns[name] = sqs.get_queue_attributes(QueueUrl=url, AttributeNames=["QueueArn"])["Attributes"]["QueueArn"]
        topic = sns.create_topic(Name=TOPIC)["TopicArn"]
        sns.subscribe(TopicArn=topic, Protocol="sqs", Endpoint=arns["messages"])
        events.put_rule(Name="all", EventBusName=BUS, EventPattern=json.dumps({"source": [SOURCE]}))
        events.put_targets(Rule="all", EventBusName=BUS, Targets=[{"Id": "queue", "Arn": arns["events"]}])
        return topic

    def check_from_now_on(self):
        # With a form's content type moto answers 500.
        plain = {"Content-Type": "text/plain"}
        urllib.request.urlopen(urllib.request.Request(f"{self.url}/moto-api/reset-auth", data=b"0", headers=plain)).read()

    def client(self, service, key=None):
        key = key or self.auditor
        with self.guard:  # boto3's session is not made for threads, its clients are
            if (service, key) not in self.clients:
                self.clients[service, key] = boto3.client(
                    service, endpoint_url=self.url, region_name=REGION, aws_access_key_id=key[0],
                    aws_secret_access_key=key[1], aws_session_token=key[2],
                    config=Config(proxies={}, retries={"max_attempts": 0}))
            return self.clients[service, key]

    # -- read back ---------------------------------------------------------------------------------------------------

    def metrics(self, namespace):
        """[{name, dimensions, unit, count, sum, minimum, maximum}] of all that was written in a namespace."""
        cloudwatch, found = self.client("cloudwatch"), {}
        now = datetime.datetime.now(datetime.timezone.utc)
        for page in cloudwatch.get_paginator("list_metrics").paginate(Namespace=namespace):
            for metric in page["Metrics"]:
                dimensions = tuple(sorted((d["Name"], d["Value"]) for d in metric["Dimensions"]))
                found[metric["MetricName"], dimensions] = metric["Dimensions"]
        answers = []
        for (name, dimensions), wire in sorted(found.items()):
            points = cloudwatch.get_metric_statistics(
                Namespace=namespace, MetricName=name, Dimensions=wire, StartTime=now - datetime.timedelta(days=14),
                EndTime=now + datetime.timedelta(hours=3), Period=3600,
                Statistics=["SampleCount", "Sum", "Minimum", "Maximum"])["Datapoints"]
            answers.append({"name": name, "dimensions": dict(dimensions), "unit": points[0].get("Unit") if points else None,
                            "count": sum(p["SampleCount"] for p in points), "sum": sum(p["Sum"] for p in points),
                            "minimum": min((p["Minimum"] for p in points), default=None),
                            "maximum": max((p["Maximum"] for p in points), default=None)})
        return answers

    def log_events(self, group, stream):
        """[{timestamp, message}] of a stream in the order in which CloudWatch Logs gives them; [] where there is none."""
        logs, found, token = self.client("logs"), [], None
        try:
            while True:
                more = {"nextToken": token} if token else {}
                page = logs.get_log_events(logGroupName=group, logStreamName=stream, startFromHead=True, **more)
                found += [{"timestamp": e["timestamp"], "message": e["message"]} for e in page["events"]]
                if not page["events"] or page["nextForwardToken"] == token:
                    return found
                token = page["nextForwardToken"]
        except logs.exceptions.ResourceNotFoundException:
            return []

    def embedded(self, group, stream):
        """What comes of a stream's events in embedded metric format: {"mistakes": sentences, "metrics": […]}."""
        check, wrong, found = aws_emf.validator(), [], []
        for event in self.log_events(group, stream):
            sentences = aws_emf.mistakes(event["message"], check)
            wrong += sentences
            found += [] if sentences else aws_emf.metrics(event["message"])
        return {"mistakes": wrong, "metrics": found}

    def log_streams(self, group):
        logs = self.client("logs")
        try:
            return [stream["logStreamName"] for stream in logs.describe_log_streams(logGroupName=group)["logStreams"]]
        except logs.exceptions.ResourceNotFoundException:
            return []

    def retention(self, group):
        """Days; None where it is for ever, or where there is no group."""
        groups = self.client("logs").describe_log_groups(logGroupNamePrefix=group)["logGroups"]
        return next((found.get("retentionInDays") for found in groups if found["logGroupName"] == group), None)

    def tags(self, instance):
        found = self.client("ec2").describe_tags(Filters=[{"Name": "resource-id", "Values": [instance]}])["Tags"]
        return {tag["Key"]: tag["Value"] for tag in found}

    def sns_messages(self):
        """[{subject, message}] since the last call."""
        bodies = self.drain(QUEUES["sns"])
        return [{"subject": body.get("Subject"), "message": body["Message"]} for body in bodies]

    def events(self):
        """EventBridge's events since the last call, as a rule's target gets them."""
        return self.drain(QUEUES["events"])

    def flip(self, key):
        """Changes one bit in the middle of an object."""
        s3 = self.client("s3")
        body = bytearray(s3.get_object(Bucket=BUCKET, Key=key)["Body"].read())
        body[len(body) // 2] ^= 1
        s3.put_object(Bucket=BUCKET, Key=key, Body=bytes(body))

    def drain(self, queue):
        sqs, found = self.client("sqs"), []
        url = f"{self.url}/123456789012/{queue}"
        while messages := sqs.receive_message(QueueUrl=url, MaxNumberOfMessages=10).get("Messages"):
            for message in messages:
                found.append(json.loads(message["Body"]))
                sqs.delete_message(QueueUrl=url, ReceiptHandle=message["ReceiptHandle"])
        return found

    # -- what faults do by themselves ----------------------------------------------------------------------------------

    def put_log_events(self, call, count):
        """The first `count` events of a PutLogEvents, stored by the auditor."""
        if count:
            logs = self.client("logs")
            logs.put_log_events(logGroupName=call["logGroupName"], logStreamName=call["logStreamName"],
                                logEvents=call["logEvents"][:count])

    def put_events(self, call, count):
        entries = call["Entries"][:count]
        return self.client("events").put_events(Entries=entries)["Entries"] if entries else []
