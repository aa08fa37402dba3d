//! Many faults in one build: a function with a fault gets its body twice, and the environment says which one runs.
//!
//! In: the texts of the sources, and faults by number. Out: the same texts, where each function body that has faults has
//! become a `match` over the number that [`VARIABLE`] names. So a hundred faults cost one build, and each a run of its test.
//! Only the copy of the tree is ever written so. A fault that is not in a function body, or that must be compiled for
//! another target, is none of this module's.

use std::collections::BTreeMap;
use std::ops::Range;

use anyhow::{Context, Result};

use super::Mutant;

/// Says which fault's body runs; without it none does.
pub(super) const VARIABLE: &str = "NETPOL_MUTANT";

/// The file whose crate all the others know, and the module that is added to it.
pub(super) const ROOT: &str = "netpol-common/src/lib.rs";
/// A number that every function can ask for, `const fn` too; it is read before `main` begins.
const MODULE: &str = r#"
#[doc(hidden)]
#[allow(missing_docs, unsafe_code, unused)]
#[cfg(feature = "user")]
pub mod mutant {
    static mut NUMBER: u32 = 0;
    pub const fn number() -> u32 { unsafe { NUMBER } }
    extern "C" fn read() {
        let number = std::env::var("NETPOL_MUTANT").ok().and_then(|number| number.parse().ok());
        unsafe { NUMBER = number.unwrap_or(0) }
    }
    #[used]
    #[unsafe(link_section = ".init_array")]
    static READ: extern "C" fn() = read;
}
#[doc(hidden)]
#[allow(missing_docs)]
#[cfg(not(feature = "user"))]
pub mod mutant {
    pub const fn number() -> u32 { 0 }
}
"#;

/// Crates whose functions can ask for the number, and how.
const CRATES: [(&str, &str); 2] =
    [("netpol-common/src/", "crate::mutant::number()"), ("netpol-agent/src/", "netpol_common::mutant::number()")];

/// The body that a fault is in, if it can be switched.
pub(super) fn body(mutant: &Mutant, text: &str) -> Option<Range<usize>> {
    CRATES.iter().find(|(directory, _)| mutant.file.starts_with(directory))?;
    let start = text.find(mutant.original)?;
    innermost_body(text, &(start..start + mutant.original.len()))
}

/// The texts with all these faults in them.
pub(super) fn with_switches(
    mutants: &[(u32, Mutant)],
    text: impl Fn(&str) -> Result<String>,
) -> Result<BTreeMap<&'static str, String>> {
    let mut by_file: BTreeMap<&'static str, Vec<(u32, Mutant)>> = BTreeMap::new();
    for (number, mutant) in mutants {
        by_file.entry(mutant.file).or_default().push((*number, *mutant));
    }
    let mut texts = BTreeMap::new();
    for (file, mutants) in by_file {
        texts.insert(file, switched(file, &text(file)?, &mutants)?);
    }
    let root = match texts.remove(ROOT) {
        Some(root) => root,
        None => text(ROOT)?,
    };
    texts.insert(ROOT, format!("{root}{MODULE}"));
    Ok(texts)
}

fn switched(file: &str, text: &str, mutants: &[(u32, Mutant)]) -> Result<String> {
    let (_, number) = CRATES.iter().find(|(directory, _)| file.starts_with(directory)).context("not to be switched")?;
    let mut bodies: BTreeMap<usize, (usize, Vec<(u32, Mutant)>)> = BTreeMap::new();
    for (id, mutant) in mutants {
        let body = body(mutant, text).with_context(|| format!("{} is in no function", mutant.name))?;
        bodies.entry(body.start).or_insert((body.end, Vec::new())).1.push((*id, *mutant));
    }
    let mut out = String::new();
    let mut done = 0;
    let mut bodies = bodies.into_iter().peekable();
    while let Some((start, (end, mut here))) = bodies.next() {
        // What is inside becomes a fault of the outer one.
        while let Some((_, (_, inner))) = bodies.next_if(|(inner, _)| *inner < end) {
            here.extend(inner);
        }
        let of = |range: Range<usize>| text.get(range).context("a body lies within its text");
        let body = of(start..end)?;
        out.push_str(of(done..start)?);
        out.push_str(&format!("{{ match {number} {{\n"));
        for (id, mutant) in &here {
            out.push_str(&format!("{id} => {}\n", body.replacen(mutant.original, mutant.fault, 1)));
        }
        out.push_str(&format!("_ => {body}\n}} }}"));
        done = end;
    }
    out.push_str(text.get(done..).context("the rest of the text")?);
    Ok(out)
}

/// The smallest function body, braces included, that holds all of `place`.
fn innermost_body(text: &str, place: &Range<usize>) -> Option<Range<usize>> {
    let mut open: Vec<Open> = Vec::new();
    let mut best: Option<Range<usize>> = None;
    // Of a function whose body has not begun: how many delimiters were open where it was named.
    let mut declared: Option<usize> = None;
    let mut after_fn = false;
    for (at, token) in (Tokens { text, at: 0 }) {
        match token {
            "fn" => {
                after_fn = true;
                continue;
            }
            "{" => {
                let is_body = declared == Some(open.len());
                if is_body {
                    declared = None;
                }
                open.push(Open { at, is_body });
            }
            "(" | "[" => open.push(Open { at, is_body: false }),
            ")" | "]" | "}" => {
                let Open { at: start, is_body } = open.pop()?;
                let range = start..at + 1;
                let holds = range.start < place.start && place.end < range.end;
                if is_body && holds && best.as_ref().is_none_or(|best| range.len() < best.len()) {
                    best = Some(range);
                }
            }
            ";" if declared == Some(open.len()) => declared = None,
            // What it returns is a type of its own, of which two bodies would be two.
            "impl" if declared == Some(open.len()) => declared = None,
            name if after_fn && name.starts_with(is_word) => declared = Some(open.len()),
            _ => {}
        }
        after_fn = false;
    }
    best
}

struct Open {
    at: usize,
    is_body: bool,
}

/// Words and single characters of Rust, without comments, strings, characters and lifetimes.
struct Tokens<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Iterator for Tokens<'a> {
    type Item = (usize, &'a str);

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let rest = self.text.get(self.at..)?;
            let first = rest.chars().next()?;
            let skipped = skipped(rest);
            if skipped > 0 {
                self.at += skipped;
                continue;
            }
            let length =
                if is_word(first) { rest.find(|c| !is_word(c)).unwrap_or(rest.len()) } else { first.len_utf8() };
            let start = self.at;
            self.at += length;
            if !first.is_whitespace() {
                return Some((start, rest.get(..length)?));
            }
        }
    }
}

fn is_word(c: char) -> bool {
    c == '_' || c.is_alphanumeric()
}

/// Length of the comment, string, character or lifetime that a text begins with; 0 if with none.
fn skipped(rest: &str) -> usize {
    let behind = |text: &str, end: &str, from: usize| {
        text.get(from..).and_then(|tail| tail.find(end)).map_or(text.len(), |at| from + at + end.len())
    };
    if rest.starts_with("//") {
        return rest.find('\n').unwrap_or(rest.len());
    }
    if rest.starts_with("/*") {
        return behind(rest, "*/", 2);
    }
    let raw = rest.strip_prefix('b').unwrap_or(rest);
    if let Some(hashes) = raw.strip_prefix('r').map(|it| it.len() - it.trim_start_matches('#').len())
        && raw.get(1 + hashes..).is_some_and(|it| it.starts_with('"'))
    {
        return behind(rest, &format!("\"{}", "#".repeat(hashes)), rest.len() - raw.len() + hashes + 2);
    }
    if raw.starts_with('"') {
        return rest.len() - raw.len() + quoted(raw, '"');
    }
    if raw.starts_with('\'') {
        let mut characters = raw.chars().skip(1);
        let (one, two) = (characters.next(), characters.next());
        // `'a'` and `'\n'` are characters, `'a` is a lifetime.
        let is_character = one == Some('\\') || two == Some('\'');
        return rest.len() - raw.len() + if is_character { quoted(raw, '\'') } else { 1 };
    }
    0
}

/// Length of what is quoted, quotes included.
fn quoted(text: &str, quote: char) -> usize {
    let mut escaped = false;
    for (at, c) in text.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            c if c == quote => return at + c.len_utf8(),
            _ => {}
        }
    }
    text.len()
}

#[cfg(test)]
mod tests {
    use super::super::suite::Suite;
    use super::*;

    const TEXT: &str = r##"
const fn outer<'a>(of: &'a [u8; 4]) -> char {
    fn inner() -> &'static str { "} fn x() {" }
    // } a comment
    let _ = (r#"}"#, '}', b'\'', inner as fn() -> &'static str);
    let closure = || { 'c' };
    closure()
}
fn opaque() -> impl Iterator<Item = u8> { [5].into_iter() }
fn takes(it: impl Fn()) { it() }
trait Declares { fn no_body(&self) -> [u8; 2]; }
static TABLE: char = { 's' };
"##;

    fn body_of(place: &str) -> Option<&'static str> {
        let start = TEXT.find(place).unwrap();
        innermost_body(TEXT, &(start..start + place.len())).map(|range| &TEXT[range])
    }

    #[test]
    fn a_body_is_the_innermost_functions() {
        assert_eq!(body_of("} fn x() {"), Some("{ \"} fn x() {\" }"));
        let outer = body_of("{ 'c' }").unwrap();
        assert!(outer.starts_with("{\n    fn inner") && outer.ends_with("closure()\n}"));
        assert_eq!(body_of("a comment"), Some(outer));
        assert_eq!(body_of("it()"), Some("{ it() }"));
        for nowhere in ["of: &'a", "u8; 2", "'s'", "[5]"] {
            assert_eq!(body_of(nowhere), None, "{nowhere}");
        }
    }

    #[test]
    fn each_fault_of_a_body_gets_an_arm() {
        let mutant = |name, original, fault| {
            let file = "netpol-agent/src/x.rs";
            Mutant { name, file, original, fault, suite: Suite::Agent, test: "t", why: "" }
        };
        let text = "fn a() { 1 + 2 }\nfn b() { 3 }\n";
        let mutants = [(4, mutant("x", "1", "0")), (5, mutant("y", "2", "9")), (6, mutant("z", "3", "7"))];
        let out = switched("netpol-agent/src/x.rs", text, &mutants).unwrap();
        let number = "netpol_common::mutant::number()";
        assert_eq!(
            out,
            format!(
                "fn a() {{ match {number} {{\n4 => {{ 0 + 2 }}\n5 => {{ 1 + 9 }}\n_ => {{ 1 + 2 }}\n}} }}\n\
                 fn b() {{ match {number} {{\n6 => {{ 7 }}\n_ => {{ 3 }}\n}} }}\n"
            )
        );
    }
}
