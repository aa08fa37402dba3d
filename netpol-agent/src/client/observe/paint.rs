//! Colours, and what keeps names on the wire from being taken for them by a terminal. Pure.

/// Colours, if they are on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Paint {
    /// True if they are.
    pub(super) on: bool,
}

const END: &str = "\u{1b}[0m";
const RED: &str = "\u{1b}[31m";
const GREEN: &str = "\u{1b}[32m";
const YELLOW: &str = "\u{1b}[33m";
const MAGENTA: &str = "\u{1b}[35m";
const CYAN: &str = "\u{1b}[36m";

impl Paint {
    fn with(self, colour: &str, text: &str) -> String {
        if self.on { format!("{colour}{text}{END}") } else { text.to_owned() }
    }

    pub(super) fn red(self, text: &str) -> String {
        self.with(RED, text)
    }

    pub(super) fn green(self, text: &str) -> String {
        self.with(GREEN, text)
    }

    pub(super) fn yellow(self, text: &str) -> String {
        self.with(YELLOW, text)
    }

    pub(super) fn magenta(self, text: &str) -> String {
        self.with(MAGENTA, text)
    }

    pub(super) fn cyan(self, text: &str) -> String {
        self.with(CYAN, text)
    }

    /// The text without control characters but for our own colours.
    pub(super) fn safe(self, text: &str) -> String {
        let mut safe = String::with_capacity(text.len());
        let mut rest = text;
        while let Some(at) = rest.find(['\u{1b}', '\r']) {
            let (plain, from) = rest.split_at(at);
            safe.push_str(plain);
            let ours =
                [END, RED, GREEN, YELLOW, MAGENTA, CYAN].into_iter().find(|own| self.on && from.starts_with(own));
            let (taken, instead) = match ours {
                Some(own) => (own.len(), own),
                None if from.starts_with('\r') => (1, "\\r"),
                None => (1, "^["),
            };
            safe.push_str(instead);
            rest = from.get(taken..).unwrap_or_default();
        }
        safe.push_str(rest);
        safe
    }
}
