"""What the fake AWS has of a machine, against what its runs' own results say."""
import json

from check import equal, true
from report_node import GROUP, HEARTBEAT_SECONDS, INSTANCE_TYPE, TAG_KEY

DAYS = 30  # that a log group keeps its events, if nobody says otherwise
# What the deliverer's file and the log call the channels of CloudWatch.
LOGS, METRICS = "cloudwatch logs", "cloudwatch metrics"


def near(got, wanted, what, within=0.01):
    if got is None or abs(got - wanted) > within:
        raise AssertionError(f"{what}: got {got!r}, expected about {wanted!r}")


def check_events(node, results):
    """The log has what the results say: every run whole, every step once, in order, and nothing twice."""
    events = node.events()
    keys = [(event["run"], event["seq"]) for event in events]
    equal(len(keys), len(set(keys)), "log events by run and seq, all and different ones")
    equal({event["instance_id"] for event in events} | {node.instance}, {node.instance}, "instances in the log")
    equal(len({event["run"] for event in events}), len(results), "runs in the log")
    for result in results:
        own = [event for event in events if event["run"] == run_of(result, events)]
        equal([event["seq"] for event in own], sorted(event["seq"] for event in own), "the order of a run's events")
        by = {}
        for event in own:
            by.setdefault(event["event"], []).append(event)
        planned = [step["id"] for step in by["run-started"][0]["steps"]]
        equal(planned, [step["id"] for step in result["steps"]], "planned steps")
        begun = [step for step in result["steps"] if step["state"] != "pending"]
        equal([event["step"] for event in by.get("step-started", [])], [step["id"] for step in begun], "steps that began")
        done = [step for step in begun if step["state"] == "done"]
        finished = by.get("step-finished", [])
        equal([(e["step"], e["changed"], e["evidence"]) for e in finished],
              [(step["id"], step["changed"], step["evidence"]) for step in done], "steps that ended")
        for event, step in zip(finished, done):
            near(event["seconds"], step["seconds"], f"seconds of {step['id']}", 0.001)
        equal(len(by.get("installed", [])), sum(len(step["installs"]) for step in result["steps"]), "installations")
        equal([e["code"] for e in by.get("failed", [])], [result["error"]["code"]] if result["error"] else [], "failures")
        ends = [(e["outcome"], e["exit_code"]) for e in by.get("run-finished", [])]
        equal(ends, [(result["outcome"], result["exit_code"])], "ends")
        equal(len(by["run-started"]), 1, "beginnings")
    return events


def run_of(result, events):
    """The run's name in the log: when it began, which its result says a moment later or earlier."""
    runs = sorted({event["run"] for event in events})
    begun = result["started"][:19]
    return min(runs, key=lambda run: abs(seconds_of_day(run[:19]) - seconds_of_day(begun)))


def seconds_of_day(text):
    hours, minutes, seconds = text[11:19].split(":")
    return int(hours) * 3600 + int(minutes) * 60 + int(seconds)


def check_embedded(node, results):
    """The events are in embedded metric format, and the metrics that come of them are the steps' durations."""
    made = node.aws.embedded(group=GROUP, stream=node.instance)
    equal(made["mistakes"], [], "mistakes in the embedded metric format")
    wanted = []
    for result in results:
        for step in result["steps"]:
            outcome = {"done": "changed" if step["changed"] else "unchanged", "failed": "failed"}.get(step["state"])
            wanted += [(step["id"], outcome)] if outcome else []
    got = [(metric["dimensions"]["Step"], metric["dimensions"]["Outcome"]) for metric in made["metrics"]]
    equal(sorted(got), sorted(wanted), "durations of steps")
    for metric in made["metrics"]:
        equal((metric["namespace"], metric["name"], metric["unit"], metric["dimensions"]["InstanceType"]),
              (node.namespace, "StepSeconds", "Seconds", INSTANCE_TYPE), "a step's metric")
    done = sorted(step["seconds"] for result in results for step in result["steps"] if step["state"] == "done")
    told = sorted(metric["value"] for metric in made["metrics"] if metric["dimensions"]["Outcome"] != "failed")
    for value, seconds in zip(told, done):
        near(value, seconds, "seconds of a step", 0.001)


def check_figures(node, results):
    """The metrics are the results' figures, each written once for each run."""
    got = {(m["name"], m["dimensions"]["Outcome"]): m for m in node.aws.metrics(namespace=node.namespace)}
    wanted = {}
    for result in results:
        installs = [install for step in result["steps"] for install in step["installs"]]
        figures = {"Outcome": (1, "Count"), "Seconds": (result["seconds"], "Seconds"),
                   "DownloadedBytes": (sum(install["download_bytes"] for install in installs), "Bytes"),
                   "Retries": (sum((install.get("fetched") or {}).get("retries", 0) for install in installs), "Count")}
        if any(step["id"] == "device-query" and step["state"] in ("done", "failed") for step in result["steps"]):
            healthy = 1 if result["outcome"] == "converged" else 0
            figures |= {"GpusFound": (1, "Count"), "GpusExpected": (1, "Count"), "GpusHealthy": (healthy, "Count")}
        for name, (value, unit) in figures.items():
            count, total, _ = wanted.get((name, result["outcome"]), (0, 0, unit))
            wanted[name, result["outcome"]] = (count + 1, total + value, unit)
    equal(sorted(got), sorted(wanted), "metrics")
    for key, (count, total, unit) in wanted.items():
        metric = got[key]
        about = metric["count"], metric["unit"], metric["dimensions"]["InstanceType"]
        equal(about, (count, unit, INSTANCE_TYPE), f"{key}")
        near(metric["sum"], total, f"sum of {key}", 0.05 * count if key[0] == "Seconds" else 0.01)
    return sum(metric["count"] for metric in got.values())


def check_everything(node, *results):
    """What CloudWatch has of a machine, against its results; counts what there is for the last line."""
    events = check_events(node, results)
    check_embedded(node, results)
    figures = check_figures(node, results)
    equal(node.aws.retention(group=GROUP), DAYS, "days that the log group keeps")
    said = {name: sum(channels.get(name, {}).get("sent", 0) for channels in node.deliveries) for name in (LOGS, METRICS)}
    Totals.add(node, len(events) + int(figures), sum(said.values()))
    equal(said, {LOGS: len(events), METRICS: figures}, "what the deliverers say that was taken")


class Totals:
    """Events and figures, for the last line."""

    sent = delivered = read_back = 0

    @classmethod
    def add(cls, node, read_back, delivered):
        cls.read_back += read_back
        cls.delivered += delivered
        mine = f'"{node.instance}"', f'"{node.namespace}"'
        calls = node.aws.calls(service="logs", bodies=True) + node.aws.calls(service="cloudwatch", bodies=True)
        cls.sent += sum(call["items"] for call in calls if any(name in call["body"] for name in mine))


def check_signals(node, outcome, code, lifecycle):
    """Everybody was told once, and the right thing."""
    aws, name = node.aws, node.name
    of = [signal for signal in aws.signals() if name in (signal.get("StackName"), signal.get("AutoScalingGroupName"))]
    stack = [s for s in of if s["action"] == "SignalResource"]
    status = "SUCCESS" if outcome == "converged" else "FAILURE"
    equal([(s["LogicalResourceId"], s["UniqueId"], s["Status"]) for s in stack], [("Node", node.instance, status)],
          "signals to CloudFormation")
    hooks = [s for s in of if s["action"] == "CompleteLifecycleAction"]
    equal([(s["LifecycleHookName"], s["InstanceId"], s["LifecycleActionResult"]) for s in hooks],
          [("gpu-ready", node.instance, lifecycle)], "ends of the lifecycle action")
    beats = [s for s in of if s["action"] == "RecordLifecycleActionHeartbeat"]
    least = int(node.result()["seconds"] / HEARTBEAT_SECONDS)  # the first one comes at once
    true(least <= len(beats) <= least + 2, f"{len(beats)} heartbeats in {node.result()['seconds']:.1f} s")
    true(all(beat["at"] < hooks[0]["at"] for beat in beats), "a heartbeat after the end")
    equal(aws.tags(instance=node.instance), {TAG_KEY: outcome if code is None else f"{outcome}: {code}"}, "tags")
    messages = [json.loads(m["message"]) for m in aws.sns_messages()]
    events = [event["detail"] for event in aws.events()]
    hook = [json.loads(h["body"]) for h in aws.webhooks() if h["path"] == f"/webhook/{name}"]
    for where, stories in (("SNS", messages), ("EventBridge", events), ("the webhook", hook)):
        equal(len(stories), 1, f"messages to {where}")
        (story,) = stories
        equal((story["instance_id"], story["outcome"], story["exit_code"], (story["error"] or {}).get("code")),
              (node.instance, outcome, node.result()["exit_code"], code), f"the message to {where}")
        ended = [step["id"] for step in node.result()["steps"] if step["state"] in ("done", "failed")]
        equal([step["id"] for step in story["steps"]], ended, f"steps told to {where}")
