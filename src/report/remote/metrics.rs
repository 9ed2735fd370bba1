//! Figures → `PutMetricData`: AWS JSON 1.0, compressed. <https://docs.aws.amazon.com/AmazonCloudWatch/latest/APIReference/API_PutMetricData.html>

use std::io::Write;
use std::rc::Rc;

use flate2::Compression;
use flate2::write::GzEncoder;
use jiff::{SignedDuration, Timestamp};
use serde_json::json;

use super::Settings;
use super::channel::{Taken, Target};
use super::figures::Figure;
use crate::aws::{self, Refusal, Refused, Session};
use crate::config::schema::Enabled;

/// The service takes 1,000, in a body of 1 MB; a figure has a few hundred bytes.
const MOST: usize = 1000;
/// Smaller bodies are sent as they are, as AWS's SDKs do.
const COMPRESSED_FROM: usize = 10_240;
/// The service takes figures of the last two weeks.
const KEEPS: SignedDuration = SignedDuration::from_hours(14 * 24 - 1);

/// CloudWatch's metrics.
pub(super) struct Metrics {
    pub(super) session: Rc<Session>,
    pub(super) settings: Rc<Settings>,
}

impl Target for Metrics {
    type Item = Figure;

    fn name(&self) -> &'static str {
        "cloudwatch metrics"
    }

    fn keeps(&self) -> SignedDuration {
        KEEPS
    }

    fn made(item: &Figure) -> Timestamp {
        item.at
    }

    fn is_detail(item: &Figure) -> bool {
        item.name == "StepSeconds"
    }

    fn may_be_off(&self) -> bool {
        self.settings.report.cloudwatch.enabled != Enabled::Fixed(true)
    }

    fn batch<'a>(&self, items: impl Iterator<Item = &'a Figure>) -> usize {
        items.take(MOST).count()
    }

    async fn send(&self, items: &[Figure]) -> Result<Taken, Refused> {
        let data: Vec<_> = items
            .iter()
            .map(|figure| {
                let dimensions: Vec<_> =
                    figure.dimensions.iter().map(|(n, v)| json!({ "Name": n, "Value": v })).collect();
                json!({
                    "MetricName": figure.name, "Dimensions": dimensions, "Value": figure.value,
                    "Unit": figure.unit, "Timestamp": self.session.corrected(figure.at).as_second(),
                })
            })
            .collect();
        let body = json!({ "Namespace": self.settings.report.cloudwatch.namespace, "MetricData": data });
        let body = body.to_string().into_bytes();
        let is_gzip = body.len() >= COMPRESSED_FROM;
        let request = aws::Request {
            service: &aws::CLOUDWATCH,
            region: None,
            content_type: "application/x-amz-json-1.0",
            target: Some("GraniteServiceVersion20100801.PutMetricData"),
            is_gzip,
            body: if is_gzip { gzip(&body)? } else { body },
        };
        match self.session.send(&request).await {
            Ok(_) => Ok(Taken::default()),
            Err(e) if e.code.starts_with("AccessDenied") => {
                Err(e.with_advice("the role needs cloudwatch:PutMetricData"))
            }
            Err(e) => Err(e),
        }
    }
}

fn gzip(bytes: &[u8]) -> Result<Vec<u8>, Refused> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    let packed = encoder.write_all(bytes).and_then(|()| encoder.finish());
    packed.map_err(|e| Refused::new(Refusal::Invalid, format!("cannot compress: {e}")))
}
