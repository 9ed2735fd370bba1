//! apt: the only solver. Every call waits for all locks and forces signatures on.
