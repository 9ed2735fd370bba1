#!/usr/bin/env python3
"""Proves that the templates which packaging/ offers to be copied are templates: cfn-lint takes the CloudFormation example,
a parser of HCL those of Packer and Terraform, what they refer to is there, every configuration and user-data in them passes
the program's own check, and they grant no right that iam-policy.json does not have.  Mistakes are planted, to see that each
is found.  --binary takes a program that is there already.  The last line is passed=K/N."""
import argparse
import json
import os
import re
import subprocess
import sys
import tempfile

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import cargo  # noqa: E402
import environments  # noqa: E402
import templates_selftest  # noqa: E402 (goes on in its environment)

PACKAGING = os.path.join(environments.PROJECT, "packaging")
STACK, PACKER = "examples/instance.yaml", "packer/gpu-ami.pkr.hcl"
IMAGE, TERRAFORM, CONFIG = "packer/image.toml", "examples/terraform/main.tf", "examples/terraform/gpu.toml"
FILES = [STACK, PACKER, IMAGE, TERRAFORM, CONFIG, "README.md"]
# What HCL itself, Packer and Terraform bring.
GIVEN = {"var", "path", "local", "source", "data", "each"}
PARSE = "import hcl2, json, sys; print(json.dumps(hcl2.loads(sys.stdin.read())))"
SUM = "0" * 64


def read_all():
    return {name: environments.read(os.path.join(PACKAGING, name)) for name in FILES}


def asked(program, *command, text):
    """Sentences of the program's own check of a file."""
    with tempfile.NamedTemporaryFile("w", suffix=".toml", encoding="utf-8") as out:
        out.write(text)
        out.flush()
        done = subprocess.run([program, *command, out.name], capture_output=True, text=True, check=False)
    return ([] if done.returncode == 0 else [f"{' '.join(command)}: {done.stderr}"]), done.stdout


def parsed(text):
    done = subprocess.run([environments.python(*environments.HCL), "-c", PARSE], input=text, capture_output=True, text=True,
                          check=False)
    return json.loads(done.stdout) if done.returncode == 0 else None


def labels(blocks):
    """`{"\\"a\\"": {"\\"b\\"": …}}` as a.b, of a list of such blocks."""
    for block in blocks:
        for first, inner in block.items():
            yield first.strip('"'), inner


def bare(text):
    """HCL without its comments."""
    return re.sub(r"(^|\s)#.*$", "", text, flags=re.M)


# -- what can be wrong: each returns sentences -----------------------------------------------------------------------------


def stack(files, program):
    """The CloudFormation example, and the user-data of its two templates."""
    wrong = templates_selftest.linted(templates_selftest.Snippet(files[STACK]))
    if wrong:
        return wrong
    template = templates_selftest.Template.__new__(templates_selftest.Template)
    template.text, template.tree = files[STACK], templates_selftest.yaml.load(files[STACK], templates_selftest.Loader)
    (node,) = template.of("AWS::EC2::Instance").values()
    (launch,) = template.of("AWS::EC2::LaunchTemplate").values()
    carriers = (node, launch["LaunchTemplateData"])
    texts = [templates_selftest.text_of(about["UserData"]["Fn::Base64"], {}) for about in carriers]
    for text in texts:
        found, said = asked(program, "user-data", "check", text=text)
        wrong += found + ([] if ": configuration" in said else [f"is no configuration: {said}"])
    return wrong or signals(template.tree["Resources"], "".join(texts))


def signals(resources, user_data):
    """Resource, group and hook that the configuration names are those of the template."""
    (hook,) = resources["Group"]["Properties"]["LifecycleHookSpecificationList"]
    group = templates_selftest.text_of(resources["Group"]["Properties"]["AutoScalingGroupName"], {})
    wrong = [] if "CreationPolicy" in resources["Node"] else ["the stack does not wait for Node"]
    wanted = ('resource = "Node"', f'group = "{group}"', f'hook = "{hook["LifecycleHookName"]}"')
    wrong += [f"no user-data has {each}" for each in wanted if each not in user_data]
    heartbeat = int(re.search(r"heartbeat = (\d+)", user_data)[1])
    return wrong + ([] if 3 * heartbeat <= hook["HeartbeatTimeout"] else [f"heartbeat {heartbeat} s is too long"])


def rights(files, _program):
    """No more than iam-policy.json."""
    with open(os.path.join(PACKAGING, "iam-policy.json"), encoding="utf-8") as source:
        allowed = set(templates_selftest.actions_in(json.load(source)))
    resources = templates_selftest.yaml.load(files[STACK], templates_selftest.Loader)["Resources"]
    (policy,) = resources["Role"]["Properties"]["Policies"]
    used = list(templates_selftest.actions_in(policy["PolicyDocument"]))
    wrong = [f"{STACK}: {action} is not in iam-policy.json" for action in used if action not in allowed]
    file = re.search(r'policy\s*=\s*file\("\$\{path\.module\}/([^"]*)"\)', files[TERRAFORM])
    if not file or not os.path.exists(os.path.join(PACKAGING, os.path.dirname(TERRAFORM), file[1])):
        wrong.append(f"{TERRAFORM}: its policy is not iam-policy.json")
    # jsonencode has the role's trust, and nothing else.
    wrong += [f"{TERRAFORM}: {a}" for a in re.findall(r'Action\s*=\s*"([^"]*)"', files[TERRAFORM]) if a != "sts:AssumeRole"]
    return wrong


def packer(files, program):
    tree = parsed(files[PACKER])
    if tree is None:
        return [f"{PACKER}: cannot be parsed"]
    wrong = references(PACKER, files[PACKER], {name for name, _ in labels(tree["variable"])}, set())
    sources = {f"source.{kind}.{name}" for kind, inner in labels(tree["source"]) for name in map(unquoted, inner)}
    (build,) = tree["build"]
    wrong += [f"{PACKER}: there is no {name}" for name in map(unquoted, build["sources"]) if name not in sources]
    lines, copied = [], []
    for kind, about in labels(build["provisioner"]):
        if kind == "shell":
            wrong += shell(about)
            lines += map(unquoted, about["inline"])
        else:
            copied.append(unquoted(about["source"]))
    text = "\n".join(lines)
    wrong += [] if "${path.root}/image.toml" in copied else [f"{PACKER}: image.toml is not copied"]
    runs = [line for line in lines if "gpu-bootstrap run" in line]
    wrong += [] if len(runs) == 2 and all("--no-reboot" in line for line in runs) else [f"{PACKER}: runs {runs}"]
    made = re.findall(r"(/etc/gpu-bootstrap/\S+)", text[:text.index("gpu-bootstrap run")])
    gone = [line for line in lines if line.startswith("sudo rm -f /etc")]
    wrong += [f"{PACKER}: {path} stays in the image" for path in set(made) if not any(path in line for line in gone)]
    wrong += [] if lines[-1].startswith("sudo gpu-bootstrap seal") else [f"{PACKER}: something comes after seal"]
    codes = [about["valid_exit_codes"] for _, about in labels(build["provisioner"]) if "valid_exit_codes" in about]
    wrong += [] if codes == [[0, 10]] else [f"{PACKER}: exit codes {codes}"]
    found, said = asked(program, "config", "check", text=files[IMAGE])
    wrong += found
    wrong += [f"{IMAGE}: {line}" for line in ('policy.on-no-gpu = "install"', "policy.for = [") if line not in said]
    return wrong


def shell(about):
    """shellcheck's words about a provisioner's lines."""
    text = "#!/bin/sh\n" + "\n".join(map(unquoted, about["inline"])) + "\n"
    done = subprocess.run(["shellcheck", "--shell=sh", "-"], input=text, capture_output=True, text=True, check=False)
    return [] if done.returncode == 0 else [f"{PACKER}: {done.stdout}"]


def unquoted(text):
    return text[1:-1].replace('\\"', '"') if text.startswith('"') else text


def references(name, text, variables, resources):
    """Whatever is referred to is declared."""
    text = bare(text)
    wrong = [f"{name}: var.{used} is not declared" for used in set(re.findall(r"\bvar\.(\w+)", text)) - variables]
    wrong += [f"{name}: var.{unused} is not used" for unused in variables - set(re.findall(r"\bvar\.(\w+)", text))]
    for kind, used in set(re.findall(r"\b(aws_\w+)\.(\w+)\.", text)):
        wrong += [] if f"{kind}.{used}" in resources else [f"{name}: there is no {kind}.{used}"]
    return wrong


def terraform(files, program):
    tree = parsed(files[TERRAFORM])
    if tree is None:
        return [f"{TERRAFORM}: cannot be parsed"]
    resources = {f"{kind}.{unquoted(name)}": about for kind, inner in labels(tree["resource"])
                 for name, about in inner.items()}
    wrong = references(TERRAFORM, files[TERRAFORM], {name for name, _ in labels(tree["variable"])}, set(resources))
    found, _ = asked(program, "config", "check", text=files[CONFIG])
    wrong += found
    # The stub as the file's head says it is rendered.
    url = ["--url", "https://example.com/agent", "--sha256", SUM]
    with tempfile.NamedTemporaryFile("w", suffix=".toml", encoding="utf-8") as config:
        config.write(files[CONFIG])
        config.flush()
        stub = subprocess.run([program, "user-data", "render", *url, "--config", config.name], capture_output=True,
                              text=True, check=False)
    wrong += asked(program, "user-data", "check", text=stub.stdout)[0] if stub.returncode == 0 else [stub.stderr]
    group = resources.get("aws_autoscaling_group.gpu", {})
    for key, value in (("group", group.get("name")), ("hook", group["initial_lifecycle_hook"][0]["name"])):
        wrong += [] if f"{key} = {value}" in files[CONFIG] else [f"{CONFIG}: {key} is not {value}"]
    return wrong


def page(files, program):
    """packaging/README.md: its configurations are ones, and the files that it names are there."""
    text = files["README.md"]
    wrong = []
    snippets = re.findall(r"^```toml\n(.*?)^```$", text, re.M | re.S)
    for snippet in snippets:
        wrong += asked(program, "config", "check", text=snippet)[0]
    wrong += [] if snippets else ["README.md has no configuration"]
    for link in re.findall(r"\]\(([^)#:]+)\)", text):
        wrong += [] if os.path.exists(os.path.join(PACKAGING, link)) else [f"README.md: there is no {link}"]
    return wrong


CHECKS = [stack, rights, packer, terraform, page]
# (what, file, text, what takes its place, who must notice)
PLANTED = [
    ("a property that there is not", STACK, "MaxSize:", "MaximumSize:", stack),
    ("a reference to nothing", STACK, "Roles: [!Ref Role]", "Roles: [!Ref Rolle]", stack),
    ("a key that there is not", STACK, "heartbeat = 300", "heart-beat = 300", stack),
    ("another hook", STACK, "LifecycleHookName: gpu-ready", "LifecycleHookName: ready", stack),
    ("another resource", STACK, 'resource = "Node"', 'resource = "Nodes"', stack),
    ("a heartbeat too slow", STACK, "heartbeat = 300", "heartbeat = 600", stack),
    ("a right too many", STACK, "Action: cloudformation:SignalResource", "Action: cloudformation:DeleteStack", rights),
    ("another policy", TERRAFORM, "../../iam-policy.json", "../iam-policy.json", rights),
    ("a brace", PACKER, "source_ami_filter {", "source_ami_filter", packer),
    ("a variable", PACKER, "= var.deb", "= var.package", packer),
    ("a source", PACKER, '["source.amazon-ebs.gpu"]', '["source.amazon-ebs.image"]', packer),
    ("a run that reboots", PACKER, "sudo gpu-bootstrap run --no-reboot || ", "sudo gpu-bootstrap run || ", packer),
    ("what stays in the image", PACKER, "50-baking.toml /etc/gpu-bootstrap/disabled", "50-baking.toml", packer),
    ("a command after seal", PACKER, '--shell-history",', '--shell-history", "sudo ssh-keygen -A",', packer),
    ("exit code 10", PACKER, "[0, 10]", "[0]", packer),
    ("a shell's mistake", PACKER, "if [ $status = 10 ]; then", "if [ $status = 10]; then", packer),
    ("a policy", IMAGE, '"install"', '"instal"', packer),
    ("a type that there is not", IMAGE, "for =", "four =", packer),
    ("a resource", TERRAFORM, "aws_launch_template.gpu.id", "aws_launch_template.cpu.id", terraform),
    ("a bracket", TERRAFORM, "Statement = [{", "Statement = {", terraform),
    ("another group", CONFIG, '"gpu-nodes"', '"nodes"', terraform),
    ("a section", CONFIG, "[report]", "[reports]", terraform),
    ("a file", "README.md", "](examples/instance.yaml)", "](examples/stack.yaml)", page),
]


def run(program):
    """(passed, all)"""
    files, passed = read_all(), 0
    for check in CHECKS:
        wrong = check(files, program)
        passed += not wrong
        for sentence in wrong:
            print(f"examples-selftest: {check.__name__}: {sentence}", flush=True)
    for what, name, old, new, check in PLANTED:
        if old not in files[name]:
            raise AssertionError(f"{name} has no {old!r}")
        if check({**files, name: files[name].replace(old, new)}, program):
            passed += 1
        else:
            print(f"examples-selftest: planted and not found: {what}", flush=True)
    return passed, len(CHECKS) + len(PLANTED)


if __name__ == "__main__":
    PARSER = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    PARSER.add_argument("--binary", help="default: built now, the quick way")
    PASSED, TOTAL = run(PARSER.parse_args().binary or cargo.build("gpu-bootstrap", release=False))
    print(f"passed={PASSED}/{TOTAL}")
    sys.exit(0 if PASSED == TOTAL else 1)
