#!/bin/sh
# Prints the directory with the browser's driver (playwright-core) and axe-core, fetching them first where they are not
# there yet; once per lockfile, outside the clone. Ordinary npm packages, nothing of them is run on install.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
command -v npm >/dev/null || { echo "npm is needed for the test of the page (on Debian: apt-get install npm)" >&2; exit 1; }
lock=$(cksum < "$here/package-lock.json" | tr ' ' '-')
tools=${XDG_CACHE_HOME:-$HOME/.cache}/tidemark-browser/$lock
if [ ! -d "$tools/node_modules" ]; then
    mkdir -p "$(dirname "$tools")"
    fetched=$(mktemp -d "$(dirname "$tools")/fetching-XXXXXX")
    cp "$here/package.json" "$here/package-lock.json" "$fetched"
    npm ci --silent --ignore-scripts --no-audit --no-fund --prefix "$fetched" >&2
    # Somebody else may have been faster.
    mv "$fetched" "$tools" 2>/dev/null || rm -rf "$fetched"
fi
echo "$tools"
