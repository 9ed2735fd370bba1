//! Finding our configuration in user-data: plain, gzip, or a part of a MIME message.
