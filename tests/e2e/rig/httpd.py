#!/usr/bin/env python3
"""HTTP server of the end-to-end tests: a directory, or a caching proxy in front of a package archive.

    httpd.py --ready FILE [--bind ADDRESS] [--port N] [--netns PATH] [--log FILE] [--rate KB/S]
             [--pace BYTES/S] [--tls CERTIFICATE KEY]
             --serve PREFIX=DIR ... --proxy PREFIX=URL ... --cache DIR

One server has any number of prefixes: `--serve files=/some/dir` answers /files/... from that directory,
`--proxy debian=http://mirror/debian` answers /debian/... from CACHE/debian/..., fetching what is missing.

With --netns the listening socket is made inside that network namespace and the process then returns to its
own, so an isolated instance reaches the real, signed archive and nothing else.  Cached files are immutable
but for the signed entry points of an archive (InRelease, Release, Release.gpg): those are refreshed when older
than an hour, and the cached copy serves when the archive cannot be reached.  Everything apt reads after them is
named by hash or by version, so a second run of a test needs no network.

--pace limits each connection in the kernel (SO_MAX_PACING_RATE): exact, without bursts, and it costs no processor
time, because a file goes out by sendfile.  That is how one connection to a distant mirror behaves.  --rate sleeps
between blocks, per request.

--ready FILE is written with the port number once the server listens.
"""
import argparse
import http.server
import json
import os
import re
import socket
import socketserver
import ssl
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from network import listen_in  # noqa: E402

ENTRY_POINT = re.compile(r"/(InRelease|Release|Release\.gpg)$")
REFRESH_SECONDS = 3600
CHUNK = 1 << 18
SO_MAX_PACING_RATE = 47  # <asm-generic/socket.h>; the socket module does not name it
# The machine's default may be bbr, which finds its own rate; pacing shall be the only limit.
CONGESTION_CONTROL = b"cubic"


def arguments():
    parser = argparse.ArgumentParser()
    parser.add_argument("--bind", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--netns", help="network namespace in which the socket is made")
    parser.add_argument("--serve", action="append", default=[], metavar="PREFIX=DIR")
    parser.add_argument("--proxy", action="append", default=[], metavar="PREFIX=URL")
    parser.add_argument("--cache")
    parser.add_argument("--rate", type=int, help="bytes are sent no faster than this many kilobytes a second")
    parser.add_argument("--pace", type=int, default=0, help="bytes a second that each connection may send; 0: no limit")
    parser.add_argument("--tls", nargs=2, metavar=("CERTIFICATE", "KEY"))
    parser.add_argument("--log")
    parser.add_argument("--ready", required=True)
    return parser.parse_args()


class Absent(Exception):
    """Answered with a status other than 200."""

    def __init__(self, status):
        super().__init__(status)
        self.status = status


class Store:
    """Turns a request's path into a file on disk, fetching it first where a prefix is a proxy."""

    def __init__(self, args):
        self.directories = dict(item.split("=", 1) for item in args.serve)
        self.upstreams = dict(item.split("=", 1) for item in args.proxy)
        self.cache = args.cache
        self.locks, self.guard = {}, threading.Lock()

    def file(self, path):
        prefix, _, rest = path.lstrip("/").partition("/")
        if ".." in rest.split("/") or not rest:
            raise Absent(404)
        if prefix in self.directories:
            target = os.path.join(self.directories[prefix], rest)
        elif prefix in self.upstreams:
            target = os.path.join(self.cache, prefix, rest)
            with self.lock(target):
                self.fetch(f"{self.upstreams[prefix].rstrip('/')}/{urllib.parse.quote(rest)}", target)
        else:
            raise Absent(404)
        if not os.path.isfile(target):
            raise Absent(404)
        return target

    def lock(self, target):
        with self.guard:
            return self.locks.setdefault(target, threading.Lock())

    def fetch(self, url, target):
        cached = os.path.isfile(target)
        if cached and not (ENTRY_POINT.search(target) and time.time() - os.stat(target).st_mtime > REFRESH_SECONDS):
            return
        try:
            self.download(url, target)
        except urllib.error.HTTPError as error:
            raise Absent(error.code) from error
        except OSError as error:
            if not cached:
                raise Absent(502) from error

    @staticmethod
    def download(url, target):
        os.makedirs(os.path.dirname(target), exist_ok=True)
        part = f"{target}.part-{threading.get_ident()}"
        try:
            with urllib.request.urlopen(url, timeout=60) as answer, open(part, "wb") as out:
                length = answer.headers.get("Content-Length")
                while block := answer.read(CHUNK):
                    out.write(block)
                if length is not None and out.tell() != int(length):
                    raise OSError(f"{url} ended after {out.tell()} of {length} bytes")
            os.replace(part, target)
        finally:
            if os.path.exists(part):
                os.unlink(part)


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *_):
        pass

    def do_GET(self):
        path = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path)
        try:
            name = STORE.file(path)
            size = os.stat(name).st_size
            first, last, status = self.wanted_range(size)
        except Absent as absent:
            return self.head(absent.status, 0, path)
        extra = {"Accept-Ranges": "bytes", "Last-Modified": self.date_time_string(int(os.stat(name).st_mtime))}
        if status == 206:
            extra["Content-Range"] = f"bytes {first}-{last}/{size}"
        self.head(status, last - first + 1, path, extra)
        if self.command != "HEAD":
            self.send_file(name, first, last - first + 1)

    do_HEAD = do_GET

    def wanted_range(self, size):
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if not wanted:
            return 0, size - 1, 200
        first, last = int(wanted[1]), min(int(wanted[2] or size - 1), size - 1)
        if first > last:
            raise Absent(416)
        return first, last, 206

    def head(self, status, length, path, extra=None):
        if ARGS.log:
            line = {"t": time.time(), "method": self.command, "path": path, "status": status, "bytes": length}
            with open(ARGS.log, "a", encoding="utf-8") as log:
                log.write(json.dumps(line) + "\n")
        self.send_response(status)
        self.send_header("Content-Length", str(length))
        for key, value in (extra or {}).items():
            self.send_header(key, value)
        self.end_headers()

    def send_file(self, name, first, count):
        with open(name, "rb") as source:
            if not ARGS.rate and not ARGS.tls:
                return self.send_by_kernel(source, first, count)
            source.seek(first)
            while count > 0 and (block := source.read(min(CHUNK, count))):
                self.wfile.write(block)
                count -= len(block)
                if ARGS.rate:
                    time.sleep(len(block) / (ARGS.rate * 1000))

    def send_by_kernel(self, source, first, count):
        self.wfile.flush()
        while count > 0:
            sent = os.sendfile(self.connection.fileno(), source.fileno(), first, count)
            if sent == 0:
                raise ConnectionError("the file became shorter")
            first, count = first + sent, count - sent


class Server(socketserver.ThreadingMixIn, http.server.HTTPServer):
    daemon_threads = allow_reuse_address = True
    request_queue_size = 128

    def get_request(self):
        connection, address = super().get_request()
        if ARGS.pace:
            connection.setsockopt(socket.SOL_SOCKET, SO_MAX_PACING_RATE, ARGS.pace)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, CONGESTION_CONTROL)
        return connection, address

    def finish_request(self, request, client_address):
        """In the connection's own thread: a client that is slow with its handshake keeps nobody waiting."""
        if TLS:
            request = TLS.wrap_socket(request, server_side=True)
        super().finish_request(request, client_address)

    def shutdown_request(self, request):
        if TLS and request.fileno() == -1:
            return  # wrapping took the descriptor over, and the handler has closed it
        super().shutdown_request(request)

    def handle_error(self, *_):
        pass  # a client that went away (a killed run) is part of the tests


if __name__ == "__main__":
    ARGS = arguments()
    STORE = Store(ARGS)
    TLS = None
    if ARGS.tls:
        TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        TLS.load_cert_chain(*ARGS.tls)
    SERVER = listen_in(ARGS.netns, lambda: Server((ARGS.bind, ARGS.port), Handler))
    with open(ARGS.ready + ".new", "w", encoding="utf-8") as ready:
        ready.write(str(SERVER.server_address[1]))
    os.replace(ARGS.ready + ".new", ARGS.ready)
    SERVER.serve_forever()
