//! `gpu-bootstrap bundle …`

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use serde_json::json;

use super::create::{self, create};
use super::manifest::{self, Manifest};
use super::target::Target;
use super::{Location, Remote, verify};
use crate::boot::{self, Inputs};
use crate::config::schema::AwsConfig;
use crate::error::{Code, Error, Result, exit};
use crate::host::Host;
use crate::report::streams;

/// What is done with a bundle.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Collect every artefact of a plan into a directory or S3 prefix, and print the sum that a user pins.
    Create(Box<CreateArgs>),
    /// Look at every file of a bundle, and name each that is not what the manifest says.
    Verify(VerifyArgs),
}

/// `bundle create`
#[derive(Args, Debug)]
pub struct CreateArgs {
    #[command(flatten)]
    pub(crate) inputs: crate::cli::InputArgs,

    /// Where it goes: a directory, or `s3://bucket/prefix`.
    #[arg(long, value_name = "PLACE")]
    output: String,

    /// EC2 instance type that it is for; may be given several times [default: this machine's GPU].
    #[arg(long, value_name = "TYPE")]
    instance_type: Vec<String>,

    /// The distribution that it is for, such as debian12 or ubuntu22.04 [default: this machine's].
    #[arg(long, value_name = "NAME")]
    os: Option<String>,

    /// amd64 or arm64 [default: that of the instance type].
    #[arg(long, value_name = "NAME")]
    arch: Option<String>,

    /// Its kernel (`uname -r`), for whose headers [default: the newest of the distribution, with its headers].
    #[arg(long, value_name = "RELEASE")]
    kernel: Option<String>,

    /// The keyring that the distribution's archive must be signed by [default: what a package brought to this machine].
    #[arg(long, value_name = "FILE")]
    keyring: Option<PathBuf>,

    /// A sources file to use in place of the distribution's own archive.
    #[arg(long, value_name = "FILE")]
    sources: Option<PathBuf>,

    /// dpkg's status file of such a machine [default: this machine's, or what every one has].
    #[arg(long, value_name = "FILE")]
    installed: Option<PathBuf>,

    /// Accept a licence: nvidia.
    #[arg(long, value_name = "NAME", value_parser = ["nvidia"])]
    accept_licence: Vec<String>,

    /// Print a JSON document.
    #[arg(long)]
    json: bool,
}

/// `bundle verify`
#[derive(Args, Debug)]
pub struct VerifyArgs {
    /// A directory, or `s3://bucket/prefix`.
    #[arg(value_name = "PLACE")]
    place: String,

    /// The SHA-256 that the manifest must have.
    #[arg(long, value_name = "SUM")]
    sha256: Option<String>,

    /// Print a JSON document.
    #[arg(long)]
    json: bool,
}

/// A place on the command line: other than in a configuration, a directory may be named relative to this one.
fn place(text: &str) -> Result<Location> {
    let absolute = if text.contains("://") {
        text.to_owned()
    } else {
        let path = std::path::absolute(Path::new(text)).map_err(|e| Error::io("find", text, e))?;
        let parts = path.components().map(|c| c.as_os_str().to_string_lossy().into_owned());
        let mut names: Vec<String> = Vec::new();
        for part in parts {
            match part.as_str() {
                ".." => drop(names.pop()),
                "/" => {}
                _ => names.push(part),
            }
        }
        format!("/{}", names.join("/"))
    };
    Location::parse(&absolute).map_err(|why| Error::new(Code::Usage, why))
}

/// Does it, and returns the exit code.
pub async fn main(command: Command) -> Result<u8> {
    match command {
        Command::Create(args) => {
            let inputs = args.inputs.inputs(false);
            made(*args, inputs).await
        }
        Command::Verify(args) => verified(args).await,
    }
}

async fn made(args: CreateArgs, inputs: Inputs) -> Result<u8> {
    let output = place(&args.output)?;
    let options = create::Options {
        inputs,
        output: output.clone(),
        target: Target {
            instance_types: args.instance_type,
            os: args.os,
            arch: args.arch,
            kernel: args.kernel,
        },
        keyring: args.keyring,
        sources: args.sources,
        installed: args.installed,
        accepted: args.accept_licence,
    };
    let made = create(&options).await?;
    let (files, bytes) = (made.manifest.files.len(), made.manifest.bytes());
    let text = if args.json {
        let document = json!({ "location": output.to_string(), "manifest-sha256": made.sha256, "files": files,
            "bytes": bytes, "made-for": made.manifest.made_for, "licences": made.manifest.licences });
        streams::json(&document)?
    } else {
        format!(
            "{files} files, {bytes} bytes\n\n[source]\npackages = \"bundle:{output}\"\nbundle-sha256 = \"{}\"\n",
            made.sha256
        )
    };
    streams::out(&text)?;
    Ok(exit::CONVERGED)
}

async fn verified(args: VerifyArgs) -> Result<u8> {
    let location = place(&args.place)?;
    let host = Host::new("/".into());
    let metadata = crate::imds::Client::from_env(boot::METADATA_DEADLINE_BY_HAND)?;
    let metadata = metadata.filter(|_| matches!(location, Location::S3 { .. }));
    let remote = Remote::new(&AwsConfig::default(), None, metadata.as_ref());
    let bytes = remote.manifest(&host, &location).await?;
    let manifest = Manifest::read(&bytes, args.sha256.as_deref(), &location.to_string())?;
    let faults = verify::anywhere(&host, &location, &remote, &manifest).await?;
    let (files, total, sum) = (manifest.files.len(), manifest.bytes(), manifest::sum(&bytes));
    let mut text = String::new();
    if args.json {
        let document = json!({ "location": location.to_string(), "manifest-sha256": sum, "files": files,
            "bytes": total, "verified": faults.is_empty(), "wrong": faults.wrong, "extra": faults.extra });
        text = streams::json(&document)?;
    } else {
        for (path, what) in &faults.wrong {
            let _ = writeln!(text, "{path} {what}");
        }
        for path in &faults.extra {
            let _ = writeln!(text, "{path} is not in the manifest");
        }
        if faults.is_empty() {
            let _ = writeln!(text, "{files} files, {total} bytes, as the manifest says; its sha256 is {sum}");
        }
    }
    streams::out(&streams::printable(&text))?;
    if faults.is_empty() {
        return Ok(exit::CONVERGED);
    }
    faults.refuse(&location.to_string())?;
    let text = format!("{location} has files that the manifest does not name: {}", faults.extra.join(", "));
    Err(Error::new(Code::BundleTampered, text).with_hint("remove them: nothing uses them"))
}
