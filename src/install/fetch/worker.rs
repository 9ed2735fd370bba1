//! A worker: one request at a time, whose bytes go into the item's file as they come.

use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use reqwest::header::{CACHE_CONTROL, RANGE};
use reqwest::{Client, Response, StatusCode, Url};

use super::answer::{Asked, Fault, Trouble, Version, judge, too_long};
use super::plan::{Heard, Order, Take};
use super::{Shared, file};
use crate::error::{Code, Error};
use crate::host::fault::{self, Kind};
use crate::host::fetch::{MAX_REDIRECTS, Trickle, broken, redirect_target, refused, shown, unsent};

/// How long the end of a body is waited for once all its bytes are there, so that its connection can be used
/// again.
const END_OF_BODY: Duration = Duration::from_secs(1);

/// Fetches until every item has ended. Only `await`s can end it early, and there is none between claiming bytes
/// and having written them.
pub(super) async fn run(shared: Arc<Shared>, client: Client, me: usize) {
    loop {
        // Before the look at the plan, so that no change after it is missed.
        let mut changed = std::pin::pin!(shared.work.notified());
        changed.as_mut().enable();
        match shared.change(|plan| plan.take(me, Instant::now())) {
            Take::Over => return,
            Take::Wait => changed.await,
            Take::Job(order) => {
                let ticket = order.ticket;
                let attempt = Attempt { shared: &shared, me, ticket };
                let outcome = tokio::select! {
                    outcome = attempt.run(&client, order) => outcome,
                    () = lost(&shared, me, ticket) => Ok(()),
                };
                shared.change(|plan| plan.ended(me, ticket, outcome, Instant::now()));
            }
        }
    }
}

/// Ends when the job is nobody's wish any more.
async fn lost(shared: &Shared, me: usize, ticket: u64) {
    loop {
        shared.lost[me].notified().await;
        if !shared.change(|plan| plan.is_wanted(me, ticket)) {
            return;
        }
    }
}

/// One attempt at a job.
struct Attempt<'a> {
    shared: &'a Shared,
    me: usize,
    ticket: u64,
}

impl Attempt<'_> {
    async fn run(&self, client: &Client, order: Order) -> Result<(), Fault> {
        let mut file = order.file.clone();
        if file.is_none() {
            file = self.create(order.item)?;
        }
        if file.is_none() || order.asked.size == 0 {
            return Ok(());
        }
        let (url, response) = open(client, &order).await?;
        let body = judge(&url, &order.asked, response.status(), response.headers())?;
        let version = Version::of(response.headers());
        let now = Instant::now();
        let heard = self.shared.change(|plan| plan.answered(self.me, self.ticket, body, &url, version, now));
        let Heard::Wanted(asked, file) = heard else { return Ok(()) };
        let Some(file) = file.map_or_else(|| self.create(order.item), |f| Ok(Some(f)))? else {
            return Ok(());
        };
        self.receive(&url, &asked, order.item, &file, response).await
    }

    /// Creates the item's file; `None` if nobody wants it any more.
    fn create(&self, item: usize) -> Result<Option<Arc<std::fs::File>>, Fault> {
        let creation = self.shared.change(|plan| plan.creation(item));
        let file = file::create(&creation.path, creation.size, creation.replaces).map_err(Fault::Local)?;
        let file = Arc::new(file);
        if self.shared.change(|plan| plan.opened(self.me, self.ticket, &file)) {
            return Ok(Some(file));
        }
        file::remove(&creation.path);
        Ok(None)
    }

    async fn receive(
        &self,
        url: &Url,
        asked: &Asked,
        item: usize,
        file: &std::fs::File,
        mut response: Response,
    ) -> Result<(), Fault> {
        let mut trickle = Trickle::new(self.shared.patience.trickle);
        while let Some(chunk) = response.chunk().await.map_err(|e| broken(url, e))? {
            trickle.add(url, chunk.len())?;
            let now = Instant::now();
            let claimed = self.shared.change(|plan| plan.claim(self.me, self.ticket, chunk.len(), now));
            let Some((at, count)) = claimed else { return Ok(()) };
            let written = fault::point(Kind::Write, "a download");
            if let Err(e) = written.and_then(|()| file.write_all_at(&chunk[..count], at)) {
                let path = self.shared.change(|plan| plan.creation(item).path);
                return Err(Fault::Local(file::write_failed(&path, e)));
            }
            let is_full = self.shared.change(|plan| plan.wrote(self.me, self.ticket, count, now));
            if !is_full {
                continue;
            }
            // Where others have taken the rest, the connection is not worth its bytes.
            if !self.shared.change(|plan| plan.is_more_than_asked(self.me, self.ticket)) {
                return Ok(());
            }
            let is_too_long = count < chunk.len() || !ends(&mut response).await;
            // Where the whole file was asked for, it is cut at its size and the sum decides.
            return if is_too_long && asked.ranged { Err(too_long(url, asked)) } else { Ok(()) };
        }
        Ok(())
    }
}

/// Waits for the end of a body that has brought all that it should; `false` if it goes on instead. How the
/// connection ends is its own matter.
async fn ends(response: &mut Response) -> bool {
    let more = tokio::time::timeout(END_OF_BODY, response.chunk()).await;
    !matches!(more, Ok(Ok(Some(more))) if !more.is_empty())
}

/// A successful answer to what is asked for, redirects followed, and where it came from.
async fn open(client: &Client, order: &Order) -> Result<(Url, Response), Fault> {
    let mut at = order.url.clone();
    for _ in 0..=MAX_REDIRECTS {
        fault::point(Kind::Fetch, at.as_str()).map_err(|e| unsent(&at, e))?;
        let response = request(client, &at, order).send().await.map_err(|e| broken(&at, e))?;
        if let Some(next) = redirect_target(&at, &response).map_err(Fault::Final)? {
            at = next;
            continue;
        }
        return match response.status() {
            StatusCode::OK | StatusCode::PARTIAL_CONTENT | StatusCode::RANGE_NOT_SATISFIABLE => {
                Ok((at, response))
            }
            status => Err(blame(status, refused(&at, &response).into())),
        };
    }
    let text = format!("{} was redirected more than {MAX_REDIRECTS} times", shown(&order.url));
    Err(Fault::Final(Error::new(Code::Fetch, text)))
}

fn request(client: &Client, url: &Url, order: &Order) -> reqwest::RequestBuilder {
    let mut request = client.get(url.clone());
    if order.asked.ranged {
        let range = &order.asked.range;
        request = request.header(RANGE, format!("bytes={}-{}", range.start, range.end - 1));
    }
    if order.past_caches {
        request = request.header(CACHE_CONTROL, "no-cache");
    }
    request
}

/// Whether a refusal is about how much is asked for.
fn blame(status: StatusCode, fault: Fault) -> Fault {
    let is_busy = matches!(status, StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE);
    match fault {
        Fault::Retry(error, wait, _) => {
            Fault::Retry(error, wait, if is_busy { Trouble::Busy } else { Trouble::None })
        }
        other => other,
    }
}
