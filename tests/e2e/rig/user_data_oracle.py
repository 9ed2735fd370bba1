"""cloud-init's own user-data processor as a program: user-data on standard input, its parts on standard output.

Runs inside a root that has Debian's cloud-init, without network.  Input: {"contents": {URL: base64}, "questions": [[base64, [changes]]]}.  Output: for
each one {"parts": [{content_type, filename, bytes, sha256}]}, or {"error": …} where cloud-init raises.  A change is a
listed difference: a few lines that make cloud-init do what gpu-bootstrap does, so that nothing else can hide behind it.
"""
import base64
import contextlib
import email.feedparser
import email.message
import email.utils
import hashlib
import json
import logging
import re
import sys
import types
import unittest.mock as mock

import requests
import yaml
from cloudinit import handlers, helpers, url_helper, user_data, util
from cloudinit.sources.helpers import hetzner

MAX_UNPACKED, MAX_DEPTH, MAX_PARTS = 1 << 20, 32, 1024
KNOWN_CHARSETS = ("utf_8", "utf8", "us_ascii", "ascii", "iso_8859_1", "iso8859_1", "latin_1", "latin1")
get_payload, unpack = email.message.Message.get_payload, util.decomp_gzip
do_include, explode_archive = user_data.UserDataProcessor._do_include, user_data.UserDataProcessor._explode_archive
continuation = email.utils.rfc2231_continuation
collapse, new_message = email.utils.collapse_rfc2231_value, email.feedparser.FeedParser._new_message


class OverLimit(Exception):
    pass


def payload_with(changes):
    """`Message.get_payload` that keeps text beyond ASCII as UTF-8, or does not know uuencode."""
    def get(message, i=None, decode=False):
        text = message._payload
        if "utf-8" in changes and isinstance(text, str) and not text.isascii() and not email.utils._has_surrogates(text):
            message._payload = text.encode().decode("ascii", "surrogateescape")
        with contextlib.ExitStack() as stack:
            if "uuencode" in changes:
                stack.enter_context(mock.patch.object(email.message, "_decode_uu", side_effect=ValueError))
            return get_payload(message, i, decode)
    return get


def passed_by(processor, append_to):
    """The message that `_process_msg` is at becomes a part, instead of being opened."""
    at = sys._getframe(2).f_locals
    user_data._replace_header(at["base_msg"], "Content-Type", at["ctype"])
    processor._attach_part(append_to, at["part"])


SUM = re.compile("#sha256=([0-9a-fA-F]{64})")


def is_list_of_sums(content):
    """Every URL says what must be found there."""
    for line in content.replace("\r\n", "\n").replace("\r", "\n").split("\n"):
        word = re.match("#include(-once)?", line, flags=re.IGNORECASE | re.ASCII)
        line = line[word.end():].lstrip() if word else line
        if line.startswith("#") or not line.strip():
            continue
        url, _, fragment = line.strip().partition("#")
        if not SUM.fullmatch("#" + fragment) or not re.fullmatch(r"https?://[!-~]+", url):
            return False
    return True


def include_with_sums(processor, content, append_to):
    if is_list_of_sums(content):
        do_include(processor, content, append_to)
    else:
        passed_by(processor, append_to)


def is_understood(archive):
    """Texts, or mappings of content, type and filename."""
    try:
        entries = yaml.safe_load(archive)
    except (yaml.YAMLError, UnicodeError, ValueError):
        return False
    return entries is None or isinstance(entries, list) and all(is_part(entry) for entry in entries)


def is_part(entry):
    entry = {"content": entry} if isinstance(entry, str) else entry
    if not isinstance(entry, dict) or not {*entry} <= {"content", "type", "filename"}:
        return False
    if not all(isinstance(value, str) for value in entry.values()):
        return False
    kind = entry.get("type", handlers.type_from_starts_with(entry.get("content", ""), "text/cloud-config"))
    is_opened_again = kind.lower() in [*user_data.INCLUDE_TYPES, *user_data.ARCHIVE_TYPES]
    return not is_opened_again and re.fullmatch(r"[\w!#$&^.+-]+/[\w!#$&^.+-]+", kind, re.ASCII) is not None


def explode_understood(processor, archive, append_to):
    if is_understood(archive):
        explode_archive(processor, archive, append_to)
    else:
        passed_by(processor, append_to)


def served(contents):
    """What stands in for the network: a request asks for the URL without what stands behind #, as requests sends it."""
    def read(url, **_options):
        request = requests.Request("GET", url).prepare()
        asked = f"https://{request.headers.get('Host', url.split('/')[2])}{request.path_url}"
        if asked not in contents:
            raise url_helper.UrlError("no network")
        return url_helper.StringResponse(contents[asked])
    return read


def few_charsets(value, *arguments):
    if isinstance(value, tuple) and value[0] is not None:
        charset = value[0].lower().replace("-", "_").replace(" ", "_")
        if charset not in KNOWN_CHARSETS:
            value = ("no-such-charset", *value[1:])
    return collapse(value, *arguments)


class Numbered:
    """The pattern of numbered parameters, in which one without a number comes before all others."""

    def match(self, name):
        found = continuation.match(name)
        return found and types.SimpleNamespace(group=lambda *_: (found["name"], found["num"] or "-1"))


class Limits:
    """gpu-bootstrap's limits on what may be unpacked, on depth and on the number of parts."""

    def __init__(self):
        self.left, self.made = MAX_UNPACKED, 0

    def unpack(self, data, quiet=True, decode=True):
        unpacked = unpack(data, quiet=quiet, decode=decode)
        if unpacked is not data:
            self.left -= len(util.encode_text(unpacked))
            if self.left < 0:
                raise OverLimit("bytes")
        return unpacked

    def new_message(self, parser):
        self.made += 1
        if len(parser._msgstack) >= MAX_DEPTH or self.made > MAX_PARTS:
            raise OverLimit("messages")
        new_message(parser)


def patches(changes):
    """(object, attribute, what it is replaced by)"""
    limits = Limits()
    every = {
        "include": [(user_data.UserDataProcessor, "_do_include", include_with_sums)],
        "archive": [(user_data.UserDataProcessor, "_explode_archive", explode_understood)],
        "utf-8": [(email.message.Message, "get_payload", payload_with(changes))],
        "uuencode": [(email.message.Message, "get_payload", payload_with(changes))],
        "charset": [(email.utils, "collapse_rfc2231_value", few_charsets)],
        "unnumbered": [(email.utils, "rfc2231_continuation", Numbered())],
        "limits": [(util, "decomp_gzip", limits.unpack),
                   (email.feedparser.FeedParser, "_new_message", lambda parser: limits.new_message(parser))],
    }
    return [patch for name in changes for patch in every[name]]


def parts(blob, changes, contents):
    def take(_data, filename, payload, headers):
        if payload is None:
            payload = b""
        if isinstance(payload, str):
            payload = payload.encode("utf-8", "surrogateescape")
        found.append({"content_type": headers["Content-Type"], "filename": filename, "bytes": len(payload),
                      "sha256": hashlib.sha256(payload).hexdigest()})

    found = []
    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.object(user_data, "read_file_or_url", served(contents)))
        # What was fetched once is no business of the next question.
        stack.enter_context(mock.patch.object(util, "write_file"))
        for target, name, new in patches(changes):
            stack.enter_context(mock.patch.object(target, name, new=new))
        # cloud-init's sources on EC2 do this since version 23; Debian 12's does it on another cloud only, by this function.
        processor = user_data.UserDataProcessor(helpers.Paths({"cloud_dir": "/nowhere", "run_dir": "/nowhere"}))
        handlers.walk(processor.process(hetzner.maybe_b64decode(blob)), take, None)
    return found


def answer(blob, changes, contents):
    try:
        return {"parts": parts(blob, changes, contents)}
    except Exception as e:  # noqa: BLE001 (whatever it is, the instance's user-data is lost)
        return {"error": f"{type(e).__name__}: {e}"[:200]}


def main():
    logging.disable(logging.CRITICAL)
    given = json.load(sys.stdin)
    contents = {url: base64.b64decode(text) for url, text in given["contents"].items()}
    json.dump([answer(base64.b64decode(text), changes, contents) for text, changes in given["questions"]], sys.stdout)


if __name__ == "__main__":
    main()
