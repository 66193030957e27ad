//! Names to addresses, on the records' TTL.
