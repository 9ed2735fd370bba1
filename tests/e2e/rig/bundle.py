"""Bundles on a Debian 12 root that has no network but what the scene gives it: nothing, or a bucket.

  layout      a repository laid out like NVIDIA's and Debian's real archive, by this machine's mirror: made outside, installed from a
              directory; a flipped byte in a package, an index, the key and the manifest is refused by name
  bucket      the same by S3: moto behind a door that checks signatures, rights and sums; made anew; flipped
  debian      Debian's archive by its own name, without --sources and --installed: Python and what it needs
  tensorflow  Keras with TensorFlow from the bundle's wheels, trained on the CPU; a flipped byte in a wheel
  pytorch     the same with PyTorch, whose wheels are CUDA's: 3 GB, removed afterwards. The environment lies in memory

`run(work, archive, binary, say)` does all of them, or those in `only`; the first that fails is an AssertionError.
"""
import json
import os
import re
import shutil
import subprocess
import time

import aws
import debs
import frameworks
import sandbox
from archive import serve
from signed_repo import Key, publish

PACKAGES = "apt,dpkg,ca-certificates,util-linux,gpgv"
PLACE, ENVIRONMENT = "/srv/bundle", "/opt/gpu-bootstrap/ml"
NOTHING_ELSE = '[driver]\nbranch = "none"\n[cudnn]\nversion = "none"\n'
TOOLKIT = '[cuda]\ntoolkit = "12.8"\n'
NO_TOOLKIT = '[cuda]\ntoolkit = "none"\n'
# A real package of Debian's, with two libraries, that no minimal root has: what NVIDIA's packages need of the distribution.
REAL, ITS_LIBRARIES = "jq", ["libjq1", "libonig5"]
REGION = "us-east-1"


def true(what, holds, said=""):
    if not holds:
        raise AssertionError(f"{what}\n{said[-3000:]}")


class Scene:
    """A fresh root, and the bundle that is made for it outside."""

    def __init__(self, work, archive, binary, say):
        self.work, self.archive, self.binary, self.say = work, archive, binary, say
        self.base = archive.root("bundle-base", PACKAGES)
        self.root, self.tools = os.path.join(work, "root"), os.path.join(work, "tools")
        self.binds, self.netns = [], None
        os.makedirs(self.tools, exist_ok=True)
        shutil.copy2(binary, os.path.join(self.tools, "gpu-bootstrap"))
        self.fresh()

    def fresh(self):
        shutil.rmtree(self.root, ignore_errors=True)
        sandbox.fresh(self.base, self.root)
        # A machine's sources lead nowhere here, and nobody reads them.
        self.write("/etc/apt/sources.list", "deb http://192.0.2.1/debian bookworm main\n")
        for file, value in frameworks.DEVICE.items():
            self.write(f"/srv/pci/devices/0000:00:1e.0/{file}", value)

    def path(self, inside):
        return os.path.join(self.root, inside.lstrip("/"))

    def write(self, inside, text):
        os.makedirs(os.path.dirname(self.path(inside)), exist_ok=True)
        with open(self.path(inside), "w", encoding="utf-8") as out:
            out.write(text)

    def at(self, name):
        return os.path.join(self.work, name)

    def create(self, config, output, *more, environment=None, status=0):
        """`bundle create` on this machine; (document, seconds)."""
        with open(self.at("create.toml"), "w", encoding="utf-8") as out:
            out.write(config)
        command = [self.binary, "bundle", "create", "--no-imds", "--json", "--os", "debian12", "--instance-type", "g4dn.xlarge",
                   "--config", self.at("create.toml"), "--output", output, *more]
        began = time.monotonic()
        done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **(environment or {})})
        true(f"create ended with {done.returncode}", done.returncode == status, done.stdout + done.stderr)
        return (json.loads(done.stdout) if status == 0 else done.stderr), time.monotonic() - began

    def enter(self, command, environment=None):
        """A command inside the root, in a network of its own that has nothing, or in the bucket's."""
        inside = ["bash", "-c", 'mount --bind "$ROOT/srv/pci" "$ROOT/sys/bus/pci" && exec chroot "$ROOT" "$@"', "enter", *command]
        net = ["nsenter", f"--net={self.netns}"] if self.netns else ["unshare", "--net"]
        box = sandbox.Sandbox(self.root, [*net, *inside], self.tools, binds=self.binds, environment=environment)
        status = box.wait()
        return status, box.output()

    def agent(self, place, sha256, config, environment=None, catalog=None):
        self.write("/etc/gpu-bootstrap/e2e.toml", f'[source]\npackages = "bundle:{place}"\nbundle-sha256 = "{sha256}"\n{config}')
        self.write("/proc/sys/kernel/osrelease", "6.1.0-18-cloud-amd64\n")
        command = ["/mnt/gpu-bootstrap", "run", "--no-imds"]
        if catalog:
            shutil.copy2(catalog, self.path("/srv/catalog/repositories.toml"))
            command += ["--catalog", "/srv/catalog"]
        return self.enter(command, environment)

    def installed(self):
        _, listing = self.enter(["dpkg-query", "-W", "-f", "${db:Status-Abbrev}|${Package}\n"])
        return {line.split("|")[1] for line in listing.splitlines() if re.match("[ih]i", line)}

    def bring(self, bundle):
        """The bundle in a directory of the root, by hard links where it can be: nobody changes a file in place."""
        shutil.rmtree(self.path(PLACE), ignore_errors=True)
        subprocess.run(["cp", "--archive", "--link", bundle, self.path(PLACE)], check=True)

    def refused(self, name, sha256, config, why, **more):
        """One bit of a file of the root's bundle is another: the run names it, and the right one heals it."""
        path = self.path(f"{PLACE}/{name}")
        with open(path, "rb") as source:
            whole = source.read()
        os.unlink(path)  # the file may have another name elsewhere
        with open(path, "wb") as out:
            out.write(whole[:len(whole) // 2] + bytes([whole[len(whole) // 2] ^ 1]) + whole[len(whole) // 2 + 1:])
        before = self.installed()
        status, output = self.agent(PLACE, sha256, config, **more)
        true(f"a flipped byte in {name} is refused by name", status == 1 and name in output and why in output, output)
        true(f"nothing was installed from it: {name}", self.installed() == before, output)
        os.unlink(path)
        with open(path, "wb") as out:
            out.write(whole)


def sources(scene):
    """This machine's own mirror of Debian, which the scene's cache serves."""
    path = scene.at("archive.sources")
    with open(path, "w", encoding="utf-8") as out:
        out.write(scene.archive.deb822(scene.archive.base_url))
    return ["--sources", path]


class Nvidia:
    """A repository laid out like NVIDIA's, served on loopback while the object lives."""

    def __init__(self, scene):
        self.scene, self.key = scene, Key(scene.at("gpg"))
        self.place = scene.at("nvidia")
        self.catalog = scene.at("repositories.toml")
        self.publish("12.8.1-1")
        with open(self.catalog, "w", encoding="utf-8") as out:
            out.write(self.key.catalog("debian12"))
        self.server, port = serve(scene.work, "--serve", f"repos={self.place}")
        self.url = f"http://127.0.0.1:{port}/repos"

    def publish(self, version):
        flat = os.path.join(self.place, "debian12", "x86_64")
        shutil.rmtree(self.place, ignore_errors=True)
        os.makedirs(flat)
        fields = {"Depends": f"cuda-part-12-8 (= {version}), {REAL}"}
        debs.Package("cuda-toolkit-12-8", version, "amd64", fields=fields).build(flat)
        content = debs.file("usr/local/cuda-12.8/version.json", "{}\n")
        debs.Package("cuda-part-12-8", version, "amd64", entries=[content, debs.file(
            "usr/local/cuda-12.8/lib64/big", debs.noise(3 << 20, 7))]).build(flat)
        publish(flat, self.key, f"{self.place}.json")

    def create(self, output, *more, environment=None, status=0):
        config = f'[source]\npackages = "{self.url}"\n{NOTHING_ELSE}{TOOLKIT}'
        folder = self.scene.at("catalog")
        os.makedirs(folder, exist_ok=True)
        shutil.copy2(self.catalog, os.path.join(folder, "repositories.toml"))
        return self.scene.create(config, output, "--catalog", folder, "--accept-licence", "nvidia", *sources(self.scene), *more,
                                 environment=environment, status=status)

    def close(self):
        self.server.terminate()
        self.server.wait()
        self.key.close()


def files_of(bundle):
    with open(os.path.join(bundle, "manifest.json"), encoding="utf-8") as source:
        manifest = json.load(source)
    return [f"{manifest['directory']}/{file['path']}" for file in manifest["files"]]


def layout(scene):
    nvidia, bundle = Nvidia(scene), scene.at("bundle-layout")
    os.makedirs(scene.path("/srv/catalog"), exist_ok=True)
    try:
        made, seconds = nvidia.create(bundle)
    finally:
        nvidia.close()  # from here on there is no repository
    scene.bring(bundle)
    config, sha256 = NOTHING_ELSE, made["manifest-sha256"]
    names = files_of(bundle)
    picked = [next(n for n in names if part in n) for part in
              ("cuda-part-12-8_", f"/{REAL}_", "nvidia/debian12/x86_64/Packages", "InRelease", "keys/distribution", "keys/nvidia")]
    for name in picked:
        scene.refused(name, sha256, config, "[bundle-tampered]", catalog=nvidia.catalog)
    scene.refused("manifest.json", sha256, config, "[bundle-invalid]", catalog=nvidia.catalog)
    status, output = scene.agent(PLACE, sha256, config, catalog=nvidia.catalog)
    true("the bundle installs without a network", status == 0, output)
    wanted = {"cuda-toolkit-12-8", "cuda-part-12-8", REAL, *ITS_LIBRARIES}
    true("its packages are there", wanted <= scene.installed(), output)
    shutil.rmtree(scene.path(PLACE))
    status, output = scene.agent(PLACE, sha256, config, catalog=nvidia.catalog)
    true("the second run needs no bundle", status == 0 and "done " not in output, output)
    return f"{made['files']} files, {made['bytes'] >> 20} MB made in {seconds:.0f} s; {len(picked) + 1} flipped bytes refused by name"


def network(name):
    """A network namespace with loopback alone; its path."""
    subprocess.run(["ip", "netns", "delete", name], check=False, stderr=subprocess.DEVNULL)
    subprocess.run(["ip", "netns", "add", name], check=True)
    subprocess.run(["ip", "-n", name, "link", "set", "lo", "up"], check=True)
    return f"/run/netns/{name}"


def bucket(scene):
    name = f"gpu-bundle-{os.getpid()}"
    scene.netns = network(name)
    os.makedirs(scene.path("/srv/catalog"), exist_ok=True)
    nvidia = Nvidia(scene)
    try:
        with aws.Aws.start() as cloud:
            return in_bucket(scene, nvidia, cloud)
    finally:
        nvidia.close()
        scene.netns = None
        subprocess.run(["ip", "netns", "delete", name], check=True)


def in_bucket(scene, nvidia, cloud):
    place, region = "s3://gpu-bundles/debian12/t4", {"AWS_REGION": REGION}
    outside = {**cloud.environment("bundler"), **region}
    said, _ = nvidia.create(place, environment={**cloud.environment("stranger"), **region}, status=1)
    true("who may not is told which right is missing", "s3:PutObject" in said, said)
    made, seconds = nvidia.create(place, environment=outside)
    true("every request was signed in its query, and right", all(c["status"] < 300 or c["status"] == 404 for c in
         cloud.calls(service="s3") if c["key"] == outside["AWS_ACCESS_KEY_ID"]), str(cloud.calls(service="s3"))[:2000])
    # Made anew: what both have is not sent again.
    nvidia.publish("12.8.2-1")
    cloud.forget()
    made, again = nvidia.create(place, environment=outside)
    sent = sum(c["bytes"] for c in cloud.calls(service="s3") if c["action"].startswith("PUT"))
    true("what both have is not sent again", 0 < sent < made["bytes"], f"{sent} of {made['bytes']}")
    # The machine's network has the bucket and nothing else.
    inside = {**outside, "AWS_ENDPOINT_URL": f"http://127.0.0.1:{cloud.listen(netns=scene.netns)}"}
    sha256 = made["manifest-sha256"]
    local = scene.at("bundle-layout-2")
    nvidia.create(local)
    name = next(n for n in files_of(local) if "cuda-part-12-8_" in n)
    cloud.flip(key=f"debian12/t4/{name}")
    cloud.forget()
    status, output = scene.agent(place, sha256, NOTHING_ELSE, inside, catalog=nvidia.catalog)
    true("a flipped byte in an object is refused by name", status == 1 and name in output, output)
    asked = len(cloud.calls(service="s3"))
    true("nothing was installed from it", "cuda-part-12-8" not in scene.installed())
    cloud.flip(key=f"debian12/t4/{name}")
    denied = {**inside, **{k: v for k, v in cloud.environment("stranger").items() if k != "AWS_ENDPOINT_URL"}}
    status, output = scene.agent(place, sha256, NOTHING_ELSE, denied, catalog=nvidia.catalog)
    true("who may not read it is told so", status == 1 and "[fetch-denied]" in output, output)
    cloud.forget()
    status, output = scene.agent(place, sha256, NOTHING_ELSE, inside, catalog=nvidia.catalog)
    true("the bundle installs from the bucket", status == 0, output)
    true("its packages are there", {"cuda-part-12-8", REAL, *ITS_LIBRARIES} <= scene.installed(), output)
    calls = cloud.calls(service="s3")
    rest = [call["action"] for call in calls if name not in call["action"] and not call["action"].endswith("/manifest.json")]
    true("what had come before, and was right, is not fetched again", calls and not rest, str(rest))
    return f"made in {seconds:.0f} s, anew in {again:.0f} s ({sent >> 10} KB sent); {asked} signed requests to fetch it"


def debian(scene):
    """Without sources and without a list of what is installed: the archive and the minimal set that everybody has."""
    bundle = scene.at("bundle-debian")
    config = f'[source]\npackages = "distro"\n{NOTHING_ELSE}{NO_TOOLKIT}[frameworks]\npython = ["keras", "jax"]\ndevice = "cpu"\n' \
             f'path = "{ENVIRONMENT}"\ntraining-check = false\n'
    made, seconds = scene.create(config, bundle)
    names = files_of(bundle)
    true("Python is in it", any("/python3-venv_" in n for n in names) and any("/python3.11-minimal_" in n for n in names))
    true("the wheels are in it", any("/wheels/jaxlib-" in n for n in names), str(names)[-2000:])
    _, again = scene.create(config, bundle)
    scene.bring(bundle)
    began = time.monotonic()
    status, output = scene.agent(PLACE, made["manifest-sha256"], config.partition("[driver]")[1] + config.partition("[driver]")[2])
    true("it installs", status == 0, output)
    true("Python is installed", "python3-venv" in scene.installed())
    return (f"{made['files']} files, {made['bytes'] >> 20} MB made in {seconds:.0f} s, once more in {again:.0f} s; "
            f"installed in {time.monotonic() - began:.0f} s")


def offline(scene, names, wanted, flip):
    bundle = scene.at(f"bundle-{names[-1]}")
    rest = (f'{NOTHING_ELSE}{NO_TOOLKIT}[frameworks]\npython = {json.dumps(names)}\ndevice = "cpu"\npath = "{ENVIRONMENT}"\n')
    made, seconds = scene.create('[source]\npackages = "distro"\n' + rest, bundle, *sources(scene), "--accept-licence", "nvidia",
                                 "--installed", scene.path("/var/lib/dpkg/status"))
    scene.bring(bundle)
    sha256 = made["manifest-sha256"]
    if flip:
        name = next(n for n in files_of(bundle) if flip in n)
        scene.refused(name, sha256, rest, "[bundle-tampered]")
    began = time.monotonic()
    status, output = scene.agent(PLACE, sha256, rest)
    took = time.monotonic() - began
    true("the frameworks install and train without a network", status == 0, output)
    machine = frameworks.Evidence(scene.root)
    words = frameworks.trained(machine, wanted)
    began = time.monotonic()
    status, output = scene.agent(PLACE, sha256, rest)
    true("the second run installs nothing", status == 0 and "done     keras" not in output, output)
    return (f"{made['files']} files, {made['bytes'] >> 20} MB made in {seconds:.0f} s; installed and trained in {took:.0f} s, "
            f"once more in {time.monotonic() - began:.0f} s; {words}")


def tensorflow(scene):
    return offline(scene, ["keras", "tensorflow"], ["keras with tensorflow"], "/wheels/keras-")


def pytorch(scene):
    memory, bundle = scene.at("memory"), scene.at("bundle-torch")
    os.makedirs(memory, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=12g,mode=755", "tmpfs", memory], check=True)
    scene.binds = [(memory, "/opt/gpu-bootstrap")]
    try:
        return offline(scene, ["keras", "torch"], ["keras with torch", "torch"], None)
    finally:
        scene.binds = []
        subprocess.run(["umount", memory], check=True)
        shutil.rmtree(bundle, ignore_errors=True)
        shutil.rmtree(scene.path(PLACE), ignore_errors=True)


SCENES = {"layout": layout, "bucket": bucket, "debian": debian, "tensorflow": tensorflow, "pytorch": pytorch}


def run(work, archive, binary, say, only=()):
    """Every scene on a fresh root; what each measured."""
    results = {}
    scene = Scene(work, archive, binary, say)
    try:
        for name in only or SCENES:
            scene.fresh()
            results[name] = SCENES[name](scene)
            say(f"bundle: {name}: {results[name]}")
    finally:
        shutil.rmtree(scene.root, ignore_errors=True)
    return results
