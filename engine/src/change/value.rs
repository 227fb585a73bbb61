//! One value of one column, in Postgres' own units, so that nothing is lost between the wire and the store.

/// 2000-01-01T00:00:00Z, from where times count, in microseconds since 1970.
pub const EPOCH_UNIX_US: i64 = 946_684_800_000_000;

/// A Postgres `numeric`: exact decimal, or one of the three values that are not numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Numeric {
    /// `mantissa * 10^-scale`. Not normalised: `1.0` and `1.00` differ here and are the same group.
    Finite {
        /// All digits as one integer.
        mantissa: i128,
        /// Digits after the decimal point.
        scale: u16,
    },
    /// `NaN`
    NaN,
    /// `Infinity`
    PositiveInfinity,
    /// `-Infinity`
    NegativeInfinity,
}

impl Numeric {
    /// The mantissa at another scale, or `None` where digits would be lost or 128 bits do not suffice.
    #[must_use]
    pub fn rescale(mantissa: i128, from: u16, to: u16) -> Option<i128> {
        if mantissa == 0 || from == to {
            return Some(mantissa);
        }
        if to > from {
            return mantissa.checked_mul(10i128.checked_pow(u32::from(to - from))?);
        }
        let divisor = 10i128.checked_pow(u32::from(from - to))?;
        (mantissa % divisor == 0).then_some(mantissa / divisor)
    }

    /// The same number without trailing zeros after the point.
    #[must_use]
    pub fn normalise(mut mantissa: i128, mut scale: u16) -> (i128, u16) {
        if mantissa == 0 {
            return (0, 0);
        }
        while scale > 0 && mantissa % 10 == 0 {
            mantissa /= 10;
            scale -= 1;
        }
        (mantissa, scale)
    }
}

/// A borrowed value of one column.
///
/// Times count from 2000-01-01 as in Postgres, because its last timestamp does not fit 64-bit microseconds from 1970:
/// `Date` in days with `i32::MIN`/`MAX` as the infinities, `Timestamp` in microseconds with `i64::MIN`/`MAX`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum ValueRef<'a> {
    /// SQL NULL.
    Null,
    /// A large value that this update did not touch and that Postgres therefore did not send. Only on the wire, never in
    /// a row image: the old row completes it.
    Unchanged,
    /// `boolean`
    Bool(bool),
    /// `int2`, `int4`, `int8`
    Int(i64),
    /// `numeric` that fits 128 bits; a wider one arrives as `Opaque`.
    Numeric(Numeric),
    /// `float4`, `float8`
    Float(f64),
    /// `text`, `varchar`, `char(n)` (without its padding), valid UTF-8
    Text(&'a str),
    /// `uuid`
    Uuid([u8; 16]),
    /// `date`
    Date(i32),
    /// `timestamp` (as if in UTC) and `timestamptz`
    Timestamp(i64),
    /// Bytes of a type that can neither be aggregated nor grouped by; kept, never interpreted.
    Opaque(&'a [u8]),
}

/// An owned value of a dimension, as groups are named in answers and filters. Units as in [`ValueRef`].
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// SQL NULL.
    Null,
    /// `boolean`
    Bool(bool),
    /// `int2`, `int4`, `int8`
    Int(i64),
    /// `numeric`, without trailing zeros
    Numeric(Numeric),
    /// `float4`, `float8`
    Float(f64),
    /// Text, without the padding of `char(n)`
    Text(String),
    /// `uuid`
    Uuid([u8; 16]),
    /// `date`, days since 2000-01-01
    Date(i32),
    /// `timestamp`, `timestamptz`, microseconds since 2000-01-01
    Timestamp(i64),
}

impl Value {
    /// The same value, borrowed.
    #[must_use]
    pub fn as_ref(&self) -> ValueRef<'_> {
        match self {
            Value::Null => ValueRef::Null,
            Value::Bool(v) => ValueRef::Bool(*v),
            Value::Int(v) => ValueRef::Int(*v),
            Value::Numeric(v) => ValueRef::Numeric(*v),
            Value::Float(v) => ValueRef::Float(*v),
            Value::Text(v) => ValueRef::Text(v),
            Value::Uuid(v) => ValueRef::Uuid(*v),
            Value::Date(v) => ValueRef::Date(*v),
            Value::Timestamp(v) => ValueRef::Timestamp(*v),
        }
    }
}
