//! What a token may do. The surprise: scopes are steps, each includes the ones before it.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// What a token may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scope {
    /// Ask.
    Read,
    /// And register, rebuild and preview aggregates.
    Register,
    /// And drop aggregates, follow further tables, post events.
    Admin,
}

impl Scope {
    /// All of them, the smallest first.
    pub const ALL: [Scope; 3] = [Scope::Read, Scope::Register, Scope::Admin];

    /// Its name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Scope::Read => "read",
            Scope::Register => "register",
            Scope::Admin => "admin",
        }
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Scope {
    type Err = String;

    fn from_str(text: &str) -> Result<Scope, String> {
        let named = Scope::ALL.into_iter().find(|scope| scope.name() == text);
        named.ok_or_else(|| format!("{text:?} is not a scope: use read, register or admin"))
    }
}
