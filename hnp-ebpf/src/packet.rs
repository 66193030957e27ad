//! The only file that touches a packet.
//!
//! Through helpers and not by packet pointers: they read what lies in fragments of the buffer, too, and
//! the verifier takes them from a loader without CAP_PERFMON.

use core::cell::UnsafeCell;
use core::mem::MaybeUninit;
use core::ptr::read_volatile;

use aya_ebpf::bindings::__sk_buff;
use aya_ebpf::helpers::generated::{
    bpf_l4_csum_replace, bpf_redirect, bpf_skb_change_tail, bpf_skb_load_bytes, bpf_skb_store_bytes,
};
use aya_ebpf::programs::TcContext;

use crate::stack::Words;

/// Not decided here: whatever comes next on this interface has its say.
pub(crate) const NEXT: i32 = -1;
/// The packet ends here.
pub(crate) const DROP: i32 = 2;

/// A frame that comes out of a pod.
pub(crate) struct Packet {
    skb: *mut __sk_buff,
    /// Where bytes are read into. One place for all, and not one each: the compiler would give it to other
    /// variables, too, and the helper's writing is the narrow store of which `stack.rs` tells.
    read: UnsafeCell<MaybeUninit<[u64; 5]>>,
}

/// What may be read from a packet: any bytes are one.
///
/// # Safety
/// Integers without padding only.
pub(crate) unsafe trait Bytes: Copy {}
// SAFETY: integers without padding, as are the next two.
unsafe impl Bytes for u16 {}
// SAFETY: as above.
unsafe impl<const N: usize> Bytes for [u32; N] {}
// SAFETY: as above.
unsafe impl<const N: usize> Bytes for [u16; N] {}
// SAFETY: as above.
unsafe impl<const N: usize> Bytes for [u8; N] {}

macro_rules! read {
    ($packet:expr, $field:ident) => {{
        let skb = $packet.skb;
        // SAFETY: the kernel hands the hook a context of this type, valid while the hook runs.
        unsafe { read_volatile(&raw const (*skb).$field) }
    }};
}

impl Packet {
    #[inline(always)]
    pub(crate) fn of(ctx: &TcContext) -> Self {
        Self { skb: ctx.skb.skb, read: UnsafeCell::new(MaybeUninit::uninit()) }
    }

    /// What the frame carries (an EtherType, network order), behind a tag that the kernel took off.
    #[inline(always)]
    pub(crate) fn protocol(&self) -> u16 {
        read!(self, protocol) as u16
    }

    /// Whether the kernel took a VLAN tag off.
    #[inline(always)]
    pub(crate) fn had_tag(&self) -> bool {
        read!(self, vlan_present) != 0
    }

    /// Reads from `offset` on; `None`: the packet is too short.
    #[inline(always)]
    pub(crate) fn load<T: Bytes>(&self, offset: u32) -> Option<T> {
        const { assert!(size_of::<T>() <= 40 && align_of::<T>() <= 8) };
        let bytes = self.read.get().cast::<T>();
        // SAFETY: room for the bytes that are asked for, and nobody else has them at the time; any bytes
        // are a `T`, and they are there if the helper says so.
        unsafe {
            let loaded = bpf_skb_load_bytes(self.skb.cast(), offset, bytes.cast(), size_of::<T>() as u32);
            (loaded == 0).then(|| bytes.read())
        }
    }

    /// Writes the first `LEN` bytes of these words at `offset`; `false`: the packet is too short, or there
    /// is no memory to make it ours.
    #[inline(always)]
    pub(crate) fn store<const LEN: u32, const N: usize>(&self, offset: u32, from: [u64; N]) -> bool {
        const { assert!(LEN as usize <= 8 * N) };
        let words = Words::new(from);
        // SAFETY: as many bytes as it has.
        unsafe {
            let from = (&raw const *words.as_ref::<[u64; N]>()).cast();
            bpf_skb_store_bytes(self.skb, offset, from, LEN, 0) == 0
        }
    }

    /// Makes the packet `len` bytes long; the segments of a large one become this one.
    #[inline(always)]
    pub(crate) fn resize(&self, len: u32) -> bool {
        // SAFETY: the helper checks the length.
        unsafe { bpf_skb_change_tail(self.skb, len, 0) == 0 }
    }

    /// Whether the sender left the TCP checksum at `offset` to the device: the field then holds the sum of
    /// the pseudo header, and whoever receives the packet on this node does not look at it.
    ///
    /// No field says so, but the helper that follows a change of the header does: it leaves the field
    /// alone then. Changes the field otherwise.
    #[inline(always)]
    pub(crate) fn leaves_checksum_to_device(&self, offset: u32, field: u16) -> bool {
        const TWO_BYTES: u64 = 2;
        // SAFETY: the helper checks the offset.
        let replaced = unsafe { bpf_l4_csum_replace(self.skb, offset, 0, 1, TWO_BYTES) };
        replaced == 0 && self.load(offset) == Some(field)
    }

    /// The answer that sends the packet back out of the interface it came in by.
    #[inline(always)]
    pub(crate) fn send_back(&self) -> i32 {
        let interface = read!(self, ifindex);
        // SAFETY: the helper takes numbers.
        unsafe { bpf_redirect(interface, 0) as i32 }
    }
}
