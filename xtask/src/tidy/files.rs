//! Files: each is part of a crate, and says what it is.
//!
//! A test file that no `mod` names is never compiled and rots unseen; a module without `//!` leaves its reader to guess
//! what comes in and what goes out.

use std::collections::BTreeSet;

use super::Finding;
use super::source::Source;

pub(super) fn check(sources: &[Source]) -> Vec<Finding> {
    let mut findings = undocumented(sources);
    findings.extend(unreachable(sources));
    findings
}

fn undocumented(sources: &[Source]) -> Vec<Finding> {
    sources
        .iter()
        .filter(|source| !source.text.starts_with("//!") && !is_tests(&source.path))
        .map(|source| Finding {
            path: source.path.clone(),
            line: 1,
            message: "no `//!` at the top: say what comes in, what goes out and what it must not do".to_owned(),
        })
        .collect()
}

/// The unit tests of the module beside them need no introduction.
fn is_tests(path: &str) -> bool {
    path.ends_with("/tests.rs")
}

fn unreachable(sources: &[Source]) -> Vec<Finding> {
    let paths: BTreeSet<&str> = sources.iter().map(|source| source.path.as_str()).collect();
    let mut reached: BTreeSet<String> =
        paths.iter().filter(|path| is_root(path)).map(|path| (*path).to_owned()).collect();
    let mut todo: Vec<String> = reached.iter().cloned().collect();
    while let Some(path) = todo.pop() {
        let Some(source) = sources.iter().find(|source| source.path == path) else { continue };
        for candidate in modules_of(source) {
            if paths.contains(candidate.as_str()) && reached.insert(candidate.clone()) {
                todo.push(candidate);
            }
        }
    }
    paths
        .into_iter()
        .filter(|path| !reached.contains(*path))
        .map(|path| Finding {
            path: path.to_owned(),
            line: 0,
            message: "no `mod` leads here from a crate root: it is never compiled".to_owned(),
        })
        .collect()
}

/// `src/lib.rs`, `src/main.rs`, `src/bin/x.rs`, `tests/x.rs`, `tests/x/main.rs`, `benches/x.rs`, `examples/x.rs` and `build.rs`
/// of a package.
fn is_root(path: &str) -> bool {
    let Some((_package, inside)) = path.split_once('/') else { return false };
    match inside.split('/').collect::<Vec<_>>().as_slice() {
        ["build.rs"] | ["src", "lib.rs" | "main.rs"] => true,
        ["src", "bin", file] | ["tests" | "benches" | "examples", file] => file.ends_with(".rs"),
        ["src", "bin", _, "main.rs"] | ["tests", _, "main.rs"] => true,
        _ => false,
    }
}

/// The files that the file's `mod x;` may mean, inline modules included as directories.
fn modules_of(source: &Source) -> Vec<String> {
    let (directory, stem) = source.path.rsplit_once('/').unwrap_or(("", &source.path));
    let own = match stem {
        "mod.rs" | "lib.rs" | "main.rs" | "build.rs" => directory.to_owned(),
        _ if is_root(&source.path) => directory.to_owned(),
        other => format!("{directory}/{}", other.trim_end_matches(".rs")),
    };
    let mut inline: Vec<(usize, String)> = Vec::new();
    let mut depth = 0_usize;
    let mut files = Vec::new();
    let words = words_of(&source.code);
    for (index, word) in words.iter().enumerate() {
        match word.as_str() {
            "{" => depth += 1,
            "}" => {
                depth = depth.saturating_sub(1);
                inline.retain(|(level, _)| *level <= depth);
            }
            "mod" => {
                let (Some(name), Some(after)) = (words.get(index + 1), words.get(index + 2)) else { continue };
                if after == "{" {
                    inline.push((depth + 1, name.clone()));
                } else if after == ";" {
                    let inside: String = inline.iter().map(|(_, module)| format!("/{module}")).collect();
                    files.push(format!("{own}{inside}/{name}.rs"));
                    files.push(format!("{own}{inside}/{name}/mod.rs"));
                }
            }
            _ => {}
        }
    }
    files
}

/// Identifiers and single signs.
fn words_of(code: &str) -> Vec<String> {
    let mut words: Vec<String> = Vec::new();
    let mut joined = false;
    for c in code.chars() {
        let part = c.is_alphanumeric() || c == '_';
        match words.last_mut() {
            Some(word) if part && joined => word.push(c),
            _ if !c.is_whitespace() => words.push(c.to_string()),
            _ => {}
        }
        joined = part;
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_no_mod_names_is_found() {
        let sources = [
            Source::new("p/src/lib.rs", "//! x\nmod a;\nmod b { mod c; }\n// mod lost;\n"),
            Source::new("p/src/a.rs", "//! x\n#[cfg(test)]\nmod tests;\n"),
            Source::new("p/src/a/tests.rs", "use super::*;\n"),
            Source::new("p/src/b/c.rs", "//! x\n"),
            Source::new("p/src/lost.rs", "//! x\n"),
            Source::new("p/tests/netns.rs", "//! x\nmod netns_shop { }\n"),
            Source::new("p/tests/kube/main.rs", "//! x\nmod scene;\n"),
            Source::new("p/tests/kube/scene.rs", "//! x\n"),
        ];
        let found: Vec<String> = check(&sources).into_iter().map(|finding| finding.path).collect();
        assert_eq!(found, ["p/src/lost.rs"]);
    }

    #[test]
    fn a_module_without_a_word_on_itself_is_found() {
        let found = check(&[Source::new("p/src/main.rs", "fn main() {}\n")]);
        assert_eq!(found.len(), 1);
    }
}
