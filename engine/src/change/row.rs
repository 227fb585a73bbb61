//! A row, encoded once by the connector and never decoded into owned values again: the same bytes travel through the
//! dataflow and are stored as the row image.
//!
//! Layout, per column in schema order: one tag byte, then the payload. Integers are LEB128 (zigzag), text and opaque
//! values carry their length. The tags are an on-disk format: never reused, only added to.

use super::value::{Numeric, ValueRef};

const NULL: u8 = 0;
const UNCHANGED: u8 = 1;
const FALSE: u8 = 2;
const TRUE: u8 = 3;
const INT: u8 = 4;
const NUMERIC: u8 = 5;
const NUMERIC_NAN: u8 = 6;
const NUMERIC_POSITIVE_INFINITY: u8 = 7;
const NUMERIC_NEGATIVE_INFINITY: u8 = 8;
const FLOAT: u8 = 9;
const TEXT: u8 = 10;
const UUID: u8 = 11;
const DATE: u8 = 12;
const TIMESTAMP: u8 = 13;
const OPAQUE: u8 = 14;

/// Appends the columns of one row to a buffer that many rows share.
#[derive(Debug)]
pub struct RowWriter<'b> {
    buffer: &'b mut Vec<u8>,
}

impl<'b> RowWriter<'b> {
    /// Appends to the end of `buffer`.
    pub fn new(buffer: &'b mut Vec<u8>) -> Self {
        RowWriter { buffer }
    }

    /// Appends the next column. Inlined: where the caller has just read a value of a known type, the two become one.
    #[inline]
    pub fn push(&mut self, value: ValueRef<'_>) {
        match value {
            ValueRef::Null => self.buffer.push(NULL),
            ValueRef::Unchanged => self.buffer.push(UNCHANGED),
            ValueRef::Bool(false) => self.buffer.push(FALSE),
            ValueRef::Bool(true) => self.buffer.push(TRUE),
            ValueRef::Int(v) => {
                self.buffer.push(INT);
                put_varint(self.buffer, zigzag(v));
            }
            ValueRef::Numeric(Numeric::Finite { mantissa, scale }) => {
                self.buffer.push(NUMERIC);
                put_varint(self.buffer, u64::from(scale));
                put_varint_128(self.buffer, zigzag_128(mantissa));
            }
            ValueRef::Numeric(Numeric::NaN) => self.buffer.push(NUMERIC_NAN),
            ValueRef::Numeric(Numeric::PositiveInfinity) => self.buffer.push(NUMERIC_POSITIVE_INFINITY),
            ValueRef::Numeric(Numeric::NegativeInfinity) => self.buffer.push(NUMERIC_NEGATIVE_INFINITY),
            ValueRef::Float(v) => {
                self.buffer.push(FLOAT);
                self.buffer.extend_from_slice(&v.to_bits().to_le_bytes());
            }
            ValueRef::Text(v) => self.put_bytes(TEXT, v.as_bytes()),
            ValueRef::Uuid(v) => {
                self.buffer.push(UUID);
                self.buffer.extend_from_slice(&v);
            }
            ValueRef::Date(v) => {
                self.buffer.push(DATE);
                put_varint(self.buffer, zigzag(i64::from(v)));
            }
            ValueRef::Timestamp(v) => {
                self.buffer.push(TIMESTAMP);
                self.buffer.extend_from_slice(&v.to_le_bytes());
            }
            ValueRef::Opaque(v) => self.put_bytes(OPAQUE, v),
        }
    }

    #[inline]
    fn put_bytes(&mut self, tag: u8, bytes: &[u8]) {
        self.buffer.push(tag);
        put_varint(self.buffer, bytes.len() as u64);
        self.buffer.extend_from_slice(bytes);
    }
}

/// The bytes are not a row of this format: damage, or a newer format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("malformed row image")]
pub struct MalformedRow;

/// One encoded row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RowRef<'a>(pub &'a [u8]);

impl<'a> RowRef<'a> {
    /// The columns in schema order. Ends after the last column, or after the first error.
    #[must_use]
    pub fn columns(self) -> Columns<'a> {
        Columns { rest: self.0 }
    }

    /// Decodes all columns into `into`, which is cleared first and keeps its capacity.
    pub fn decode_into(self, into: &mut Vec<ValueRef<'a>>) -> Result<(), MalformedRow> {
        into.clear();
        for value in self.columns() {
            into.push(value?);
        }
        Ok(())
    }
}

/// Iterator over the columns of a [`RowRef`].
#[derive(Clone, Debug)]
pub struct Columns<'a> {
    rest: &'a [u8],
}

impl<'a> Iterator for Columns<'a> {
    type Item = Result<ValueRef<'a>, MalformedRow>;

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let value = self.take_value();
        if value.is_none() {
            self.rest = &[];
        }
        Some(value.ok_or(MalformedRow))
    }
}

impl<'a> Columns<'a> {
    fn take_value(&mut self) -> Option<ValueRef<'a>> {
        let [tag] = self.take_array::<1>()?;
        Some(match tag {
            NULL => ValueRef::Null,
            UNCHANGED => ValueRef::Unchanged,
            FALSE => ValueRef::Bool(false),
            TRUE => ValueRef::Bool(true),
            INT => ValueRef::Int(unzigzag(take_varint(&mut self.rest)?)),
            NUMERIC => {
                let scale = u16::try_from(take_varint(&mut self.rest)?).ok()?;
                let mantissa = unzigzag_128(take_varint_128(&mut self.rest)?);
                ValueRef::Numeric(Numeric::Finite { mantissa, scale })
            }
            NUMERIC_NAN => ValueRef::Numeric(Numeric::NaN),
            NUMERIC_POSITIVE_INFINITY => ValueRef::Numeric(Numeric::PositiveInfinity),
            NUMERIC_NEGATIVE_INFINITY => ValueRef::Numeric(Numeric::NegativeInfinity),
            FLOAT => ValueRef::Float(f64::from_bits(u64::from_le_bytes(self.take_array()?))),
            TEXT => ValueRef::Text(std::str::from_utf8(self.take_bytes()?).ok()?),
            UUID => ValueRef::Uuid(self.take_array()?),
            DATE => ValueRef::Date(i32::try_from(unzigzag(take_varint(&mut self.rest)?)).ok()?),
            TIMESTAMP => ValueRef::Timestamp(i64::from_le_bytes(self.take_array()?)),
            OPAQUE => ValueRef::Opaque(self.take_bytes()?),
            _ => return None,
        })
    }

    fn take_array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, tail) = self.rest.split_first_chunk::<N>()?;
        self.rest = tail;
        Some(*head)
    }

    fn take_bytes(&mut self) -> Option<&'a [u8]> {
        let length = usize::try_from(take_varint(&mut self.rest)?).ok()?;
        let (head, tail) = self.rest.split_at_checked(length)?;
        self.rest = tail;
        Some(head)
    }
}

pub(crate) const fn zigzag(v: i64) -> u64 {
    ((v << 1) ^ (v >> 63)) as u64
}

pub(crate) const fn unzigzag(v: u64) -> i64 {
    ((v >> 1) as i64) ^ -((v & 1) as i64)
}

pub(crate) const fn zigzag_128(v: i128) -> u128 {
    ((v << 1) ^ (v >> 127)) as u128
}

pub(crate) const fn unzigzag_128(v: u128) -> i128 {
    ((v >> 1) as i128) ^ -((v & 1) as i128)
}

#[inline]
pub(crate) fn put_varint(buffer: &mut Vec<u8>, mut v: u64) {
    while v >= 0x80 {
        buffer.push(v as u8 | 0x80);
        v >>= 7;
    }
    buffer.push(v as u8);
}

#[inline]
pub(crate) fn put_varint_128(buffer: &mut Vec<u8>, mut v: u128) {
    while v > u128::from(u64::MAX) {
        buffer.push(v as u8 | 0x80);
        v >>= 7;
    }
    put_varint(buffer, v as u64);
}

pub(crate) fn take_varint(bytes: &mut &[u8]) -> Option<u64> {
    u64::try_from(take_varint_128(bytes)?).ok()
}

pub(crate) fn take_varint_128(bytes: &mut &[u8]) -> Option<u128> {
    let mut value = 0u128;
    let mut shift = 0u32;
    loop {
        let (&byte, tail) = bytes.split_first()?;
        *bytes = tail;
        let part = u128::from(byte & 0x7F);
        let shifted = part.checked_shl(shift)?;
        if shifted >> shift != part {
            return None;
        }
        value |= shifted;
        if byte & 0x80 == 0 {
            return Some(value);
        }
        shift += 7;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Debug)]
    enum Owned {
        Fixed(ValueRef<'static>),
        Text(String),
        Opaque(Vec<u8>),
    }

    impl Owned {
        fn as_ref(&self) -> ValueRef<'_> {
            match self {
                Owned::Fixed(v) => *v,
                Owned::Text(v) => ValueRef::Text(v),
                Owned::Opaque(v) => ValueRef::Opaque(v),
            }
        }
    }

    fn value() -> impl Strategy<Value = Owned> {
        prop_oneof![
            Just(Owned::Fixed(ValueRef::Null)),
            Just(Owned::Fixed(ValueRef::Unchanged)),
            any::<bool>().prop_map(|v| Owned::Fixed(ValueRef::Bool(v))),
            any::<i64>().prop_map(|v| Owned::Fixed(ValueRef::Int(v))),
            (any::<i128>(), any::<u16>())
                .prop_map(|(mantissa, scale)| Owned::Fixed(ValueRef::Numeric(Numeric::Finite { mantissa, scale }))),
            Just(Owned::Fixed(ValueRef::Numeric(Numeric::NaN))),
            Just(Owned::Fixed(ValueRef::Numeric(Numeric::PositiveInfinity))),
            Just(Owned::Fixed(ValueRef::Numeric(Numeric::NegativeInfinity))),
            (-1e300f64..1e300).prop_map(|v| Owned::Fixed(ValueRef::Float(v))),
            ".*".prop_map(Owned::Text),
            any::<[u8; 16]>().prop_map(|v| Owned::Fixed(ValueRef::Uuid(v))),
            any::<i32>().prop_map(|v| Owned::Fixed(ValueRef::Date(v))),
            any::<i64>().prop_map(|v| Owned::Fixed(ValueRef::Timestamp(v))),
            any::<Vec<u8>>().prop_map(Owned::Opaque),
        ]
    }

    proptest! {
        #[test]
        fn a_row_reads_back_as_written(values in prop::collection::vec(value(), 0..12)) {
            let mut buffer = Vec::new();
            let mut writer = RowWriter::new(&mut buffer);
            values.iter().for_each(|v| writer.push(v.as_ref()));
            let mut decoded = Vec::new();
            prop_assert_eq!(RowRef(&buffer).decode_into(&mut decoded), Ok(()));
            let expected: Vec<_> = values.iter().map(Owned::as_ref).collect();
            prop_assert_eq!(decoded, expected);
        }

        #[test]
        fn any_bytes_decode_or_are_refused(bytes in any::<Vec<u8>>()) {
            let mut decoded = Vec::new();
            let _ = RowRef(&bytes).decode_into(&mut decoded);
        }
    }
}
