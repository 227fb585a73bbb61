//! What everybody on the machine may do with a file that we read. The surprise: a file that others may change is refused, one that they
//! may read is not. That is how secrets are mounted into containers (0644), where nobody else is.

use std::fs::Metadata;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use engine::shell;

/// Refuses a file that everybody may change: they would choose whom we serve, and as whom.
pub fn refuse_changed_by_all(what: &str, path: &Path) -> Result<(), String> {
    match lets_all(path, 0o002) {
        true => {
            Err(format!("the {what} {} can be changed by everybody on this machine{}", path.display(), remedy(path)))
        }
        false => Ok(()),
    }
}

/// What to say of a file with a secret in it that everybody may read.
#[must_use]
pub fn read_by_all(what: &str, path: &Path) -> Option<String> {
    let said = || format!("the {what} {} can be read by everybody on this machine{}", path.display(), remedy(path));
    lets_all(path, 0o004).then(said)
}

/// A file that is not there lets nobody do anything.
fn lets_all(path: &Path, what: u32) -> bool {
    let mode = |found: Metadata| found.permissions().mode();
    std::fs::metadata(path).map(mode).is_ok_and(|mode| mode & what != 0)
}

fn remedy(path: &Path) -> String {
    format!("\n  remedy: chmod o= {}", shell::word(&path.display().to_string()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::fs::Permissions;

    use super::*;

    #[test]
    fn what_all_may_change_is_refused_and_what_they_may_read_is_told() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("tls.key");
        assert_eq!((refuse_changed_by_all("key", &path), read_by_all("key", &path)), (Ok(()), None));
        std::fs::write(&path, "").unwrap();
        for (mode, refused, told) in [
            (0o600, false, false),
            (0o660, false, false),
            (0o644, false, true),
            (0o666, true, true),
            (0o602, true, false),
        ] {
            std::fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
            let (changed, read) = (refuse_changed_by_all("key", &path), read_by_all("key", &path));
            assert_eq!((changed.is_err(), read.is_some()), (refused, told), "{mode:o}");
            let words = format!("chmod o= {}", path.display());
            assert!(changed.err().into_iter().chain(read).all(|said| said.contains(&words)), "{mode:o}");
        }
    }
}
