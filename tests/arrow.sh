#!/bin/sh
# Answers as Arrow read by pyarrow, another implementation than the one that writes them, and held against the JSON answers.
#
#   sh tests/arrow.sh      needs python3; fetches pyarrow from PyPI into a cache folder
set -eu
here=$(cd "$(dirname "$0")/.." && pwd)
target=${CARGO_TARGET_DIR:-$HOME/.cache/tidemark-target}
tools=${XDG_CACHE_HOME:-$HOME/.cache}/tidemark-pyarrow
work=$(mktemp -d)
server=
trap 'test -z "$server" || { kill "$server" 2>/dev/null; wait "$server" || true; }; rm -rf "$work"' EXIT INT TERM
"$tools/bin/python" -c 'import pyarrow' 2>/dev/null || { python3 -m venv "$tools" && "$tools/bin/pip" install -q pyarrow tzdata; }

"$target/release/tidemark" serve --generator 7 --data "$work/data" --listen 127.0.0.1:0 2> "$work/log" &
server=$!
until grep -qs 'serving on http://' "$work/log"; do kill -0 "$server"; sleep 0.1; done
url=$(sed -n 's/.*serving on \(http:[^ ]*\).*/\1/p' "$work/log" | head -1)
"$tools/bin/python" "$here/tests/arrow.py" "$url"
