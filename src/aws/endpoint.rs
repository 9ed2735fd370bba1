//! Where AWS's services are: by the SDKs' environment variables, or else by the region's partition.

use crate::config::schema::AwsConfig;

/// A service, and its names: AWS has three for each.
#[derive(Debug)]
pub struct Service {
    /// For people.
    pub name: &'static str,
    /// In signatures and in host names.
    pub prefix: &'static str,
    /// In `AWS_ENDPOINT_URL_…`.
    variable: &'static str,
    /// Whether, in `us-gov-` regions, the plain dual-stack name is the FIPS one. The plain IPv4 name is, for every service.
    gov_dual_stack_is_fips: bool,
}

/// Metrics.
pub const CLOUDWATCH: Service = Service {
    name: "CloudWatch",
    prefix: "monitoring",
    variable: "CLOUDWATCH",
    gov_dual_stack_is_fips: true,
};
/// Logs.
pub const LOGS: Service = Service {
    name: "CloudWatch Logs",
    prefix: "logs",
    variable: "CLOUDWATCH_LOGS",
    gov_dual_stack_is_fips: false,
};
/// Stacks.
pub const CLOUDFORMATION: Service = Service {
    name: "CloudFormation",
    prefix: "cloudformation",
    variable: "CLOUDFORMATION",
    gov_dual_stack_is_fips: false,
};
/// Groups of instances.
pub const AUTO_SCALING: Service = Service {
    name: "Auto Scaling",
    prefix: "autoscaling",
    variable: "AUTO_SCALING",
    gov_dual_stack_is_fips: false,
};
/// Instances and their tags.
pub const EC2: Service =
    Service { name: "EC2", prefix: "ec2", variable: "EC2", gov_dual_stack_is_fips: false };
/// Topics.
pub const SNS: Service =
    Service { name: "SNS", prefix: "sns", variable: "SNS", gov_dual_stack_is_fips: false };
/// Event buses.
pub const EVENTBRIDGE: Service =
    Service { name: "EventBridge", prefix: "events", variable: "EVENTBRIDGE", gov_dual_stack_is_fips: true };
/// Objects.
pub const S3: Service = Service { name: "S3", prefix: "s3", variable: "S3", gov_dual_stack_is_fips: false };

impl Service {
    /// The environment variable that names this service's endpoint.
    pub fn endpoint_variable(&self) -> String {
        format!("AWS_ENDPOINT_URL_{}", self.variable)
    }

    /// Where it is in a region; `None` where nothing is known of the region's partition.
    pub fn url(&self, region: &str, config: &AwsConfig) -> Option<String> {
        let domains = domains(region)?;
        let plain = region.starts_with("us-gov-") && (!config.dual_stack || self.gov_dual_stack_is_fips);
        let fips = if config.fips && !plain { "-fips" } else { "" };
        if self.prefix == "s3" && config.dual_stack {
            // Older than the others' names: `s3.dualstack.us-east-1.amazonaws.com`.
            return Some(format!("https://s3{fips}.dualstack.{region}.{}/", domains.plain));
        }
        let suffix = if config.dual_stack { domains.dual_stack } else { domains.plain };
        Some(format!("https://{}{fips}.{region}.{suffix}/", self.prefix))
    }
}

/// What host names end in.
struct Domains {
    /// IPv4 only.
    plain: &'static str,
    /// IPv4 and IPv6.
    dual_stack: &'static str,
}

const AWS: Domains = Domains { plain: "amazonaws.com", dual_stack: "api.aws" };

/// Regions begin with one of these; the first that fits decides (so `us-gov-` stands before `us-`).
const PARTITIONS: &[(&str, Domains)] = &[
    ("us-gov-", AWS),
    ("us-isob-", Domains { plain: "sc2s.sgov.gov", dual_stack: "api.aws.scloud" }),
    ("us-isof-", Domains { plain: "csp.hci.ic.gov", dual_stack: "api.aws.hci.ic.gov" }),
    ("us-iso-", Domains { plain: "c2s.ic.gov", dual_stack: "api.aws.ic.gov" }),
    ("eu-isoe-", Domains { plain: "cloud.adc-e.uk", dual_stack: "api.cloud-aws.adc-e.uk" }),
    ("eusc-", Domains { plain: "amazonaws.eu", dual_stack: "api.amazonwebservices.eu" }),
    ("cn-", Domains { plain: "amazonaws.com.cn", dual_stack: "api.amazonwebservices.com.cn" }),
    ("us-", AWS),
    ("eu-", AWS),
    ("ap-", AWS),
    ("sa-", AWS),
    ("ca-", AWS),
    ("me-", AWS),
    ("af-", AWS),
    ("il-", AWS),
    ("mx-", AWS),
];

fn domains(region: &str) -> Option<&'static Domains> {
    PARTITIONS.iter().find(|(prefix, _)| region.starts_with(prefix)).map(|(_, domains)| domains)
}

/// Whether this can be a region's name.
pub(super) fn is_region(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
}
