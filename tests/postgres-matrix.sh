#!/bin/sh
# Runs what talks to Postgres against each major version, one after the other, and prints a table: `sh tests/postgres-matrix.sh` for
# all, `sh tests/postgres-matrix.sh 14 18` for some. Programs come from tests/postgres-binaries.sh; pgbench and the like are
# Debian's, which work with every server. Logs stay in the folder it names.
set -u
cd "$(dirname "$0")/.."

logs=${TMPDIR:-/tmp}/tidemark-matrix
mkdir -p "$logs"
cargo test --release -p connectors -p tidemark --test postgres --test tests --no-run || exit 1

table="" all_passed=0 all_failed=0
for major in ${*:-14 15 16 17 18}; do
    if ! TIDEMARK_PG_BIN=$(sh tests/postgres-binaries.sh "$major"); then
        all_failed=$((all_failed + 1))
        table="$table
$major	no programs"
        continue
    fi
    export TIDEMARK_PG_BIN
    version=$("$TIDEMARK_PG_BIN/postgres" --version | sed 's/.* \([0-9][0-9.]*\).*/\1/')
    echo "Postgres $version ($TIDEMARK_PG_BIN)"
    log=$logs/$major.log
    # One test at a time: a version that is slow on a busy machine is not a version that fails.
    cargo test --release -p connectors -p tidemark --test postgres >"$log" 2>&1
    cargo test --release -p connectors -p tidemark --test tests -- --nocapture --test-threads=2 >>"$log" 2>&1
    passed=$(sed -n 's/^test result: .* \([0-9]*\) passed; .*/\1/p' "$log" | awk '{ n += $1 } END { print n + 0 }')
    failed=$(sed -n 's/^test result: .* \([0-9]*\) failed; .*/\1/p' "$log" | awk '{ n += $1 } END { print n + 0 }')
    [ "$(grep -c '^test result: ' "$log")" = 2 ] || failed=$((failed + 1))
    grep -E '^test .*(FAILED|failed)$|^    [a-z_:]+$' "$log" | sort -u
    all_passed=$((all_passed + passed)) all_failed=$((all_failed + failed))
    table="$table
$version	$passed	$failed"
done

printf 'version\tpassed\tfailed%s\n' "$table"
echo "logs are in $logs"
echo "$all_passed passed, $all_failed failed"
[ "$all_failed" = 0 ]
