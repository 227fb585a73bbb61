//! A `numeric` beyond 128 bits as Postgres writes it. It is kept as it came and never added up, but its digits can be shown.

const NEGATIVE: u16 = 0x4000;

/// The digits of a value that was kept as it came: in Postgres' binary form, or as the text that Debezium sent, which is shown as it is.
pub(super) fn wide_numeric(bytes: &[u8]) -> String {
    digits_of_binary(bytes)
        .unwrap_or_else(|| String::from_utf8_lossy(bytes).trim_matches(|c: char| c == '"').to_owned())
}

/// Postgres' binary form: number of digits, weight of the first, sign and digits after the point, then digits to the base of 10,000.
fn digits_of_binary(bytes: &[u8]) -> Option<String> {
    let (header, digits) = bytes.split_first_chunk::<8>()?;
    let &[n0, n1, w0, w1, s0, s1, d0, d1] = header;
    let weight = i32::from(i16::from_be_bytes([w0, w1]));
    let sign = u16::from_be_bytes([s0, s1]);
    let scale = usize::from(u16::from_be_bytes([d0, d1]));
    let (digits, cut) = digits.as_chunks::<2>();
    let whole = cut.is_empty() && digits.len() == usize::from(u16::from_be_bytes([n0, n1]));
    if !whole || !matches!(sign, 0 | NEGATIVE) {
        return None;
    }
    // Of a power of 10,000; none is stored where zeros stand before or behind.
    let digit = |power: i32| {
        let at = usize::try_from(weight - power).ok();
        at.and_then(|at| digits.get(at)).map_or(0, |digit| u16::from_be_bytes(*digit))
    };
    let mut before: String = (0..=weight.max(0)).rev().map(|power| format!("{:04}", digit(power))).collect();
    before.drain(..before.len() - before.trim_start_matches('0').len().max(1));
    let groups = i32::try_from(scale.div_ceil(4)).ok()?;
    let after: String = (1..=groups).map(|group| format!("{:04}", digit(-group))).collect();
    let sign = if sign == NEGATIVE { "-" } else { "" };
    let point = if scale > 0 { "." } else { "" };
    Some(format!("{sign}{before}{point}{}", after.get(..scale)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What `numeric_send` of Postgres 15 makes of each.
    #[test]
    fn a_wide_number_is_written_as_postgres_writes_it() {
        let bytes = |words: &[u16]| words.iter().flat_map(|word| word.to_be_bytes()).collect::<Vec<u8>>();
        for (words, expected) in [
            (&[1, 10, 0, 0, 1][..], "10000000000000000000000000000000000000000"),
            (
                &[12, 10, 16384, 1, 1, 2345, 6789, 123, 4567, 8901, 2345, 6789, 123, 4567, 8901, 5000][..],
                "-12345678901234567890123456789012345678901.5",
            ),
            (
                &[11, 65535, 0, 43, 1234, 5678, 9012, 3456, 7890, 1234, 5678, 9012, 3456, 7890, 1230][..],
                "0.1234567890123456789012345678901234567890123",
            ),
            (&[1, 10, 0, 2, 10][..], "100000000000000000000000000000000000000000.00"),
            (&[1, 65524, 16384, 50, 123][..], "-0.00000000000000000000000000000000000000000000012300"),
            (
                &[12, 10, 0, 4, 9999, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1][..],
                "99990000000000000000000000000000000000000000.0001",
            ),
            (
                &[10, 9, 0, 0, 340, 2823, 6692, 938, 4634, 6337, 4607, 4317, 6821, 1456][..],
                "340282366920938463463374607431768211456",
            ),
        ] {
            assert_eq!(wide_numeric(&bytes(words)), expected);
        }
    }

    #[test]
    fn what_is_no_binary_form_is_shown_as_it_came() {
        assert_eq!(
            wide_numeric(b"\"1234567890123456789012345678901234567890.5\""),
            "1234567890123456789012345678901234567890.5"
        );
        assert_eq!(wide_numeric(br#"{"scale":0,"value":"f39/"}"#), r#"{"scale":0,"value":"f39/"}"#);
    }
}
