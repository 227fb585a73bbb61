//! Exact sums over doubles: a fixed-point number wide enough for every double, rounded once when read.
//!
//! Therefore the sum does not depend on the order of the rows or on how they were spread over workers, and a retraction
//! really undoes. Adding doubles as doubles does neither. After R. M. Neal, "Fast exact summation using small and large
//! superaccumulators" (2015), but sparse: amounts of similar size touch a few words only.
//!
//! Value = sum over i of `words[i] * 2^(32 * (base + i) - 1074)`. Canonical: all words but the last are in `[0, 2^32)`,
//! the last is signed and not 0 (nor -1 where the word below could absorb it), the first is not 0.

use serde::{Deserialize, Serialize};

use super::sum::{Special, Specials};

/// Sum of doubles.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct FloatSum {
    /// Non-NULL values, finite or not.
    pub values: i64,
    /// Values that are not finite.
    pub specials: Option<Box<Specials>>,
    /// Weight of the first word, in units of 32 bits above the smallest double.
    pub base: i32,
    /// The number's words, least significant first.
    pub words: Vec<i64>,
}

const WORD: i64 = 1 << 32;

impl FloatSum {
    /// Adds (`sign` 1) or removes (`sign` -1) one value.
    #[must_use]
    pub fn add(&mut self, value: f64, sign: i64) -> Option<()> {
        self.values = self.values.checked_add(sign)?;
        let special = match value {
            v if v.is_nan() => Special::NaN,
            f64::INFINITY => Special::Positive,
            f64::NEG_INFINITY => Special::Negative,
            v => {
                self.add_finite(if sign < 0 { -v } else { v });
                return Some(());
            }
        };
        Specials::merge_into(&mut self.specials, Specials::one(special, sign))
    }

    fn add_finite(&mut self, value: f64) {
        if value == 0.0 {
            return;
        }
        let bits = value.to_bits();
        let exponent = (bits >> 52 & 0x7FF) as i32;
        let fraction = bits & ((1 << 52) - 1);
        // In units of 2^-1074: subnormals have no hidden bit.
        let (mantissa, shift) = if exponent == 0 { (fraction, 0) } else { (fraction | 1 << 52, exponent - 1) };
        let spread = u128::from(mantissa) << (shift % 32);
        let negative = bits >> 63 == 1;
        let word = |index: u32| {
            let word = (spread >> (32 * index) & 0xFFFF_FFFF) as i64;
            if negative { -word } else { word }
        };
        self.add_words(shift / 32, &[word(0), word(1), word(2)]);
    }

    fn add_words(&mut self, base: i32, words: &[i64]) {
        if self.words.is_empty() {
            self.base = base;
        }
        while self.base > base {
            self.words.insert(0, 0);
            self.base -= 1;
        }
        let offset = (base - self.base) as usize;
        if self.words.len() < offset + words.len() {
            self.words.resize(offset + words.len(), 0);
        }
        for (slot, word) in self.words.iter_mut().skip(offset).zip(words) {
            *slot += word;
        }
        self.canonicalise();
    }

    fn canonicalise(&mut self) {
        let mut carry = 0i64;
        for word in &mut self.words {
            let total = *word + carry;
            *word = total.rem_euclid(WORD);
            carry = total.div_euclid(WORD);
        }
        // The sign lives in the last word: -1 above `w` is the same as `w - 2^32` alone.
        if carry != 0 {
            self.words.push(carry);
        }
        loop {
            match self.words.as_mut_slice() {
                [.., 0] => {
                    self.words.pop();
                }
                [.., below, -1] if *below > 0 => {
                    *below -= WORD;
                    self.words.pop();
                }
                _ => break,
            }
        }
        let zeros = self.words.iter().take_while(|word| **word == 0).count();
        self.words.drain(..zeros);
        self.base = if self.words.is_empty() { 0 } else { self.base + zeros as i32 };
    }

    /// Adds another sum.
    #[must_use]
    pub fn merge(&mut self, other: &FloatSum) -> Option<()> {
        self.values = self.values.checked_add(other.values)?;
        if !other.words.is_empty() {
            self.add_words(other.base, &other.words);
        }
        match &other.specials {
            Some(specials) => Specials::merge_into(&mut self.specials, **specials),
            None => Some(()),
        }
    }

    /// The additive inverse.
    #[must_use]
    pub fn negate(&self) -> FloatSum {
        let specials = self.specials.as_ref().map(|s| {
            Box::new(Specials {
                nan: s.nan.wrapping_neg(),
                positive: s.positive.wrapping_neg(),
                negative: s.negative.wrapping_neg(),
            })
        });
        let mut negated = FloatSum { values: self.values.wrapping_neg(), specials, base: 0, words: Vec::new() };
        if !self.words.is_empty() {
            let words: Vec<i64> = self.words.iter().map(|word| -word).collect();
            negated.add_words(self.base, &words);
        }
        negated
    }

    /// True where nothing is left of what was added.
    #[must_use]
    pub fn is_zero(&self) -> bool {
        self.values == 0 && self.words.is_empty() && self.specials.is_none()
    }

    /// The sum as the nearest double, ties to even; infinite where it is out of range.
    #[must_use]
    pub fn finish(&self) -> f64 {
        match self.specials.as_ref().and_then(|s| s.finish()) {
            Some(Special::NaN) => return f64::NAN,
            Some(Special::Positive) => return f64::INFINITY,
            Some(Special::Negative) => return f64::NEG_INFINITY,
            None => {}
        }
        let negative = self.words.last().is_some_and(|word| *word < 0);
        let magnitude = if negative { self.negate() } else { self.clone() };
        let rounded = magnitude.round_magnitude();
        if negative { -rounded } else { rounded }
    }

    /// Nearest double of a sum that is not negative.
    fn round_magnitude(&self) -> f64 {
        // The top three words hold at least 65 significant bits unless there are fewer words; what is below only matters
        // as "more than nothing". The last word stays below 2^63, so it may take two words' room.
        let count = self.words.len();
        let mut top = 0u128;
        for word in self.words.iter().rev().take(3) {
            top = top << 32 | (*word as u128 & 0xFFFF_FFFF_FFFF_FFFF);
        }
        let taken = count.min(3);
        let sticky = self.words.iter().take(count - taken).any(|word| *word != 0);
        if top == 0 {
            return 0.0;
        }
        let exponent = 32 * (self.base + (count - taken) as i32);
        let bits = 128 - top.leading_zeros() as i32;
        // Doubles near zero have fewer than 53 bits: their last bit is always worth 2^-1074, which is exponent 0 here.
        let drop = (bits - 53).max(-exponent);
        if drop <= 0 {
            return compose(top as u64, exponent);
        }
        let kept = (top >> drop) as u64;
        let rest = top & ((1u128 << drop) - 1);
        let half = 1u128 << (drop - 1);
        let up = rest > half || rest == half && (sticky || kept & 1 == 1);
        compose(kept + u64::from(up), exponent + drop)
    }
}

/// `mantissa * 2^(exponent - 1074)` for a mantissa of at most 54 bits that is representable.
fn compose(mut mantissa: u64, mut exponent: i32) -> f64 {
    if mantissa == 1 << 53 {
        mantissa >>= 1;
        exponent += 1;
    }
    while mantissa < 1 << 52 && exponent > 0 {
        mantissa <<= 1;
        exponent -= 1;
    }
    if mantissa < 1 << 52 {
        return f64::from_bits(mantissa);
    }
    let biased = exponent + 1;
    if biased >= 0x7FF {
        return f64::INFINITY;
    }
    f64::from_bits((biased as u64) << 52 | mantissa & ((1 << 52) - 1))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing)]
    use proptest::prelude::*;

    use super::*;

    fn sum(values: &[f64]) -> FloatSum {
        let mut sum = FloatSum::default();
        values.iter().for_each(|v| sum.add(*v, 1).unwrap());
        sum
    }

    fn finite() -> impl Strategy<Value = f64> {
        prop_oneof![any::<u64>().prop_map(f64::from_bits).prop_filter("finite", |v| v.is_finite()), -1e6..1e6f64]
    }

    #[test]
    fn the_classic_cases() {
        assert_eq!(sum(&[1e100, 1.0, -1e100]).finish(), 1.0);
        assert_eq!(sum(&[0.1; 10]).finish(), 1.0);
        assert_eq!(sum(&[f64::MAX, f64::MAX]).finish(), f64::INFINITY);
        assert_eq!(sum(&[f64::MAX, f64::MAX, -f64::MAX]).finish(), f64::MAX);
        assert_eq!(sum(&[5e-324, 5e-324]).finish(), 1e-323);
        assert_eq!(sum(&[1.0, f64::EPSILON / 2.0]).finish(), 1.0);
        assert_eq!(sum(&[1.0, f64::EPSILON / 2.0, 5e-324]).finish(), 1.0 + f64::EPSILON);
        assert_eq!(sum(&[-0.5, -0.25]).finish(), -0.75);
    }

    proptest! {
        #[test]
        fn one_value_comes_back(v in finite()) {
            prop_assert_eq!(sum(&[v]).finish(), v);
        }

        /// Two doubles: IEEE addition is itself the correctly rounded exact sum.
        #[test]
        fn two_values_round_as_the_processor_does(a in finite(), b in finite()) {
            prop_assert_eq!(sum(&[a, b]).finish(), a + b);
        }

        #[test]
        fn order_does_not_matter_and_retraction_undoes(
            mut values in prop::collection::vec(finite(), 0..40), seed in any::<u64>(),
        ) {
            let whole = sum(&values);
            let middle = values.len() / 2;
            let mut merged = sum(&values[..middle]);
            merged.merge(&sum(&values[middle..])).unwrap();
            prop_assert_eq!(&merged, &whole);
            let rotate = if values.is_empty() { 0 } else { seed as usize % values.len() };
            values.rotate_left(rotate);
            prop_assert_eq!(&sum(&values), &whole);
            values.iter().for_each(|v| merged.add(*v, -1).unwrap());
            prop_assert!(merged.is_zero(), "{:?}", merged);
            merged.merge(&whole).unwrap();
            merged.merge(&whole.negate()).unwrap();
            prop_assert!(merged.is_zero());
        }

        /// Integers times a power of two: the exact sum is known.
        #[test]
        fn scaled_integers_sum_exactly(values in prop::collection::vec(-(1i64 << 52)..(1i64 << 52), 0..60), shift in -600i32..600) {
            let scale = 2f64.powi(shift);
            let doubles: Vec<f64> = values.iter().map(|v| *v as f64 * scale).collect();
            let exact: i128 = values.iter().map(|v| i128::from(*v)).sum();
            prop_assert_eq!(sum(&doubles).finish(), exact as f64 * scale);
        }
    }
}
