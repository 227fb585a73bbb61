//! The dimensions of one group as bytes whose order is the order of the values.
//!
//! Each value is a tag and a payload that knows its own end, so keys concatenate and a prefix of the dimensions is a
//! prefix of the bytes. Equal groups are equal bytes: `1.0` and `1.00`, `-0.0` and `0.0`, and all NaNs are one group, as
//! in Postgres; NULL sorts last. The tags are an on-disk format: never reused.

use crate::change::{Numeric, Value, ValueRef};

const BOOL: u8 = 0x02;
const INT: u8 = 0x04;
const FLOAT: u8 = 0x05;
const TEXT: u8 = 0x06;
const UUID: u8 = 0x07;
const DATE: u8 = 0x08;
const TIMESTAMP: u8 = 0x09;
const NUMERIC: u8 = 0x0A;
const OPAQUE: u8 = 0x0B;
const NULL: u8 = 0xFE;

const NUMERIC_NEGATIVE_INFINITY: u8 = 1;
const NUMERIC_NEGATIVE: u8 = 2;
const NUMERIC_ZERO: u8 = 3;
const NUMERIC_POSITIVE: u8 = 4;
const NUMERIC_POSITIVE_INFINITY: u8 = 5;
const NUMERIC_NAN: u8 = 6;

/// Longest key of a group, in bytes. Longer ones halt the aggregate: hashing them could add two merchants' money together.
pub const MAX_LENGTH: usize = 1_024;

/// The value cannot name a group: it is of an unsupported type, or too wide.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the value cannot name a group")]
pub struct NotAGroup;

/// Appends one dimension's value.
pub fn push(key: &mut Vec<u8>, value: ValueRef<'_>) -> Result<(), NotAGroup> {
    match value {
        ValueRef::Null => key.push(NULL),
        ValueRef::Bool(v) => key.extend_from_slice(&[BOOL, u8::from(v)]),
        ValueRef::Int(v) => {
            key.push(INT);
            key.extend_from_slice(&flip_i64(v));
        }
        ValueRef::Float(v) => {
            key.push(FLOAT);
            key.extend_from_slice(&order_f64(v).to_be_bytes());
        }
        ValueRef::Text(v) => {
            key.push(TEXT);
            push_escaped(key, v.as_bytes());
        }
        ValueRef::Uuid(v) => {
            key.push(UUID);
            key.extend_from_slice(&v);
        }
        ValueRef::Date(v) => {
            key.push(DATE);
            key.extend_from_slice(&(v as u32 ^ 1 << 31).to_be_bytes());
        }
        ValueRef::Timestamp(v) => {
            key.push(TIMESTAMP);
            key.extend_from_slice(&flip_i64(v));
        }
        ValueRef::Numeric(v) => {
            key.push(NUMERIC);
            push_numeric(key, v);
        }
        ValueRef::Unchanged | ValueRef::Opaque(_) => return Err(NotAGroup),
    }
    Ok(())
}

/// Appends a primary key's value: as [`push`], and bytes of a type that cannot name a group.
pub fn push_primary(key: &mut Vec<u8>, value: ValueRef<'_>) -> Result<(), NotAGroup> {
    if let ValueRef::Opaque(bytes) = value {
        key.push(OPAQUE);
        push_escaped(key, bytes);
        return Ok(());
    }
    push(key, value)
}

/// The values of a whole key, or `None` where the bytes are not one.
#[must_use]
pub fn decode(mut key: &[u8]) -> Option<Vec<Value>> {
    let mut values = Vec::new();
    while !key.is_empty() {
        values.push(take(&mut key)?);
    }
    Some(values)
}

/// Where each value of a key begins; the last entry is the key's length.
#[must_use]
pub fn boundaries(key: &[u8]) -> Option<Vec<usize>> {
    let mut rest = key;
    let mut starts = vec![0];
    while !rest.is_empty() {
        take(&mut rest)?;
        starts.push(key.len() - rest.len());
    }
    Some(starts)
}

/// Length of the first `count` values, or `None` where there are not as many.
#[must_use]
pub fn length_of(key: &[u8], count: usize) -> Option<usize> {
    let mut rest = key;
    for _ in 0..count {
        take(&mut rest)?;
    }
    Some(key.len() - rest.len())
}

/// Whether the bytes are values of a primary key, one after the other, and nothing else; see [`push_primary`].
#[must_use]
pub fn is_primary(mut key: &[u8]) -> bool {
    let some = !key.is_empty();
    while !key.is_empty() {
        if take_primary(&mut key).is_none() {
            return false;
        }
    }
    some
}

fn take_primary(key: &mut &[u8]) -> Option<()> {
    if let Some((&OPAQUE, rest)) = key.split_first() {
        *key = rest;
        return take_escaped(key).map(drop);
    }
    take(key).map(drop)
}

/// Big-endian with the sign flipped: byte order is integer order.
#[must_use]
pub fn flip_i64(v: i64) -> [u8; 8] {
    (v as u64 ^ 1 << 63).to_be_bytes()
}

/// Inverse of [`flip_i64`].
#[must_use]
pub fn unflip_i64(bytes: [u8; 8]) -> i64 {
    (u64::from_be_bytes(bytes) ^ 1 << 63) as i64
}

fn order_f64(v: f64) -> u64 {
    let v = if v.is_nan() {
        f64::NAN.abs()
    } else if v == 0.0 {
        0.0
    } else {
        v
    };
    let bits = v.to_bits();
    if bits >> 63 == 1 { !bits } else { bits | 1 << 63 }
}

fn unorder_f64(bits: u64) -> f64 {
    f64::from_bits(if bits >> 63 == 1 { bits & !(1 << 63) } else { !bits })
}

fn push_escaped(key: &mut Vec<u8>, bytes: &[u8]) {
    for part in bytes.split_inclusive(|b| *b == 0) {
        key.extend_from_slice(part);
        if part.last() == Some(&0) {
            key.push(0xFF);
        }
    }
    key.extend_from_slice(&[0x00, 0x01]);
}

fn take_escaped(key: &mut &[u8]) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    loop {
        let zero = key.iter().position(|b| *b == 0)?;
        let (part, rest) = key.split_at_checked(zero)?;
        bytes.extend_from_slice(part);
        match rest.split_first_chunk::<2>()? {
            ([0, 0xFF], rest) => {
                bytes.push(0);
                *key = rest;
            }
            ([0, 0x01], rest) => {
                *key = rest;
                return Some(bytes);
            }
            _ => return None,
        }
    }
}

/// Kind, then for numbers: decimal exponent (digits before the point), digits in pairs plus one, terminator; all
/// complemented for negative ones.
fn push_numeric(key: &mut Vec<u8>, value: Numeric) {
    let (mantissa, scale) = match value {
        Numeric::Finite { mantissa, scale } => Numeric::normalise(mantissa, scale),
        Numeric::NaN => return key.push(NUMERIC_NAN),
        Numeric::PositiveInfinity => return key.push(NUMERIC_POSITIVE_INFINITY),
        Numeric::NegativeInfinity => return key.push(NUMERIC_NEGATIVE_INFINITY),
    };
    if mantissa == 0 {
        return key.push(NUMERIC_ZERO);
    }
    let negative = mantissa < 0;
    key.push(if negative { NUMERIC_NEGATIVE } else { NUMERIC_POSITIVE });
    let mut digits = mantissa.unsigned_abs().to_string();
    let exponent = digits.len() as i32 - i32::from(scale);
    digits.truncate(digits.trim_end_matches('0').len());
    let start = key.len();
    key.extend_from_slice(&(exponent as u32 ^ 1 << 31).to_be_bytes());
    for pair in digits.as_bytes().chunks(2) {
        let tens = pair.first().map_or(0, |d| d - b'0');
        let ones = pair.get(1).map_or(0, |d| d - b'0');
        key.push(tens * 10 + ones + 1);
    }
    key.push(0);
    if negative {
        key.iter_mut().skip(start).for_each(|b| *b = !*b);
    }
}

fn take_numeric(key: &mut &[u8]) -> Option<Numeric> {
    let (&kind, rest) = key.split_first()?;
    *key = rest;
    let mask = match kind {
        NUMERIC_NAN => return Some(Numeric::NaN),
        NUMERIC_POSITIVE_INFINITY => return Some(Numeric::PositiveInfinity),
        NUMERIC_NEGATIVE_INFINITY => return Some(Numeric::NegativeInfinity),
        NUMERIC_ZERO => return Some(Numeric::Finite { mantissa: 0, scale: 0 }),
        NUMERIC_POSITIVE => 0x00,
        NUMERIC_NEGATIVE => 0xFF,
        _ => return None,
    };
    let (exponent, rest) = key.split_first_chunk::<4>()?;
    let exponent = (u32::from_be_bytes(exponent.map(|b| b ^ mask)) ^ 1 << 31) as i32;
    let end = rest.iter().position(|b| *b == mask)?;
    let (pairs, rest) = rest.split_at_checked(end)?;
    *key = rest.split_first()?.1;
    // Towards the sign, because the smallest integer has no positive twin.
    let sign = if mask == 0 { 1 } else { -1 };
    let mut mantissa = 0i128;
    let mut digits = 0i32;
    for (index, byte) in pairs.iter().enumerate() {
        let pair = i128::from((byte ^ mask).checked_sub(1).filter(|pair| *pair < 100)?);
        let padded = index + 1 == pairs.len() && pair % 10 == 0;
        let (base, part, count) = if padded { (10, pair / 10, 1) } else { (100, pair, 2) };
        mantissa = mantissa.checked_mul(base)?.checked_add(sign * part)?;
        digits += count;
    }
    let scale = digits.checked_sub(exponent)?;
    if scale < 0 {
        let mantissa = mantissa.checked_mul(10i128.checked_pow(scale.unsigned_abs())?)?;
        return Some(Numeric::Finite { mantissa, scale: 0 });
    }
    Some(Numeric::Finite { mantissa, scale: u16::try_from(scale).ok()? })
}

fn take(key: &mut &[u8]) -> Option<Value> {
    let (&tag, rest) = key.split_first()?;
    *key = rest;
    fn fixed<const N: usize>(key: &mut &[u8]) -> Option<[u8; N]> {
        let (head, rest) = key.split_first_chunk::<N>()?;
        *key = rest;
        Some(*head)
    }
    Some(match tag {
        NULL => Value::Null,
        BOOL => match fixed::<1>(key)? {
            [0] => Value::Bool(false),
            [1] => Value::Bool(true),
            _ => return None,
        },
        INT => Value::Int(unflip_i64(fixed(key)?)),
        FLOAT => Value::Float(unorder_f64(u64::from_be_bytes(fixed(key)?))),
        TEXT => Value::Text(String::from_utf8(take_escaped(key)?).ok()?),
        UUID => Value::Uuid(fixed(key)?),
        DATE => Value::Date((u32::from_be_bytes(fixed(key)?) ^ 1 << 31) as i32),
        TIMESTAMP => Value::Timestamp(unflip_i64(fixed(key)?)),
        NUMERIC => Value::Numeric(take_numeric(key)?),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::cmp::Ordering;

    use proptest::prelude::*;

    use super::*;

    fn encode(values: &[Value]) -> Vec<u8> {
        let mut key = Vec::new();
        values.iter().for_each(|v| push(&mut key, v.as_ref()).unwrap());
        key
    }

    fn numeric() -> impl Strategy<Value = (i128, u16)> {
        (prop_oneof![any::<i128>(), (-1_000i128..1_000), Just(i128::MIN), Just(i128::MAX)], 0u16..30)
    }

    /// Compares two decimals by their digits, without the code under test.
    fn compare((a, sa): (i128, u16), (b, sb): (i128, u16)) -> Ordering {
        let text = |mantissa: i128, scale: u16| -> (String, String) {
            let digits = format!("{:0>40}", mantissa.unsigned_abs().to_string() + &"0".repeat(usize::from(30 - scale)));
            let (whole, fraction) = digits.split_at(digits.len() - 30);
            (format!("{whole:0>80}"), fraction.to_owned())
        };
        let magnitude = text(a, sa).cmp(&text(b, sb));
        match (a.signum(), b.signum()) {
            (x, y) if x != y => x.cmp(&y),
            (-1, _) => magnitude.reverse(),
            _ => magnitude,
        }
    }

    proptest! {
        #[test]
        fn numerics_keep_their_order(a in numeric(), b in numeric()) {
            let key = |(mantissa, scale)| encode(&[Value::Numeric(Numeric::Finite { mantissa, scale })]);
            prop_assert_eq!(key(a).cmp(&key(b)), compare(a, b));
        }

        #[test]
        fn numerics_read_back_normalised((mantissa, scale) in numeric()) {
            let (m, s) = Numeric::normalise(mantissa, scale);
            let key = encode(&[Value::Numeric(Numeric::Finite { mantissa, scale })]);
            prop_assert_eq!(decode(&key), Some(vec![Value::Numeric(Numeric::Finite { mantissa: m, scale: s })]));
        }

        #[test]
        fn texts_and_integers_keep_their_order(
            a in ("[a-c\\x00\\x01ÿ]{0,4}", any::<i64>()), b in ("[a-c\\x00\\x01ÿ]{0,4}", any::<i64>()),
        ) {
            let key = |(text, int): &(String, i64)| encode(&[Value::Text(text.clone()), Value::Int(*int)]);
            prop_assert_eq!(key(&a).cmp(&key(&b)), a.cmp(&b));
            prop_assert_eq!(decode(&key(&a)), Some(vec![Value::Text(a.0), Value::Int(a.1)]));
        }

        #[test]
        fn floats_keep_their_order(a in any::<f64>(), b in any::<f64>()) {
            let key = |v| encode(&[Value::Float(v)]);
            prop_assert_eq!(Some(key(a).cmp(&key(b))), a.partial_cmp(&b).or(Some(a.is_nan().cmp(&b.is_nan()))));
        }

        #[test]
        fn any_bytes_decode_or_are_refused(bytes in any::<Vec<u8>>()) {
            let _ = decode(&bytes);
            let _ = boundaries(&bytes);
            let _ = is_primary(&bytes);
        }
    }

    #[test]
    fn a_primary_key_is_told_from_what_is_none() {
        let mut key = Vec::new();
        push_primary(&mut key, ValueRef::Opaque(&[0, 0xFF, 1])).unwrap();
        let opaque = key.len();
        push_primary(&mut key, ValueRef::Int(7)).unwrap();
        for end in 0..=key.len() {
            assert_eq!(is_primary(key.get(..end).unwrap()), [opaque, key.len()].contains(&end), "{end}");
        }
        key.push(0xFF);
        assert!(!is_primary(&key));
    }

    #[test]
    fn null_sorts_last() {
        let largest = encode(&[Value::Numeric(Numeric::NaN)]);
        assert!(encode(&[Value::Null]) > largest);
        assert_eq!(decode(&encode(&[Value::Null, Value::Bool(true)])), Some(vec![Value::Null, Value::Bool(true)]));
    }
}
