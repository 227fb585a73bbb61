//! Exact sums over integers and decimals: 128-bit fixed point at the measure's scale.
//!
//! NaN and the infinities of `numeric` are counted beside the finite sum. So removing the row with the NaN makes the sum
//! finite again, which adding into one number could not.

use serde::{Deserialize, Serialize};

/// Sum of decimals at one scale.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Sum {
    /// Sum of the finite values, times `10^scale`.
    pub finite: i128,
    /// Non-NULL values, finite or not. SUM of none is NULL.
    pub values: i64,
    /// Values that are not numbers; nearly always absent.
    pub specials: Option<Box<Specials>>,
}

/// How many values were not finite.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Specials {
    /// `NaN`
    pub nan: i64,
    /// `Infinity`
    pub positive: i64,
    /// `-Infinity`
    pub negative: i64,
}

/// What the values that are not finite make of a sum, by the rules of IEEE 754 and Postgres.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Special {
    /// Not a number.
    NaN,
    /// Infinity
    Positive,
    /// -Infinity
    Negative,
}

impl Specials {
    /// One value that is not finite.
    #[must_use]
    pub fn one(special: Special, sign: i64) -> Specials {
        match special {
            Special::NaN => Specials { nan: sign, ..Specials::default() },
            Special::Positive => Specials { positive: sign, ..Specials::default() },
            Special::Negative => Specials { negative: sign, ..Specials::default() },
        }
    }

    /// Adds other counts; `None` past 64 bits.
    #[must_use]
    pub fn merge(self, other: Specials) -> Option<Specials> {
        Some(Specials {
            nan: self.nan.checked_add(other.nan)?,
            positive: self.positive.checked_add(other.positive)?,
            negative: self.negative.checked_add(other.negative)?,
        })
    }

    /// The sum, where it is not finite.
    #[must_use]
    pub fn finish(self) -> Option<Special> {
        match (self.nan != 0, self.positive != 0, self.negative != 0) {
            (true, _, _) | (_, true, true) => Some(Special::NaN),
            (_, true, _) => Some(Special::Positive),
            (_, _, true) => Some(Special::Negative),
            _ => None,
        }
    }

    /// Merges into an optional box, keeping it absent where all counts are zero.
    pub(super) fn merge_into(slot: &mut Option<Box<Specials>>, other: Specials) -> Option<()> {
        let merged = slot.as_deref().copied().unwrap_or_default().merge(other)?;
        *slot = (merged != Specials::default()).then(|| Box::new(merged));
        Some(())
    }
}

impl Sum {
    /// Adds (`sign` 1) or removes (`sign` -1) a finite value already at this measure's scale. `None` past 128 bits.
    #[must_use]
    pub fn add_finite(&mut self, value: i128, sign: i64) -> Option<()> {
        let signed = if sign < 0 { value.checked_neg()? } else { value };
        self.finite = self.finite.checked_add(signed)?;
        self.values = self.values.checked_add(sign)?;
        Some(())
    }

    /// Adds or removes a value that is not finite.
    #[must_use]
    pub fn add_special(&mut self, special: Special, sign: i64) -> Option<()> {
        self.values = self.values.checked_add(sign)?;
        Specials::merge_into(&mut self.specials, Specials::one(special, sign))
    }

    /// Adds another sum of the same scale. `None` past 128 bits.
    #[must_use]
    pub fn merge(&mut self, other: &Sum) -> Option<()> {
        self.finite = self.finite.checked_add(other.finite)?;
        self.values = self.values.checked_add(other.values)?;
        match &other.specials {
            Some(specials) => Specials::merge_into(&mut self.specials, **specials),
            None => Some(()),
        }
    }

    /// Adds another sum of the same scale modulo 2^128: what is added can be taken away again, however large it becomes
    /// meanwhile. No number to show.
    #[must_use]
    pub fn merge_modulo(&mut self, other: &Sum) -> Option<()> {
        let finite = self.finite.wrapping_add(other.finite);
        self.finite = 0;
        self.merge(&Sum { finite: 0, ..other.clone() })?;
        self.finite = finite;
        Some(())
    }

    /// True where nothing is left of what was added.
    #[must_use]
    pub fn is_zero(&self) -> bool {
        self.finite == 0 && self.values == 0 && self.specials.is_none()
    }

    /// The additive inverse. `None` for the one number that has none.
    #[must_use]
    pub fn negate(&self) -> Option<Sum> {
        let mut negated =
            Sum { finite: self.finite.checked_neg()?, values: self.values.checked_neg()?, specials: None };
        if let Some(specials) = &self.specials {
            let flipped = Specials {
                nan: specials.nan.checked_neg()?,
                positive: specials.positive.checked_neg()?,
                negative: specials.negative.checked_neg()?,
            };
            negated.specials = Some(Box::new(flipped));
        }
        Some(negated)
    }
}
