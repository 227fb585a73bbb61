//! A hash that is the same wherever it is computed, unlike the standard library's: tags and cursors are compared with what was sent
//! before. FNV-1a, 64 bit; it guards against mistakes, not against attackers.

/// A hash being computed. Every part is followed by its length, so that parts cannot run into each other.
#[derive(Clone, Copy, Debug)]
pub struct Fingerprint(u64);

impl Default for Fingerprint {
    fn default() -> Self {
        Fingerprint(0xcbf2_9ce4_8422_2325)
    }
}

impl Fingerprint {
    /// With a further part.
    #[must_use]
    pub fn with(self, part: impl AsRef<[u8]>) -> Self {
        let part = part.as_ref();
        let length = (part.len() as u64).to_be_bytes();
        let hash = part
            .iter()
            .chain(&length)
            .fold(self.0, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3));
        Fingerprint(hash)
    }

    /// The hash.
    #[must_use]
    pub fn finish(self) -> u64 {
        self.0
    }
}
