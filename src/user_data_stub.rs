//! `user-data render`: the shell stub that a launch template carries.
