#!/bin/sh
# Sees that this machine has what building and testing need, and installs what is missing where it knows how: Debian and
# Ubuntu. Says what it does before it does it. Elsewhere it says what to install.
set -eu

any() { for file in "$@"; do [ -e "$file" ] && return 0; done; return 1; }

missing=""
command -v c++ >/dev/null || missing="$missing g++"
command -v make >/dev/null || missing="$missing make"
# For the sweep of file calls, which is skipped where there is none.
command -v cc >/dev/null || missing="$missing gcc"
# The bindings of RocksDB are made from its headers at build time. libclang-cpp, which comes with the compiler, is another library.
# shellcheck disable=SC2086 # the pattern is meant to expand
libclang() { any $1/libclang.so* $1/libclang-[0-9]*.so*; }
libclang '/usr/lib/llvm-*/lib' || libclang '/usr/lib/*' || libclang /usr/lib64 || libclang /usr/local/lib ||
    missing="$missing libclang-dev"
# For the demo and the tests: a server of their own, which the kernel ends with them (setpriv), and pgbench.
any /usr/lib/postgresql/*/bin/initdb || command -v initdb >/dev/null || missing="$missing postgresql"
command -v setpriv >/dev/null || missing="$missing util-linux"
# For power cuts and failing file calls; where tracing is forbidden, they are skipped.
command -v strace >/dev/null || missing="$missing strace"
# For the page's tests: a browser, and what drives it; the packages themselves come from npm, once, outside the clone.
command -v chromium >/dev/null || command -v chromium-browser >/dev/null || command -v google-chrome >/dev/null ||
    missing="$missing chromium"
command -v node >/dev/null || missing="$missing nodejs"
command -v npm >/dev/null || missing="$missing npm"
# For the Python client's test; nothing but its standard library.
command -v python3 >/dev/null || missing="$missing python3"

if [ -n "$missing" ]; then
    if ! command -v apt-get >/dev/null; then
        echo "Please install with your system's package manager: a C and a C++ compiler, libclang (clang's development package)," >&2
        echo "a Postgres server 14 or newer with initdb, setpriv (util-linux), strace, Chromium, python3, and node with npm. Missing, by Debian's names:$missing" >&2
        exit 1
    fi
    as_root=""
    [ "$(id -u)" = 0 ] || as_root="sudo"
    echo "missing:$missing"
    echo "running: $as_root apt-get update; $as_root apt-get install -y --no-install-recommends$missing"
    $as_root apt-get update -q
    # shellcheck disable=SC2086 # one word per package
    $as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends $missing
fi

if ! command -v cargo >/dev/null; then
    echo "Rust is missing. Install version 1.88 or newer from https://rustup.rs, then run this again." >&2
    exit 1
fi
minor=$(cargo --version | sed -E 's/^cargo 1\.([0-9]+).*/\1/')
if [ "$minor" -lt 88 ]; then
    echo "$(cargo --version) is too old: Tidemark needs Rust 1.88 or newer (rustup update)." >&2
    exit 1
fi
