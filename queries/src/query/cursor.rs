//! Where the next page begins: after the last row of the page before. Opaque to callers, and bound to the question it came
//! from: against another one it would skip rows. It names the commit that the first page showed, so that all pages show it.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use engine::aggregate::MeasureValue;
use engine::aggregate::sum::Special;
use engine::materialization::Bucket;
use engine::materialization::group_key::{flip_i64, unflip_i64};

/// Format of the text; another one is refused, not guessed at.
const FORMAT: u8 = 2;

/// The last row of a page.
#[derive(Clone, Debug, PartialEq)]
pub struct Cursor {
    /// Number of the commit that the page before showed.
    pub sequence: u64,
    /// Its bucket.
    pub bucket: Bucket,
    /// Its group, as in the answer.
    pub key: Vec<u8>,
    /// Its measures; none in the stored order, which does not depend on them.
    pub values: Vec<MeasureValue>,
}

impl Cursor {
    /// As text; `question` is the fingerprint of what was asked.
    #[must_use]
    pub fn encode(&self, question: u64) -> String {
        let mut bytes = vec![FORMAT];
        bytes.extend_from_slice(&question.to_be_bytes());
        bytes.extend_from_slice(&self.sequence.to_be_bytes());
        bytes.extend_from_slice(&flip_i64(self.bucket.0));
        bytes.push(u8::try_from(self.values.len()).unwrap_or(u8::MAX));
        self.values.iter().for_each(|value| push_value(&mut bytes, *value));
        bytes.extend_from_slice(&self.key);
        URL_SAFE_NO_PAD.encode(bytes)
    }

    /// From text. `None` where it is damaged or belongs to another question.
    #[must_use]
    pub fn decode(text: &str, question: u64) -> Option<Cursor> {
        let bytes = URL_SAFE_NO_PAD.decode(text).ok()?;
        let (&format, rest) = bytes.split_first()?;
        let (of, rest) = rest.split_first_chunk::<8>()?;
        let (sequence, rest) = rest.split_first_chunk::<8>()?;
        let (bucket, rest) = rest.split_first_chunk::<8>()?;
        let (&count, mut key) = rest.split_first()?;
        let values = (0..count).map(|_| take_value(&mut key)).collect::<Option<_>>()?;
        let fits = format == FORMAT && u64::from_be_bytes(*of) == question;
        fits.then(|| Cursor {
            sequence: u64::from_be_bytes(*sequence),
            bucket: Bucket(unflip_i64(*bucket)),
            key: key.to_vec(),
            values,
        })
    }
}

const NULL: u8 = 0;
const INTEGER: u8 = 1;
const DECIMAL: u8 = 2;
const FLOAT: u8 = 3;
const SPECIAL: u8 = 4;

/// Appends a finished measure; no two different ones are the same bytes.
pub fn push_value(bytes: &mut Vec<u8>, value: MeasureValue) {
    match value {
        MeasureValue::Null => bytes.push(NULL),
        MeasureValue::Integer(v) => {
            bytes.push(INTEGER);
            bytes.extend_from_slice(&v.to_be_bytes());
        }
        MeasureValue::Decimal { mantissa, scale } => {
            bytes.push(DECIMAL);
            bytes.extend_from_slice(&mantissa.to_be_bytes());
            bytes.extend_from_slice(&scale.to_be_bytes());
        }
        MeasureValue::Float(v) => {
            bytes.push(FLOAT);
            bytes.extend_from_slice(&v.to_bits().to_be_bytes());
        }
        MeasureValue::Special(special) => {
            let which = match special {
                Special::Negative => 0,
                Special::Positive => 1,
                Special::NaN => 2,
            };
            bytes.extend_from_slice(&[SPECIAL, which]);
        }
    }
}

fn take_value(bytes: &mut &[u8]) -> Option<MeasureValue> {
    fn chunk<const N: usize>(bytes: &mut &[u8]) -> Option<[u8; N]> {
        let (chunk, rest) = bytes.split_first_chunk::<N>()?;
        *bytes = rest;
        Some(*chunk)
    }
    let [tag] = chunk::<1>(bytes)?;
    Some(match tag {
        NULL => MeasureValue::Null,
        INTEGER => MeasureValue::Integer(i128::from_be_bytes(chunk(bytes)?)),
        DECIMAL => MeasureValue::Decimal {
            mantissa: i128::from_be_bytes(chunk(bytes)?),
            scale: u16::from_be_bytes(chunk(bytes)?),
        },
        FLOAT => MeasureValue::Float(f64::from_bits(u64::from_be_bytes(chunk(bytes)?))),
        SPECIAL => MeasureValue::Special(match chunk::<1>(bytes)? {
            [0] => Special::Negative,
            [1] => Special::Positive,
            [2] => Special::NaN,
            _ => return None,
        }),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_back_for_its_own_question_only() {
        let values = vec![
            MeasureValue::Null,
            MeasureValue::Integer(-7),
            MeasureValue::Decimal { mantissa: i128::MIN, scale: 2 },
            MeasureValue::Float(-0.5),
            MeasureValue::Special(Special::NaN),
        ];
        let cursor = Cursor { sequence: 9, bucket: Bucket(-5), key: vec![6, 0, 255], values };
        let text = cursor.encode(77);
        assert_eq!(Cursor::decode(&text, 77), Some(cursor));
        assert_eq!(Cursor::decode(&text, 78), None);
        for damaged in ["", "0", "zz", "é", "01", &text[..20]] {
            assert_eq!(Cursor::decode(damaged, 77), None, "{damaged:?}");
        }
    }
}
