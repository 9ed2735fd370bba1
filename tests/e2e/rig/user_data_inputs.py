"""What tests/e2e/user-data hands to cloud-init and to gpu-bootstrap: hand-picked cases, and others grown from a seed."""
import base64
import gzip
import hashlib
import os
import quopri
import random
import re
import tomllib

from cargo import PROJECT

FIXTURES = os.path.join(PROJECT, "tests/fixtures/user-data")
MAX_BYTES = 16_384  # EC2's
# What links name, by URL. «sum|NAME» in a case stands for the URL and its sum.
CONTENTS = {f"https://example.com/{name}": content for name, content in {
    "script": b"#!/bin/sh\necho linked\n", "config": b"#cloud-config\na: 1\n", "nothing": b"", "words": b"words\n",
    "packed": gzip.compress(b"#!/bin/sh\npacked\n", mtime=0), "base64": base64.b64encode(b"#!/bin/sh\n"),
    "archive": b"#cloud-config-archive\n- '#!/bin/sh'\n- {content: 'b: 2', filename: inner}\n",
    "mime": b"MIME-Version: 1.0\nContent-Type: multipart/mixed; boundary=z\n\n--z\nContent-Type: text/x-shellscript; name=m.sh\n"
            b"\n#!/bin/sh\n--z\n\n#cloud-config\n--z--\n",
}.items()}


def linked(name):
    """A URL and what must be found there."""
    url = f"https://example.com/{name}"
    return f"{url}#sha256={hashlib.sha256(CONTENTS[url]).hexdigest()}"


# A list that names lists.
CONTENTS["https://example.com/list"] = f"#include {linked('script')}\n{linked('mime')}\n".encode()
PLACE = re.compile("«([a-z0-9: ]+)\\|(.*?)»", re.DOTALL)


def packed(data):
    return gzip.compress(data, mtime=0)


def lines(data):
    return base64.encodebytes(data).rstrip(b"\n")


FILTERS = {"base64": base64.b64encode, "lines": lines, "gzip": packed, "qp": quopri.encodestring,
           "latin1": lambda data: data.decode().encode("latin-1"),
           "flip": lambda data: data[:-5] + bytes([data[-5] ^ 1]) + data[-4:]}


def filtered(data, names):
    for name in reversed(names.split()):
        verb, _, number = name.partition(":")
        if verb == "times":
            data *= int(number)
        elif verb == "sum":
            data = linked(data.decode()).encode()
        elif verb == "cut":
            data = data[:-int(number)]
        else:
            data = FILTERS[verb](data)
    return data


def written(case):
    """The bytes of a hand-picked case."""
    text, data, end = case["text"], b"", 0
    if case.get("crlf"):
        text = text.replace("\n", "\r\n")
    for place in PLACE.finditer(text):
        data += text[end:place.start()].encode() + filtered(place[2].encode(), place[1])
        end = place.end()
    return filtered(data + text[end:].encode(), case.get("wrap", ""))


def cases():
    """{name: bytes}"""
    with open(os.path.join(FIXTURES, "cases.toml"), "rb") as source:
        return {name: written(case) for name, case in tomllib.load(source).items()}


BEGINNINGS = ["#!/bin/sh", "#!/usr/bin/env python3", "#cloud-config", "#cloud-config-archive", "#cloud-config-jsonp",
              "#cloud-boothook", "#include\nhttps://example.com/", "#include-once", "#part-handler", "## template: jinja",
              "#upstart-job", "#gpu-bootstrap", "# cloud-config", "hello", "", "<powershell>", "text/x-shellscript-per-once"]
BEFORE = ["", "", "", "", "", "\n", " ", "\r\n\t", "\ufeff", "\u00a0", "\x1d", "\x00", "\u200b"]
BODIES = ["", "\n", "echo hello\n", "a: 1\nb: [2, 3]\n", "x = 'grün €'\n", "--b\n", "--\n", "no line break", "tail \n\n",
          "= =3D =C3\n", "From me\n", "MIME-Version: 1.0\n", "Content-Type: text/x-a\n\nx\n",
          "- '#!/bin/sh'\n- {content: 'a: 1', filename: x}\n", f"{linked('script')}\n", f"\n# x\n{linked('list')}\n{linked('config')}",
          "- {type: text/x-shellscript, content: x}\n- '#include\n\n  https://a.b/c'\n", "- {content: 5}\n- 5\n"]
TYPES = ["text/plain", "text/x-shellscript", "text/cloud-config", "text/x-not-multipart", "application/octet-stream",
         "TEXT/X-ShellScript", "text/cloud-config-archive", "text/cloud-config-jsonp", "text/x-include-url", "text/jinja2",
         "text/cloud-boothook", "text/part-handler", "text/x-gpu-bootstrap", "text/x-shellscript-per-boot", "text/html",
         "text", "", "a/b/c", "/", "text/", "text/cloud-config, text/plain", "application/gzip", "application/x-gzip",
         "application/zip", "message/rfc822", "message/partial", "message/delivery-status", "multipart/mixed"]
CHARSETS = ["", "", "", "; charset=\"us-ascii\"", "; charset=utf-8", "; charset=utf-16", "; charset", ";charset = 'x' ; y=z",
            ";"]
NAMES = ["", "", "", "name=a.sh", "name=\"b c.sh\"", "name=\"d;e\\\"f\"", "name=<g>", "name*=utf-8''h%C3%BC", "name*=''i",
         "name*0=j; name*1=k", "name*1*=%6c; name*0*=us-ascii'en'm", "NAME = n ", "name=", "name=\"open",
         "name*=koi8-r''%C1", "name*=latin-1''%FC%zz", "name=ö", "name*=o; name*0=p"]
BOUNDARIES = ["b", "=_b", "b b", "--", "a'b()+_,-./:=?", "===============0123456789==", "b--", "B", "", "ü", "b\\\"c"]

ODD_HEADERS = [("Merge-Type: list(append)+dict(recurse_array)+str()", 0.1), ("X-Merge-Type: dict(replace)", 0.05),
               ("Launch-Index: 1", 0.05), ("Subject: grün", 0.05), ("From me", 0.03), (": no name", 0.03), ("odd", 0.03),
               (" a continuation", 0.05), ("Content-Type: text/cloud-config", 0.05), ("Number-Attachments: 7", 0.03)]
SIGNS = [b"", b"", b"\n", b"\r", b"\r\n", b"\n\n", b" ", b"\t", b":", b";", b'"', b"\\", b"'", b"*", b"=", b"%", b"%4", b"/",
         b"-", b"--", b"<", b">", b"#", b"#!", b"\x00", b"\x0b", b"\x0c", b"\x1c", b"\x85",
         b"\xc2\x85", b"\xff", b"From ", b"*0*=", b"\n--b\n"]


class Grower:
    def __init__(self, seed):
        self.random = random.Random(seed)

    def one(self, *choices):
        return self.random.choice(choices)

    def chance(self, share):
        return self.random.random() < share

    def body(self):
        beginning = self.one(*BEGINNINGS)
        if self.chance(0.15):
            beginning = beginning.upper()
        return (self.one(*BEFORE) + beginning + self.one("\n", "\n", "\r\n", "", " ") + self.one(*BODIES)).encode()

    def encoded(self, data):
        """(header lines, body)"""
        encoding = self.one("", "", "7bit", "8bit", "binary", "base64", "base64", "quoted-printable", "Base64", "x-unknown",
                            "uuencode")
        if encoding.lower() == "base64":
            data = self.one(base64.b64encode, lines, lines)(data)
            if self.chance(0.25):
                at = self.random.randrange(len(data) + 1)
                data = data[:at] + self.one(b"!", b"=", b" ", b"==", b"\n", b"A", b"\xc3\xbc") + data[at:]
            if self.chance(0.15):
                data = data.rstrip(b"=")
        elif encoding == "quoted-printable" and self.chance(0.7):
            data = quopri.encodestring(data)
        if not encoding:
            return [], data
        return [f"{self.one('Content-Transfer-Encoding', 'content-transfer-encoding')}: {encoding}"], data

    def leaf(self):
        kind, data = self.one(*TYPES[:-4] * 3, *TYPES), self.body()
        if kind in ("application/gzip", "application/x-gzip") or self.chance(0.05):
            if self.chance(0.92):
                data = packed(data)
            if self.chance(0.1):
                data += self.one(b"\0\0", b"x", packed(b"\nmore\n"))
            encoding, data = ["Content-Transfer-Encoding: base64"], lines(data)
        else:
            encoding, data = self.encoded(data)
        headers = list(encoding)
        if self.chance(0.85):
            extra = self.one(*NAMES) if self.chance(0.3) else ""
            name, blank = self.one("Content-Type", "Content-type", "CONTENT-TYPE"), self.one(" ", "", "  ", "\n ")
            headers.append(f"{name}:{blank}{kind}{self.one(*CHARSETS)}{'; ' + extra if extra else ''}")
        if self.chance(0.3):
            headers.append(f"Content-Disposition: attachment; file{self.one(*[name for name in NAMES if name])}")
        return headers, data

    def multipart(self, depth):
        boundary = self.one(*BOUNDARIES) + (str(self.random.randrange(9)) if self.chance(0.5) else "")
        shown = self.one(f'"{boundary}"', f'"{boundary}"', f'"{boundary}"', boundary)
        separator = b"--" + boundary.replace('\\"', '"').encode()
        kind = self.one("mixed", "mixed", "mixed", "alternative", "digest", "MIXED", "related")
        headers = [f"Content-Type: multipart/{kind};{self.one(' ', chr(10) + chr(9))}boundary={shown}{self.one(*CHARSETS)}"]
        if self.chance(0.05):
            headers = ["Content-Type: multipart/mixed"]
        data = self.one(b"", b"", b"preamble\n", b"\n")
        for _ in range(self.one(0, 1, 1, 2, 2, 3, 4)):
            data += separator + self.one(b"", b"", b"", b" ", b"\t", b"x") + b"\n" + self.message(depth + 1)
            data += self.one(b"\n", b"\n", b"")
        if self.chance(0.85):
            data += separator + b"--" + self.one(b"\n", b"", b"\nepilogue\n")
        return headers, data

    def message(self, depth):
        if depth == 0:
            headers, data = self.multipart(0) if self.chance(0.75) else self.leaf()
        else:
            headers, data = self.multipart(depth) if depth < 4 and self.chance(0.2) else self.leaf()
        if depth == 0 or self.chance(0.2):
            headers.append(self.one("MIME-Version: 1.0", "MIME-Version: 1.0", "mime-version:1.0",
                                    "Mime-Version: 1.0\n (a comment)"))
        for odd, share in ODD_HEADERS:
            if self.chance(share):
                headers.append(odd)
        self.random.shuffle(headers)
        end = self.one(b"\n", b"\n", b"\n", b"\n", b"\n", b"", b" \n")
        return "".join(f"{header}\n" for header in headers).encode() + end + data

    def damaged(self, data):
        """The same with a few characters that mean something where they do not belong, or without some of its own."""
        for _ in range(self.one(1, 1, 2, 3)):
            at = self.random.randrange(len(data) + 1)
            data = data[:at] + self.one(*SIGNS) + data[at + self.one(0, 0, 0, 1, 5):]
        return data

    def whole(self):
        data = self.message(0) if self.chance(0.75) else self.body()
        if self.chance(0.25):
            data = self.damaged(data)
        if self.chance(0.2):
            data = data.replace(b"\r\n", b"\n").replace(b"\n", self.one(b"\r\n", b"\r\n", b"\r"))
        if self.chance(0.05):
            data = self.one(b"\xef\xbb\xbf", b"\n", b"\xff", b"From me\n") + data
        if self.chance(0.06) and data:
            data = data[:self.random.randrange(len(data))]
        if self.chance(0.12):
            data = packed(data)
            if self.chance(0.4):
                data += self.one(b"\0", b"\0\0\0", b"x", b"\x1f", packed(b"more"))
        for _ in range(self.one(0, 0, 0, 0, 0, 0, 0, 0, 1, 2)):
            data = self.one(base64.b64encode, base64.b64encode, lines)(data) + self.one(b"", b"", b"", b"\n", b"=")
        return data


def generated(count, seed):
    """{name: bytes}"""
    found = {}
    for number in range(count):
        name = f"seed-{seed}-{number:03}"
        found[name] = Grower(name).whole()[:MAX_BYTES]
    return found
