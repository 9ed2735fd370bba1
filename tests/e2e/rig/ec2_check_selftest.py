#!/usr/bin/env python3
"""Proves the logic of packaging/ec2-check against moto: what is launched, what counts as success, and that nothing is left
running, whatever happens.  It has never run on AWS itself.  The last line is passed=K/N."""
import contextlib
import importlib.machinery
import importlib.util
import io
import json
import logging
import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import environments  # noqa: E402

environments.become(environments.MOTO)

import boto3  # noqa: E402
import botocore.exceptions  # noqa: E402
from moto import mock_aws  # noqa: E402
from moto.server import ThreadedMotoServer  # noqa: E402

PROGRAM = os.path.join(environments.PROJECT, "packaging", "ec2-check")
LOADER = importlib.machinery.SourceFileLoader("ec2_check", PROGRAM)
SPEC = importlib.util.spec_from_loader("ec2_check", LOADER)
ec2_check = importlib.util.module_from_spec(SPEC)
LOADER.exec_module(ec2_check)

KEYS = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_DEFAULT_REGION": "us-east-1"}
LAUNCH = {"ImageId": "ami-12c6146b", "KeyName": "key"}
PROVED = {"found": 1, "result": "pass", "gpus": [{"verdict": "pass"}]}


def equal(got, wanted, what):
    if got != wanted:
        raise AssertionError(f"{what}: got {got!r}, expected {wanted!r}")


class Fleet:
    """An account, and instances that do as they are told: `script(check, n)` is asked before each look what the tag says."""

    def __init__(self, script, results=None, timeout=5, client=None):
        self.ec2 = boto3.client("ec2")
        self.stranger = self.ec2.run_instances(**LAUNCH, MinCount=1, MaxCount=1)["Instances"][0]["InstanceId"]
        fetch = (lambda address, command: self.fetched(command, results)) if results is not None else None
        self.run = ec2_check.Run(client(self.ec2) if client else self.ec2, LAUNCH, "#!/bin/sh\n", timeout=timeout,
                                 pause=0.01, fetch=fetch)
        self.script, self.looks, self.most, self.asked = script, {}, 0, []
        self.look, self.run.look = self.run.look, self.before

    def before(self, check):
        number = self.looks[check.type] = self.looks.get(check.type, 0) + 1
        self.most = max(self.most, len(self.run.left()))
        said = self.script(check, number)
        if said:
            self.ec2.create_tags(Resources=[check.instance], Tags=[{"Key": "gpu-bootstrap", "Value": said}])
        return self.look(check)

    def fetched(self, command, results):
        self.asked.append(command)
        if "result.json" not in command:
            return "<html>"
        instance = self.run.left()[0]
        return json.dumps({"exit_code": 0, "instance_id": instance, "error": None, "gpus": PROVED, **results})

    def check(self, *types, together=False):
        return self.run.check_all(types, together)

    def nothing_left(self):
        equal(self.run.left(), [], "left running")
        (other,) = self.ec2.describe_instances(InstanceIds=[self.stranger])["Reservations"][0]["Instances"]
        equal(other["State"]["Name"], "running", "an instance of somebody else")

    def launched(self):
        ours = {"Name": f"tag:{ec2_check.MARK}", "Values": [self.run.name]}
        pages = self.ec2.describe_instances(Filters=[ours])["Reservations"]
        return [each for page in pages for each in page["Instances"]]


class Broken:
    """A client whose calls fail as told: {name: [exception or None, …]}, after or before they did their work."""

    def __init__(self, client, faults, afterwards=False):
        self.client, self.faults, self.afterwards = client, faults, afterwards

    def __getattr__(self, name):
        method = getattr(self.client, name)

        def call(**arguments):
            fault = self.faults[name].pop(0) if self.faults.get(name) else None
            if fault and not self.afterwards:
                raise fault
            answer = method(**arguments)
            if fault:
                raise fault
            return answer
        return call if name in self.faults else method


def refusal(code):
    return botocore.exceptions.ClientError({"Error": {"Code": code, "Message": code}}, "Call")


def converges(_check, number):
    return ["running", "reboot-needed", "running", "converged"][min(number, 4) - 1]


def wrong_of(fleet, *types, **how):
    found = [check.wrong for check in fleet.check(*types, **how)]
    fleet.nothing_left()
    return found


# -- the tests -------------------------------------------------------------------------------------------------------------


def success_by_the_tag_alone():
    fleet = Fleet(converges)
    equal(wrong_of(fleet, "g5.xlarge"), [[]], "wrong")
    equal(fleet.looks, {"g5.xlarge": 4}, "looks: a reboot is not the end")


def success_with_result_and_report():
    fleet = Fleet(converges, {})
    with tempfile.TemporaryDirectory() as folder:
        fleet.run.folder = folder
        (check,) = fleet.check("g5.xlarge")
        equal(sorted(os.listdir(folder)), ["g5.xlarge-report.html", "g5.xlarge-result.json"], "fetched")
    fleet.nothing_left()
    equal((check.wrong, check.gpus), ([], 1), "wrong")


def what_is_launched_is_ours_and_ends_by_itself():
    fleet = Fleet(converges)
    wrong_of(fleet, "g5.xlarge")
    (about,) = fleet.launched()
    equal((about["InstanceType"], about["ImageId"], about["KeyName"]), ("g5.xlarge", LAUNCH["ImageId"], "key"), "launched")
    tags = {each["Key"]: each["Value"] for each in about["Tags"]}
    equal(tags[ec2_check.MARK], fleet.run.name, "tag")
    attribute = fleet.ec2.describe_instance_attribute(InstanceId=about["InstanceId"],
                                                      Attribute="instanceInitiatedShutdownBehavior")
    equal(attribute["InstanceInitiatedShutdownBehavior"]["Value"], "terminate", "at its own shutdown")


def a_failure_is_one():
    fleet = Fleet(lambda _check, _number: "failed: driver-not-loaded")
    (wrong,) = wrong_of(fleet, "g5.xlarge")
    equal(wrong, ["the run ended as failed: driver-not-loaded"], "wrong")


def a_result_that_is_not_as_expected():
    two = {"found": 2, "result": "pass", "gpus": [{"verdict": "pass"}] * 2}
    broken = {"found": 1, "result": "could-not-tell", "gpus": [{"verdict": "could-not-tell"}]}
    for result, says in (({"gpus": two}, "2 GPUs work, the type has 1"), ({"gpus": broken}, "could-not-tell"),
                         ({"gpus": None}, "0 GPUs work"), ({"instance_id": "i-1"}, "the result is of i-1"),
                         ({"exit_code": 5, "error": {"message": "a GPU is ill"}}, "exit code 5: a GPU is ill"),
                         ({"gpus": "many"}, "cannot be read")):
        (wrong,) = wrong_of(Fleet(converges, result), "g5.xlarge")
        if says not in "; ".join(wrong):
            raise AssertionError(f"{result}: {wrong}")


def a_result_that_cannot_be_fetched():
    fleet = Fleet(converges, {})
    fleet.run.fetch = lambda *_: (_ for _ in ()).throw(OSError("no route"))
    (wrong,) = wrong_of(fleet, "g5.xlarge")
    equal(wrong, ["its result cannot be read: no route"], "wrong")


def a_timeout_ends_it():
    fleet = Fleet(lambda _check, _number: "running", timeout=0.2)
    (wrong,) = wrong_of(fleet, "g5.xlarge")
    if "it said running" not in wrong[0]:
        raise AssertionError(wrong)


def an_instance_that_goes_away():
    def vanish(check, number):
        if number == 2:
            boto3.client("ec2").terminate_instances(InstanceIds=[check.instance])
    (wrong,) = wrong_of(Fleet(vanish), "g5.xlarge")
    equal(wrong, ["the instance is terminated"], "wrong")


def whatever_is_raised_nothing_is_left():
    for error in (KeyboardInterrupt(), SystemExit(143), RuntimeError("a mistake")):
        def stop(_check, number, error=error):
            if number == 2:
                raise error
        fleet = Fleet(stop)
        try:
            fleet.check("g5.xlarge", "g6.xlarge", together=True)
        except type(error):
            equal(len(fleet.launched()), 2, "launched")
            fleet.nothing_left()
        else:
            raise AssertionError(f"{error!r} was swallowed")


def a_launch_that_is_refused_stops_no_other():
    fleet = Fleet(converges, client=lambda ec2: Broken(ec2, {"run_instances": [refusal("InsufficientInstanceCapacity")]}))
    first, second = wrong_of(fleet, "g5.xlarge", "g6.xlarge")
    if "InsufficientInstanceCapacity" not in first[0] or second:
        raise AssertionError(f"{first} {second}")


def a_launch_whose_answer_was_lost_is_found():
    lost = {"run_instances": [botocore.exceptions.ReadTimeoutError(endpoint_url="x")]}
    fleet = Fleet(converges, client=lambda ec2: Broken(ec2, lost, afterwards=True))
    (wrong,) = wrong_of(fleet, "g5.xlarge")
    equal(len(fleet.launched()), 1, "launched")
    if "not launched" not in wrong[0]:
        raise AssertionError(wrong)


def an_answer_that_fails_once_is_asked_for_again():
    faults = {"describe_instances": [refusal("RequestLimitExceeded"), refusal("InvalidInstanceID.NotFound")],
              "terminate_instances": [refusal("RequestLimitExceeded")]}
    fleet = Fleet(converges, client=lambda ec2: Broken(ec2, faults))
    equal(wrong_of(fleet, "g5.xlarge"), [[]], "wrong")
    equal(faults, {"describe_instances": [], "terminate_instances": []}, "faults that were met")


def what_cannot_be_terminated_is_said():
    fleet = Fleet(converges, client=lambda ec2: Broken(ec2, {"terminate_instances": [refusal("AccessDenied")] * 99}))
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        fleet.check("g5.xlarge")
    if "TERMINATE BY HAND" not in said.getvalue() or fleet.run.name not in said.getvalue():
        raise AssertionError(said.getvalue())


def one_after_the_other_unless_together():
    fleet = Fleet(converges)
    wrong_of(fleet, "g5.xlarge", "g6.xlarge")
    equal(fleet.most, 1, "at once")
    fleet = Fleet(converges)
    wrong_of(fleet, "g5.xlarge", "g6.xlarge", together=True)
    equal(fleet.most, 2, "at once, together")


def the_catalog_says_how_many():
    equal([ec2_check.gpus_of(each) for each in ("g5.12xlarge", "g5.tiny", "t3.micro")], [4, None, None], "GPUs")


def arguments_that_would_cost_are_refused():
    for arguments in (["g5.xlarge"] * 2, ["t3.micro"], ["g5.xlarge", "g6.xlarge", "--most", "1"]):
        with contextlib.redirect_stderr(io.StringIO()):
            try:
                ec2_check.main(["--spec", "/none", "--user-data", "/none", *arguments])
            except SystemExit as ended:
                equal(ended.code, 2, f"{arguments}")
            else:
                raise AssertionError(f"{arguments} were taken")


def the_whole_program(ending=None):
    """As a process, against a server; ended by a signal where `ending` is one."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    url = "http://{}:{}".format(*server.get_host_and_port())
    ec2 = boto3.client("ec2", endpoint_url=url)
    # It knows what an earlier server of this process was told.
    urllib.request.build_opener(urllib.request.ProxyHandler({})).open(f"{url}/moto-api/reset", b"").close()

    def ours():
        pages = ec2.describe_instances(Filters=[{"Name": "tag-key", "Values": [ec2_check.MARK]}])["Reservations"]
        return {each["InstanceId"]: each["State"]["Name"] for page in pages for each in page["Instances"]}

    with tempfile.TemporaryDirectory() as folder:
        for name, text in (("spec", json.dumps(LAUNCH)), ("user-data", "#!/bin/sh\n")):
            with open(os.path.join(folder, name), "w", encoding="utf-8") as out:
                out.write(text)
        command = [sys.executable, "-B", PROGRAM, "--spec", f"{folder}/spec", "--user-data", f"{folder}/user-data",
                   "--pause", "0.2", "--together", "g5.xlarge", "g6.xlarge"]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                                   env={**os.environ, "AWS_ENDPOINT_URL": url, "NO_PROXY": "127.0.0.1"})
        until = time.monotonic() + 60
        while len(ours()) < 2 and process.poll() is None and time.monotonic() < until:
            time.sleep(0.1)
        if ending:
            process.send_signal(ending)
        else:
            for instance, outcome in zip(ours(), ("converged", "failed: nvml-failed")):
                ec2.create_tags(Resources=[instance], Tags=[{"Key": "gpu-bootstrap", "Value": outcome}])
        said, complained = process.communicate(timeout=60)
        states = ours()
    server.stop()
    equal(list(states.values()), ["terminated"] * 2, f"states ({complained})")
    if ending:
        equal((process.returncode, complained), (128 + ending, ""), "status and complaint")
    else:
        lines = said.splitlines()
        equal((process.returncode, len(lines), lines[-1]), (1, 4, "passed=1/2"), f"{said}{complained}")
        equal("nvml-failed" in said, True, "the failure is in the table")


def ctrl_c_terminates():
    the_whole_program(signal.SIGINT)


def sigterm_terminates():
    the_whole_program(signal.SIGTERM)


TESTS = [success_by_the_tag_alone, success_with_result_and_report, what_is_launched_is_ours_and_ends_by_itself,
         a_failure_is_one, a_result_that_is_not_as_expected, a_result_that_cannot_be_fetched, a_timeout_ends_it,
         an_instance_that_goes_away, whatever_is_raised_nothing_is_left, a_launch_that_is_refused_stops_no_other,
         a_launch_whose_answer_was_lost_is_found, an_answer_that_fails_once_is_asked_for_again,
         what_cannot_be_terminated_is_said, one_after_the_other_unless_together, the_catalog_says_how_many,
         arguments_that_would_cost_are_refused, the_whole_program, ctrl_c_terminates, sigterm_terminates]


def run():
    """How many tests pass; says which do not."""
    os.environ.update(KEYS)
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    passed = 0
    for test in TESTS:
        with contextlib.nullcontext() if test in (the_whole_program, ctrl_c_terminates, sigterm_terminates) else mock_aws():
            try:
                test()
                passed += 1
            except Exception as error:  # noqa: BLE001 (every one is a failure of its test)
                print(f"ec2-check-selftest: {test.__name__}: {type(error).__name__}: {error}", flush=True)
    return passed


if __name__ == "__main__":
    COUNT = run()
    print(f"passed={COUNT}/{len(TESTS)}")
    sys.exit(0 if COUNT == len(TESTS) else 1)
