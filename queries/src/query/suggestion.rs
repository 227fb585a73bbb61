//! The nearest known name, for "did you mean".

/// The known name that is closest to `wrong`, if one is close enough to be what was meant.
#[must_use]
pub fn nearest<'k>(wrong: &str, known: impl IntoIterator<Item = &'k str>) -> Option<&'k str> {
    let wrong: Vec<char> = wrong.chars().take(64).flat_map(char::to_lowercase).collect();
    known
        .into_iter()
        .map(|name| (distance(&wrong, &name.chars().flat_map(char::to_lowercase).collect::<Vec<_>>()), name))
        .filter(|(distance, name)| *distance <= 1 + name.chars().count() / 4)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, name)| name)
}

/// Names that are listed: all parameters of a question, and no more than fit a few lines.
const LISTED: usize = 24;

/// The sentence for a wrong name: the nearest one, or all there are.
#[must_use]
pub fn did_you_mean<'k>(wrong: &str, known: impl IntoIterator<Item = &'k str> + Clone) -> String {
    if let Some(name) = nearest(wrong, known.clone()) {
        return format!("did you mean {name:?}?");
    }
    let (listed, more) = (known.clone().into_iter().take(LISTED), known.into_iter().skip(LISTED).count());
    let listed: Vec<&str> = listed.collect();
    match (listed.is_empty(), more) {
        (true, _) => String::new(),
        (false, 0) => format!("known: {}", listed.join(", ")),
        (false, more) => format!("known: {}, and {more} more", listed.join(", ")),
    }
}

/// Levenshtein's distance: insertions, deletions, substitutions.
fn distance(a: &[char], b: &[char]) -> usize {
    let mut previous: Vec<usize> = (0..=b.len()).collect();
    for (row, x) in a.iter().enumerate() {
        let mut left = row + 1;
        let mut current = vec![left];
        for (y, pair) in b.iter().zip(previous.windows(2)) {
            let (diagonal, above) = (pair.first().copied().unwrap_or(0), pair.last().copied().unwrap_or(0));
            left = (diagonal + usize::from(x != y)).min(above + 1).min(left + 1);
            current.push(left);
        }
        previous = current;
    }
    previous.last().copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_finds_the_name_and_another_word_does_not() {
        let known = ["granularity", "group_by", "from", "to"];
        assert_eq!(nearest("granularty", known), Some("granularity"));
        assert_eq!(nearest("groupby", known), Some("group_by"));
        assert_eq!(nearest("From", known), Some("from"));
        assert_eq!(nearest("elephant", known), None);
        assert_eq!(did_you_mean("elephant", ["a", "b"]), "known: a, b");
    }
}
