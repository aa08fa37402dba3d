//! Netlink messages of nf_tables, as bytes: batches and requests to write, attributes to read. No socket here.
//!
//! The netlink crates in use have no nf_tables. Numbers are those of include/uapi/linux/netfilter/{nfnetlink,nf_tables}.h,
//! which never change; integers of nf_tables are in network order but for what is compared with the kernel's own words.

/// `NFNL_SUBSYS_NFTABLES`.
const SUBSYSTEM: u8 = 10;
const NETLINK_HEADER: usize = 16;
const ATTRIBUTE_HEADER: usize = 4;
/// Set on an attribute that holds attributes.
const NESTED: u16 = 1 << 15;
/// What is left of an attribute's kind without its flags.
const KIND: u16 = 0x3fff;

const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLM_F_CREATE: u16 = 0x400;
const NLM_F_APPEND: u16 = 0x800;
const NLM_F_DUMP: u16 = 0x300;

/// `NFPROTO_INET`: both families in one table.
const FAMILY: u8 = 1;
const BATCH_BEGIN: u16 = 16;
const BATCH_END: u16 = 17;

/// What a message does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Action {
    NewTable,
    DeleteTable,
    NewChain,
    NewRule,
    NewSet,
    NewElements,
    DeleteElements,
}

impl Action {
    const fn number(self) -> u8 {
        match self {
            Self::NewTable => 0,
            Self::DeleteTable => 2,
            Self::NewChain => 3,
            Self::NewRule => 6,
            Self::NewSet => 9,
            Self::NewElements => 12,
            Self::DeleteElements => 14,
        }
    }

    const fn flags(self) -> u16 {
        match self {
            Self::NewTable | Self::NewChain | Self::NewSet | Self::NewElements => NLM_F_CREATE,
            Self::NewRule => NLM_F_CREATE | NLM_F_APPEND,
            Self::DeleteTable | Self::DeleteElements => 0,
        }
    }
}

/// `NFT_MSG_GETRULE`.
const GET_RULE: u8 = 7;

/// Attributes that grow at the end of a message.
#[derive(Debug, Default)]
pub(super) struct Writer(Vec<u8>);

impl Writer {
    /// An attribute of plain bytes.
    pub(super) fn bytes(&mut self, kind: u16, value: &[u8]) {
        self.attribute(kind, |writer| writer.0.extend_from_slice(value));
    }

    /// A string, with the zero behind it.
    pub(super) fn text(&mut self, kind: u16, value: &str) {
        self.attribute(kind, |writer| {
            writer.0.extend_from_slice(value.as_bytes());
            writer.0.push(0);
        });
    }

    /// 32 bits in network order.
    pub(super) fn number(&mut self, kind: u16, value: u32) {
        self.bytes(kind, &value.to_be_bytes());
    }

    /// 64 bits in network order.
    pub(super) fn long(&mut self, kind: u16, value: u64) {
        self.bytes(kind, &value.to_be_bytes());
    }

    /// Attributes within an attribute.
    pub(super) fn nested(&mut self, kind: u16, fill: impl FnOnce(&mut Self)) {
        self.attribute(kind | NESTED, fill);
    }

    fn attribute(&mut self, kind: u16, fill: impl FnOnce(&mut Self)) {
        let start = self.0.len();
        self.0.extend_from_slice(&[0; 2]);
        self.0.extend_from_slice(&kind.to_ne_bytes());
        fill(self);
        // Callers keep what they nest far below 64 KiB; the kernel refuses a length that lies.
        let length = u16::try_from(self.0.len() - start).unwrap_or(u16::MAX);
        self.patch(start, &length.to_ne_bytes());
        self.align();
    }

    fn align(&mut self) {
        self.0.resize(self.0.len().next_multiple_of(4), 0);
    }

    fn patch(&mut self, at: usize, bytes: &[u8]) {
        for (to, from) in self.0.iter_mut().skip(at).zip(bytes) {
            *to = *from;
        }
    }

    /// One message: netlink header, nfnetlink header, attributes.
    fn message(&mut self, head: Head, fill: impl FnOnce(&mut Self)) {
        let start = self.0.len();
        self.0.extend_from_slice(&[0; 4]);
        self.0.extend_from_slice(&head.kind.to_ne_bytes());
        self.0.extend_from_slice(&(NLM_F_REQUEST | head.flags).to_ne_bytes());
        self.0.extend_from_slice(&head.sequence.to_ne_bytes());
        self.0.extend_from_slice(&[0; 4]);
        self.0.extend_from_slice(&[head.family, 0]);
        self.0.extend_from_slice(&head.resource.to_be_bytes());
        fill(self);
        let length = u32::try_from(self.0.len() - start).unwrap_or(u32::MAX);
        self.patch(start, &length.to_ne_bytes());
    }
}

/// What stands before a message's attributes.
struct Head {
    kind: u16,
    flags: u16,
    sequence: u32,
    family: u8,
    resource: u16,
}

/// Messages that the kernel carries out all together or not at all.
#[derive(Debug)]
pub(super) struct Batch {
    writer: Writer,
    sequence: u32,
}

impl Batch {
    pub(super) fn new() -> Self {
        let mut batch = Self { writer: Writer::default(), sequence: 0 };
        batch.frame(BATCH_BEGIN);
        batch
    }

    /// Adds a message; each is acknowledged.
    pub(super) fn add(&mut self, action: Action, fill: impl FnOnce(&mut Writer)) {
        self.sequence += 1;
        let kind = u16::from(SUBSYSTEM) << 8 | u16::from(action.number());
        let head =
            Head { kind, flags: NLM_F_ACK | action.flags(), sequence: self.sequence, family: FAMILY, resource: 0 };
        self.writer.message(head, fill);
    }

    /// The bytes to send, and the number of the message whose acknowledgement is the last.
    pub(super) fn finish(mut self) -> (Vec<u8>, u32) {
        let last = self.sequence;
        self.sequence += 1;
        self.frame(BATCH_END);
        (self.writer.0, last)
    }

    fn frame(&mut self, kind: u16) {
        let head = Head { kind, flags: 0, sequence: self.sequence, family: 0, resource: u16::from(SUBSYSTEM) };
        self.writer.message(head, |_| {});
    }
}

/// A request for the rules of a chain.
pub(super) fn list_rules(fill: impl FnOnce(&mut Writer)) -> Vec<u8> {
    let mut writer = Writer::default();
    let kind = u16::from(SUBSYSTEM) << 8 | u16::from(GET_RULE);
    writer.message(Head { kind, flags: NLM_F_DUMP, sequence: 1, family: FAMILY, resource: 0 }, fill);
    writer.0
}

/// One message of the kernel.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Answer<'a> {
    /// The message of this number was carried out (0), or refused with this error number.
    Result {
        /// Number of the message.
        sequence: u32,
        /// 0, or an error number.
        error: i32,
    },
    /// The end of a list.
    Done,
    /// Attributes of one object.
    Object(Attributes<'a>),
}

/// The messages of one datagram.
pub(super) fn answers(mut datagram: &[u8]) -> Vec<Answer<'_>> {
    const ERROR: u16 = 2;
    const DONE: u16 = 3;
    let mut found = Vec::new();
    while let Some((length, kind, sequence)) = header(datagram) {
        let Some(body) = datagram.get(NETLINK_HEADER..length) else { break };
        found.push(match kind {
            ERROR => {
                let negative = body.first_chunk().map_or(-libc::EPROTO, |bytes| i32::from_ne_bytes(*bytes));
                Answer::Result { sequence, error: negative.wrapping_neg() }
            }
            DONE => Answer::Done,
            // Behind the nfnetlink header.
            _ => Answer::Object(Attributes(body.get(4..).unwrap_or_default())),
        });
        datagram = datagram.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    found
}

fn header(bytes: &[u8]) -> Option<(usize, u16, u32)> {
    let [a, b, c, d, e, f, _, _, w, x, y, z, ..] = *bytes else { return None };
    let length = usize::try_from(u32::from_ne_bytes([a, b, c, d])).ok()?;
    (length >= NETLINK_HEADER).then_some((length, u16::from_ne_bytes([e, f]), u32::from_ne_bytes([w, x, y, z])))
}

/// Attributes to read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Attributes<'a>(&'a [u8]);

impl<'a> Attributes<'a> {
    /// Every attribute: its kind and what is in it.
    pub(super) fn all(self) -> impl Iterator<Item = (u16, &'a [u8])> {
        let mut rest = self.0;
        std::iter::from_fn(move || {
            let [a, b, c, d, ..] = *rest else { return None };
            let length = usize::from(u16::from_ne_bytes([a, b]));
            let value = rest.get(ATTRIBUTE_HEADER..length)?;
            rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
            Some((u16::from_ne_bytes([c, d]) & KIND, value))
        })
    }

    /// The first attribute of a kind.
    pub(super) fn get(self, kind: u16) -> Option<&'a [u8]> {
        self.all().find(|(found, _)| *found == kind).map(|(_, value)| value)
    }

    /// The attributes in the first attribute of a kind.
    pub(super) fn nested(self, kind: u16) -> Self {
        Self(self.get(kind).unwrap_or_default())
    }

    /// The attributes in every attribute here.
    pub(super) fn each(self) -> impl Iterator<Item = Self> {
        self.all().map(|(_, value)| Self(value))
    }

    /// True if the attribute of this kind is this string.
    pub(super) fn is_text(self, kind: u16, text: &str) -> bool {
        self.get(kind).and_then(|value| value.strip_suffix(&[0])) == Some(text.as_bytes())
    }

    /// 64 bits in network order.
    pub(super) fn long(self, kind: u16) -> Option<u64> {
        self.get(kind)?.first_chunk().map(|bytes| u64::from_be_bytes(*bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_aligned_and_read_back_as_written() {
        let mut writer = Writer::default();
        writer.text(1, "netpol");
        writer.nested(2, |inner| {
            inner.long(3, 7);
            inner.bytes(4, &[1, 2, 3]);
        });
        writer.number(5, 9);
        assert_eq!(writer.0.len() % 4, 0);
        let read = Attributes(&writer.0);
        assert!(read.is_text(1, "netpol") && !read.is_text(1, "netpo") && !read.is_text(5, "netpol"));
        assert_eq!(read.nested(2).long(3), Some(7));
        assert_eq!(read.nested(2).get(4), Some(&[1, 2, 3][..]));
        assert_eq!(read.get(5), Some(&9_u32.to_be_bytes()[..]));
        assert_eq!(read.all().map(|(kind, _)| kind).collect::<Vec<_>>(), [1, 2, 5]);
    }

    #[test]
    fn what_is_cut_short_ends_the_reading() {
        let mut writer = Writer::default();
        writer.long(1, 1);
        writer.long(2, 2);
        for length in 0..writer.0.len() {
            let found = Attributes(&writer.0[..length]).all().count();
            assert_eq!(found, usize::from(length >= 12), "{length}");
        }
        let (bytes, last) = Batch::new().finish();
        assert_eq!(last, 0);
        assert_eq!(answers(&bytes[..20]).len(), 1);
        assert_eq!(answers(&bytes[..19]), []);
        assert_eq!(answers(&[0; 64]), []);
    }
}
