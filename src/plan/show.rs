//! `plan` for people and machines.
