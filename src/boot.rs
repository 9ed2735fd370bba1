//! The run as one readable function.
