#!/usr/bin/env bash
# One run as N processes on this machine: launch/local.sh -n 2 -- --config=configs/arithmetic.py --workdir=runs/two
#   -n N       processes (2)
#   -d D       devices of each: GPUs i*D .. i*D+D-1 for process i, or D virtual devices where there is only a CPU (1)
#   -m MODULE  what to run (iiblpo_jax.train)
#   -l DIR     where process-0.log, process-1.log, ... go (WORKDIR/logs, or logs)
# The output of process 0 is shown as well. SIGTERM and Ctrl-C reach every process as SIGTERM: save and stop.
# When one process fails, the others are ended too, and its status becomes this script's.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

processes=2 devices=1 module=iiblpo_jax.train logs=""
while getopts "n:d:m:l:h" option; do
  case "$option" in
    n) processes="$OPTARG" ;;
    d) devices="$OPTARG" ;;
    m) module="$OPTARG" ;;
    l) logs="$OPTARG" ;;
    h) sed -n '2,8s/^# //p' "${BASH_SOURCE[0]}"; exit ;;
    *) fail "unknown option; $0 -h lists them" ;;
  esac
done
shift $((OPTIND - 1))
for number in "$processes" "$devices"; do
  [[ "$number" =~ ^[1-9][0-9]*$ ]] || fail "-n and -d take a whole number above 0, not '$number'"
done

for argument in "$@"; do
  case "$argument" in --workdir=*) logs="${logs:-${argument#--workdir=}/logs}" ;; esac
done
logs="${logs:-logs}"
mkdir -p "$logs"
interpreter "${IIBLPO_EXTRAS:-}"

# Two neighbouring free ports: the coordination service and the watch (iiblpo_jax/devices/processes.py).
free_port() {
  "$PYTHON" - <<'PY'
import socket
while True:
    with socket.create_server(("", 0)) as first:
        port = first.getsockname()[1]
        try:
            socket.create_server(("", port + 1)).close()
        except (OSError, OverflowError):
            continue
    print(port)
    break
PY
}

# devices_of I: the GPUs of process I, comma-separated; without GPUs nobody reads it.
devices_of() { seq -s, "$(($1 * devices))" "$(($1 * devices + devices - 1))"; }

export IIBLPO_COORDINATOR IIBLPO_NUM_PROCESSES="$processes" PYTHONUNBUFFERED=1
IIBLPO_COORDINATOR="127.0.0.1:$(free_port)"
export XLA_FLAGS="${XLA_FLAGS:+$XLA_FLAGS }--xla_force_host_platform_device_count=$devices"

pids=()
start() {
  local index="$1"
  shift
  local log="$logs/process-$index.log"
  if [ "$index" = 0 ]; then
    IIBLPO_PROCESS_ID=0 JAX_LOCAL_DEVICE_IDS="$(devices_of 0)" "$PYTHON" -m "$module" "$@" > >(tee "$log") 2>&1 &
  else
    IIBLPO_PROCESS_ID="$index" JAX_LOCAL_DEVICE_IDS="$(devices_of "$index")" "$PYTHON" -m "$module" "$@" >"$log" 2>&1 &
  fi
  pids[index]=$!
}

stopping=""
forward() {
  stopping=1
  kill -TERM "${pids[@]}" 2>/dev/null || true
}
trap forward TERM INT

# end_the_others: they have noticed by themselves (iiblpo_jax/devices/watch.py); whoever has not after 6 s is killed.
end_the_others() {
  local pid _
  for _ in $(seq 30); do
    kill -0 "${pids[@]}" 2>/dev/null || return 0
    sleep 0.2
  done
  for pid in "${pids[@]}"; do kill -KILL "$pid" 2>/dev/null || true; done
}

say "local: $processes processes of $module, logs in $logs"
for ((i = 0; i < processes; i++)); do start "$i" "$@"; done

status=0
while [ "${#pids[@]}" -gt 0 ]; do
  for i in "${!pids[@]}"; do
    if kill -0 "${pids[i]}" 2>/dev/null; then continue; fi
    code=0
    wait "${pids[i]}" || code=$?
    unset "pids[i]"
    if [ "$code" -ne 0 ] && [ "$status" -eq 0 ]; then
      status=$code
      [ -n "$stopping" ] || say "process $i ended with status $code; the last lines of $logs/process-$i.log:"
      [ -n "$stopping" ] || tail -n 5 "$logs/process-$i.log" >&2
      if [ "${#pids[@]}" -gt 0 ]; then end_the_others; fi
    fi
  done
  sleep 0.2 || true # a signal may cut it short
done
exit "$status"
