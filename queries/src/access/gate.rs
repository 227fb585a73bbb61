//! The gate: from what a request carries to who asks. Open where no tokens file is named.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use super::caller::Caller;
use super::token_file::TokenFile;
use crate::reloading::Reloading;

/// The gate.
#[derive(Clone, Debug, Default)]
pub struct Gate(Option<Arc<Reloading<TokenFile>>>);

/// Why a token opens nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// There is no such token, or it was revoked.
    Unknown,
    /// It counts no more.
    Expired,
}

impl Gate {
    /// Holds everyone to the tokens of a file.
    pub fn of_file(path: PathBuf) -> Result<Gate, String> {
        let read = |paths: &[PathBuf]| {
            let file = paths.iter().map(|path| TokenFile::read(path)).next();
            file.unwrap_or_else(|| Ok(TokenFile::default()))
        };
        Ok(Gate(Some(Arc::new(Reloading::open(vec![path], read)?))))
    }

    /// Whether everyone may do everything.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.0.is_none()
    }

    /// The tokens there are; they change under us.
    #[must_use]
    pub fn tokens(&self) -> Option<&Arc<Reloading<TokenFile>>> {
        self.0.as_ref()
    }

    /// Who sends this.
    pub fn admit(&self, token: Option<&str>) -> Result<Caller, Refusal> {
        let Some(tokens) = &self.0 else { return Ok(Caller::Anyone) };
        let Some(text) = token else { return Ok(Caller::Nobody) };
        let tokens = tokens.get();
        let token = tokens.find(text).ok_or(Refusal::Unknown)?;
        if token.is_expired(now_s()) { Err(Refusal::Expired) } else { Ok(Caller::Holder(Arc::new(token.clone()))) }
    }

    /// Refuses a caller whose token changed, was revoked or expired since it was admitted.
    pub fn check(&self, caller: &Caller) -> Result<(), Refusal> {
        let (Some(tokens), Caller::Holder(token)) = (&self.0, caller) else { return Ok(()) };
        if token.is_expired(now_s()) {
            return Err(Refusal::Expired);
        }
        if tokens.get().tokens.contains(token) { Ok(()) } else { Err(Refusal::Unknown) }
    }
}

fn now_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::os::unix::fs::PermissionsExt;

    use super::super::scope::Scope;
    use super::super::token::Token;
    use super::*;

    #[test]
    fn a_token_counts_from_its_making_to_its_revocation() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("tokens.json");
        let add = |expires_s| {
            TokenFile::change(&path, |file| {
                let (text, token) = Token::create(Scope::Read, Vec::new(), String::new(), 0, expires_s).unwrap();
                file.tokens.push(token);
                Ok(text)
            })
        };
        let (text, expired) = (add(None).unwrap(), add(Some(1)).unwrap());
        let gate = Gate::of_file(path.clone()).unwrap();
        let caller = gate.admit(Some(&text)).unwrap();
        assert!(caller.may(Scope::Read));
        assert_eq!(gate.check(&caller), Ok(()));
        assert_eq!(gate.admit(Some(&expired)), Err(Refusal::Expired));
        assert_eq!(gate.admit(Some("tmk_x")), Err(Refusal::Unknown));
        assert_eq!(gate.admit(None), Ok(Caller::Nobody));

        TokenFile::change(&path, |file| {
            file.tokens.clear();
            Ok(())
        })
        .unwrap();
        gate.tokens().unwrap().refresh();
        assert_eq!(gate.check(&caller), Err(Refusal::Unknown));
        assert_eq!(gate.admit(Some(&text)), Err(Refusal::Unknown));
        assert_eq!(Gate::default().admit(None), Ok(Caller::Anyone));
    }

    /// The remedy that the log names is one: a file that is open to others is read once it is not.
    #[test]
    fn a_revocation_counts_once_the_file_is_its_owners_alone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("tokens.json");
        let text = TokenFile::change(&path, |file| {
            let (text, token) = Token::create(Scope::Read, Vec::new(), String::new(), 0, None).unwrap();
            file.tokens.push(token);
            Ok(text)
        });
        let text = text.unwrap();
        let gate = Gate::of_file(path.clone()).unwrap();
        let open_to = |mode: u32| std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        std::fs::write(&path, r#"{"tokens": []}"#).unwrap();
        open_to(0o644);
        gate.tokens().unwrap().refresh();
        assert!(gate.admit(Some(&text)).is_ok(), "what was read before stays in force");
        open_to(0o600);
        gate.tokens().unwrap().refresh();
        assert_eq!(gate.admit(Some(&text)), Err(Refusal::Unknown));
    }
}
