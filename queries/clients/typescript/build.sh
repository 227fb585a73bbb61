#!/bin/sh
# Builds the client: the types of src/contract.ts from ../../openapi.json, then dist/ where the first argument says (next to
# this script without one). --contract writes src/contract.ts, which is committed; otherwise it is held against the contract.
#
# The tools are installed once per lockfile, outside the clone.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
command -v npm >/dev/null || { echo "npm is needed to build the client (on Debian: apt-get install npm)" >&2; exit 1; }
lock=$(cat "$here/package.json" "$here/package-lock.json" | cksum | tr ' ' '-')
tools=${XDG_CACHE_HOME:-$HOME/.cache}/tidemark-client/$lock
if [ ! -d "$tools/node_modules" ]; then
    mkdir -p "$(dirname "$tools")"
    fetched=$(mktemp -d "$(dirname "$tools")/fetching-XXXXXX")
    cp "$here/package.json" "$here/package-lock.json" "$fetched"
    npm ci --silent --ignore-scripts --no-audit --no-fund --prefix "$fetched" >&2
    # Somebody else may have been faster.
    mv "$fetched" "$tools" 2>/dev/null || rm -rf "$fetched"
fi

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cp -R "$here/package.json" "$here/tsconfig.json" "$here/src" "$here/example" "$here/../../openapi.json" "$work"
ln -s "$tools/node_modules" "$work/node_modules"
(cd "$work" && npm run --silent contract >/dev/null)
if [ "${1:-}" = --contract ]; then
    cp "$work/src/contract.ts" "$here/src/contract.ts"
    exit 0
fi
if ! diff "$work/src/contract.ts" "$here/src/contract.ts" >/dev/null; then
    echo "src/contract.ts is not what the contract gives: run make clients and commit it" >&2
    exit 1
fi
(cd "$work" && npm run --silent build)
to=${1:-$here}
mkdir -p "$to"
rm -rf "$to/dist"
cp -R "$work/dist" "$to/dist"
# For whoever runs it from there.
[ "$to" = "$here" ] || { cp "$work/package.json" "$to"; ln -sfn "$tools/node_modules" "$to/node_modules"; }
