"""The distribution's package archive for the tests: found, cached, and turned into root file systems.

The mirror is whatever this machine's own apt uses, read at run time; all traffic goes through httpd.py's cache.
"""
import glob
import os
import shutil
import subprocess
import sys
import time
import urllib.parse

HOST_SUITE = "bookworm"
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
RIG = os.path.dirname(os.path.abspath(__file__))

# A Debian cloud image in small: what the agent may count on, and the user-facing programs that the tests use.
BASE_PACKAGES = ("apt,dpkg,ca-certificates,curl,iproute2,procps,hostname,kmod,util-linux,mount,passwd,sudo,systemd,"
                 "gpgv,e2fsprogs,debconf,python3-minimal,libpython3-stdlib")
BASE_RECIPE = "1"


def mirrors():
    """{prefix: URL} of the main and the security archive in this machine's apt configuration."""
    lines = subprocess.run(["apt-get", "indextargets", "--format", "$(SITE) $(RELEASE)", "Identifier: Packages"],
                           check=True, capture_output=True, text=True).stdout.splitlines()
    by_release = {}
    for line in lines:
        site, release = line.split()
        by_release.setdefault(release, site)
    if HOST_SUITE not in by_release:
        raise SystemExit(f"this machine's apt has no source for {HOST_SUITE}; run it on Debian 12, after apt-get update")
    found = {"debian": by_release[HOST_SUITE]}
    if f"{HOST_SUITE}-security" in by_release:
        found["debian-security"] = by_release[f"{HOST_SUITE}-security"]
    return found


def serve(work, *arguments, netns=None, bind="127.0.0.1", port=0):
    """Starts httpd.py; (process, port)."""
    ready = os.path.join(work, f"httpd-{os.getpid()}-{time.monotonic_ns()}.ready")
    command = [sys.executable, os.path.join(RIG, "httpd.py"), "--ready", ready, "--bind", bind, "--port", str(port),
               *arguments]
    if netns:
        command += ["--netns", netns]
    server = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    while not os.path.exists(ready):
        if server.poll() is not None:
            raise RuntimeError(f"httpd.py ended with status {server.returncode}")
        time.sleep(0.02)
    with open(ready, encoding="utf-8") as source:
        number = int(source.read())
    os.unlink(ready)
    return server, number


class Archive:
    """The cached archive of one Debian release, served on loopback while the object lives; `security`: with its updates."""

    def __init__(self, work, suite=HOST_SUITE, security=True):
        self.work, self.suite, self.upstreams = work, suite, mirrors()
        if not security:
            self.upstreams.pop("debian-security", None)
        self.cache = os.path.join(work, "archive")
        self.server, port = serve(work, *self.proxy_arguments())
        self.base_url = f"http://127.0.0.1:{port}"

    def proxy_arguments(self):
        arguments = ["--cache", self.cache]
        for prefix, url in self.upstreams.items():
            arguments += ["--proxy", f"{prefix}={url}"]
        return arguments

    def close(self):
        self.server.terminate()
        self.server.wait()

    def sources(self, base_url, components):
        """One-line sources, for tools of this machine."""
        lines = [f"deb [signed-by={KEYRING}] {base_url}/debian {self.suite} {components}"]
        if "debian-security" in self.upstreams:
            lines.append(f"deb [signed-by={KEYRING}] {base_url}/debian-security {self.suite}-security {components}")
        return lines

    def deb822(self, base_url):
        """What stands in the instance's /etc/apt/sources.list.d/debian.sources: `main` only, as on a fresh image."""
        text = ""
        for prefix in self.upstreams:
            suite = self.suite if prefix == "debian" else f"{self.suite}-security"
            text += f"Types: deb\nURIs: {base_url}/{prefix}\nSuites: {suite}\nComponents: main\nSigned-By: {KEYRING}\n\n"
        return text

    def download(self, packages, wanted):
        """{package: file in the cache} of those packages in the closure of `packages` for which `wanted(name, url)`."""
        return {name.split("_")[0]: self.fetch(url, digest) for name, url, digest in self.closure(packages)
                if wanted(name.split("_")[0], url)}

    def closure(self, packages, status=None, components="main contrib non-free"):
        """[(file name, URL, digest)] of what apt would fetch to install `packages` without recommended ones, on a
        machine whose dpkg database is the file `status` (None: an empty machine), in apt's order.

        Runs with an apt configuration of its own; this machine's is not touched.  What it read stays in `lists`."""
        folder = os.path.join(self.work, "apt")
        shutil.rmtree(folder, ignore_errors=True)
        for name in ("lists/partial", "cache/archives/partial", "etc/sources.list.d", "etc/preferences.d",
                     "etc/apt.conf.d", "etc/trusted.gpg.d"):
            os.makedirs(os.path.join(folder, name))
        shutil.copyfile(status or os.devnull, os.path.join(folder, "status"))
        with open(os.path.join(folder, "etc/sources.list"), "w", encoding="utf-8") as out:
            out.write("\n".join(self.sources(self.base_url, components)) + "\n")
        with open(os.path.join(folder, "apt.conf"), "w", encoding="utf-8") as out:
            out.write(f'Dir::State "{folder}"; Dir::State::lists "{folder}/lists"; Dir::State::status "{folder}/status";\n'
                      f'Dir::Cache "{folder}/cache"; Dir::Etc "{folder}/etc"; APT::Architecture "amd64";\n'
                      'APT::Architectures {"amd64";}; Acquire::Languages "none"; APT::Install-Recommends "false";\n'
                      'APT::Sandbox::User "root"; Acquire::Retries "3";\n')
        environment = dict(os.environ, APT_CONFIG=os.path.join(folder, "apt.conf"), LC_ALL="C")
        subprocess.run(["apt-get", "-qq", "update"], check=True, env=environment)
        listing = subprocess.run(["apt-get", "-qq", "--option", "Acquire::ForceHash=SHA256", "--print-uris", "--yes",
                                  "install", *packages], check=True,
                                 env=environment, capture_output=True, text=True).stdout
        found = []
        for line in listing.splitlines():
            url, name, _, digest = line.split()
            found.append((name, url.strip("'"), digest))
        return found

    def lists(self):
        """{(release, component): file} of the package indexes that the last `closure` read."""
        found = {}
        for path in glob.glob(os.path.join(self.work, "apt/lists/*_Packages")):
            release, component, _, _ = path.partition("_dists_")[2].rsplit("_", 3)
            found[release, component] = path
        return found

    def fetch(self, url, digest):
        path = os.path.join(self.cache, urllib.parse.unquote(url.removeprefix(self.base_url + "/")))
        if not os.path.exists(path):
            subprocess.run(["curl", "--fail", "--silent", "--show-error", "--output", os.devnull, url], check=True)
            kind, wanted = digest.lower().split(":")
            got = subprocess.run([f"{kind.removesuffix('sum')}sum", path], check=True, capture_output=True, text=True).stdout
            if got.split()[0] != wanted:
                os.unlink(path)
                raise RuntimeError(f"{url} has {kind} {got.split()[0]}, the signed index says {wanted}")
        return path

    def base(self):
        """A minimal Debian 12 root, as a cloud image without documentation."""
        options = [f"--dpkgopt=path-exclude=/usr/share/{excluded}/*" for excluded in ("man", "locale", "doc")]
        options.append("--customize-hook=chroot \"$1\" useradd --create-home --shell /bin/bash user")
        return self.root("base", BASE_PACKAGES, options, recipe=f"{BASE_RECIPE} {BASE_PACKAGES}")

    def root(self, name, packages, options=(), recipe=None):
        """A root of Debian's with `packages` (a comma between them), made once by mmdebstrap from the cached archive; it
        has no package sources yet.  It is made anew when `recipe` changes."""
        root = os.path.join(self.work, name)
        stamp = os.path.join(root, ".recipe")
        recipe = recipe or f"{self.suite} {packages} {options}"
        if os.path.exists(stamp):
            with open(stamp, encoding="utf-8") as known:
                if known.read() == recipe:
                    return root
        shutil.rmtree(root, ignore_errors=True)
        shutil.rmtree(root + ".new", ignore_errors=True)
        hooks = ['rm -f "$1"/etc/apt/sources.list "$1"/etc/apt/sources.list.d/*',
                 'rm -rf "$1"/var/lib/apt/lists && mkdir -p "$1"/var/lib/apt/lists/partial']
        subprocess.run(["mmdebstrap", "--variant=minbase", "--mode=root", "--architectures=amd64", f"--keyring={KEYRING}",
                        "--quiet", '--aptopt=Acquire::Languages "none"', f"--include={packages}",
                        *[f"--customize-hook={hook}" for hook in hooks], *options, self.suite, root + ".new",
                        *self.sources(self.base_url, "main")], check=True)
        # mmdebstrap leaves its options in the root; an instance has none of them.
        for left in glob.glob(root + ".new/etc/apt/apt.conf.d/99mmdebstrap"):
            os.unlink(left)
        with open(os.path.join(root + ".new", ".recipe"), "w", encoding="utf-8") as out:
            out.write(recipe)
        os.rename(root + ".new", root)
        return root
