//! Names of tables and schemas with a dot in them, which are refused.
//!
//! The surprise is why: a table is known as `schema.table` without quotes wherever it is kept or asked for, and so `"x.y".z` and
//! `x."y.z"` would take one another's place.

use super::config::quote_identifier;

/// What is wrong with the name of a table, and what puts it right; `None` where nothing is.
pub(crate) fn refused(namespace: &str, name: &str) -> Option<(String, String)> {
    let (new_namespace, new_name) = (namespace.replace('.', "_"), name.replace('.', "_"));
    let mut statements = String::new();
    let quoted = format!("{}.{}", quote_identifier(namespace), quote_identifier(name));
    if new_name != name {
        statements.push_str(&format!("ALTER TABLE {quoted} RENAME TO {}; ", quote_identifier(&new_name)));
    }
    if new_namespace != namespace {
        let (from, to) = (quote_identifier(namespace), quote_identifier(&new_namespace));
        statements.push_str(&format!("ALTER SCHEMA {from} RENAME TO {to}; "));
    }
    if statements.is_empty() {
        return None;
    }
    let what = format!(
        "table {quoted} has a dot in its name or in its schema's: it would be known as {namespace}.{name}, and another table \
         can be as well"
    );
    Some((what, format!("{statements}-- it is {new_namespace}.{new_name} then")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_part_with_a_dot_is_renamed() {
        let remedy = |namespace, name| refused(namespace, name).map(|(_, remedy)| remedy);
        assert_eq!(remedy("public", "payments"), None);
        let table = r#"ALTER TABLE "public"."Pay.ments" RENAME TO "Pay_ments"; -- it is public.Pay_ments then"#;
        assert_eq!(remedy("public", "Pay.ments").as_deref(), Some(table));
        let schema = r#"ALTER SCHEMA "x.""y" RENAME TO "x_""y"; -- it is x_"y.z then"#;
        assert_eq!(remedy("x.\"y", "z").as_deref(), Some(schema));
        // The table is still in the schema of the old name.
        let both =
            r#"ALTER TABLE "a.b"."c.d" RENAME TO "c_d"; ALTER SCHEMA "a.b" RENAME TO "a_b"; -- it is a_b.c_d then"#;
        assert_eq!(remedy("a.b", "c.d").as_deref(), Some(both));
    }
}
