//! A full run on a throw-away copy of this machine. No code outside this module knows that it is rehearsing.
