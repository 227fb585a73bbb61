#!/bin/sh
# Builds the page from its sources: `sh queries/dashboard/build.sh` writes dist/, which is committed so that cargo needs no
# npm; with --check it builds elsewhere and says whether dist/ is what the sources give.
#
# The tools are installed once per lockfile, outside the clone.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
command -v npm >/dev/null || { echo "npm is needed to build the page (on Debian: apt-get install npm)" >&2; exit 1; }
# What builds it wants node 20.19 or newer; a distribution may have an older one, with which cargo and the page work too.
if ! node -e 'const [major, minor] = process.versions.node.split(".").map(Number); process.exit(major > 20 || (major === 20 && minor >= 19) ? 0 : 1)'; then
    echo "node $(node --version) is too old to build the page: it takes 20.19 or newer" >&2
    if [ "${1:-}" = --check ]; then echo "not checked"; exit 0; fi
    exit 1
fi
lock=$(cat "$here/package.json" "$here/package-lock.json" | cksum | tr ' ' '-')
tools=${XDG_CACHE_HOME:-$HOME/.cache}/tidemark-dashboard/$lock
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
for part in "$here"/*; do
    case $(basename "$part") in dist | node_modules) ;; *) cp -R "$part" "$work" ;; esac
done
ln -s "$tools/node_modules" "$work/node_modules"
(cd "$work" && npm run --silent build)

if [ "${1:-}" = --check ]; then
    diff -r "$work/dist" "$here/dist" >/dev/null && exit 0
    echo "queries/dashboard/dist is not what the sources give: run make dashboard and commit it" >&2
    exit 1
fi
rm -rf "$here/dist"
cp -R "$work/dist" "$here/dist"
