//! Dotted versions of drivers, toolkits and cuDNN, compared number by number. They are no semantic versions:
//! a driver has two or three parts (`580.142`, `580.82.07`), and `12.10` would come after `12.9`.

use std::cmp::Ordering;
use std::fmt;

use serde::{Deserialize, Serialize};

/// A dotted version; keeps its spelling.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Version {
    text: String,
    parts: Vec<u32>,
}

impl Version {
    /// Digits and dots only, no part empty.
    pub fn parse(text: &str) -> Option<Self> {
        let parts = text.split('.').map(|p| p.bytes().all(|b| b.is_ascii_digit()).then(|| p.parse().ok())?);
        Some(Self { text: text.to_owned(), parts: parts.collect::<Option<_>>()? })
    }

    /// The first number (a driver's branch, CUDA's major version).
    pub fn major(&self) -> u32 {
        self.parts.first().copied().unwrap_or_default()
    }

    /// How many numbers there are.
    pub fn depth(&self) -> usize {
        self.parts.len()
    }

    /// The first `count` numbers.
    #[must_use]
    pub fn prefix(&self, count: usize) -> Self {
        let text = self.text.split('.').take(count).collect::<Vec<_>>().join(".");
        Self { text, parts: self.parts.iter().take(count).copied().collect() }
    }

    /// Whether `self` is `other`, or one of the versions that `other` abbreviates (`9.8.0.87` and `9.8.0`).
    pub fn refines(&self, other: &Self) -> bool {
        self.parts.starts_with(&other.parts)
    }

    /// `12-8` for `12.8`, as in package names.
    pub fn dashed(&self) -> String {
        self.text.replace('.', "-")
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl Ord for Version {
    fn cmp(&self, other: &Self) -> Ordering {
        self.parts.cmp(&other.parts)
    }
}

impl PartialOrd for Version {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Version {
    fn eq(&self, other: &Self) -> bool {
        self.parts == other.parts
    }
}

impl Eq for Version {}

impl TryFrom<String> for Version {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        Self::parse(&text).ok_or_else(|| format!("{text:?} is not a version such as \"12.8\""))
    }
}

impl From<Version> for String {
    fn from(version: Version) -> Self {
        version.text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn v(text: &str) -> Version {
        Version::parse(text).unwrap()
    }

    #[test]
    fn versions_compare_number_by_number() {
        assert!(v("12.10") > v("12.9"));
        assert!(v("580.142") > v("580.82.07"));
        assert!(v("470.57.02") < v("470.57.2.1"));
        assert_eq!(v("11.8"), v("11.08"));
    }

    #[test]
    fn what_is_not_digits_and_dots_is_refused() {
        for text in ["", "12.", ".8", "12.x", "+12.8", "v12", "12 .8", "99999999999"] {
            assert!(Version::parse(text).is_none(), "{text:?}");
        }
    }

    #[test]
    fn an_abbreviation_is_refined_by_the_full_version() {
        assert!(v("9.8.0.87").refines(&v("9.8.0")));
        assert!(!v("9.80.0").refines(&v("9.8")));
        assert_eq!(v("12.8.1").prefix(2).dashed(), "12-8");
    }
}
