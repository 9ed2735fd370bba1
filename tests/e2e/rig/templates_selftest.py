#!/usr/bin/env python3
"""Proves that what packaging/ hands to operators fits what the program sends: cfn-lint takes the template, moto makes stacks
of it, the dashboard and the alarms name only metrics and dimensions that are sent, the saved queries only fields that log
events have, and the rights are those of the calls that are made.  Mistakes are planted, to see that each is found.  The last
line is passed=K/N."""
import json
import logging
import os
import re
import subprocess
import sys
import tempfile
import warnings

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import environments  # noqa: E402

environments.become(environments.MOTO)

import boto3  # noqa: E402
import yaml  # noqa: E402
from moto.server import ThreadedMotoServer  # noqa: E402

TEMPLATE = os.path.join(environments.PROJECT, "packaging", "cloudwatch.yaml")
POLICY = os.path.join(environments.PROJECT, "packaging", "iam-policy.json")
PAGE = os.path.join(environments.PROJECT, "docs", "fleet.md")
EVENTS = os.path.join(environments.PROJECT, "src", "report", "event.rs")
SOURCES = [os.path.join(environments.PROJECT, "src", name) for name in ("aws", "report")]
RUN, STEP = {"InstanceType", "Outcome"}, {"InstanceType", "Step", "Outcome"}
# What is sent: the metric's dimensions and its unit.
METRICS = {"Outcome": RUN, "Seconds": RUN, "DownloadedBytes": RUN, "Retries": RUN, "GpusFound": RUN, "GpusExpected": RUN,
           "GpusHealthy": RUN, "StepSeconds": STEP}
OUTCOMES = {"converged", "failed", "reboot-needed", "skipped", "interrupted", "killed"}
# What every log event has besides its own fields.
COMMON = {"event", "at", "run", "seq", "instance_id", "instance_type"}
BY_LOGS = {"@timestamp", "@message", "@logStream"}
ACTIONS = {"cloudwatch:PutMetricData", "logs:CreateLogGroup", "logs:CreateLogStream", "logs:PutLogEvents",
           "logs:PutRetentionPolicy", "cloudformation:SignalResource", "autoscaling:CompleteLifecycleAction",
           "autoscaling:RecordLifecycleActionHeartbeat", "ec2:CreateTags", "sns:Publish", "events:PutEvents"}
TOPIC = "arn:aws:sns:us-east-1:123456789012"
PARAMETERS = {"plain": {}, "all": {"AlarmTopicArn": f"{TOPIC}:alarms", "CreateInstanceProfile": "yes", "Namespace": "Fleet",
                                   "GpuInstanceType": "p5.48xlarge", "LogGroupName": "/gpu",
                                   "SignalTopicArn": f"{TOPIC}:gpu-bootstrap"}}
FUNCTIONS = {"SELECT", "FROM", "SCHEMA", "WHERE", "GROUP", "ORDER", "BY", "SUM", "AVG", "MAX", "MIN", "DESC", "ASC", "LIMIT",
             "AND"}
WORDS = {"filter", "fields", "stats", "sort", "limit", "by", "as", "asc", "desc", "in", "and", "or", "not", "max", "min",
         "avg", "pct", "sum", "count", "count_distinct", "latest", "strcontains"}


class Loader(yaml.SafeLoader):
    """CloudFormation's short forms as its long ones."""


def long_form(loader, suffix, node):
    make = {yaml.ScalarNode: loader.construct_scalar, yaml.SequenceNode: loader.construct_sequence,
            yaml.MappingNode: loader.construct_mapping}[type(node)]
    value = make(node, deep=True) if not isinstance(node, yaml.ScalarNode) else make(node)
    return {suffix if suffix in ("Ref", "Condition") else f"Fn::{suffix}": value}


Loader.add_multi_constructor("!", long_form)


def equal(got, wanted, what):
    if got != wanted:
        raise AssertionError(f"{what}: got {got!r}, expected {wanted!r}")


def text_of(value, parameters):
    """What Fn::Sub makes of a text."""
    if isinstance(value, dict):
        value = value["Fn::Sub"]
    return re.sub(r"\$\{([^}!]+)\}", lambda found: str(parameters.get(found[1], found[1].replace("::", "-"))), value)


class Template:
    def __init__(self, text):
        self.text, self.tree = text, yaml.load(text, Loader)  # noqa: S506 (a subclass of the safe one)
        self.parameters = {name: about.get("Default") for name, about in self.tree["Parameters"].items()}

    def of(self, kind):
        return {name: about["Properties"] for name, about in self.tree["Resources"].items() if about["Type"] == kind}

    def dashboard(self):
        (about,) = self.of("AWS::CloudWatch::Dashboard").values()
        return json.loads(text_of(about["DashboardBody"], self.parameters))

    def queries(self):
        return {about["Name"]: about["QueryString"] for about in self.of("AWS::Logs::QueryDefinition").values()}

    def expressions(self):
        """(where, expression) of everything on the dashboard and in the alarms."""
        for widget in self.dashboard()["widgets"]:
            for (metric,) in widget["properties"].get("metrics", []):
                yield widget["properties"]["title"], metric["expression"]
        for name, about in self.of("AWS::CloudWatch::Alarm").items():
            for query in about["Metrics"]:
                if "Expression" in query:
                    yield name, text_of(query["Expression"], self.parameters)


class Snippet:
    """A part of a page: CloudFormation's linter wants no more than its text."""

    def __init__(self, text):
        self.text = text


# -- what can be wrong: each returns sentences -----------------------------------------------------------------------------


def linted(template):
    """cfn-lint's words about a template."""
    with tempfile.NamedTemporaryFile("w", suffix=".yaml", encoding="utf-8") as out:
        out.write(template.text)
        out.flush()
        linter = os.path.join(os.path.dirname(environments.python(*environments.TEMPLATES)), "cfn-lint")
        done = subprocess.run([linter, "--format", "parseable", out.name], capture_output=True, text=True, check=False)
    return done.stdout.splitlines() or ([] if done.returncode == 0 else [f"cfn-lint: {done.stderr}"])


def metrics_named(template):
    """Only metrics that are sent, with the dimensions with which they are sent."""
    wrong = []
    for where, expression in template.expressions():
        if expression.startswith("SELECT"):
            wrong += select(where, expression, template.parameters["Namespace"])
        elif "SEARCH" in expression:
            wrong += search(where, expression, template.parameters["Namespace"])
    for name, about in template.of("AWS::CloudWatch::Alarm").items():
        ids = {query["Id"] for query in about["Metrics"]}
        for query in about["Metrics"]:
            if "MetricStat" in query:
                metric = query["MetricStat"]["Metric"]
                dimensions = {each["Name"]: each["Value"] for each in metric["Dimensions"]}
                wrong += named(name, metric["MetricName"], set(dimensions), metric["Namespace"] == {"Ref": "Namespace"})
                wrong += [f"{name}: outcome {dimensions['Outcome']}"] if dimensions["Outcome"] not in OUTCOMES else []
            elif not query["Expression"] or "MetricStat" in about["Metrics"][-1]:
                used = set(re.findall(r"\b[a-z]\w*", str(query["Expression"])))
                wrong += [f"{name}: {used - ids} are no ids"] if used - ids else []
    return wrong


def named(where, metric, dimensions, is_ours):
    if not is_ours:
        return [f"{where}: another namespace"]
    if metric not in METRICS:
        return [f"{where}: nobody sends {metric}"]
    return [f"{where}: {metric} has not the dimensions {sorted(dimensions)}"] if METRICS[metric] != dimensions else []


def select(where, expression, namespace):
    found = re.fullmatch(r'SELECT (?:SUM|AVG|MAX|MIN)\((\w+)\) FROM SCHEMA\("([^"]+)", ([\w, ]+)\)(.*)', expression)
    if not found:
        return [f"{where}: cannot be read: {expression}"]
    dimensions = set(found[3].split(", "))
    values = set(re.findall(r"Outcome = '([^']*)'", found[4]))
    words = set(re.findall(r"[A-Za-z]\w*", re.sub(r"'[^']*'", "", found[4]))) - FUNCTIONS
    wrong = named(where, found[1], dimensions, found[2] == namespace)
    wrong += [f"{where}: {words - dimensions} is no dimension"] if words - dimensions else []
    return wrong + ([f"{where}: outcome {values - OUTCOMES}"] if values - OUTCOMES else [])


def search(where, expression, namespace):
    found = re.fullmatch(r"""SUM\(SEARCH\('\{([^,}]+),([\w,]+)\} MetricName="(\w+)"', 'Sum', \d+\)\)""", expression)
    if not found:
        return [f"{where}: cannot be read: {expression}"]
    return named(where, found[3], set(found[2].split(",")), found[1] == namespace)


def fields_known(template):
    """The saved queries use only fields that log events have; the dashboard's are the saved ones."""
    known, wrong = event_fields(), []
    for name, query in template.queries().items():
        made = set(re.findall(r"\bas (\w+)", query))
        bare = re.sub(r'"[^"]*"', "", query)
        words = set(re.findall(r"@?[a-zA-Z_][\w.]*", bare)) - WORDS - made
        wrong += [f"{name}: no event has {word}" for word in sorted(words - known - COMMON - BY_LOGS)]
        events = set(re.findall(r'event = "([^"]*)"', query)) | set(re.findall(r'strcontains\(event, "([^"]*)"\)', query))
        wrong += [f"{name}: there is no event {event}" for event in events - event_names()]
    source = f"SOURCE '{template.parameters['LogGroupName']}' | "
    for widget in template.dashboard()["widgets"]:
        if widget["type"] == "log":
            query = widget["properties"]["query"]
            if query.removeprefix(source) not in template.queries().values() or not query.startswith(source):
                wrong.append(f"{widget['properties']['title']}: not one of the saved queries: {query}")
    return wrong


def event_source():
    """The kinds of events, as the program defines them."""
    with open(EVENTS, encoding="utf-8") as source:
        return re.search(r"pub enum EventKind \{(.*?)\n\}", source.read(), re.S)[1]


def event_names():
    names = re.findall(r"^    ([A-Z]\w*)(?: \{|\(|,)", event_source(), re.M)
    return {re.sub(r"(?<!^)([A-Z])", r"-\1", name).lower() for name in names}


def event_fields():
    return set(re.findall(r"^        (\w+): ", event_source(), re.M))


def widgets_fit(template):
    """No widget lies over another or beyond the edge; ids are one of a kind."""
    wrong, taken = [], {}
    for widget in template.dashboard()["widgets"]:
        title = widget["properties"]["title"]
        if widget["x"] + widget["width"] > 24:
            wrong.append(f"{title}: wider than the dashboard")
        for x in range(widget["x"], widget["x"] + widget["width"]):
            for y in range(widget["y"], widget["y"] + widget["height"]):
                if taken.setdefault((x, y), title) != title:
                    return [*wrong, f"{title} lies over {taken[x, y]}"]
        ids = [metric["id"] for (metric,) in widget["properties"].get("metrics", [])]
        wrong += [f"{title}: ids {ids}"] if len(set(ids)) != len(ids) else []
    return wrong


def actions_in(document):
    for statement in document["Statement"]:
        statement = statement["Fn::If"][1] if "Fn::If" in statement else statement
        yield from [statement["Action"]] if isinstance(statement["Action"], str) else statement["Action"]


def rights(template):
    """The template's, the published policy's and the program's actions are the same; nothing may do everything."""
    with open(POLICY, encoding="utf-8") as source:
        published = json.load(source)
    (policy,) = template.of("AWS::IAM::ManagedPolicy").values()
    wrong = []
    for name, document in (("iam-policy.json", published), ("the template", policy["PolicyDocument"])):
        actions = list(actions_in(document))
        wrong += [f"{name}: {action} is used by nobody" for action in sorted(set(actions) - ACTIONS)]
        wrong += [f"{name}: {action} is missing" for action in sorted(ACTIONS - set(actions))]
        wrong += [f"{name}: an action stands twice"] if len(actions) != len(set(actions)) else []
        for statement in document["Statement"]:
            statement = statement["Fn::If"][1] if "Fn::If" in statement else statement
            if statement["Resource"] == "*" and "Condition" not in statement:
                wrong.append(f"{name}: {statement['Sid']} is for every resource without a condition")
    # PutMetricData knows no resources, so only its condition keeps it to one namespace.
    return wrong


def page(_template):
    """docs/fleet.md: its templates are templates, and its rights and counts are the real ones."""
    text = environments.read(PAGE)
    snippets = re.findall(r"^```yaml\n(Resources:.*?)^```$", text, re.M | re.S)
    wrong = [] if len(snippets) == 2 else [f"docs/fleet.md has {len(snippets)} templates"]
    for snippet in snippets:
        wrong += linted(Snippet(snippet))
    told = set()
    for cell in re.findall(r"^\| (`[a-z0-9]+:\w+`(?:, `\w+`)*) \|", text, re.M):
        prefix = re.match(r"`([a-z0-9]+):", cell)[1]
        told |= {f"{prefix}:{name.rpartition(':')[2]}" for name in re.findall(r"`([\w:]+)`", cell)}
    wrong += [f"docs/fleet.md: rights {sorted(told ^ ACTIONS)}"] if told != ACTIONS else []
    run = sum(1 for dimensions in METRICS.values() if dimensions == RUN)
    return wrong + ([] if f"| {run} · *T* · *O* |" in text else [f"docs/fleet.md: a run has {run} metrics"])


def program_calls(_template):
    """Every action is made by the program.  The other way round is shown by tests/e2e/reports, which compares the calls that
    came with the policy."""
    text = ""
    for folder, _, names in (entry for place in SOURCES for entry in os.walk(place)):
        for name in names:
            text += environments.read(os.path.join(folder, name))
    if not os.path.isdir(SOURCES[0]):
        return []  # the deliverer is not there yet
    return [f"the program never calls {action}" for action in sorted(ACTIONS) if action.split(":")[1] not in text]


CHECKS = [linted, metrics_named, fields_known, widgets_fit, rights, page, program_calls]

# (what is planted, text, its replacement, the check that must find it)
PLANTED = [
    ("an unknown property", "RetentionInDays:", "RetentionDays:", linted),
    ("a reference to nothing", "Roles: [!Ref InstanceRole]", "Roles: [!Ref Role]", linted),
    ("a retention that there is not", "Default: 30", "Default: 31", linted),
    ("a metric that nobody sends", "MAX(Seconds)", "MAX(Second)", metrics_named),
    ("a metric in a SEARCH", 'MetricName=\\"GpusFound\\"', 'MetricName=\\"Gpus\\"', metrics_named),
    ("a dimension", "InstanceType, Outcome, Step)", "InstanceType, Step)", metrics_named),
    ("a dimension in GROUP BY", "GROUP BY InstanceType", "GROUP BY Instance", metrics_named),
    ("an outcome", "WHERE Outcome = 'failed'", "WHERE Outcome = 'failure'", metrics_named),
    ("an alarm's metric", "MetricName: GpusHealthy", "MetricName: HealthyGpus", metrics_named),
    ("an alarm's dimension", "{ Name: Outcome, Value: failed }", "{ Name: Outcome, Value: bad }", metrics_named),
    ("an alarm's expression", "FILL(expectedFailed, 0)", "FILL(expectedFail, 0)", metrics_named),
    ("another namespace", 'SCHEMA(\\"${Namespace}\\"', 'SCHEMA(\\"GpuBoot\\"', metrics_named),
    ("a field", "max(seconds) as slowest, avg(seconds) as average", "max(duration) as slowest, avg(seconds) as average",
     fields_known),
    ("an event", 'event = "run-finished"', 'event = "finished"', fields_known),
    ("a dashboard's own query", 'filter event = \\"failed\\"', 'filter event = \\"Failed\\"', fields_known),
    ("a widget over another", '"x": 8, "y": 6, "width": 8', '"x": 8, "y": 6, "width": 9', widgets_fit),
    ("a right too many", "Action: sns:Publish", "Action: sns:CreateTopic", rights),
    ("a right too wide", 'Condition: { StringEquals: { "cloudwatch:namespace": !Ref Namespace } }', "", rights),
]


def resolved(value, parameters):
    """A property as CloudFormation would hand it to the service."""
    if isinstance(value, list):
        return [resolved(each, parameters) for each in value]
    if not isinstance(value, dict):
        return value
    if "Ref" in value:
        return parameters[value["Ref"]]
    if "Fn::Sub" in value:
        return text_of(value, parameters)
    if "Fn::If" in value:
        return [parameters["AlarmTopicArn"]]  # the only condition of what is asked here
    return {key: resolved(each, parameters) for key, each in value.items()}


def alarms(template, client):
    """moto makes no alarms of templates, but boto3 knows which parameters there are and moto takes them."""
    values = {**template.parameters, **PARAMETERS["all"]}
    for name, about in template.of("AWS::CloudWatch::Alarm").items():
        client("cloudwatch").put_metric_alarm(AlarmName=name, **resolved(about, values))
    made = {alarm["AlarmName"] for alarm in client("cloudwatch").describe_alarms()["MetricAlarms"]}
    equal(made, set(template.of("AWS::CloudWatch::Alarm")), "alarms")


def stacks(template):
    """moto makes the stack, with every condition off and on."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    logging.getLogger("moto").setLevel(logging.ERROR)  # it says which resources it does not know, in two ways
    warnings.simplefilter("ignore")
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    url = "http://{}:{}".format(*server.get_host_and_port())

    def client(service):
        return boto3.client(service, endpoint_url=url, region_name="us-east-1", aws_access_key_id="a",
                            aws_secret_access_key="b")

    for name, parameters in PARAMETERS.items():
        values = [{"ParameterKey": key, "ParameterValue": value} for key, value in parameters.items()]
        client("cloudformation").validate_template(TemplateBody=template.text)
        client("cloudformation").create_stack(StackName=name, TemplateBody=template.text, Parameters=values,
                                              Capabilities=["CAPABILITY_IAM"])
        (stack,) = client("cloudformation").describe_stacks(StackName=name)["Stacks"]
        equal(stack["StackStatus"], "CREATE_COMPLETE", f"status of the stack {name}")
        resources = client("cloudformation").list_stack_resources(StackName=name)["StackResourceSummaries"]
        kinds = {resource["LogicalResourceId"] for resource in resources} - {""}  # what it does not know has no name
        profile = {"InstancePolicy", "InstanceRole", "InstanceProfile"}
        wanted = {"LogGroup", "Dashboard"} | (profile if name == "all" else set())
        equal(kinds, wanted, f"resources of the stack {name}")
        body = client("cloudwatch").get_dashboard(DashboardName=f"{name}-fleet")["DashboardBody"]
        group, namespace = parameters.get("LogGroupName", "/gpu-bootstrap"), parameters.get("Namespace", "GpuBootstrap")
        logs = [w["properties"]["query"] for w in json.loads(body)["widgets"] if w["type"] == "log"]
        equal([query.startswith(f"SOURCE '{group}' |") for query in logs], [True] * 3, "queries on the dashboard")
        if f'SCHEMA(\\"{namespace}\\"' not in body or "${" in body:
            raise AssertionError(f"the dashboard's body is {body}")
        groups = {g["logGroupName"]: g for g in client("logs").describe_log_groups()["logGroups"]}
        equal(groups[group].get("retentionInDays"), 30, "retention")
        if name == "all":
            local = client("iam").list_policies(Scope="Local")["Policies"]
            (policy,) = [policy for policy in local if "InstancePolicy" in policy["PolicyName"]]
            version = client("iam").get_policy_version(PolicyArn=policy["Arn"], VersionId=policy["DefaultVersionId"])
            document = version["PolicyVersion"]["Document"]
            equal(set(actions_in(document)), ACTIONS, "the policy's actions in the stack")
            text = json.dumps(document)
            if "${ec2:InstanceID}" not in text or "log-group:/gpu:*" not in text or ":gpu-bootstrap" not in text:
                raise AssertionError(f"the policy in the stack is {text}")
    alarms(template, client)
    server.stop()


def run():
    """(passed, all)"""
    template = Template(environments.read(TEMPLATE))
    passed, total = 0, len(CHECKS) + len(PLANTED) + 1
    for check in CHECKS:
        wrong = check(template)
        passed += not wrong
        for sentence in wrong:
            print(f"templates-selftest: {check.__name__}: {sentence}", flush=True)
    for what, old, new, check in PLANTED:
        if old not in template.text:
            raise AssertionError(f"the template has no {old!r}")
        if found := check(Template(template.text.replace(old, new))):
            passed += 1
        else:
            print(f"templates-selftest: planted and not found: {what} ({found})", flush=True)
    try:
        stacks(template)
        passed += 1
    except Exception as error:
        print(f"templates-selftest: stacks: {type(error).__name__}: {error}", flush=True)
    return passed, total


if __name__ == "__main__":
    PASSED, TOTAL = run()
    print(f"passed={PASSED}/{TOTAL}")
    sys.exit(0 if PASSED == TOTAL else 1)
