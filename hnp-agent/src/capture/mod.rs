//! The kernel side's only counterpart: loads, attaches and feeds the BPF programs, takes flows.
