//! Commands in remedies. People paste them into a shell, and the names in them were chosen by others.

/// The text as one word of a command for a POSIX shell: as it is where that is one, otherwise quoted.
#[must_use]
pub fn word(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "_-./:=,@%+".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        text.to_owned()
    } else {
        format!("'{}'", text.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_shell_takes_it_for_one_word() {
        for text in
            ["plain-1_a.b/c", "", "it's; echo pwned #", "$(echo pwned)`echo pwned`", "a b\"c\\", "line\nbreak", "'"]
        {
            let command = format!("printf '<%s>' {}", word(text));
            let said = std::process::Command::new("sh").args(["-c", &command]).output().unwrap().stdout;
            assert_eq!(String::from_utf8(said).unwrap(), format!("<{text}>"), "{command}");
        }
        assert_eq!(word("tidemark_0ld"), "tidemark_0ld");
    }
}
