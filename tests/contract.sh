#!/bin/sh
# Schemathesis against a running server, from its own OpenAPI document: no answer with status 500, none that is not documented.
#
#   sh tests/contract.sh [CASES_PER_OPERATION [SEED]]      needs python3; fetches schemathesis from PyPI into a cache folder
#
# The server follows made-up payments and asks for a token. In the document the {name} of paths is narrowed to aggregates and sources that
# exist, for three of four cases; the rest stays as it is.
set -eu
cases=${1:-300}
seed=${2:-1}
here=$(cd "$(dirname "$0")/.." && pwd)
target=${CARGO_TARGET_DIR:-$HOME/.cache/tidemark-target}
tools=${XDG_CACHE_HOME:-$HOME/.cache}/tidemark-schemathesis
work=$(mktemp -d)
server=
trap 'test -z "$server" || { kill "$server" 2>/dev/null; wait "$server" || true; }; rm -rf "$work"' EXIT INT TERM
test -x "$tools/bin/schemathesis" || { python3 -m venv "$tools" && "$tools/bin/pip" install -q 'schemathesis==4.32.5'; }

token=$("$target/release/tidemark" token create --tokens "$work/tokens" --scope admin)
"$target/release/tidemark" serve --generator 7 --data "$work/data" --listen 127.0.0.1:0 --tokens "$work/tokens" 2> "$work/log" &
server=$!
until grep -qs 'serving on http://' "$work/log"; do kill -0 "$server"; sleep 0.1; done
url=$(sed -n 's/.*serving on \(http:[^ ]*\).*/\1/p' "$work/log" | head -1)
python3 "$here/tests/contract.py" "$url" "$token" "$work/openapi.json"

# Its notes go where everything else of the run does. Few of what takes seconds each, and last what drops: everything after it
# would be 404.
cd "$work"
run() {
    "$tools/bin/schemathesis" run "$work/openapi.json" --url "$url" --seed "$seed" --header "Authorization: Bearer $token" \
        --phases examples,coverage,fuzzing --workers 2 --request-timeout 40 --suppress-health-check all \
        --checks status_code_conformance,content_type_conformance,response_schema_conformance,negative_data_rejection,ignored_auth "$@"
}
run --max-examples "$cases" --exclude-path-regex '(/live|:rebuild)$' --exclude-method DELETE
run --max-examples 50 --include-path-regex ':rebuild$'
run --max-examples 300 --include-method DELETE
kill -0 "$server"
grep -c ' ERROR ' "$work/log" && exit 1 || echo "no error in the server's log"
