//! Running a plan: the lock, the receipt, and `check → apply → check` for every action of every step.

pub mod change;
pub mod converge;
pub mod lock;
pub mod reboot;
pub mod receipt;
pub mod self_wait;
pub mod signals;
