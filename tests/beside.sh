#!/bin/sh
# Runs a command while the figures of a running server are taken beside it: restarts over a million cells, then ten minutes of a
# soak. They are said when both are over; the command's failure comes first. To be called by the Makefile, after a build.
set -eu

load=$1/load
shift
[ -x "$load" ] || { echo "$load is not built" >&2; exit 1; }
figures=$(mktemp)
# With this shell they end, too.
beside() { setpriv --pdeathsig TERM "$load" "$@"; }
{ beside restart --accounts 40000 --restarts 20 && beside soak --minutes 10 --rate 200 --pause-ms 400; } >"$figures" 2>&1 &
beside=$!
# It is over already, mostly; that is no failure.
trap 'kill $beside 2>/dev/null || true; rm -f "$figures"' EXIT

"$@"
status=0
wait $beside || status=$?
cat "$figures"
exit $status
