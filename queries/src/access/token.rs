//! A token: 256 random bits behind a public id. Only their SHA-256 is kept. No salt and no slow hash: nobody guesses 256
//! bits, and every request is checked.

use std::fmt;

use ring::digest::{SHA256, digest};
use ring::rand::{SecureRandom, SystemRandom};
use serde::{Deserialize, Serialize};
use subtle::ConstantTimeEq;

use super::pin::Pin;
use super::scope::Scope;

/// What every token begins with, so that scanners find one that leaked.
const PREFIX: &str = "tmk_";
/// Bytes of the public part.
const ID_BYTES: usize = 4;
/// Bytes of the secret part.
const SECRET_BYTES: usize = 32;

/// What is kept of a token.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Token {
    /// Names it in lists and in the log.
    pub id: String,
    /// What it is for, in its owner's words.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub note: String,
    /// What it may do.
    pub scope: Scope,
    /// The only aggregates it sees; all where there are none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pins: Vec<Pin>,
    /// Second of 1970 in which it was made.
    pub created_s: u64,
    /// Second of 1970 from which on it counts no more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_s: Option<u64>,
    /// SHA-256 of the whole text.
    sha256: String,
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Token").field("id", &self.id).field("scope", &self.scope).finish_non_exhaustive()
    }
}

/// A token that cannot be made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// Pinned, and more than a reader.
    #[error("a token that is pinned can only read: leave --pin out, or say --scope read")]
    PinnedWriter,
    /// The same aggregate twice.
    #[error("{0} is pinned twice: give all its dimensions in one pin, or make two tokens")]
    PinnedTwice(String),
    /// No entropy.
    #[error("the system gives no random numbers")]
    NoRandom,
}

impl Token {
    /// A new token, and the text that its owner sends. The text is kept nowhere.
    pub fn create(
        scope: Scope,
        pins: Vec<Pin>,
        note: String,
        created_s: u64,
        expires_s: Option<u64>,
    ) -> Result<(String, Token), TokenError> {
        check_pins(scope, &pins)?;
        let mut bytes = [0; ID_BYTES + SECRET_BYTES];
        SystemRandom::new().fill(&mut bytes).map_err(|_| TokenError::NoRandom)?;
        let (id, secret) = bytes.split_at(ID_BYTES);
        let id = hex(id);
        let text = format!("{PREFIX}{id}_{}", hex(secret));
        let sha256 = hash(&text);
        Ok((text, Token { id, note, scope, pins, created_s, expires_s, sha256 }))
    }

    /// Refuses what [`Token::create`] would not have made.
    pub(super) fn check(&self) -> Result<(), String> {
        check_pins(self.scope, &self.pins).map_err(|error| error.to_string())?;
        if self.sha256.len() != SHA256.output_len() * 2 {
            return Err("sha256 is not one".to_owned());
        }
        Ok(())
    }

    /// Whether this is its text. Takes as long for a wrong one as for a nearly right one.
    #[must_use]
    pub fn is(&self, text: &str) -> bool {
        hash(text).as_bytes().ct_eq(self.sha256.as_bytes()).into()
    }

    /// Whether it counts no more.
    #[must_use]
    pub fn is_expired(&self, now_s: u64) -> bool {
        self.expires_s.is_some_and(|expires_s| expires_s <= now_s)
    }
}

/// The public part of a token's text.
#[must_use]
pub fn id_of(text: &str) -> Option<&str> {
    let (id, secret) = text.strip_prefix(PREFIX)?.split_once('_')?;
    (id.len() == ID_BYTES * 2 && secret.len() == SECRET_BYTES * 2).then_some(id)
}

fn check_pins(scope: Scope, pins: &[Pin]) -> Result<(), TokenError> {
    if !pins.is_empty() && scope != Scope::Read {
        return Err(TokenError::PinnedWriter);
    }
    let twice = |(at, pin): (usize, &Pin)| pins.iter().take(at).any(|other| other.aggregate == pin.aggregate);
    match pins.iter().enumerate().find(|one| twice(*one)) {
        Some((_, pin)) => Err(TokenError::PinnedTwice(pin.aggregate.clone())),
        None => Ok(()),
    }
}

fn hash(text: &str) -> String {
    hex(digest(&SHA256, text.as_bytes()).as_ref())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn token(scope: Scope, pins: &[&str]) -> Result<(String, Token), TokenError> {
        let pins = pins.iter().map(|pin| Pin::parse(pin).unwrap()).collect();
        Token::create(scope, pins, String::new(), 5, None)
    }

    #[test]
    fn only_the_text_itself_is_its_token() {
        let (text, token) = token(Scope::Read, &[]).unwrap();
        assert!(token.is(&text));
        assert_eq!(id_of(&text), Some(token.id.as_str()));
        let mut almost = text.clone();
        let last = almost.pop().unwrap();
        almost.push(if last == '0' { '1' } else { '0' });
        for wrong in [almost.as_str(), text.trim_start_matches(PREFIX), "", &text.to_uppercase()] {
            assert!(!token.is(wrong), "{wrong}");
        }
        let kept = serde_json::to_string(&token).unwrap() + &format!("{token:?}");
        let secret = text.rsplit('_').next().unwrap();
        assert!(!kept.contains(secret), "the secret is kept");
    }

    #[test]
    fn what_is_pinned_only_reads() {
        assert_eq!(token(Scope::Register, &["m=currency:EUR"]).unwrap_err(), TokenError::PinnedWriter);
        assert_eq!(token(Scope::Read, &["m=a:1", "n", "m=a:2"]).unwrap_err(), TokenError::PinnedTwice("m".to_owned()));
        assert!(token(Scope::Read, &["m=a:1", "n"]).is_ok());
    }

    #[test]
    fn a_token_counts_until_it_expires() {
        let (_, mut token) = token(Scope::Read, &[]).unwrap();
        assert!(!token.is_expired(u64::MAX));
        token.expires_s = Some(10);
        assert!(!token.is_expired(9) && token.is_expired(10));
    }
}
