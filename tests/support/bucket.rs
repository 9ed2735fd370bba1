//! A bucket that gives its objects only for a signature in the URL that botocore, too, comes to. It runs in the virtual
//! environment of `moto`, which brings botocore.

#![allow(clippy::unwrap_used, reason = "test code: a panic is a failure with a place")]
#![allow(dead_code, unreachable_pub, reason = "shared between test files, not each of which uses all of it")]

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

/// What the bucket accepts.
pub const KEY: (&str, &str) = ("AKIDBUCKETTEST", "secret/of+the/test");

const SCRIPT: &str = r#"
import http.server, os, sys, urllib.parse
from botocore.auth import S3SigV4QueryAuth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

folder, key, secret = sys.argv[1:]

class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def right(self):
        parts = urllib.parse.urlsplit(self.path)
        query = dict(urllib.parse.parse_qsl(parts.query, keep_blank_values=True))
        scope = query.get("X-Amz-Credential", "").split("/")
        if scope[0] != key or len(scope) != 5 or scope[3] != "s3" or query.get("X-Amz-SignedHeaders") != "host":
            return False
        signature = query.pop("X-Amz-Signature", "")
        rest = "&".join(f"{n}={urllib.parse.quote(v, safe='-_.~')}" for n, v in query.items())
        request = AWSRequest("GET", f"http://{self.headers['Host']}{parts.path}?{rest}",
                             headers={"Host": self.headers["Host"]})
        request.context["timestamp"] = query["X-Amz-Date"]
        signer = S3SigV4QueryAuth(Credentials(key, secret), "s3", scope[2])
        canonical = signer.canonical_request(request)
        return signature == signer.signature(signer.string_to_sign(request, canonical), request)

    def do_GET(self):
        path = os.path.join(folder, urllib.parse.unquote(urllib.parse.urlsplit(self.path).path).lstrip("/"))
        if not self.right():
            status, body = 403, b"<Error><Code>SignatureDoesNotMatch</Code></Error>"
        elif not os.path.isfile(path):
            status, body = 404, b"<Error><Code>NoSuchKey</Code></Error>"
        else:
            status, body = 200, open(path, "rb").read()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass

server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
print(server.server_address[1], flush=True)
server.serve_forever()
"#;

/// A running server; it ends with this value.
pub struct Bucket {
    child: Child,
    /// Its base URL: what `AWS_ENDPOINT_URL_S3` takes.
    pub url: String,
}

impl Bucket {
    /// Serves `dir`, whose directories are buckets.
    pub fn serve(python: &Path, dir: &Path) -> Self {
        let mut child = Command::new(python)
            .args(["-c", SCRIPT])
            .arg(dir)
            .args([KEY.0, KEY.1])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut port = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut port).unwrap();
        Self { child, url: format!("http://127.0.0.1:{}", port.trim()) }
    }
}

impl Drop for Bucket {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}
