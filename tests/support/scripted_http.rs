//! A small HTTP/1.1 server for tests, on threads of its own: it logs every request, counts connections, and can
//! misbehave on the wire (reset, hang, garbage, a byte at a time), which a well-behaved library could not.

#![allow(dead_code, unreachable_pub, reason = "each test file uses a part of it")]
#![allow(clippy::unwrap_used, reason = "test code: a panic is a failure with a place")]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// A request as it came.
#[derive(Clone, Debug)]
pub struct Request {
    /// `GET`, `PUT`, …
    pub method: String,
    /// The request target.
    pub path: String,
    /// Names in lower case.
    pub headers: Vec<(String, String)>,
    /// The body.
    pub body: Vec<u8>,
    /// Which connection it came by, from 1.
    pub connection: usize,
}

impl Request {
    /// A header's value.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str())
    }

    /// First and last byte of the `Range` header; without a last one, more than any file has.
    pub fn range(&self) -> Option<(usize, usize)> {
        let (first, last) = self.header("range")?.strip_prefix("bytes=")?.split_once('-')?;
        let last = if last.is_empty() { usize::MAX - 1 } else { last.parse().unwrap() };
        Some((first.parse().unwrap(), last))
    }
}

/// What the server does about a request.
#[derive(Clone, Debug)]
pub enum Reply {
    /// An orderly answer.
    Send { status: u16, headers: Vec<(String, String)>, body: Vec<u8> },
    /// An answer whose body ends so many bytes too early.
    Cut { body: Vec<u8>, missing: usize },
    /// A status line without reason phrase first, then these bytes, then the end of the connection.
    Raw(Vec<u8>),
    /// The connection is reset.
    Reset,
    /// The connection is closed without an answer.
    Close,
    /// Nothing happens for that long.
    Hang(Duration),
    /// A long body, one byte at a time.
    Drip(Duration),
    /// An answer of which only so many bytes come; after that time the connection ends.
    Partly { status: u16, headers: Vec<(String, String)>, body: Vec<u8>, sent: usize, then: Duration },
    /// An orderly answer, one piece of the body at a time.
    Slow { status: u16, headers: Vec<(String, String)>, body: Vec<u8>, piece: usize, every: Duration },
}

impl Reply {
    /// 200 with a body.
    pub fn ok(body: impl Into<Vec<u8>>) -> Self {
        Self::status(200, body)
    }

    /// Any status with a body.
    pub fn status(status: u16, body: impl Into<Vec<u8>>) -> Self {
        Self::Send { status, headers: Vec::new(), body: body.into() }
    }

    /// The part of `body` that the request's `Range` header names (206), or all of it (200).
    pub fn part(request: &Request, body: &[u8]) -> Self {
        let Some((first, last)) = request.range() else { return Self::ok(body) };
        if first >= body.len() {
            return Self::status(416, "").with("Content-Range", &format!("bytes */{}", body.len()));
        }
        let last = last.min(body.len() - 1);
        Self::status(206, &body[first..=last])
            .with("Content-Range", &format!("bytes {first}-{last}/{}", body.len()))
    }

    /// The same answer, cut off after `sent` bytes of the body; the connection ends after that time.
    pub fn cut(self, sent: usize, then: Duration) -> Self {
        match self {
            Self::Send { status, headers, body } => {
                let sent = sent.min(body.len());
                Self::Partly { status, headers, body, sent, then }
            }
            other => other,
        }
    }

    /// The same answer, `piece` bytes of the body at a time.
    pub fn slowly(self, piece: usize, every: Duration) -> Self {
        match self {
            Self::Send { status, headers, body } => Self::Slow { status, headers, body, piece, every },
            other => other,
        }
    }

    /// Adds a header to an orderly answer.
    pub fn with(self, name: &str, value: &str) -> Self {
        match self {
            Self::Send { status, mut headers, body } => {
                headers.push((name.into(), value.into()));
                Self::Send { status, headers, body }
            }
            other => other,
        }
    }
}

type Handler = dyn Fn(&Request) -> Reply + Send + Sync;

/// A running server; it stops listening when dropped.
pub struct Server {
    /// Where it listens.
    pub addr: SocketAddr,
    scheme: &'static str,
    shared: Arc<Shared>,
}

struct Shared {
    handler: Box<Handler>,
    log: Mutex<Vec<Request>>,
    connections: AtomicUsize,
    stop: AtomicBool,
    tls: Option<Arc<rustls::ServerConfig>>,
}

impl Server {
    /// Listens on a free port of 127.0.0.1.
    pub fn start(handler: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> Self {
        Self::start_at("127.0.0.1:0".parse().unwrap(), handler)
    }

    /// Listens at `addr`.
    pub fn start_at(addr: SocketAddr, handler: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> Self {
        Self::serve(addr, None, Box::new(handler))
    }

    /// Listens with TLS on a free port of 127.0.0.1.
    pub fn start_tls(
        tls: Arc<rustls::ServerConfig>,
        handler: impl Fn(&Request) -> Reply + Send + Sync + 'static,
    ) -> Self {
        Self::serve("127.0.0.1:0".parse().unwrap(), Some(tls), Box::new(handler))
    }

    fn serve(addr: SocketAddr, tls: Option<Arc<rustls::ServerConfig>>, handler: Box<Handler>) -> Self {
        let listener = TcpListener::bind(addr).unwrap();
        let addr = listener.local_addr().unwrap();
        let scheme = if tls.is_some() { "https" } else { "http" };
        let shared = Arc::new(Shared {
            handler,
            log: Mutex::default(),
            connections: AtomicUsize::new(0),
            stop: AtomicBool::new(false),
            tls,
        });
        let server = Self { addr, scheme, shared: Arc::clone(&shared) };
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                if shared.stop.load(Ordering::SeqCst) {
                    return;
                }
                let Ok(stream) = stream else { continue };
                let number = shared.connections.fetch_add(1, Ordering::SeqCst) + 1;
                let shared = Arc::clone(&shared);
                // An error here is the client going away, which is part of many tests.
                std::thread::spawn(move || drop(connection(&shared, stream, number)));
            }
        });
        server
    }

    /// The URL of a path.
    pub fn url(&self, path: &str) -> String {
        format!("{}://{}{path}", self.scheme, self.addr)
    }

    /// Every request so far.
    pub fn log(&self) -> Vec<Request> {
        self.shared.log.lock().unwrap().clone()
    }

    /// Connections accepted so far.
    pub fn connections(&self) -> usize {
        self.shared.connections.load(Ordering::SeqCst)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        // Wakes the listener, so that it sees the flag.
        drop(TcpStream::connect_timeout(&self.addr, Duration::from_secs(1)));
    }
}

trait Wire: Read + Write {}
impl<T: Read + Write> Wire for T {}

fn connection(shared: &Shared, tcp: TcpStream, number: usize) -> std::io::Result<()> {
    tcp.set_nodelay(true)?;
    let raw = tcp.try_clone()?;
    let wire: Box<dyn Wire> = match &shared.tls {
        None => Box::new(tcp),
        Some(config) => {
            let session = rustls::ServerConnection::new(Arc::clone(config)).map_err(std::io::Error::other)?;
            Box::new(rustls::StreamOwned::new(session, tcp))
        }
    };
    let mut wire = BufReader::new(wire);
    while let Some(request) = read_request(&mut wire, number)? {
        shared.log.lock().unwrap().push(request.clone());
        if !answer((shared.handler)(&request), wire.get_mut(), &raw)? {
            return Ok(());
        }
    }
    Ok(())
}

fn read_request(wire: &mut impl BufRead, connection: usize) -> std::io::Result<Option<Request>> {
    let mut line = String::new();
    if wire.read_line(&mut line)? == 0 {
        return Ok(None);
    }
    let mut words = line.split_whitespace();
    let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let mut request = Request {
        method: method.into(),
        path: path.into(),
        headers: Vec::new(),
        body: Vec::new(),
        connection,
    };
    loop {
        let mut line = String::new();
        wire.read_line(&mut line)?;
        let Some((name, value)) = line.trim_end().split_once(':') else { break };
        request.headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
    }
    let length = request.header("content-length").map_or(0, |l| l.parse().unwrap());
    request.body = vec![0; length];
    wire.read_exact(&mut request.body)?;
    Ok(Some(request))
}

/// Does what the reply says; returns whether the connection goes on.
fn answer(reply: Reply, wire: &mut impl Write, raw: &TcpStream) -> std::io::Result<bool> {
    match reply {
        Reply::Send { status, headers, body } => {
            wire.write_all(&[head(status, &headers, body.len()).as_bytes(), &body].concat())?;
            wire.flush()?;
            return Ok(true);
        }
        Reply::Partly { status, headers, body, sent, then } => {
            wire.write_all(&[head(status, &headers, body.len()).as_bytes(), &body[..sent]].concat())?;
            wire.flush()?;
            std::thread::sleep(then);
        }
        Reply::Slow { status, headers, body, piece, every } => {
            wire.write_all(head(status, &headers, body.len()).as_bytes())?;
            for piece in body.chunks(piece) {
                wire.write_all(piece)?;
                wire.flush()?;
                std::thread::sleep(every);
            }
            return Ok(true);
        }
        Reply::Cut { body, missing } => {
            let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len());
            wire.write_all(&[head.as_bytes(), &body[..body.len() - missing]].concat())?;
            wire.flush()?;
        }
        Reply::Raw(bytes) => {
            wire.write_all(&bytes)?;
            wire.flush()?;
        }
        Reply::Reset => {
            let linger = nix::libc::linger { l_onoff: 1, l_linger: 0 };
            nix::sys::socket::setsockopt(&raw.as_fd(), nix::sys::socket::sockopt::Linger, &linger)?;
        }
        Reply::Close => {}
        Reply::Hang(how_long) => std::thread::sleep(how_long),
        Reply::Drip(every) => {
            wire.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")?;
            for _ in 0..1000 {
                wire.write_all(b"x")?;
                wire.flush()?;
                std::thread::sleep(every);
            }
        }
    }
    Ok(false)
}

fn head(status: u16, headers: &[(String, String)], length: usize) -> String {
    let mut head = format!("HTTP/1.1 {status} Status\r\nContent-Length: {length}\r\n");
    for (name, value) in headers {
        head.push_str(&[name, ": ", value, "\r\n"].concat());
    }
    head + "\r\n"
}

/// A TLS configuration for 127.0.0.1, and the file with the certificate to trust.
pub fn tls() -> (Arc<rustls::ServerConfig>, tempfile::NamedTempFile) {
    let made = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
    let bundle = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(bundle.path(), made.cert.pem()).unwrap();
    let key = rustls::pki_types::PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .unwrap();
    (Arc::new(config), bundle)
}
