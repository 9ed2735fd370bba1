//! The package pipeline: the heavy work of an installation (downloading, hashing, unpacking) done on every core,
//! while apt and dpkg stay in charge of what is installed and how.

pub mod fetch;
