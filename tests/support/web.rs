//! A small web server on the loopback interface, plain or with TLS, answering from a function. Good enough for
//! apt (keep-alive, pipelining, ranges not needed), and every request is kept for the test to look at.

#![allow(dead_code, unreachable_pub, reason = "shared between test files, not each of which uses all of it")]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use super::repository::run;

/// What to answer.
pub enum Answer {
    /// 200 with this body.
    Body(Vec<u8>),
    /// 404.
    Missing,
    /// 302 to this address.
    Redirect(String),
}

type Handler = dyn Fn(&str) -> Answer + Send + Sync;

/// A running server; it ends with the test's process.
pub struct Web {
    address: SocketAddr,
    scheme: &'static str,
    requests: Arc<Mutex<Vec<String>>>,
}

impl Web {
    /// Serves the files below `dir`, over http.
    pub fn serve(dir: &Path) -> Self {
        Self::start(None, files(dir))
    }

    /// Answers with `handler`, which is given the path, over http.
    pub fn answer(handler: impl Fn(&str) -> Answer + Send + Sync + 'static) -> Self {
        Self::start(None, Arc::new(handler))
    }

    /// Serves the files below `dir`, over https.
    pub fn serve_tls(identity: &Identity, dir: &Path) -> Self {
        Self::start(Some(identity.config()), files(dir))
    }

    /// Answers with `handler`, over https.
    pub fn answer_tls(identity: &Identity, handler: impl Fn(&str) -> Answer + Send + Sync + 'static) -> Self {
        Self::start(Some(identity.config()), Arc::new(handler))
    }

    /// `scheme://address` without a trailing slash.
    pub fn url(&self) -> String {
        format!("{}://{}", self.scheme, self.address)
    }

    /// The paths asked for so far.
    pub fn requests(&self) -> Vec<String> {
        self.requests.lock().unwrap().clone()
    }

    fn start(tls: Option<Arc<rustls::ServerConfig>>, handler: Arc<Handler>) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let scheme = if tls.is_some() { "https" } else { "http" };
        let requests = Arc::new(Mutex::new(Vec::new()));
        let log = Arc::clone(&requests);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (tls, handler, log) = (tls.clone(), Arc::clone(&handler), Arc::clone(&log));
                std::thread::spawn(move || connection(stream, tls, &*handler, &log));
            }
        });
        Self { address, scheme, requests }
    }
}

/// The files below a directory.
fn files(dir: &Path) -> Arc<Handler> {
    let dir = dir.to_path_buf();
    Arc::new(move |path| match std::fs::read(dir.join(path.trim_start_matches('/'))) {
        Ok(bytes) => Answer::Body(bytes),
        Err(_) => Answer::Missing,
    })
}

fn connection(
    stream: TcpStream,
    tls: Option<Arc<rustls::ServerConfig>>,
    handler: &Handler,
    log: &Mutex<Vec<String>>,
) {
    // A client that hangs up is its own business.
    let _ = match tls {
        None => converse(stream, handler, log),
        Some(config) => rustls::ServerConnection::new(config)
            .map_err(std::io::Error::other)
            .and_then(|c| converse(rustls::StreamOwned::new(c, stream), handler, log)),
    };
}

/// Requests one after the other until the client closes. The reader gives up its buffer for each answer, which
/// keeps pipelined requests.
fn converse(stream: impl Read + Write, handler: &Handler, log: &Mutex<Vec<String>>) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream);
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 {
            return Ok(());
        }
        let mut words = line.split_whitespace();
        let (method, path) =
            (words.next().unwrap_or_default().to_owned(), words.next().unwrap_or("/").to_owned());
        loop {
            line.clear();
            if reader.read_line(&mut line)? == 0 || line.trim().is_empty() {
                break;
            }
        }
        log.lock().unwrap().push(path.clone());
        let (status, extra, body) = match handler(&path) {
            Answer::Body(bytes) => ("200 OK", String::new(), bytes),
            Answer::Missing => ("404 Not Found", String::new(), b"no".to_vec()),
            Answer::Redirect(to) => ("302 Found", format!("Location: {to}\r\n"), Vec::new()),
        };
        let stream = reader.get_mut();
        write!(stream, "HTTP/1.1 {status}\r\nContent-Length: {}\r\n{extra}\r\n", body.len())?;
        if method != "HEAD" {
            stream.write_all(&body)?;
        }
        stream.flush()?;
    }
}

/// A certificate for 127.0.0.1 that signs itself.
pub struct Identity {
    dir: tempfile::TempDir,
}

impl Identity {
    /// Makes key and certificate with openssl.
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name).display().to_string();
        let (key, cert) = (at("key.pem"), at("cert.pem"));
        let mut args = vec!["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"];
        args.extend(["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1", "-days", "3650"]);
        args.extend(["-keyout", &key, "-out", &cert]);
        run("openssl", &args);
        Self { dir }
    }

    /// The certificate file, PEM, for clients to trust.
    pub fn certificate(&self) -> PathBuf {
        self.dir.path().join("cert.pem")
    }

    fn config(&self) -> Arc<rustls::ServerConfig> {
        let certificate = CertificateDer::from_pem_file(self.certificate()).unwrap();
        let key = PrivateKeyDer::from_pem_file(self.dir.path().join("key.pem")).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate], key)
            .unwrap();
        Arc::new(config)
    }
}
