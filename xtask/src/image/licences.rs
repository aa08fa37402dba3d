//! The licences of everything in the image that is somebody else's, as one text: what MIT, BSD and ISC ask of whoever passes
//! a binary on.
//!
//! In: [`Parts`], whose sources cargo has unpacked, and the toolchain's own notices. Out: a text that lists every crate with
//! the numbers of its texts, and every text once. A crate that came without a text has that of its repository's others, or
//! Apache-2.0's own if it may be had under it; one with neither fails the build. Nothing in it depends on time or machine.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};

use super::parts::{Package, Parts};
use super::programs;
use crate::shell;

/// How the names of texts begin, in lower case.
const BEGINNINGS: [&str; 6] = ["license", "licence", "copying", "copyright", "notice", "unlicense"];
/// How they end, if there is a dot: `LICENSE-APACHE` has none, `license.rs` is no text.
const ENDS: [&str; 4] = ["md", "txt", "0_with_llvm-exception", "httprouter"];
/// musl is linked into every program, and in no crate.
const MUSL: &str = include_str!("musl-copyright.txt");

/// A text, and whose it is.
#[derive(Debug, Default)]
struct Book {
    texts: Vec<String>,
    /// Lines of the list, with the numbers of texts.
    list: Vec<String>,
}

impl Book {
    fn add(&mut self, what: &str, texts: &[String]) {
        let mut numbers = Vec::new();
        for text in texts {
            let known = self.texts.iter().position(|it| it == text);
            let place = known.unwrap_or_else(|| {
                self.texts.push(text.clone());
                self.texts.len() - 1
            });
            numbers.push(format!("[{}]", place + 1));
        }
        numbers.dedup();
        self.list.push(format!("{what} {}", numbers.join(" ")));
    }

    fn print(&self) -> String {
        let mut out = "What the programs of this image contain of others, and under which terms.\n\
                       The numbers are those of the texts below.\n\n"
            .to_owned();
        self.list.iter().for_each(|line| out.extend([line, "\n"]));
        for (number, text) in (1..).zip(&self.texts) {
            out.push_str(&format!("\n{}\n[{number}]\n\n{text}\n", "-".repeat(80)));
        }
        out
    }
}

/// The text for these parts.
///
/// # Errors
/// If a crate's sources cannot be read, or there is no text for it.
pub(super) fn of(parts: &Parts) -> Result<Vec<u8>> {
    let packages = parts.packages();
    let others: Vec<&Package> = packages.into_iter().filter(|it| it.source.is_some()).collect();
    let own: Vec<Vec<String>> = others.iter().map(|it| texts_of(it)).collect::<Result<_>>()?;
    let mut by_repository: BTreeMap<&str, &Vec<String>> = BTreeMap::new();
    for (package, texts) in others.iter().zip(&own).filter(|(_, texts)| !texts.is_empty()) {
        if let Some(repository) = &package.repository {
            by_repository.entry(repository).or_insert(texts);
        }
    }
    let apache = clean(&fs::read_to_string(shell::root().join("LICENSE"))?);
    ensure!(apache.contains("Apache License"), "LICENSE is not Apache-2.0's text any more");
    let mut book = Book::default();
    book.add("Rust's standard library", &[standard_library()?]);
    book.add("musl", &[clean(MUSL)]);
    for (package, texts) in others.iter().zip(&own) {
        let Package { name, version, license, repository, .. } = package;
        let license = license.as_deref().unwrap_or_default();
        let of_neighbours = repository.as_deref().and_then(|it| by_repository.get(it).copied());
        let texts = match (texts.is_empty(), of_neighbours) {
            (false, _) => texts,
            (true, Some(texts)) => texts,
            (true, None) if license.contains("Apache-2.0") => &vec![apache.clone()],
            (true, None) => bail!("{name} {version} ({license}) brings no text of its licence"),
        };
        book.add(&format!("{name} {version}: {license}"), texts);
    }
    Ok(book.print().into_bytes())
}

/// Whatever a crate has, its parts of others included.
fn texts_of(package: &Package) -> Result<Vec<String>> {
    let root = package.manifest_path.parent().context("a manifest lies in a directory")?;
    let mut found = Vec::new();
    look(root, &mut found).with_context(|| format!("the sources of {} {}", package.name, package.version))?;
    found.sort();
    found.iter().map(|path| Ok(clean(&String::from_utf8_lossy(&fs::read(path)?)))).collect()
}

fn look(directory: &Path, found: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(directory).with_context(|| format!("cannot read {}", directory.display()))? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().to_lowercase();
        let kind = entry.file_type()?;
        if kind.is_dir() && !name.starts_with('.') {
            look(&entry.path(), found)?;
        } else if kind.is_file() && is_text(&name) {
            found.push(entry.path());
        }
    }
    Ok(())
}

fn is_text(name: &str) -> bool {
    BEGINNINGS.iter().any(|it| name.starts_with(it)) && name.rsplit_once('.').is_none_or(|(_, end)| ENDS.contains(&end))
}

/// Line ends and blanks are no difference between texts.
fn clean(text: &str) -> String {
    let lines: Vec<&str> = text.trim().lines().map(str::trim_end).collect();
    lines.join("\n")
}

/// As the toolchain brings it, without the marks of its page.
fn standard_library() -> Result<String> {
    let sysroot = programs::rustc(&["--print", "sysroot"])?;
    let path = Path::new(sysroot.trim()).join("share/doc/rust/COPYRIGHT-library.html");
    let page = fs::read_to_string(&path).with_context(|| {
        format!(
            "the notices of Rust's standard library are not at {}, where rustup's toolchains have them",
            path.display()
        )
    })?;
    Ok(plain(&page))
}

/// A page's words: neither its marks nor the empty lines between them.
fn plain(page: &str) -> String {
    let mut text = String::new();
    for (number, part) in page.split('<').enumerate() {
        text.push_str(if number == 0 { part } else { part.split_once('>').map_or("", |(_mark, words)| words) });
    }
    for (entity, letter) in
        [("&lt;", "<"), ("&gt;", ">"), ("&quot;", "\""), ("&#34;", "\""), ("&#39;", "'"), ("&amp;", "&")]
    {
        text = text.replace(entity, letter);
    }
    let mut lines: Vec<&str> = text.lines().map(str::trim_end).collect();
    lines.dedup_by(|next, last| next.trim().is_empty() && last.trim().is_empty());
    clean(&lines.join("\n"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::arch::Arch;

    #[test]
    fn every_crate_of_others_is_listed_with_a_text_that_is_there() {
        let parts = Parts::of(Arch::Amd64).unwrap();
        let book = String::from_utf8(of(&parts).unwrap()).unwrap();
        let (list, texts) = book.split_once(&"-".repeat(80)).unwrap();
        for package in parts.packages() {
            let Package { name, version, license, .. } = package;
            let line = list.lines().find(|it| it.starts_with(&format!("{name} {version}: ")));
            let Some(line) = line else {
                assert!(package.source.is_none(), "{name} is not listed");
                continue;
            };
            assert!(line.contains(license.as_deref().unwrap()), "{line}");
            let mut numbers = line.split_whitespace().filter(|it| it.starts_with('['));
            assert!(numbers.clone().count() > 0, "{line}");
            assert!(numbers.all(|it| texts.contains(&format!("\n{it}\n"))), "{line}");
        }
        for words in
            ["The Rust Project Developers", "Rich Felker", "Permission is hereby granted", "Daan Leijen", "BoringSSL"]
        {
            assert!(texts.contains(words), "{words}");
        }
    }

    #[test]
    fn a_name_tells_texts_from_code() {
        for text in
            ["license", "license-mit", "license.md", "copying", "notice.txt", "license-apache-2.0_with_llvm-exception"]
        {
            assert!(is_text(text), "{text}");
        }
        for other in ["license.rs", "license.yml", "readme.md", "copyright.html"] {
            assert!(!is_text(other), "{other}");
        }
    }

    #[test]
    fn a_page_becomes_its_words() {
        assert_eq!(plain("<h1>A &amp; B</h1>\n\n<p>\n\n\nc &quot;d&quot; &lt;e&gt;</p>"), "A & B\n\nc \"d\" <e>");
    }
}
