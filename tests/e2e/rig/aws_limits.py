"""Limits of AWS that the server behind the fake does not know: a call that breaks one is refused, as AWS would do."""
import json

MEGABYTE = 1 << 20
PER_EVENT = 26  # what CloudWatch Logs adds to each event's length
DAY_MS = 24 * 3600 * 1000


def broken(action, body):
    """A sentence about the first limit that the call breaks; None if it keeps them.  `body` is unpacked."""
    check = {"PutMetricData": metrics, "PutLogEvents": log_events, "PutEvents": entries}.get(action)
    if check is None:
        return None
    try:
        return check(json.loads(body), body)
    except (ValueError, KeyError, TypeError) as error:
        return f"{action} cannot be read: {error!r}"


def metrics(call, body):
    data = call["MetricData"]
    if not 1 <= len(data) <= 1000:
        return f"{len(data)} metrics; a call has 1 to 1000"
    if len(body) > MEGABYTE:
        return "more than 1 MB"
    for datum in data:
        for dimension in datum.get("Dimensions", []):
            name, value = dimension["Name"], dimension["Value"]
            if not (1 <= len(name) <= 255 and 1 <= len(value) <= 1024 and (name + value).isascii() and name[0] != ":"):
                return f"dimension {name!r}={value!r}"
        if len(datum.get("Dimensions", [])) > 30:
            return "more than 30 dimensions"
        if len(datum.get("Values", [])) > 150:
            return "more than 150 values"
    return None


def log_events(call, _body):
    events = call["logEvents"]
    if not 1 <= len(events) <= 10_000:
        return f"{len(events)} events; a batch has 1 to 10000"
    sizes = [len(event["message"].encode()) for event in events]
    if min(sizes) < 1 or max(sizes) + PER_EVENT > MEGABYTE:
        return f"an event has {min(sizes)} to {max(sizes)} bytes"
    if sum(sizes) + PER_EVENT * len(events) > MEGABYTE:
        return f"the batch has {sum(sizes) + PER_EVENT * len(events)} bytes"
    if events[-1]["timestamp"] - events[0]["timestamp"] > DAY_MS:
        return "the batch spans more than 24 hours"
    return None


def entries(call, body):
    if not 1 <= len(call["Entries"]) <= 10:
        return f"{len(call['Entries'])} entries; a call has 1 to 10"
    return "more than 1 MB" if len(body) > MEGABYTE else None
