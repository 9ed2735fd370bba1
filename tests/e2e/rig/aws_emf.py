"""What CloudWatch makes of log events in embedded metric format: whether it would take them, and which metrics come of them.
moto stores log events and looks no further."""
import json
import os

import jsonschema

PROJECT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))
SCHEMA = os.path.join(PROJECT, "tests", "fixtures", "emf.schema.json")
MOST_VALUES, LONGEST_DIMENSION = 100, 1024


def validator():
    with open(SCHEMA, encoding="utf-8") as source:
        return jsonschema.Draft202012Validator(json.load(source))


def mistakes(message, check):
    """Sentences about what is wrong with an event that has `_aws`; none for one that has not."""
    event = json.loads(message)
    if not isinstance(event, dict):
        return ["the event is no JSON object"]
    if "_aws" not in event:
        return []
    wrong = [f"{error.json_path}: {error.message}" for error in check.iter_errors(event)]
    return wrong or [sentence for directive in event["_aws"]["CloudWatchMetrics"] for sentence in targets(event, directive)]


def targets(event, directive):
    """Metrics and dimensions are members of the root."""
    for metric in directive["Metrics"]:
        values = event.get(metric["Name"])
        values = values if isinstance(values, list) else [values]
        if len(values) > MOST_VALUES or not all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in values):
            yield f"the metric {metric['Name']} is {event.get(metric['Name'])!r}"
    for dimension in {name for names in directive["Dimensions"] for name in names}:
        value = event.get(dimension)
        if not isinstance(value, str) or not 1 <= len(value) <= LONGEST_DIMENSION or not value.isascii():
            yield f"the dimension {dimension} is {value!r}"


def metrics(message):
    """[{namespace, name, unit, value, dimensions}] that come of an event."""
    event = json.loads(message)
    return [{"namespace": directive["Namespace"], "name": metric["Name"], "unit": metric.get("Unit", "None"),
             "value": event[metric["Name"]], "dimensions": {name: event[name] for name in names}}
            for directive in event.get("_aws", {}).get("CloudWatchMetrics", [])
            for metric in directive["Metrics"] for names in directive["Dimensions"]]
