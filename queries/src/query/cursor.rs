//! Where the next page begins: after the last row of the page before, by time and key. Opaque to callers, and bound to the
//! question it came from: against another one it would skip rows.

use engine::materialization::Bucket;
use engine::materialization::group_key::{flip_i64, unflip_i64};

/// Format of the text; another one is refused, not guessed at.
const FORMAT: u8 = 1;

/// The last row of a page.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cursor {
    /// Its bucket.
    pub bucket: Bucket,
    /// Its group, as in the answer.
    pub key: Vec<u8>,
}

impl Cursor {
    /// As text; `question` is the fingerprint of what was asked.
    #[must_use]
    pub fn encode(&self, question: u64) -> String {
        let fields = [&[FORMAT][..], &question.to_be_bytes(), &flip_i64(self.bucket.0), &self.key];
        fields.concat().iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// From text. `None` where it is damaged or belongs to another question.
    #[must_use]
    pub fn decode(text: &str, question: u64) -> Option<Cursor> {
        let nibbles = text.chars().map(|c| c.to_digit(16)).collect::<Option<Vec<u32>>>()?;
        if nibbles.len() % 2 != 0 {
            return None;
        }
        let bytes: Vec<u8> =
            nibbles.chunks(2).map(|pair| pair.iter().fold(0, |byte, nibble| byte << 4 | *nibble) as u8).collect();
        let (&format, rest) = bytes.split_first()?;
        let (of, rest) = rest.split_first_chunk::<8>()?;
        let (bucket, key) = rest.split_first_chunk::<8>()?;
        let fits = format == FORMAT && u64::from_be_bytes(*of) == question;
        fits.then(|| Cursor { bucket: Bucket(unflip_i64(*bucket)), key: key.to_vec() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_back_for_its_own_question_only() {
        let cursor = Cursor { bucket: Bucket(-5), key: vec![6, 0, 255] };
        let text = cursor.encode(77);
        assert_eq!(Cursor::decode(&text, 77), Some(cursor));
        assert_eq!(Cursor::decode(&text, 78), None);
        for damaged in ["", "0", "zz", "é", "01", &text[..20]] {
            assert_eq!(Cursor::decode(damaged, 77), None, "{damaged:?}");
        }
    }
}
