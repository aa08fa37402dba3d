//! Rust files as rules see them: the text, and the same text with comments and literals blanked out.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

/// One file.
#[derive(Clone, Debug)]
pub(super) struct Source {
    /// Workspace path with `/`.
    pub(super) path: String,
    /// As it is.
    pub(super) text: String,
    /// With comments, strings and characters replaced by spaces, line breaks kept.
    pub(super) code: String,
}

impl Source {
    pub(super) fn new(path: &str, text: &str) -> Self {
        Self { path: path.to_owned(), text: text.to_owned(), code: code_of(text) }
    }

    /// Every Rust file of the workspace's packages.
    pub(super) fn read_all(root: &Path) -> Result<Vec<Self>> {
        let mut sources = Vec::new();
        for package in ["netpol-agent", "netpol-common", "netpol-ebpf", "tests", "xtask"] {
            read_directory(root, &root.join(package), &mut sources)?;
        }
        sources.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(sources)
    }
}

fn read_directory(root: &Path, directory: &Path, sources: &mut Vec<Source>) -> Result<()> {
    for entry in fs::read_dir(directory).with_context(|| format!("cannot read {}", directory.display()))? {
        let path = entry?.path();
        if path.is_dir() {
            if path.file_name().is_none_or(|name| name != "target") {
                read_directory(root, &path, sources)?;
            }
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
            let relative = path.strip_prefix(root).unwrap_or(&path);
            sources.push(Source::new(&relative.to_string_lossy(), &text));
        }
    }
    Ok(())
}

/// What the scanner is inside of.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Inside {
    Code,
    LineComment,
    BlockComment(u32),
    Text,
    RawText(usize),
    Character,
}

fn code_of(text: &str) -> String {
    let mut inside = Inside::Code;
    let mut code = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let (next, taken) = step(inside, rest, first);
        let piece = rest.get(..taken).unwrap_or(rest);
        if inside == Inside::Code && next == Inside::Code {
            code.push_str(piece);
        } else {
            code.extend(piece.chars().map(|c| if c == '\n' { '\n' } else { ' ' }));
        }
        inside = next;
        rest = rest.get(taken..).unwrap_or_default();
    }
    code
}

/// What follows, and how many bytes belong to it.
fn step(inside: Inside, rest: &str, first: char) -> (Inside, usize) {
    let one = first.len_utf8();
    match inside {
        Inside::Code => step_in_code(rest, first),
        Inside::LineComment => (if first == '\n' { Inside::Code } else { inside }, one),
        Inside::BlockComment(depth) if rest.starts_with("/*") => (Inside::BlockComment(depth + 1), 2),
        Inside::BlockComment(1) if rest.starts_with("*/") => (Inside::Code, 2),
        Inside::BlockComment(depth) if rest.starts_with("*/") => (Inside::BlockComment(depth - 1), 2),
        Inside::Text | Inside::Character if first == '\\' => {
            (inside, one + rest.chars().nth(1).map_or(0, char::len_utf8))
        }
        Inside::Text if first == '"' => (Inside::Code, one),
        Inside::Character if first == '\'' => (Inside::Code, one),
        Inside::RawText(hashes)
            if first == '"' && rest.get(1..).is_some_and(|it| it.starts_with(&"#".repeat(hashes))) =>
        {
            (Inside::Code, one + hashes)
        }
        Inside::BlockComment(_) | Inside::Text | Inside::RawText(_) | Inside::Character => (inside, one),
    }
}

fn step_in_code(rest: &str, first: char) -> (Inside, usize) {
    if rest.starts_with("//") {
        return (Inside::LineComment, 2);
    }
    if rest.starts_with("/*") {
        return (Inside::BlockComment(1), 2);
    }
    if first == '"' {
        return (Inside::Text, 1);
    }
    if first == '\'' && is_character(rest) {
        return (Inside::Character, 1);
    }
    if first.is_alphanumeric() || first == '_' {
        let word: String = rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
        let after = rest.get(word.len()..).unwrap_or_default();
        let hashes = after.chars().take_while(|c| *c == '#').count();
        if matches!(word.as_str(), "r" | "br" | "cr") && after.get(hashes..).is_some_and(|it| it.starts_with('"')) {
            return (Inside::RawText(hashes), word.len() + hashes + 1);
        }
        return (Inside::Code, word.len());
    }
    (Inside::Code, first.len_utf8())
}

/// `'a'` or `'\n'`, and no lifetime.
fn is_character(rest: &str) -> bool {
    let mut after = rest.chars().skip(1);
    match after.next() {
        Some('\\') => true,
        Some(_) => after.next() == Some('\''),
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_and_literals_are_blank_and_code_is_not() {
        let text = "use aya; // use kube\n/* tokio /* nested */ still */ let s = \"kube\\\"s\"; let r = r#\"std::fs \"x\" \"#; 'a: loop { 'k' }";
        let code = code_of(text);
        assert_eq!(code.len(), text.len());
        assert!(code.starts_with("use aya;"));
        for gone in ["kube", "tokio", "nested", "still", "std::fs", "'k'"] {
            assert!(!code.contains(gone), "{gone} in {code}");
        }
        assert!(code.contains("'a: loop {"), "{code}");
    }
}
