"""Programs of this project, built as users get them."""
import json
import os
import subprocess

PROJECT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))


def build(name):
    """The release build of a binary or of an example, whichever the manifest says it is; its path."""
    text = subprocess.run(["cargo", "metadata", "--format-version=1", "--no-deps", "--locked"], cwd=PROJECT, check=True,
                          capture_output=True, text=True).stdout
    known = json.loads(text)
    kinds = {target["name"]: target["kind"][0] for package in known["packages"] for target in package["targets"]}
    if kinds.get(name) not in ("bin", "example"):
        raise SystemExit(f"the project has no program {name}")
    subprocess.run(["cargo", "build", "--release", "--locked", "--quiet", f"--{kinds[name]}", name], cwd=PROJECT, check=True)
    target, inner = known["target_directory"], {"bin": "", "example": "examples/"}[kinds[name]]
    found = [path for path in (f"{target}/release/{inner}{name}", f"{target}/x86_64-unknown-linux-gnu/release/{inner}{name}")
             if os.path.exists(path)]
    return max(found, key=os.path.getmtime)
