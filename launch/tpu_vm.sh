#!/usr/bin/env bash
# One run on a Cloud TPU slice of any number of hosts. Every command goes to all hosts at once.
#   launch/tpu_vm.sh create                   make the slice NAME
#   launch/tpu_vm.sh setup                    copy this repository there and install it
#   launch/tpu_vm.sh run --config=... --workdir=/mnt/runs/first      start, or resume; returns at once
#   launch/tpu_vm.sh log | stop | delete      follow host 0 | save and stop | give the slice back
# Settings, as environment variables: NAME ZONE TYPE VERSION SPOT=1 (preemptible) PROJECT (else gcloud's own)
# DRY_RUN=1 prints the gcloud commands and runs none. The workdir must be one folder for all hosts: a mounted Filestore
# share or bucket.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

NAME="${NAME:-iiblpo}" ZONE="${ZONE:-us-west4-a}" TYPE="${TYPE:-v5litepod-16}" VERSION="${VERSION:-v2-alpha-tpuv5-lite}"
place=(--zone="$ZONE" ${PROJECT:+--project="$PROJECT"})

# gc VERB ARGUMENT...: gcloud compute tpus tpu-vm VERB, or its text.
gc() {
  if [ -n "${DRY_RUN:-}" ]; then
    printf '%q ' gcloud compute tpus tpu-vm "$@"
    printf '\n'
  else
    gcloud compute tpus tpu-vm "$@"
  fi
}
# everywhere COMMAND: in the home folder of every host.
everywhere() { gc ssh "$NAME" "${place[@]}" --worker=all --command="$1"; }

create() { gc create "$NAME" "${place[@]}" --accelerator-type="$TYPE" --version="$VERSION" ${SPOT:+--spot}; }

setup() {
  archive="$(mktemp -d)/iiblpo.tar.gz"
  trap 'rm -rf "$(dirname "$archive")"' EXIT
  tar -C "$ROOT" -czf "$archive" --exclude=./.git --exclude=./.venv --exclude=./runs --exclude=__pycache__ .
  gc scp "$archive" "$NAME:iiblpo.tar.gz" "${place[@]}" --worker=all
  # The images of Ubuntu 22.04 come with Python 3.10.
  local python="command -v python3.12 >/dev/null || command -v python3.11 >/dev/null ||
    { sudo apt-get update -qq && sudo apt-get install -yqq python3.11 python3.11-venv; }"
  everywhere "set -e; mkdir -p iiblpo && tar -C iiblpo -xzf iiblpo.tar.gz; $python
    cd iiblpo && bash -c 'set -euo pipefail; source launch/common.sh; environment tpu'"
}

run() {
  local arguments
  arguments="$(printf '%q ' "$@")"
  # Away from the ssh session, which may end: its output and process id stay in the folder.
  everywhere "cd iiblpo; IIBLPO_DISTRIBUTED=auto PYTHONUNBUFFERED=1 LIBTPU_INIT_ARGS=$(printf %q "${LIBTPU_INIT_ARGS:-}") \
    nohup .venv/bin/python -m iiblpo_jax.train $arguments >train.log 2>&1 </dev/null & echo \$! >train.pid"
}

log() { gc ssh "$NAME" "${place[@]}" --worker=0 --command="tail -n 50 -F iiblpo/train.log"; }
stop() { everywhere "kill -TERM \$(cat iiblpo/train.pid)"; }
delete() { gc delete "$NAME" "${place[@]}" --quiet; }

case "${1:-}" in
  create | setup | run | log | stop | delete) "$@" ;;
  *) fail "usage: $0 create | setup | run ARGUMENT... | log | stop | delete" ;;
esac
