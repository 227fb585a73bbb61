//! What disks, cables and people do to a file, other than losing the newest part of it with the power.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::path::Path;

use rand::{Rng, RngCore};
use rand_chacha::ChaCha8Rng;

const SECTOR_BYTES: usize = 512;
const MOST_GARBAGE_BYTES: usize = 2_000;

/// One thing that is wrong with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Damage {
    /// One bit is another.
    Bit,
    /// A sector holds nothing.
    Zeroed,
    /// Two sectors lie in each other's place.
    Swapped,
    /// The end is gone.
    Cut,
    /// It is what it or another of its kind was before the last life.
    Stale,
    /// It is gone.
    Deleted,
    /// Something follows it.
    Garbage,
}

impl Damage {
    pub const ALL: [Damage; 7] =
        [Damage::Bit, Damage::Zeroed, Damage::Swapped, Damage::Cut, Damage::Stale, Damage::Deleted, Damage::Garbage];

    /// Does it to a file; `before` is what a stale one is. False where it changes nothing.
    pub fn apply(self, file: &Path, before: Option<&Path>, rng: &mut ChaCha8Rng) -> io::Result<bool> {
        let whole = fs::read(file)?;
        let mut bytes = whole.clone();
        match self {
            Damage::Bit if !bytes.is_empty() => {
                let at = rng.random_range(0..bytes.len());
                bytes[at] ^= 1 << rng.random_range(0..8);
            }
            Damage::Zeroed if !bytes.is_empty() => {
                let sectors: Vec<&mut [u8]> = bytes.chunks_mut(SECTOR_BYTES).collect();
                let at = rng.random_range(0..sectors.len());
                sectors.into_iter().nth(at).unwrap().fill(0);
            }
            Damage::Swapped if bytes.len() >= 2 * SECTOR_BYTES => {
                let sectors = bytes.len() / SECTOR_BYTES;
                let one = rng.random_range(0..sectors - 1);
                let other = rng.random_range(one + 1..sectors);
                let (left, right) = bytes.split_at_mut(other * SECTOR_BYTES);
                left[one * SECTOR_BYTES..][..SECTOR_BYTES].swap_with_slice(&mut right[..SECTOR_BYTES]);
            }
            Damage::Cut if !bytes.is_empty() => bytes.truncate(rng.random_range(0..bytes.len())),
            Damage::Stale => match before {
                Some(before) => bytes = fs::read(before)?,
                None => return Ok(false),
            },
            Damage::Deleted => {
                fs::remove_file(file)?;
                return Ok(true);
            }
            Damage::Garbage => {
                let mut garbage = vec![0; rng.random_range(1..MOST_GARBAGE_BYTES)];
                rng.fill_bytes(&mut garbage);
                OpenOptions::new().append(true).open(file)?.write_all(&garbage)?;
                return Ok(true);
            }
            _ => return Ok(false),
        }
        fs::write(file, &bytes)?;
        Ok(bytes != whole)
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;

    use super::*;

    #[test]
    fn each_kind_changes_the_file_where_it_says_so_and_nothing_where_it_does_not() {
        let directory = tempfile::tempdir().unwrap();
        let (file, before) = (directory.path().join("file"), directory.path().join("before"));
        fs::write(&before, "before").unwrap();
        for (damage, length) in
            Damage::ALL.into_iter().flat_map(|damage| [0, 1, 700, 5_000].map(|length| (damage, length)))
        {
            let whole: Vec<u8> = (0..length).map(|at: u32| (at / 7 + 1) as u8).collect();
            fs::write(&file, &whole).unwrap();
            let done = damage.apply(&file, Some(&before), &mut ChaCha8Rng::seed_from_u64(u64::from(length))).unwrap();
            let after = fs::read(&file).ok();
            assert_eq!(after.as_deref() != Some(&whole[..]), done, "{damage:?} of {length} bytes");
            assert!(done || length < 1_024, "{damage:?} of {length} bytes");
        }
    }
}
