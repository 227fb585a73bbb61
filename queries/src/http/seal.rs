//! What shows that a cursor is one of ours: an HMAC under a key that this process made and tells nobody. A cursor need not
//! outlive the process, since the Snapshots that pages show do not either. It does not replace the checks of what a cursor
//! says: whoever reads memory has the key.

use ring::hmac::{HMAC_SHA256, Key, sign, verify};
use ring::rand::SystemRandom;

/// Bytes that a seal takes.
const LENGTH: usize = 32;

/// The key of this process.
pub(super) struct Seal(Option<Key>);

impl Default for Seal {
    fn default() -> Self {
        // Where the system gives no random numbers nothing is sealed, and nothing is believed.
        Seal(Key::generate(HMAC_SHA256, &SystemRandom::new()).ok())
    }
}

impl Seal {
    /// The bytes with their seal behind them; `None` where there is no key.
    pub(super) fn close(&self, mut bytes: Vec<u8>) -> Option<Vec<u8>> {
        let seal = sign(self.0.as_ref()?, &bytes);
        bytes.extend_from_slice(seal.as_ref());
        Some(bytes)
    }

    /// What was sealed, and whether by us; `None` where the bytes are too few to hold a seal.
    pub(super) fn open<'b>(&self, sealed: &'b [u8]) -> Option<(&'b [u8], bool)> {
        let (bytes, seal) = sealed.split_last_chunk::<LENGTH>()?;
        let ours = self.0.as_ref().is_some_and(|key| verify(key, bytes, seal).is_ok());
        Some((bytes, ours))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn only_what_this_key_sealed_is_ours() {
        let (seal, of_another_process) = (Seal::default(), Seal::default());
        let sealed = seal.close(b"bytes".to_vec()).unwrap();
        assert_eq!(seal.open(&sealed), Some((&b"bytes"[..], true)));
        assert_eq!(of_another_process.open(&sealed), Some((&b"bytes"[..], false)));
        for at in 0..sealed.len() {
            let mut altered = sealed.clone();
            *altered.get_mut(at).unwrap() ^= 1;
            assert!(!seal.open(&altered).unwrap().1, "byte {at}");
        }
        assert_eq!(seal.open(sealed.get(1..).unwrap()).unwrap(), (&b"ytes"[..], false));
        assert_eq!(seal.open(&[0; LENGTH - 1]), None);
    }

    #[test]
    fn without_a_key_nothing_is_ours() {
        let none = Seal(None);
        assert_eq!(none.close(b"bytes".to_vec()), None);
        let sealed = Seal::default().close(b"bytes".to_vec()).unwrap();
        assert_eq!(none.open(&sealed), Some((&b"bytes"[..], false)));
    }
}
