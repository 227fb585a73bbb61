//! The file that tokens are kept in: JSON, readable by its owner only, replaced whole. The surprises: the new file stands
//! beside it while it is written, and by being there holds off a second writer; and root may let a group read it.

use std::fs::{File, OpenOptions, Permissions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};

use engine::shell;
use serde::{Deserialize, Serialize};

use super::token::{Token, id_of};

/// Nobody but the owner.
const MODE: u32 = 0o600;

/// And what root may let its group do: that is how Kubernetes hands a secret to a process that is not root (0440, of the pod's
/// `fsGroup`), and an administrator a file to a service. Nobody else can have given it away.
const LETS_GROUP_READ: u32 = 0o040;

const ROOT: u32 = 0;

/// All tokens.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenFile {
    /// In the order they were made.
    pub tokens: Vec<Token>,
}

impl TokenFile {
    /// Reads the file. One that others may read is refused, as ssh refuses such a key.
    pub fn read(path: &Path) -> Result<TokenFile, String> {
        let place = path.display();
        let failed = |error: std::io::Error| format!("the tokens {place} cannot be read: {error}");
        let found = std::fs::metadata(path).map_err(failed)?;
        if is_open_to_others(found.permissions().mode(), found.uid()) {
            let word = shell::word(&place.to_string());
            return Err(format!("the tokens {place} are open to others\n  remedy: chmod 600 {word}"));
        }
        let text = std::fs::read_to_string(path).map_err(failed)?;
        let file: TokenFile = serde_json::from_str(&text).map_err(|error| format!("the tokens {place}: {error}"))?;
        for token in &file.tokens {
            token.check().map_err(|error| format!("the tokens {place}: {}: {error}", token.id))?;
        }
        Ok(file)
    }

    /// Reads the file where there is one.
    pub fn read_or_empty(path: &Path) -> Result<TokenFile, String> {
        match path.try_exists() {
            Ok(false) => Ok(TokenFile::default()),
            _ => TokenFile::read(path),
        }
    }

    /// Changes the file. A crash leaves the old one or the new one, whole.
    pub fn change<R>(path: &Path, change: impl FnOnce(&mut TokenFile) -> Result<R, String>) -> Result<R, String> {
        let beside = beside(path);
        let failed = |error: std::io::Error| match error.kind() {
            ErrorKind::AlreadyExists => format!(
                "{} is being written by another command\n  remedy: try again; where none runs, remove that file",
                beside.display()
            ),
            _ => format!("the tokens {} cannot be written: {error}", path.display()),
        };
        let new = OpenOptions::new().write(true).create_new(true).mode(MODE).open(&beside).map_err(failed)?;
        let changed = TokenFile::read_or_empty(path).and_then(|mut file| {
            let outcome = change(&mut file)?;
            file.replace(new, &beside, path).map_err(failed)?;
            Ok(outcome)
        });
        if changed.is_err() {
            // Ours, and of no use to anybody.
            let _ = std::fs::remove_file(&beside);
        }
        changed
    }

    fn replace(&self, mut new: File, beside: &Path, path: &Path) -> std::io::Result<()> {
        let mut text = serde_json::to_vec_pretty(self)?;
        text.push(b'\n');
        // Whatever the umask says.
        new.set_permissions(Permissions::from_mode(MODE))?;
        new.write_all(&text)?;
        // Who runs the command may be another than the server, which has to read what was revoked.
        if let Ok(old) = std::fs::metadata(path) {
            let own = new.metadata()?;
            if (old.uid(), old.gid()) != (own.uid(), own.gid()) {
                fchown(&new, Some(old.uid()), Some(old.gid()))?;
            }
            new.set_permissions(Permissions::from_mode(MODE | (old.mode() & LETS_GROUP_READ)))?;
        }
        new.sync_all()?;
        std::fs::rename(beside, path)?;
        let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        File::open(directory)?.sync_all()
    }

    /// The token with this text.
    #[must_use]
    pub fn find(&self, text: &str) -> Option<&Token> {
        let id = id_of(text)?;
        self.tokens.iter().find(|token| token.id == id && token.is(text))
    }
}

/// Whether somebody may read or change a file of this mode and owner who is not meant to.
fn is_open_to_others(mode: u32, owner: u32) -> bool {
    let allowed = if owner == ROOT { LETS_GROUP_READ } else { 0 };
    mode & 0o077 & !allowed != 0
}

fn beside(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".new");
    name.into()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::scope::Scope;
    use super::*;

    const NOBODY: u32 = 65_534;

    fn add(path: &Path) -> Result<String, String> {
        TokenFile::change(path, |file| {
            let (text, token) = Token::create(Scope::Read, Vec::new(), String::new(), 0, None).unwrap();
            file.tokens.push(token);
            Ok(text)
        })
    }

    /// As root changes it with `sudo`, and a server of another user reads it.
    #[test]
    fn the_file_stays_its_owners() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("tokens.json");
        add(&path).unwrap();
        if std::os::unix::fs::chown(&path, Some(NOBODY), Some(NOBODY)).is_err() {
            // Only root can give a file away.
            return;
        }
        add(&path).unwrap();
        let found = std::fs::metadata(&path).unwrap();
        assert_eq!((found.uid(), found.gid(), found.permissions().mode() & 0o777), (NOBODY, NOBODY, MODE));
    }

    #[test]
    fn tokens_are_found_by_their_text_after_the_file_was_written() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("tokens.json");
        let (first, second) = (add(&path).unwrap(), add(&path).unwrap());
        let file = TokenFile::read(&path).unwrap();
        assert_eq!(file.find(&second), file.tokens.get(1));
        assert_eq!(file.find(&first), file.tokens.first());
        // The id of one with the secret of the other is neither.
        let swapped = format!("tmk_{}_{}", id_of(&first).unwrap(), second.rsplit('_').next().unwrap());
        assert_eq!(file.find(&swapped), None);
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, MODE);
    }

    #[test]
    fn a_file_that_others_read_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("tokens.json");
        add(&path).unwrap();
        for mode in [0o644, 0o604, 0o660, 0o620, 0o610] {
            std::fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
            assert!(TokenFile::read(&path).unwrap_err().contains("chmod 600"), "{mode:o}");
        }
        std::fs::set_permissions(&path, Permissions::from_mode(0o640)).unwrap();
        if std::os::unix::fs::chown(&path, Some(NOBODY), None).is_ok()
            || std::fs::metadata(&path).unwrap().uid() != ROOT
        {
            assert!(TokenFile::read(&path).unwrap_err().contains("chmod 600"), "who owns it need not share it");
        }
    }

    /// As Kubernetes mounts a secret for a pod with an `fsGroup`: of root, and readable by that group.
    #[test]
    fn root_may_let_a_group_read_it() {
        for mode in [0o100_440, 0o100_640, 0o100_400, 0o100_600] {
            assert!(!is_open_to_others(mode, ROOT), "{mode:o}");
        }
        for mode in [0o100_444, 0o100_460, 0o100_450, 0o100_442, 0o100_660] {
            assert!(is_open_to_others(mode, ROOT), "{mode:o}");
        }
        assert!(is_open_to_others(0o100_440, NOBODY));
        assert!(!is_open_to_others(0o100_600, NOBODY));

        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("tokens.json");
        add(&path).unwrap();
        if std::os::unix::fs::chown(&path, Some(ROOT), Some(NOBODY)).is_err() {
            // Only root can.
            return;
        }
        std::fs::set_permissions(&path, Permissions::from_mode(0o440)).unwrap();
        assert_eq!(TokenFile::read(&path).unwrap().tokens.len(), 1);
        // Who may read it still may after the next token.
        add(&path).unwrap();
        let found = std::fs::metadata(&path).unwrap();
        assert_eq!((found.uid(), found.gid(), found.permissions().mode() & 0o777), (ROOT, NOBODY, 0o640));
    }

    #[test]
    fn one_writes_at_a_time_and_a_refused_change_leaves_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("tokens.json");
        add(&path).unwrap();
        let inner = TokenFile::change(&path, |_| Ok(add(&path))).unwrap();
        assert!(inner.unwrap_err().contains("another command"));
        assert!(TokenFile::change(&path, |_| Err::<(), _>("no".to_owned())).is_err());
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1);
        assert_eq!(TokenFile::read(&path).unwrap().tokens.len(), 1);
    }
}
