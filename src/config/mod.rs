//! What the user asked for: TOML in layers, each error with file, line, column and the mend.

mod carried;
mod here_document;
pub mod keys;
pub mod layers;
mod mime;
pub mod schema;
pub mod url;
pub mod user_data;
pub(crate) mod validate;

pub use layers::check;
pub use schema::Config;
pub use validate::sha256 as check_sha256;
