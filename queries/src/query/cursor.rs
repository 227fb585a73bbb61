//! Where the next page begins: after the last row of the page before. Opaque to callers, and bound to the question it came
//! from: against another one it would skip rows. It names the commit that the first page showed, so that all pages show it, the
//! process that this number is of, and the time at which the first page was asked for: `from=-7d` means the same on all of them.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use engine::aggregate::MeasureValue;
use engine::aggregate::sum::Special;
use engine::materialization::Bucket;
use engine::materialization::group_key::{flip_i64, unflip_i64};

use super::process::this_process;

/// Format of the text; another one is refused, not guessed at.
const FORMAT: u8 = 3;

/// The last row of a page.
#[derive(Clone, Debug, PartialEq)]
pub struct Cursor {
    /// The process that the page before came from.
    pub process: u64,
    /// Number of the commit that it showed.
    pub sequence: u64,
    /// When the first page was asked for, microseconds since 2000-01-01 UTC.
    pub asked_us: i64,
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
        bytes.extend_from_slice(&self.process.to_be_bytes());
        bytes.extend_from_slice(&self.sequence.to_be_bytes());
        bytes.extend_from_slice(&self.asked_us.to_be_bytes());
        bytes.extend_from_slice(&flip_i64(self.bucket.0));
        bytes.push(u8::try_from(self.values.len()).unwrap_or(u8::MAX));
        self.values.iter().for_each(|value| push_value(&mut bytes, *value));
        bytes.extend_from_slice(&self.key);
        URL_SAFE_NO_PAD.encode(bytes)
    }

    /// From text, with the fingerprint of the question that it belongs to. `None` where it is damaged.
    #[must_use]
    pub fn decode(text: &str) -> Option<(u64, Cursor)> {
        let bytes = URL_SAFE_NO_PAD.decode(text).ok()?;
        let (&format, rest) = bytes.split_first()?;
        let (question, rest) = rest.split_first_chunk::<8>()?;
        let (process, rest) = rest.split_first_chunk::<8>()?;
        let (sequence, rest) = rest.split_first_chunk::<8>()?;
        let (asked_us, rest) = rest.split_first_chunk::<8>()?;
        let (bucket, rest) = rest.split_first_chunk::<8>()?;
        let (&count, mut key) = rest.split_first()?;
        let values = (0..count).map(|_| take_value(&mut key)).collect::<Option<_>>()?;
        let cursor = Cursor {
            process: u64::from_be_bytes(*process),
            sequence: u64::from_be_bytes(*sequence),
            asked_us: i64::from_be_bytes(*asked_us),
            bucket: Bucket(unflip_i64(*bucket)),
            key: key.to_vec(),
            values,
        };
        (format == FORMAT).then_some((u64::from_be_bytes(*question), cursor))
    }

    /// Whether the number of its commit means something to this process.
    #[must_use]
    pub fn is_ours(&self) -> bool {
        self.process == this_process()
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
    fn reads_back_with_its_question() {
        let values = vec![
            MeasureValue::Null,
            MeasureValue::Integer(-7),
            MeasureValue::Decimal { mantissa: i128::MIN, scale: 2 },
            MeasureValue::Float(-0.5),
            MeasureValue::Special(Special::NaN),
        ];
        let (process, asked_us) = (this_process(), i64::MIN);
        let cursor = Cursor { process, sequence: 9, asked_us, bucket: Bucket(-5), key: vec![6, 0, 255], values };
        assert!(cursor.is_ours() && !Cursor { process: process ^ 1, ..cursor.clone() }.is_ours());
        let text = cursor.encode(77);
        assert_eq!(Cursor::decode(&text), Some((77, cursor)));
        for damaged in ["", "0", "zz", "é", "01", &text[..20]] {
            assert_eq!(Cursor::decode(damaged), None, "{damaged:?}");
        }
    }
}
