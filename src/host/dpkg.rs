//! dpkg: the authority over what is installed, read from its database.
