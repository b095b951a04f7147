//! Versions of what the programs of a mesh say to each other, and who understands whom.
//!
//! A version is raised when a change is more than a new optional field or a new call. From the
//! second version on every program speaks the one before as well, so that coordinator, agents and
//! meshctl can be replaced one by one, in any order. `proto/tests/golden` holds what each version
//! says.

use std::{fmt, sync::LazyLock};

/// The newest version that this program speaks.
pub const PROTOCOL_VERSION: u32 = 1;
/// The oldest version that it still speaks: the one before the newest, once there is one.
pub const OLDEST_PROTOCOL: u32 = 1;

/// What a client calls itself in HTTP/2: [`Spoken::of_user_agent`] reads it.
const PRODUCT: &str = "mesh-protocol/";

/// The versions that a program speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Spoken {
    pub newest: u32,
    pub oldest: u32,
}

impl Spoken {
    /// This program's.
    pub const OURS: Self = Self { newest: PROTOCOL_VERSION, oldest: OLDEST_PROTOCOL };

    /// As a message says it; one that names no oldest version speaks its newest only.
    #[must_use]
    pub fn new(newest: u32, oldest: u32) -> Self {
        Self { newest, oldest: if oldest == 0 { newest } else { oldest } }
    }

    /// Whether both speak one version at least.
    #[must_use]
    pub fn suits(self, other: Self) -> bool {
        self.newest >= other.oldest && other.newest >= self.oldest
    }

    /// Why `me`, who speaks this, cannot talk to `them`, and what to do; none if it can.
    #[must_use]
    pub fn refusal(self, me: &str, them: &str, theirs: Self) -> Option<String> {
        if self.suits(theirs) {
            return None;
        }
        let older = if theirs.newest < self.newest { them } else { me };
        Some(format!("{them} speaks protocol {theirs}, {me} {self}: upgrade {older}"))
    }

    /// What a client says of itself with each call; none: it does not say.
    #[must_use]
    pub fn of_user_agent(text: &str) -> Option<Self> {
        let versions = text.split(' ').find_map(|word| word.strip_prefix(PRODUCT))?;
        let (newest, oldest) = versions.split_once('-').unwrap_or((versions, versions));
        Some(Self::new(newest.parse().ok()?, oldest.parse().ok()?))
    }
}

impl fmt::Display for Spoken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.newest == self.oldest {
            write!(f, "{}", self.newest)
        } else {
            write!(f, "{} to {}", self.oldest, self.newest)
        }
    }
}

/// What this program says of itself with each call.
#[must_use]
pub fn user_agent() -> &'static str {
    static TEXT: LazyLock<String> =
        LazyLock::new(|| format!("{PRODUCT}{PROTOCOL_VERSION}-{OLDEST_PROTOCOL}"));
    &TEXT
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_understand_each_other_and_no_others() {
        let third = Spoken { newest: 3, oldest: 2 };
        for (newest, oldest, suits) in
            [(1, 1, false), (2, 1, true), (3, 2, true), (4, 3, true), (5, 4, false), (0, 0, false)]
        {
            let other = Spoken { newest, oldest };
            assert_eq!((third.suits(other), other.suits(third)), (suits, suits), "{other}");
        }
    }

    #[test]
    fn a_refusal_names_both_versions_and_the_older_side() {
        let ours = Spoken { newest: 3, oldest: 2 };
        let say = |theirs| ours.refusal("this coordinator", "the agent", theirs);
        assert_eq!(say(Spoken::new(2, 0)), None);
        assert_eq!(
            say(Spoken::new(1, 0)).as_deref(),
            Some("the agent speaks protocol 1, this coordinator 2 to 3: upgrade the agent")
        );
        assert_eq!(
            say(Spoken::new(5, 4)).as_deref(),
            Some("the agent speaks protocol 4 to 5, this coordinator 2 to 3: upgrade this coordinator")
        );
    }

    #[test]
    fn a_client_says_what_it_speaks_with_each_call() {
        assert_eq!(Spoken::of_user_agent(&format!("{} tonic/0.14.2", user_agent())), Some(Spoken::OURS));
        assert_eq!(Spoken::of_user_agent("mesh-protocol/3-2"), Some(Spoken { newest: 3, oldest: 2 }));
        assert_eq!(Spoken::of_user_agent("grpcurl/1.9"), None);
        assert_eq!(Spoken::of_user_agent("mesh-protocol/x-1"), None);
    }
}
