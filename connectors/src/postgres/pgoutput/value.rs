//! Postgres' binary values -> [`ValueRef`]. The same for the snapshot's COPY and for the stream.
//!
//! The surprise: a `numeric` is digits in base 10000 with a separate display scale, and the last digit may reach below
//! that scale, filled with zeros. What does not fit an `i128` exactly stays as raw bytes.

use engine::change::{ColumnType, Numeric, ValueRef};

/// Reads a binary value; `None` where the bytes are none of this type.
#[inline(always)]
pub(crate) fn binary<'a>(column_type: &ColumnType, bytes: &'a [u8]) -> Option<ValueRef<'a>> {
    Some(match column_type {
        ColumnType::Int2 => ValueRef::Int(i16::from_be_bytes(bytes.try_into().ok()?).into()),
        ColumnType::Int4 => ValueRef::Int(i32::from_be_bytes(bytes.try_into().ok()?).into()),
        ColumnType::Int8 => ValueRef::Int(i64::from_be_bytes(bytes.try_into().ok()?)),
        ColumnType::Numeric { .. } => numeric(bytes)?,
        ColumnType::Float4 => ValueRef::Float(f32::from_be_bytes(bytes.try_into().ok()?).into()),
        ColumnType::Float8 => ValueRef::Float(f64::from_be_bytes(bytes.try_into().ok()?)),
        ColumnType::Text => ValueRef::Text(std::str::from_utf8(bytes).ok()?),
        ColumnType::Char => ValueRef::Text(std::str::from_utf8(bytes).ok()?.trim_end_matches(' ')),
        ColumnType::Bool => match bytes {
            [0] => ValueRef::Bool(false),
            [1] => ValueRef::Bool(true),
            _ => return None,
        },
        ColumnType::Uuid => ValueRef::Uuid(bytes.try_into().ok()?),
        ColumnType::Date => ValueRef::Date(i32::from_be_bytes(bytes.try_into().ok()?)),
        ColumnType::Timestamp | ColumnType::TimestampTz => {
            ValueRef::Timestamp(i64::from_be_bytes(bytes.try_into().ok()?))
        }
        ColumnType::Unsupported(_) => ValueRef::Opaque(bytes),
        ColumnType::Gone(_) => ValueRef::Null,
    })
}

/// Reads a value that came as text although binary was asked for: types without a binary form. No supported type but
/// text is one, so anything else is refused rather than parsed by rules that depend on session settings.
pub(crate) fn text<'a>(column_type: &ColumnType, bytes: &'a [u8]) -> Option<ValueRef<'a>> {
    match column_type {
        ColumnType::Text => Some(ValueRef::Text(std::str::from_utf8(bytes).ok()?)),
        ColumnType::Char => Some(ValueRef::Text(std::str::from_utf8(bytes).ok()?.trim_end_matches(' '))),
        ColumnType::Unsupported(_) => Some(ValueRef::Opaque(bytes)),
        ColumnType::Gone(_) => Some(ValueRef::Null),
        _ => None,
    }
}

const NEGATIVE: u16 = 0x4000;
const NAN: u16 = 0xC000;
const POSITIVE_INFINITY: u16 = 0xD000;
const NEGATIVE_INFINITY: u16 = 0xF000;

fn numeric(bytes: &[u8]) -> Option<ValueRef<'_>> {
    let (header, digits) = bytes.split_first_chunk::<8>()?;
    let &[n0, n1, w0, w1, s0, s1, d0, d1] = header;
    let count = u16::from_be_bytes([n0, n1]);
    let weight = i16::from_be_bytes([w0, w1]);
    let sign = u16::from_be_bytes([s0, s1]);
    let scale = u16::from_be_bytes([d0, d1]);
    let (digits, cut) = digits.as_chunks::<2>();
    if !cut.is_empty() || digits.len() != usize::from(count) {
        return None;
    }
    let negative = match sign {
        0 => false,
        NEGATIVE => true,
        NAN => return Some(ValueRef::Numeric(Numeric::NaN)),
        POSITIVE_INFINITY => return Some(ValueRef::Numeric(Numeric::PositiveInfinity)),
        NEGATIVE_INFINITY => return Some(ValueRef::Numeric(Numeric::NegativeInfinity)),
        _ => return None,
    };
    if digits.iter().any(|digit| u16::from_be_bytes(*digit) > 9999) {
        return None;
    }
    // Zeros at the end count for nothing: a `numeric(60,30)` is wide by them alone.
    let exact = |scale| mantissa(digits, weight, scale).map(|mantissa| (mantissa, scale));
    let Some((mantissa, scale)) = exact(scale).or_else(|| exact(scale.min(shortest_scale(digits, weight)))) else {
        return Some(ValueRef::Opaque(bytes));
    };
    let mantissa = if negative { -mantissa } else { mantissa };
    Some(ValueRef::Numeric(Numeric::Finite { mantissa, scale }))
}

/// Places after the point up to the last digit that is not zero.
fn shortest_scale(digits: &[[u8; 2]], weight: i16) -> u16 {
    let Some(last) = digits.iter().rposition(|digit| *digit != [0, 0]) else { return 0 };
    let digit = digits.get(last).map_or(0, |digit| u16::from_be_bytes(*digit));
    let zeros = (1..4).filter(|places| digit % 10u16.pow(*places) == 0).count() as i32;
    let places = 4 * (last as i32 - i32::from(weight)) - zeros;
    u16::try_from(places.max(0)).unwrap_or(u16::MAX)
}

/// All digits as one integer at `scale`; `None` where 127 bits do not suffice or a digit lies below the scale.
fn mantissa(digits: &[[u8; 2]], weight: i16, scale: u16) -> Option<i128> {
    let mut mantissa = 0i128;
    let mut exponent = 4 * (i32::from(weight) + 1) + i32::from(scale);
    for digit in digits {
        let digit = i128::from(u16::from_be_bytes(*digit));
        exponent -= 4;
        if exponent >= 0 {
            mantissa = mantissa.checked_mul(10_000)?.checked_add(digit)?;
        } else if exponent > -4 {
            let below = 10i128.pow(exponent.unsigned_abs());
            if digit % below != 0 {
                return None;
            }
            mantissa = mantissa.checked_mul(10_000 / below)?.checked_add(digit / below)?;
        } else if digit != 0 {
            return None;
        }
    }
    if mantissa == 0 || exponent <= 0 {
        return Some(mantissa);
    }
    mantissa.checked_mul(10i128.checked_pow(exponent.unsigned_abs())?)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
    use proptest::prelude::*;

    use super::*;
    use crate::fuzzing::canonical_numeric;

    fn types() -> Vec<ColumnType> {
        vec![
            ColumnType::Int2,
            ColumnType::Int4,
            ColumnType::Int8,
            ColumnType::Numeric { scale: None },
            ColumnType::Float4,
            ColumnType::Float8,
            ColumnType::Text,
            ColumnType::Bool,
            ColumnType::Uuid,
            ColumnType::Date,
            ColumnType::Timestamp,
            ColumnType::TimestampTz,
            ColumnType::Unsupported("json".into()),
        ]
    }

    #[test]
    fn numerics_that_are_not_numbers() {
        for (sign, expected) in [
            (NAN, Numeric::NaN),
            (POSITIVE_INFINITY, Numeric::PositiveInfinity),
            (NEGATIVE_INFINITY, Numeric::NegativeInfinity),
        ] {
            let bytes = [&[0u8; 4][..], &sign.to_be_bytes(), &[0, 0]].concat();
            assert_eq!(numeric(&bytes), Some(ValueRef::Numeric(expected)));
        }
    }

    #[test]
    fn a_numeric_beyond_128_bits_stays_raw() {
        // 1e40: one digit of weight 10.
        let bytes = [0, 1, 0, 10, 0, 0, 0, 0, 0, 1];
        assert_eq!(numeric(&bytes), Some(ValueRef::Opaque(&bytes)));
        // 150000000.0…0 and 0.1250…0, with 40 places: wide by zeros alone.
        let zeros = [0, 2, 0, 2, 0, 0, 0, 40, 0, 1, 0x13, 0x88];
        assert_eq!(numeric(&zeros), Some(ValueRef::Numeric(Numeric::Finite { mantissa: 150_000_000, scale: 0 })));
        let zeros = [0, 1, 0xFF, 0xFF, 0, 0, 0, 40, 0x04, 0xE2];
        assert_eq!(numeric(&zeros), Some(ValueRef::Numeric(Numeric::Finite { mantissa: 125, scale: 3 })));
        let one = [0, 1, 0, 0, 0, 0, 0, 0, 0, 1];
        assert_eq!(numeric(&one), Some(ValueRef::Numeric(Numeric::Finite { mantissa: 1, scale: 0 })));
    }

    proptest! {
        #[test]
        fn numerics_decode_exactly(mantissa in prop_oneof![any::<i128>(), (-1_000_000i128..1_000_000)], scale in 0u16..60) {
            prop_assume!(mantissa != i128::MIN);
            let finite = Numeric::Finite { mantissa, scale };
            let bytes = canonical_numeric(finite);
            prop_assert_eq!(numeric(&bytes), Some(ValueRef::Numeric(finite)));
        }

        #[test]
        fn any_bytes_are_a_value_or_refused(bytes in any::<Vec<u8>>(), header in prop::sample::select(vec![0u16, NEGATIVE, NAN])) {
            for column_type in types() {
                let _ = binary(&column_type, &bytes);
                let _ = text(&column_type, &bytes);
            }
            let mut bytes = bytes;
            if bytes.len() >= 8 {
                bytes[4..6].copy_from_slice(&header.to_be_bytes());
                let count = ((bytes.len() - 8) / 2) as u16;
                bytes[0..2].copy_from_slice(&count.to_be_bytes());
                bytes.truncate(8 + usize::from(count) * 2);
                let _ = numeric(&bytes);
            }
        }
    }
}
