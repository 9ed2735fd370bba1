//! A bundle's files where they lie: in a directory of the machine, or in a bucket.

use std::path::Path;
use std::time::Duration;

use super::{Location, manifest};
use crate::aws::s3::Bucket;
use crate::aws::{Environment, Refusal, Refused, Session};
use crate::config::schema::AwsConfig;
use crate::error::{Code, Error, Result};
use crate::host::Host;
use crate::imds;

/// What the metadata service gets when it is asked for credentials.
const METADATA: Duration = Duration::from_secs(5);

/// Whom to ask for what lies in a bucket.
#[derive(Debug)]
pub struct Remote {
    aws: AwsConfig,
    region: Option<String>,
    imds: Option<imds::Client>,
}

impl Remote {
    /// `region` and `imds` are the instance's, where this is one.
    pub fn new(aws: &AwsConfig, region: Option<String>, imds: Option<&imds::Client>) -> Self {
        Self { aws: *aws, region, imds: imds.map(|client| client.renewed(METADATA)) }
    }

    fn session(&self) -> Session {
        let imds = self.imds.as_ref().map(|client| client.renewed(METADATA));
        Session::new(Environment::of_process(), &self.aws, self.region.clone(), imds)
    }

    /// The manifest's bytes, whatever they are.
    pub async fn manifest(&self, host: &Host, location: &Location) -> Result<Vec<u8>> {
        let missing = || {
            Error::new(Code::BundleInvalid, format!("{location} has no {}", manifest::NAME)).with_hint(
                "check the address; a bundle whose making was interrupted has none: run `bundle create` again",
            )
        };
        match location {
            Location::Directory(dir) => {
                let path = format!("{dir}/{}", manifest::NAME);
                host.files.read_limited(path, manifest::LIMIT)?.ok_or_else(missing)
            }
            Location::S3 { .. } => {
                let limit = usize::try_from(manifest::LIMIT).unwrap_or(usize::MAX);
                let url = self.url(location, manifest::NAME).await?;
                host.fetch.get(&url, limit).await.map_err(|e| {
                    Error::new(e.code(), format!("{location}/{} cannot be read", manifest::NAME)).because(e)
                })
            }
        }
    }

    /// A URL by which a file in a bucket can be had.
    pub async fn url(&self, location: &Location, path: &str) -> Result<String> {
        let session = self.session();
        let (bucket, key) = bucket_of(&session, location, path).await?;
        bucket.url(&key).await.map_err(|e| refused(location, &e))
    }

    /// The same for `s3://bucket/key`.
    pub async fn object(&self, url: &str) -> Result<String> {
        let (place, name) = Location::of_object(url).map_err(|why| Error::new(Code::ConfigType, why))?;
        self.url(&place, &name).await
    }

    /// URLs of several files.
    pub async fn urls(&self, location: &Location, paths: &[String]) -> Result<Vec<String>> {
        let session = self.session();
        let mut urls = Vec::new();
        let (bucket, _) = bucket_of(&session, location, "").await?;
        for path in paths {
            urls.push(bucket.url(&key(location, path)).await.map_err(|e| refused(location, &e))?);
        }
        Ok(urls)
    }

    /// The paths of everything that is there.
    pub async fn list(&self, location: &Location) -> Result<Vec<String>> {
        let session = self.session();
        let (bucket, prefix) = bucket_of(&session, location, "").await?;
        let keys = bucket.list(&prefix).await.map_err(|e| refused(location, &e))?;
        Ok(keys.iter().filter_map(|k| k.strip_prefix(&prefix)).map(str::to_owned).collect())
    }

    /// Whether a file was sent to this path before.
    pub async fn has(&self, location: &Location, path: &str, file: &manifest::File) -> Result<bool> {
        let session = self.session();
        let (bucket, key) = bucket_of(&session, location, path).await?;
        bucket.has(&key, file.size, &file.sha256).await.map_err(|e| refused(location, &e))
    }

    /// Makes a file from one that is there.
    pub async fn copy(&self, location: &Location, from: &str, to: &str) -> Result<()> {
        let session = self.session();
        let (bucket, to) = bucket_of(&session, location, to).await?;
        bucket.copy(&key(location, from), &to).await.map_err(|e| refused(location, &e))
    }

    /// Sends a file.
    pub async fn put(
        &self,
        location: &Location,
        path: &str,
        from: &Path,
        file: &manifest::File,
    ) -> Result<()> {
        let session = self.session();
        let (bucket, key) = bucket_of(&session, location, path).await?;
        let mut sum = [0; 32];
        for (byte, digits) in sum.iter_mut().zip(file.sha256.as_bytes().chunks(2)) {
            let digits = std::str::from_utf8(digits).unwrap_or_default();
            *byte = u8::from_str_radix(digits, 16).unwrap_or_default(); // it is our own sum
        }
        bucket.put(&key, from, file.size, &sum).await.map_err(|e| refused(location, &e))
    }

    /// Removes a file.
    pub async fn remove(&self, location: &Location, path: &str) -> Result<()> {
        let session = self.session();
        let (bucket, key) = bucket_of(&session, location, path).await?;
        bucket.remove(&key).await.map_err(|e| refused(location, &e))
    }
}

fn key(location: &Location, path: &str) -> String {
    match location {
        Location::S3 { prefix, .. } if !prefix.is_empty() => format!("{prefix}/{path}"),
        _ => path.to_owned(),
    }
}

async fn bucket_of<'a>(
    session: &'a Session,
    location: &Location,
    path: &str,
) -> Result<(Bucket<'a>, String)> {
    let Location::S3 { bucket, .. } = location else {
        return Err(Error::new(Code::BundleInvalid, format!("{location} is no bucket")));
    };
    let found = session.bucket(bucket).await.map_err(|e| refused(location, &e))?;
    Ok((found, key(location, path)))
}

fn refused(location: &Location, e: &Refused) -> Error {
    let (code, hint) = match e.refusal {
        Refusal::Denied | Refusal::Nobody => (
            Code::FetchDenied,
            "the instance's role (or the environment's credentials) needs s3:GetObject and s3:ListBucket there, and \
             s3:PutObject and s3:DeleteObject to make a bundle",
        ),
        _ => (Code::Fetch, "check the bucket's name and region (AWS_REGION), and that S3 can be reached"),
    };
    Error::new(code, format!("{location}: {e}")).with_hint(hint)
}
