//! Tables that inherit from another one (`INHERITS`), other than as partitions: how they are found, and what is said of a table
//! that has such children.
//!
//! Postgres' own totals of it have their rows, and the publication, which names it alone, has none of their changes: it cannot
//! be followed. The surprise is who has children: a hypertable of TimescaleDB looks like an ordinary table, is empty itself, and
//! has all its rows in chunks, which inherit from it.

/// SQL: the names of some children of the ordinary table `c`, quoted. Not all: a hypertable has thousands.
pub(super) const CHILDREN: &str = "
    ARRAY(SELECT format('%I.%I', cn.nspname, child.relname)
          FROM pg_inherits ci JOIN pg_class child ON child.oid = ci.inhrelid
          JOIN pg_namespace cn ON cn.oid = child.relnamespace
          WHERE c.relkind = 'r' AND ci.inhparent = c.oid ORDER BY child.oid LIMIT 20)";

/// The schemas of TimescaleDB begin so.
const OF_TIMESCALE: &str = "_timescaledb";

/// Why a table with these children cannot be followed; `None` where it has none.
pub(super) fn what(table: &str, children: &[String]) -> Option<String> {
    let first = children.first()?;
    let others = if children.len() > 1 { " and others inherit" } else { " inherits" };
    Some(format!(
        "{first}{others} from {table}: in Postgres the rows of such a table count for {table} too, and their changes do not \
         come with its own"
    ))
}

/// What ends that, and what is to be done `then`.
pub(super) fn remedy(quoted: &str, children: &[String], then: &str) -> String {
    if children.iter().any(|child| child.starts_with(OF_TIMESCALE)) {
        return "the rows of a TimescaleDB hypertable are in its chunks, which cannot be followed: copy them into an ordinary \
                table, or into a partitioned one (PARTITION BY), and follow that"
            .to_owned();
    }
    let statements = children.iter().map(|child| format!("ALTER TABLE {child} NO INHERIT {quoted};"));
    format!("{} -- {then}", statements.collect::<Vec<_>>().join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn children_are_let_go_and_chunks_are_not() {
        let of = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        assert_eq!(what("public.t", &[]), None);
        let children = of(&["public.a", "shop.\"B\""]);
        let told = what("public.t", &children).unwrap_or_default();
        assert!(told.starts_with("public.a and others inherit from public.t: "), "{told}");
        assert_eq!(
            remedy("\"public\".\"t\"", &children, "then ..."),
            "ALTER TABLE public.a NO INHERIT \"public\".\"t\"; ALTER TABLE shop.\"B\" NO INHERIT \"public\".\"t\"; -- then ..."
        );
        let chunks = of(&["_timescaledb_internal._hyper_1_1_chunk"]);
        let told = remedy("\"public\".\"t\"", &chunks, "then ...");
        assert!(told.contains("hypertable") && !told.contains("NO INHERIT"), "{told}");
    }
}
