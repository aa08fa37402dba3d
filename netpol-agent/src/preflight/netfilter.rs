//! Others' tables in nf_tables, read over netlink: names of tables and chains, and the bits of packet marks that rules use.
//!
//! That covers nftables and iptables-nft. Of iptables-legacy the kernel says only that it is in use.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::Path;

use super::{Finding, Rules};
use crate::datapath::nfnetlink::{Answer, Attributes, DUMP, Head, Writer, answers, connect};

/// `NFNL_SUBSYS_NFTABLES`.
const SUBSYSTEM: u16 = 10;

/// What is listed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum List {
    Tables,
    Chains,
    Rules,
}

impl List {
    /// `NFT_MSG_GETTABLE`, `NFT_MSG_GETCHAIN`, `NFT_MSG_GETRULE`.
    const fn number(self) -> u16 {
        match self {
            Self::Tables => 1,
            Self::Chains => 4,
            Self::Rules => 7,
        }
    }
}

/// Our own table, which looks at the mark on purpose.
const OURS: &str = "netpol";

/// What is there, as far as it is of interest.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Ruleset {
    pub(super) tables: BTreeSet<String>,
    pub(super) chains: BTreeSet<String>,
    pub(super) marks: Vec<MarkUse>,
}

/// A rule that looks at bits of the mark, or changes them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct MarkUse {
    pub(super) table: String,
    pub(super) chain: String,
    pub(super) handle: u64,
    pub(super) bits: u32,
}

/// Reads everything; a kernel without nf_tables has nothing.
pub(super) fn read() -> Rules {
    let mut found = Ruleset::default();
    let result = [List::Tables, List::Chains, List::Rules]
        .into_iter()
        .try_for_each(|list| dump(list, |object| take(&mut found, list, object)));
    match result {
        Ok(()) => Ok(found),
        // The subsystem is not there.
        Err(error) if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::EOPNOTSUPP)) => Ok(Ruleset::default()),
        Err(error) => Err(error),
    }
}

/// Asks for everything of a kind, in every family. A list that changed on the way is no worse than one of a moment before.
fn dump(list: List, mut take: impl FnMut(Attributes<'_>)) -> io::Result<()> {
    let mut writer = Writer::default();
    let kind = SUBSYSTEM << 8 | list.number();
    writer.message(Head { kind, flags: DUMP, sequence: 1, family: 0, resource: 0 }, |_| {});
    let socket = connect()?;
    socket.send(&writer.finish(), 0)?;
    loop {
        let (datagram, _) = socket.recv_from_full()?;
        for answer in answers(&datagram) {
            match answer {
                Answer::Done { error: 0 } | Answer::Result { error: 0, .. } => return Ok(()),
                Answer::Done { error } | Answer::Result { error, .. } => {
                    return Err(io::Error::from_raw_os_error(error));
                }
                Answer::Object { attributes, .. } => take(attributes),
            }
        }
    }
}

fn take(found: &mut Ruleset, list: List, object: Attributes<'_>) {
    let name = |kind| text(object, kind).to_owned();
    match list {
        List::Tables => drop(found.tables.insert(name(1))),
        List::Chains => drop(found.chains.insert(name(3))),
        List::Rules => {
            let bits = bits_of(object.nested(4));
            if bits != 0 && name(1) != OURS {
                let handle = object.long(3).unwrap_or_default();
                found.marks.push(MarkUse { table: name(1), chain: name(2), handle, bits });
            }
        }
    }
}

/// The string in an attribute, empty if there is none.
fn text(of: Attributes<'_>, kind: u16) -> &str {
    let bytes = of.get(kind).and_then(|bytes| bytes.split(|byte| *byte == 0).next()).unwrap_or_default();
    std::str::from_utf8(bytes).unwrap_or_default()
}

/// What the register of a rule holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Held {
    /// Something else.
    Other,
    /// The mark; a bit of the mask is kept from it, one of `changed` is not what it was.
    Mark { mask: u32, changed: u32 },
}

/// Bits of the mark that a rule's expressions look at or change. Registers are not told apart: a rule that uses several at
/// once may be said to use more bits than it does, never fewer.
fn bits_of(expressions: Attributes<'_>) -> u32 {
    const MARK: u32 = 3;
    let mut bits = 0;
    let mut held = Held::Other;
    for expression in expressions.each() {
        let data = expression.nested(2);
        match text(expression, 1) {
            "meta" if data.fixed(2).map(u32::from_be_bytes) == Some(MARK) => match data.get(3) {
                None => held = Held::Mark { mask: u32::MAX, changed: 0 },
                Some(_source) => {
                    bits |= match held {
                        Held::Mark { changed, .. } => changed,
                        Held::Other => u32::MAX,
                    };
                }
            },
            "bitwise" => held = masked(held, data),
            "cmp" | "lookup" | "range" | "vmap" => {
                if let Held::Mark { mask, .. } = held {
                    bits |= mask;
                }
            }
            "meta" | "immediate" | "payload" | "ct" | "fib" | "numgen" | "hash" | "rt" | "socket" => held = Held::Other,
            "match" if data.is_text(1, "mark") => bits |= xt_word(data, 1),
            "target" if data.is_text(1, "MARK") => bits |= xt_word(data, 0) | xt_word(data, 1),
            "target" if data.is_text(1, "CONNMARK") => bits |= connmark(data),
            _ => {}
        }
    }
    bits
}

/// `reg = reg & MASK ^ XOR`.
fn masked(held: Held, data: Attributes<'_>) -> Held {
    let word = |kind| data.nested(kind).fixed(1).map(u32::from_ne_bytes);
    match (held, word(4), word(5)) {
        (Held::Mark { mask: kept, changed }, Some(mask), Some(xor)) => {
            Held::Mark { mask: kept & mask, changed: changed | !mask | xor }
        }
        // Another operation, as a shift: any bit may come of any.
        (Held::Mark { .. }, ..) => Held::Mark { mask: u32::MAX, changed: u32::MAX },
        (Held::Other, ..) => Held::Other,
    }
}

/// A 32-bit word of what an extension of iptables was given.
fn xt_word(data: Attributes<'_>, index: usize) -> u32 {
    let info = data.get(3).unwrap_or_default();
    info.get(index * 4..).and_then(|it| it.first_chunk()).map_or(u32::MAX, |bytes| u32::from_ne_bytes(*bytes))
}

/// `{ctmark, ctmask, nfmask, mode}`; mode 2 writes the mark, 1 reads it, 0 leaves it alone.
fn connmark(data: Attributes<'_>) -> u32 {
    let mode = data.get(3).and_then(|info| info.get(12)).copied();
    if mode == Some(0) { 0 } else { xt_word(data, 2) }
}

/// Rules of others that use bits of ours.
pub(super) fn check_marks(rules: &Rules, ours: u32, proc: &Path) -> Vec<Finding> {
    const CHECK: &str = "packet marks";
    let mut findings = match rules {
        Ok(rules) => overlaps(rules, ours),
        Err(error) => {
            let found = format!("nftables' rules cannot be read: {error}");
            vec![Finding::note(
                CHECK,
                found,
                "give the agent CAP_NET_ADMIN, or compare by `nft list ruleset | grep mark`",
            )]
        }
    };
    let legacy = legacy_tables(proc);
    if !legacy.is_empty() {
        findings.push(Finding::note(
            CHECK,
            format!("iptables-legacy is in use (tables {}), and its rules are not read", legacy.join(", ")),
            format!("see that `iptables-legacy-save | grep -i mark` uses none of the bits {ours:#x} (kube-proxy's 0xc000 is fine)"),
        ));
    }
    if findings.is_empty() {
        findings.push(Finding::ok(CHECK, format!("nobody's rules use the bits {ours:#x}")));
    }
    findings
}

/// A note for each chain whose rules use bits of ours.
pub(super) fn overlaps(rules: &Ruleset, ours: u32) -> Vec<Finding> {
    let mut said = BTreeSet::new();
    let used = rules.marks.iter().filter(|it| it.bits & ours != 0);
    // One rule of a chain tells enough.
    used.filter(|it| said.insert((&it.table, &it.chain)))
        .map(|MarkUse { table, chain, handle, bits }| {
            Finding::note(
                "packet marks",
                format!("rule {handle} of chain {chain} in table {table} uses the bits {bits:#x} of the mark, some of netpol's {ours:#x}"),
                "give the agent other bits with --mark-mask (markMask), or the rule a mask without these",
            )
        })
        .collect()
}

/// Tables that iptables-legacy has made.
pub(super) fn legacy_tables(proc: &Path) -> Vec<String> {
    let mut tables = Vec::new();
    for file in ["net/ip_tables_names", "net/ip6_tables_names"] {
        // Absent where the module is; empty where nobody uses it.
        let Ok(text) = fs::read_to_string(proc.join(file)) else { continue };
        tables.extend(text.lines().map(str::to_owned));
    }
    tables.sort();
    tables.dedup();
    tables
}

#[cfg(test)]
mod tests {
    use super::*;

    fn expression(list: &mut Writer, name: &str, fill: impl FnOnce(&mut Writer)) {
        list.nested(1, |expression| {
            expression.text(1, name);
            expression.nested(2, fill);
        });
    }

    fn bits(fill: impl FnOnce(&mut Writer)) -> u32 {
        let mut writer = Writer::default();
        fill(&mut writer);
        bits_of(writer.read())
    }

    fn load(list: &mut Writer) {
        expression(list, "meta", |it| {
            it.number(1, 1);
            it.number(2, 3);
        });
    }

    fn store(list: &mut Writer) {
        expression(list, "meta", |it| {
            it.number(2, 3);
            it.number(3, 1);
        });
    }

    fn bitwise(list: &mut Writer, mask: u32, xor: u32) {
        expression(list, "bitwise", |it| {
            it.nested(4, |data| data.bytes(1, &mask.to_ne_bytes()));
            it.nested(5, |data| data.bytes(1, &xor.to_ne_bytes()));
        });
    }

    fn extension(list: &mut Writer, kind: &str, name: &str, info: &[u8]) {
        expression(list, kind, |it| {
            it.text(1, name);
            it.bytes(3, info);
        });
    }

    #[test]
    fn a_rule_uses_the_bits_that_it_compares_and_those_that_it_sets() {
        let compare = |list: &mut Writer| expression(list, "cmp", |_| {});
        assert_eq!(
            bits(|it| {
                load(it);
                bitwise(it, 0x4000, 0);
                compare(it);
            }),
            0x4000
        );
        assert_eq!(
            bits(|it| {
                load(it);
                compare(it);
            }),
            u32::MAX
        );
        assert_eq!(
            bits(|it| {
                load(it);
                bitwise(it, !0x4000, 0x4000);
                store(it);
            }),
            0x4000
        );
        assert_eq!(
            bits(|it| {
                expression(it, "immediate", |_| {});
                store(it);
            }),
            u32::MAX
        );
        // What is compared is something else by then.
        assert_eq!(
            bits(|it| {
                load(it);
                expression(it, "payload", |_| {});
                compare(it);
            }),
            0
        );
    }

    #[test]
    fn iptables_extensions_are_read() {
        let words = |words: &[u32]| words.iter().flat_map(|it| it.to_ne_bytes()).collect::<Vec<u8>>();
        assert_eq!(bits(|it| extension(it, "match", "mark", &words(&[0x4000, 0xc000, 0]))), 0xc000);
        assert_eq!(bits(|it| extension(it, "target", "MARK", &words(&[0x1_0000, 0x2_0000]))), 0x3_0000);
        assert_eq!(bits(|it| extension(it, "target", "CONNMARK", &words(&[0, 0, 0xff00_0000, 2]))), 0xff00_0000);
        assert_eq!(bits(|it| extension(it, "target", "CONNMARK", &words(&[1, 1, 0xff00_0000, 0]))), 0);
        assert_eq!(bits(|it| extension(it, "target", "MASQUERADE", &words(&[1, 1]))), 0);
        // What is cut short is taken for everything.
        assert_eq!(bits(|it| extension(it, "match", "mark", &[0; 2])), u32::MAX);
    }

    #[test]
    fn only_bits_of_ours_are_told_and_once_a_chain() {
        let mark = |chain: &str, bits| MarkUse { table: "mangle".to_owned(), chain: chain.to_owned(), handle: 7, bits };
        let marks = vec![mark("a", 0x4000), mark("b", 0x0100_0000), mark("b", u32::MAX)];
        let found = check_marks(&Ok(Ruleset { marks, ..Ruleset::default() }), 0xff00_0000, Path::new("/nonexistent"));
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found.first().unwrap().found.contains("chain b in table mangle"));
    }
}
