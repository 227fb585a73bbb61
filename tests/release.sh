#!/bin/sh
# What is too long for the ordinary run: each step as often as a release wants it (the table in README.md). All of them are a night of
# two cores; any of them can be had alone, and another time.
#
#   sh tests/release.sh DIRECTORY [STEP...]      what a step says is in DIRECTORY/STEP.log, what became of it in DIRECTORY/summary,
#                                                what a failure was found in in DIRECTORY/STEP.kept
#
#   with Postgres  | one after the other, these two rows beside one another: who waits for Postgres leaves processors idle
#   without        |
#   alone          | afterwards: what is measured
set -eu

with_postgres='lives failpoints power_cuts traced_calls mistakes faults histories verifications disk contract'
without='simulation calls damages models inputs schedules'
alone='soak crowd restarts'

target=${CARGO_TARGET_DIR:-$HOME/.cache/tidemark-target}
export CARGO_TARGET_DIR="$target"
cd "$(dirname "$0")/.."
[ $# -gt 0 ] || { sed -n '2,11s/^# \{0,1\}//p' "$0"; echo "steps: $with_postgres $without $alone" >&2; exit 2; }
mkdir -p "$1"
logs=$(cd "$1" && pwd)
shift
chosen=${*:-$with_postgres $without $alone}
for step in $chosen; do
    case " $with_postgres $without $alone " in *" $step "*) ;; *) echo "there is no step $step" >&2; exit 2 ;; esac
done

torture() { "$target/release/torture" "$@" --keep "$logs/$step.kept"; }
test_of() { package=$1; shift; cargo test --release -p "$package" "$@" --nocapture; }

step() {
    case $1 in
        lives) torture run --cycles 10000 ;;
        failpoints) torture sweep --rounds 51 ;;
        power_cuts) torture power-cut --cuts 2000 ;;
        traced_calls) torture file-calls --failures 500 ;;
        mistakes) torture self-test --seeds 5 ;;
        faults) TIDEMARK_FAULT_CYCLES=2000 test_of tidemark --test tests -- faults:: ;;
        histories) TIDEMARK_HISTORIES=20000 test_of tidemark --test tests -- oracle:: ;;
        verifications) TIDEMARK_VERIFICATIONS=1000 test_of tidemark --test tests -- verify::every_cell ;;
        disk) TIDEMARK_DISK_ROUNDS=100 test_of tidemark --test tests -- disk:: ;;
        contract) sh tests/contract.sh 4500 ;;
        simulation) torture simulate --seeds 1000000 ;;
        calls) torture io-sweep --every ;;
        damages) torture corrupt --damages 10000 ;;
        models) TIDEMARK_HISTORIES=5000000 TIDEMARK_SEED=$began test_of engine --test many_histories -- ;;
        inputs)
            # Thirteen readers.
            export TIDEMARK_EXECUTIONS=15400000 TIDEMARK_SEED="$began"
            test_of engine --test malformed -- && test_of connectors --lib -- fuzzing:: && test_of queries --lib -- malformed:: ;;
        schedules) TIDEMARK_SCHEDULES=1000000 test_of schedules -- ;;
        soak) "$target/release/load" soak --minutes 120 --rate 300 --csv "$logs/soak.csv" ;;
        crowd) TIDEMARK_CONNECTIONS=10000 test_of tidemark --test tests -- overload:: ;;
        restarts) "$target/release/load" restart --accounts 400000 --restarts 100 ;;
    esac
}

# Those of a row that were chosen, one after the other; a failure is noted, and the next one begins.
row() {
    for step in "$@"; do
        case " $chosen " in *" $step "*) ;; *) continue ;; esac
        began=$(date +%s)
        if step "$step" >"$logs/$step.log" 2>&1; then ended=ok; else ended=FAILED; fi
        echo "$step: $ended after $((($(date +%s) - began) / 60)) minutes, $(git rev-parse --short HEAD)" | tee -a "$logs/summary"
    done
}

cargo build --release --workspace --all-targets
cargo build --release -p torture --features torture
: >>"$logs/summary"
row $with_postgres & beside=$!
row $without
wait $beside
row $alone
! tail -n "$(echo $chosen | wc -w)" "$logs/summary" | grep -q FAILED
