//! The BPF object inside this binary; `build.rs` decides whether there is one.

/// The object, or `None` in an agent that was built without.
pub(super) fn embedded() -> Option<&'static [u8]> {
    #[cfg(hnp_bpf_object)]
    {
        Some(aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/hnp.bpf.o")))
    }
    #[cfg(not(hnp_bpf_object))]
    {
        None
    }
}
