#!/usr/bin/env bash
# What the container runs: entrypoint.sh [train | evaluate | export | report | latent | plan] ARGUMENT...
# A verb that SIGTERM stops has saved and exits 0. An orchestrator reads 0 as "finished" and would not start the rest of
# the run elsewhere, so it is told 143, as of any program that SIGTERM ended.
set -euo pipefail

verb=train
case "${1:-}" in [a-z]*) verb="$1"; shift ;; esac

stopping="" child=""
trap 'stopping=1; kill -TERM "$child" 2>/dev/null || true' TERM INT
"${IIBLPO_PYTHON:-python}" -m "iiblpo_jax.$verb" "$@" &
child=$!
status=0
wait "$child" || status=$?
while kill -0 "$child" 2>/dev/null; do # the signal has ended the wait, not the child
  status=0
  wait "$child" || status=$?
done
if [ -n "$stopping" ] && [ "$status" -eq 0 ]; then status=143; fi
exit "$status"
