//! stub

/// The comment by which a rendered stub is known again.
pub const MARK: &str = "# gpu-bootstrap user-data stub";
