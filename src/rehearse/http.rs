//! The web server under the simulated metadata service and repository: answers from memory, one function each.

use std::convert::Infallible;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;

use crate::error::{Code, Error, Result};

/// A request, as far as the answers depend on it.
pub(super) struct Question {
    pub(super) method: Method,
    /// Without the query.
    pub(super) path: String,
    headers: HeaderMap,
}

impl Question {
    /// A header as text.
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    #[cfg(test)]
    pub(super) fn new(method: Method, path: &str, headers: &[(&str, &str)]) -> Self {
        let parse = |(k, v): &(&str, &str)| (k.parse::<HeaderName>().unwrap(), v.parse().unwrap());
        Self { method, path: path.into(), headers: headers.iter().map(parse).collect() }
    }
}

/// A response.
pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) body: Vec<u8>,
    headers: HeaderMap,
}

impl Answer {
    /// A status without a body.
    pub(super) fn status(status: StatusCode) -> Self {
        Self { status, body: Vec::new(), headers: HeaderMap::new() }
    }

    /// 200 with this body.
    pub(super) fn bytes(content_type: &'static str, body: Vec<u8>) -> Self {
        let headers = HeaderMap::from_iter([(CONTENT_TYPE, HeaderValue::from_static(content_type))]);
        Self { status: StatusCode::OK, body, headers }
    }

    /// Adds a header; a value that cannot stand in one is left out.
    pub(super) fn with_header(mut self, name: &'static str, value: String) -> Self {
        if let Ok(value) = HeaderValue::try_from(value) {
            self.headers.insert(HeaderName::from_static(name), value);
        }
        self
    }
}

/// Answers a request. Shared by all connections.
pub(super) type Handler = Arc<dyn Fn(&Question) -> Answer + Send + Sync>;

/// Serves each address with its handler, in a thread of its own, until the process ends. Every address is bound
/// when this returns.
pub(super) fn serve(services: Vec<(SocketAddr, Handler)>) -> Result<()> {
    let mut bound = Vec::new();
    for (address, handler) in services {
        let failed = |e| Error::new(Code::RehearsalFailed, format!("cannot listen on {address}")).because(e);
        let listener = TcpListener::bind(address).map_err(failed)?;
        listener.set_nonblocking(true).map_err(failed)?;
        bound.push((listener, handler));
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| Error::new(Code::RehearsalFailed, "cannot start the simulated services").because(e))?;
    std::thread::spawn(move || {
        runtime.block_on(async {
            for (listener, handler) in bound {
                // The conversion can only fail outside a runtime.
                if let Ok(listener) = tokio::net::TcpListener::from_std(listener) {
                    tokio::spawn(accept(listener, handler));
                }
            }
            std::future::pending::<()>().await;
        });
    });
    Ok(())
}

async fn accept(listener: tokio::net::TcpListener, handler: Handler) {
    loop {
        // A failed accept concerns one client; it sees the reset and says so.
        let Ok((stream, _)) = listener.accept().await else { continue };
        let handler = handler.clone();
        tokio::spawn(async move {
            let service = service_fn(|request: Request<Incoming>| {
                let response = respond(&handler, &request);
                async { Ok::<_, Infallible>(response) }
            });
            // A client that goes away in the middle is its own business.
            let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

fn respond(handler: &Handler, request: &Request<Incoming>) -> Response<Full<Bytes>> {
    let question = Question {
        method: request.method().clone(),
        path: request.uri().path().to_owned(),
        headers: request.headers().clone(),
    };
    let answer = handler(&question);
    let mut response = Response::new(Full::new(Bytes::from(answer.body)));
    *response.status_mut() = answer.status;
    *response.headers_mut() = answer.headers;
    response
}
