//! Posting a form, for `phone_home` of user-data.

use std::time::Duration;

use super::address::parse;
use super::{Failed, Fetch, broken, refused};
use crate::error::{Code, Error, Result};
use crate::host::fault::{self, Kind};
use crate::text::parse_url;

/// One attempt with its answer: a server that has taken the form and thinks about it for longer has taken it.
const ATTEMPT: Duration = Duration::from_mins(1);

impl Fetch {
    /// Posts the fields as HTML forms have them. Any answer but a success is an error, and so is a redirect, which would
    /// lose the form; there are `tries` attempts, so long apart. Of the URL only the server is told: a path may be a secret.
    pub(crate) async fn post_form(
        &self,
        url: &str,
        fields: &[(&str, String)],
        tries: u32,
        between: Duration,
    ) -> Result<()> {
        let url = parse(url)?;
        let body = parse_url("http://form/").ok().and_then(|mut form| {
            form.query_pairs_mut().extend_pairs(fields);
            form.query().map(str::to_owned)
        });
        let body = body.unwrap_or_default();
        let server = url.host_str().unwrap_or_default().to_owned();
        for attempt in 1.. {
            let request = self
                .http()?
                .post(url.clone())
                .timeout(ATTEMPT)
                .header("content-type", "application/x-www-form-urlencoded")
                .body(body.clone());
            let sent = match fault::point(Kind::Fetch, &server) {
                Ok(()) => request.send().await.map_err(|e| broken(&url, e)),
                Err(e) => Err(super::unsent(&url, e)),
            };
            let failed = match sent {
                Ok(answer) if answer.status().is_success() => return Ok(()),
                Ok(answer) => refused(&url, &answer),
                Err(failed) => failed,
            };
            let (Failed::Maybe(error, _) | Failed::Surely(error)) = failed;
            let why = error.causes().into_iter().next().unwrap_or_else(|| {
                // `URL answered 404 Not Found`: the URL goes.
                error.message().split_whitespace().skip(1).collect::<Vec<_>>().join(" ")
            });
            tracing::info!(server, attempt, why, "the form was not taken");
            if attempt >= tries {
                let attempts = if tries == 1 { "one attempt".into() } else { format!("{tries} attempts") };
                let message = format!("{server} did not take the form in {attempts}");
                return Err(Error::new(Code::Fetch, message).because(why));
            }
            tokio::time::sleep(between).await;
        }
        Ok(())
    }
}
