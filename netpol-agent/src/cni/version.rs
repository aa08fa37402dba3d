//! Versions of the CNI specification that plugin and configuration may be of.

use std::fmt;

/// A version of the specification that has chained plugins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum SpecVersion {
    V0_3_0,
    V0_3_1,
    V0_4_0,
    V1_0_0,
    V1_1_0,
}

impl SpecVersion {
    /// Oldest first. (Before 0.3.0 a result had no interfaces and plugins no chain.)
    pub(super) const ALL: [Self; 5] = [Self::V0_3_0, Self::V0_3_1, Self::V0_4_0, Self::V1_0_0, Self::V1_1_0];
    pub(super) const NEWEST: Self = Self::V1_1_0;

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::V0_3_0 => "0.3.0",
            Self::V0_3_1 => "0.3.1",
            Self::V0_4_0 => "0.4.0",
            Self::V1_0_0 => "1.0.0",
            Self::V1_1_0 => "1.1.0",
        }
    }

    pub(super) fn of(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|version| version.name() == text)
    }

    /// All names, for a message.
    pub(super) fn names() -> String {
        Self::ALL.map(Self::name).join(", ")
    }

    /// The verb CHECK came with 0.4.0.
    pub(super) fn has_check(self) -> bool {
        self >= Self::V0_4_0
    }

    /// The verbs GC and STATUS came with 1.1.0.
    pub(super) fn has_gc_and_status(self) -> bool {
        self >= Self::V1_1_0
    }

    /// Each address of a result says its family. 1.0.0 dropped that.
    pub(super) fn addresses_have_versions(self) -> bool {
        self < Self::V1_0_0
    }
}

impl fmt::Display for SpecVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
