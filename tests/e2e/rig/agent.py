"""The agent inside an instance: run it, ask it, measure it, and see which programs it starts."""
import json
import os
import re
import subprocess

RIG = os.path.dirname(os.path.abspath(__file__))
BINARY = "/usr/local/sbin/gpu-bootstrap"
MEASURE = "/run/e2e/measure"
PRESS = "/run/e2e/press_ctrl_c.py"


class Agent:
    """`arguments` are given to every command that looks at the machine (for example --catalog)."""

    def __init__(self, machine, binary, measure, arguments=()):
        self.machine, self.arguments = machine, list(arguments)
        machine.copy(binary, BINARY)
        machine.copy(measure, MEASURE)
        machine.copy(os.path.join(RIG, "press_ctrl_c.py"), PRESS)

    def command(self, *arguments):
        return [BINARY, *arguments, *self.arguments]

    def run(self, *arguments, expect=0):
        """A run; its CompletedProcess, after a look at its exit code."""
        done = self.machine.run(*self.command("run", *arguments), check=False)
        if done.returncode != expect:
            raise AssertionError(f"the run exited {done.returncode}, expected {expect}:\n{done.stdout}{done.stderr}")
        return done

    def start(self):
        """A run in the background."""
        return subprocess.Popen(self.machine.command(*self.command("run")), stdin=subprocess.DEVNULL, text=True,
                                stdout=subprocess.PIPE, stderr=subprocess.STDOUT)

    def interrupted(self, log, pattern):
        """A run on a terminal, Ctrl-C as soon as a line of `log` matches `pattern`; its CompletedProcess."""
        return self.machine.run("python3", "-B", PRESS, log, pattern, *self.command("run"), check=False)

    def plan(self):
        """[(step id, action, state, why)]"""
        shown = json.loads(self.machine.run(*self.command("plan", "--json")).stdout)
        return [(step["id"], action["action"], action["state"], action["why"])
                for step in shown["steps"] for action in step["actions"]]

    def result(self):
        return json.loads(self.machine.read("/run/gpu-bootstrap/result.json"))

    def status(self):
        return json.loads(self.machine.run(BINARY, "status", "--json").stdout)

    def measured(self, runs=15):
        """Wall and processor time, and resident set, of runs that have nothing to do."""
        done = self.machine.run(MEASURE, str(runs), *self.command("run"))
        return json.loads(done.stdout)

    def programs(self):
        """Which programs a run starts, itself left out; and its exit code.  Traced from outside the instance."""
        log = os.path.join(self.machine.folder, "execve.log")
        done = subprocess.run(["strace", "--follow-forks", "--quiet=all", "--trace=execve", "--signal=none",
                               "--output", log, *self.machine.command(*self.command("run"))],
                              stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
        with open(log, encoding="utf-8") as source:
            calls = re.findall(r'execve\("([^"]+)".*= 0$', source.read(), re.M)
        if BINARY not in calls:
            raise AssertionError(f"the trace does not show the agent: {calls} {done.stderr}")
        return calls[calls.index(BINARY) + 1:], done.returncode
