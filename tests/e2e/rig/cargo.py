"""Programs of this project, built as users get them."""
import json
import os
import subprocess

PROJECT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))


def build(name, features=(), release=True):
    """The release build (or the quick one) of a binary or of an example, whichever the manifest says it is; its path."""
    text = subprocess.run(["cargo", "metadata", "--format-version=1", "--no-deps", "--locked"], cwd=PROJECT, check=True,
                          capture_output=True, text=True).stdout
    known = json.loads(text)
    kinds = {target["name"]: target["kind"][0] for package in known["packages"] for target in package["targets"]}
    if kinds.get(name) not in ("bin", "example"):
        raise SystemExit(f"the project has no program {name}")
    profile = ["--release"] if release else []
    subprocess.run(["cargo", "build", *profile, "--locked", "--quiet", f"--features={','.join(features)}", f"--{kinds[name]}",
                    name], cwd=PROJECT, check=True)
    folder = "release" if release else "debug"
    target, inner = known["target_directory"], {"bin": "", "example": "examples/"}[kinds[name]]
    found = [path for path in (f"{target}/{folder}/{inner}{name}", f"{target}/x86_64-unknown-linux-gnu/{folder}/{inner}{name}")
             if os.path.exists(path)]
    return max(found, key=os.path.getmtime)
