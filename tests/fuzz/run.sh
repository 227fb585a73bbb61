#!/bin/sh
# Runs every target for a number of executions each: sh tests/fuzz/run.sh [EXECUTIONS [TARGET...]]
# Needs a C++ compiler for libFuzzer and nothing else: the coverage flags are known to the stable compiler.
# New inputs go to $CARGO_TARGET_DIR/corpus, never into the clone; an input that fails is written there too and named.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
runs=${1:-100000}
[ $# -gt 0 ] && shift
targets=${*:-"pgoutput copy_binary numeric value row_image"}
# Instrumented code must not mix with the product's own build.
export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-$HOME/.cache/tidemark-target}/fuzz"
export RUSTFLAGS="--cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
-Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
-Cllvm-args=-sanitizer-coverage-trace-compares"
# With a target named, the flags do not reach build scripts, which have nothing to be linked with.
machine=$(rustc -vV | sed -n 's/^host: //p')
cargo build --release --manifest-path "$here/Cargo.toml" --target "$machine"
for target in $targets; do
    new="$CARGO_TARGET_DIR/corpus/$target"
    mkdir -p "$new"
    echo "== $target: $runs executions"
    "$CARGO_TARGET_DIR/$machine/release/$target" -runs="$runs" -max_len=4096 -print_final_stats=1 \
        -artifact_prefix="$new/failed-" "$new" "$here/corpus/$target"
done
