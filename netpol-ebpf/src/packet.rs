//! [`PacketBytes`] on an `sk_buff`, and the fields of its context that the decision wants.

#![expect(unsafe_code, reason = "one of the two adapters: packet memory and context fields are raw pointers")]

use aya_ebpf::EbpfContext;
use aya_ebpf::bindings::__sk_buff;
use aya_ebpf::helpers::generated::{bpf_set_hash, bpf_skb_load_bytes};
use aya_ebpf::programs::TcContext;
use netpol_common::packet::{L2_LEN, PacketBytes, Wire};

/// The packet that a program was called for.
pub(crate) struct SkBuff<'a> {
    ctx: &'a TcContext,
    /// Bytes of a link header that the frame lacks.
    lacking: usize,
}

macro_rules! context_fields {
    ($($(#[$doc:meta])* $name:ident = $field:ident;)+) => {$(
        $(#[$doc])*
        #[inline(always)]
        pub(crate) fn $name(&self) -> u32 {
            // SAFETY: the context pointer is valid for the whole run of the program; the verifier rewrites the access
            // to this field of `__sk_buff`.
            unsafe { (*self.skb()).$field }
        }
    )+};
}

impl<'a> SkBuff<'a> {
    /// The packet of `ctx`.
    #[inline(always)]
    pub(crate) fn new(ctx: &'a TcContext) -> Self {
        Self { ctx, lacking: 0 }
    }

    /// The packet of `ctx`, whose frame may begin with the IP header: offsets are as if it did not.
    #[inline(always)]
    pub(crate) fn at_device(ctx: &'a TcContext, has_link_header: bool) -> Self {
        Self { ctx, lacking: if has_link_header { 0 } else { L2_LEN } }
    }

    context_fields! {
        /// Interface that the hook sits on.
        ifindex = ifindex;
        /// Interface that the packet came in through, 0 if the node's own stack sent it.
        ingress_ifindex = ingress_ifindex;
        /// `skb->mark`.
        mark = mark;
        /// `skb->hash`.
        hash = hash;
        /// EtherType, network order, whether or not the frame has it.
        protocol = protocol;
        /// Segments that a GSO packet will become, 0 or 1 for others.
        segments = gso_segs;
        /// Length of the frame in bytes.
        len = len;
    }

    /// True if the kernel holds a VLAN tag for this frame beside its bytes.
    #[inline(always)]
    pub(crate) fn is_vlan_tagged(&self) -> bool {
        // SAFETY: as in `context_fields!`.
        unsafe { (*self.skb()).vlan_present != 0 }
    }

    /// Writes `skb->mark`.
    #[inline(always)]
    pub(crate) fn set_mark(&self, mark: u32) {
        // SAFETY: as in `context_fields!`; mark is writable, as a whole word only.
        unsafe { (*self.skb()).mark = mark }
    }

    /// Writes `skb->hash`.
    #[inline(always)]
    pub(crate) fn set_hash(&self, hash: u32) {
        // SAFETY: the helper takes the context of this packet and a number. It cannot fail.
        _ = unsafe { bpf_set_hash(self.skb().cast(), hash) };
    }

    #[inline(always)]
    fn skb(&self) -> *mut __sk_buff {
        self.ctx.as_ptr().cast()
    }
}

impl PacketBytes for SkBuff<'_> {
    #[inline(always)]
    fn load<T: Wire>(&self, offset: usize) -> Option<T> {
        // verifier: a packet pointer needs a bounded offset; no header lies this far in.
        let offset = offset.wrapping_sub(self.lacking) & 0x3fff;
        let at = self.ctx.data() + offset;
        if at + T::SIZE <= self.ctx.data_end() {
            // SAFETY: the bytes lie between `data` and `data_end`, as was just checked. The BPF target has no aligned
            // access of its own (x86 and arm64 JITs emit plain loads); `T` is made of plain integers.
            return Some(unsafe { *(at as *const T) });
        }
        self.load_outside_linear(offset)
    }

    #[inline(always)]
    fn length(&self) -> usize {
        self.len() as usize + self.lacking
    }
}

impl SkBuff<'_> {
    /// Headers outside the linear part of the buffer (a TX_RING sender puts them there) are read by the kernel.
    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "an offset below 16 KiB, and the size of a header")]
    fn load_outside_linear<T: Wire>(&self, offset: usize) -> Option<T> {
        let mut value = core::mem::MaybeUninit::<T>::uninit();
        // SAFETY: the helper writes exactly `T::SIZE` bytes into `value` when it returns 0, and `T` is plain integers.
        unsafe {
            let answer =
                bpf_skb_load_bytes(self.skb().cast(), offset as u32, value.as_mut_ptr().cast(), T::SIZE as u32);
            (answer == 0).then(|| value.assume_init())
        }
    }
}
