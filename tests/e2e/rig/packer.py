"""The shell commands of a Packer template, run as Packer runs them: each provisioner's list as a script of `/bin/sh -e`,
uploaded and started over ssh.  What Packer does besides (launch, capture) is not here."""
import base64
import json
import os
import re

from cargo import PROJECT

TEMPLATE = os.path.join(PROJECT, "packaging/packer/gpu-ami.pkr.hcl")
SCRIPT = "/tmp/script_1234.sh"


def provisioners():
    """[(kind, {setting: value})] of the template, in its order; what is no plain value stays text."""
    with open(TEMPLATE, encoding="utf-8") as source:
        text = re.sub(r"^ *#.*\n", "", source.read(), flags=re.M)
    blocks = re.findall(r'^  provisioner "(\w+)" \{\n(.*?)^  \}$', text, re.M | re.S)
    if len(blocks) != text.count("provisioner "):
        raise ValueError(f"{TEMPLATE} has {text.count('provisioner ')} provisioners, and {len(blocks)} were read")
    return [(kind, {name: value_of(text) for name, text in re.findall(r"^    (\w+) *= (\[.*?\]|.*?)$", inner, re.M | re.S)})
            for kind, inner in blocks]


def value_of(text):
    try:
        return json.loads(re.sub(r",\s*\]$", "]", text))
    except json.JSONDecodeError:
        return text


def upload(client, key, source, destination):
    with open(source, "rb") as content:
        text = base64.b64encode(content.read()).decode()
    return client.run(key, f"base64 -d >{destination}", text=text)


def run(client, key, commands, seconds, then=""):
    """What ssh came to; `then` follows in the same login, for a script after which nobody logs in."""
    if any("${" in command for command in commands):
        raise ValueError(f"Packer would fill these in: {commands}")
    text = "\n".join(["#!/bin/sh -e", *commands, ""])
    client.run(key, f"cat >{SCRIPT} && chmod +x {SCRIPT}", text=text)
    return client.run(key, f"{SCRIPT}; status=$?; {then} exit $status", seconds=seconds)
