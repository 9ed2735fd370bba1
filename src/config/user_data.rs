//! Finding our configuration in EC2 user-data.

/// Why user-data holds no configuration of ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NotOurs {
    /// Nothing, or white space only.
    Empty,
}
