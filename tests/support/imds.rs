//! A metadata service that is as strict as EC2's: IMDSv2 only, tokens checked, TTL checked. It logs what it is
//! asked and can be told to fail.

#![allow(dead_code, unreachable_pub, reason = "each test file uses a part of it")]
#![allow(clippy::unwrap_used, reason = "test code: a panic is a failure with a place")]

#[path = "scripted_http.rs"]
pub mod scripted_http;

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use scripted_http::{Reply, Request, Server};

/// The identity document of an instance of `instance_type`, as EC2 writes it.
pub fn document(instance_type: &str) -> String {
    format!(
        r#"{{
  "accountId" : "123456789012", "architecture" : "x86_64", "availabilityZone" : "us-east-1a",
  "billingProducts" : null, "devpayProductCodes" : null, "marketplaceProductCodes" : null,
  "imageId" : "ami-0abcdef1234567890", "instanceId" : "i-0123456789abcdef0", "instanceType" : "{instance_type}",
  "kernelId" : null, "pendingTime" : "2026-11-23T00:00:00Z", "privateIp" : "10.0.0.23", "ramdiskId" : null,
  "region" : "us-east-1", "version" : "2017-09-30"
}}"#
    )
}

/// A fault: requests that match are answered with `reply`, from the one after `skip` on, `count` times.
struct Fault {
    method: &'static str,
    path: &'static str,
    skip: usize,
    count: usize,
    reply: Reply,
    seen: usize,
}

#[derive(Default)]
struct State {
    items: HashMap<String, Vec<u8>>,
    tokens: HashSet<String>,
    tokens_given: usize,
    faults: Vec<Fault>,
    /// Tokens are given, but never accepted.
    forgets_tokens: bool,
}

/// The service, before it listens.
#[derive(Default)]
pub struct Imds {
    state: State,
}

/// The service, listening.
pub struct Running {
    /// Its server, with the log.
    pub server: Server,
    state: Arc<Mutex<State>>,
}

impl Imds {
    /// A service of a g5.xlarge instance without user-data and without a role.
    pub fn new() -> Self {
        Self::default().item("dynamic/instance-identity/document", document("g5.xlarge"))
    }

    /// Adds or replaces an item below `/latest/`.
    pub fn item(mut self, path: &str, body: impl Into<Vec<u8>>) -> Self {
        self.state.items.insert(path.into(), body.into());
        self
    }

    /// Answers the first `count` requests of `method` whose path contains `path` with `reply`.
    pub fn fault(self, method: &'static str, path: &'static str, count: usize, reply: Reply) -> Self {
        self.fault_after(0, method, path, count, reply)
    }

    /// Like [`Imds::fault`], after `skip` good answers.
    pub fn fault_after(
        mut self,
        skip: usize,
        method: &'static str,
        path: &'static str,
        count: usize,
        reply: Reply,
    ) -> Self {
        self.state.faults.push(Fault { method, path, skip, count, reply, seen: 0 });
        self
    }

    /// Gives tokens, but refuses them.
    pub fn forgetting_tokens(mut self) -> Self {
        self.state.forgets_tokens = true;
        self
    }

    /// Listens on a free port of 127.0.0.1.
    pub fn start(self) -> Running {
        self.start_at("127.0.0.1:0".parse().unwrap())
    }

    /// Listens at `addr`.
    pub fn start_at(self, addr: SocketAddr) -> Running {
        let state = Arc::new(Mutex::new(self.state));
        let shared = Arc::clone(&state);
        let server = Server::start_at(addr, move |request| shared.lock().unwrap().answer(request));
        Running { server, state }
    }
}

impl Running {
    /// The base URL, as `AWS_EC2_METADATA_SERVICE_ENDPOINT` wants it.
    pub fn url(&self) -> String {
        self.server.url("")
    }

    /// Every request as `METHOD path`, in order.
    pub fn asked(&self) -> Vec<String> {
        self.server.log().iter().map(|r| format!("{} {}", r.method, r.path)).collect()
    }

    /// Makes every token given so far worthless.
    pub fn expire_tokens(&self) {
        self.state.lock().unwrap().tokens.clear();
    }
}

impl State {
    fn answer(&mut self, request: &Request) -> Reply {
        if let Some(reply) = self.fault(request) {
            return reply;
        }
        match request.method.as_str() {
            "PUT" => self.give_token(request),
            "GET" => self.give_item(request),
            _ => error(405),
        }
    }

    fn fault(&mut self, request: &Request) -> Option<Reply> {
        for fault in &mut self.faults {
            if fault.method != request.method || !request.path.contains(fault.path) {
                continue;
            }
            fault.seen += 1;
            if fault.seen > fault.skip && fault.seen - fault.skip <= fault.count {
                return Some(fault.reply.clone());
            }
        }
        None
    }

    fn give_token(&mut self, request: &Request) -> Reply {
        if request.path != "/latest/api/token" || request.header("x-forwarded-for").is_some() {
            return error(403);
        }
        let ttl = request.header("x-aws-ec2-metadata-token-ttl-seconds").and_then(|t| t.parse::<u32>().ok());
        if !ttl.is_some_and(|t| (1..=21600).contains(&t)) || !request.body.is_empty() {
            return error(400);
        }
        self.tokens_given += 1;
        let token = format!("AQAEAFTNrA4eEGx0AQgJ1arIq_Cc-t4tWt3fB0Hd8RKhXlKc5c{:04}==", self.tokens_given);
        if !self.forgets_tokens {
            self.tokens.insert(token.clone());
        }
        Reply::ok(token).with("X-Aws-Ec2-Metadata-Token-Ttl-Seconds", &ttl.unwrap().to_string())
    }

    fn give_item(&self, request: &Request) -> Reply {
        if !request.header("x-aws-ec2-metadata-token").is_some_and(|t| self.tokens.contains(t)) {
            return error(401);
        }
        match request.path.strip_prefix("/latest/").and_then(|p| self.items.get(p)) {
            Some(body) => Reply::ok(body.clone()),
            None => error(404),
        }
    }
}

/// EC2 sends a page with every error.
pub fn error(status: u16) -> Reply {
    let page = format!(
        "<?xml version=\"1.0\" encoding=\"iso-8859-1\"?>\n<html><head><title>{status}</title></head><body/></html>\n"
    );
    Reply::status(status, page).with("Content-Type", "text/html")
}
