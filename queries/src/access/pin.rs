//! One aggregate that a token sees, and the part of it: `payments_by_month=currency:EUR`. The surprise: a pin holds names and
//! texts only. The aggregate may be registered anew with other dimensions; then nothing matches, and the token sees nothing.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::query::condition::pairs;

/// One aggregate that a token sees, and the part of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pin {
    /// The aggregate.
    pub aggregate: String,
    /// The value that dimensions are fixed to, `None` for NULL; all of the aggregate where there are none.
    #[serde(rename = "where", default, skip_serializing_if = "Vec::is_empty")]
    pub fixed: Vec<(String, Option<String>)>,
}

impl Pin {
    /// Reads `aggregate` or `aggregate=dimension:value,...`, with values written as in `where`.
    pub fn parse(text: &str) -> Result<Pin, String> {
        let (aggregate, condition) = text.split_once('=').map_or((text, None), |(name, rest)| (name, Some(rest)));
        let fixed = match condition {
            None => Vec::new(),
            Some(condition) => pairs(condition).map_err(|error| error.detail)?,
        };
        // A condition that fixes nothing would show everything.
        if aggregate.is_empty() || (condition.is_some() && fixed.is_empty()) {
            return Err(format!("{text:?} is not of the form aggregate=dimension:value, such as monthly=currency:EUR"));
        }
        Ok(Pin { aggregate: aggregate.to_owned(), fixed })
    }
}

impl fmt::Display for Pin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.aggregate)?;
        for (at, (name, value)) in self.fixed.iter().enumerate() {
            let before = if at == 0 { '=' } else { ',' };
            match value {
                None => write!(f, "{before}{name}:null")?,
                Some(value) => write!(f, "{before}{name}:'{}'", value.replace('\'', "''"))?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_pin_names_an_aggregate_and_fixes_dimensions() {
        let pin = Pin::parse("monthly=currency:'E,U',note:null").unwrap();
        assert_eq!(pin.aggregate, "monthly");
        assert_eq!(pin.fixed, [("currency".to_owned(), Some("E,U".to_owned())), ("note".to_owned(), None)]);
        assert_eq!(Pin::parse(&pin.to_string()).unwrap(), pin);
        assert_eq!(Pin::parse("monthly").unwrap().fixed, []);
        for wrong in ["", "=currency:EUR", "monthly=", "monthly= ", "monthly=currency", "monthly=currency:'E"] {
            assert!(Pin::parse(wrong).is_err(), "{wrong}");
        }
    }
}
