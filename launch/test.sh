#!/usr/bin/env bash
# The whole test suite on a fresh machine: makes .venv once, then runs pytest on the CPU.
# Arguments go to pytest: launch/test.sh -m 'not slow' tests/rollout
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

environment test
cd "$ROOT"
say "tests: pytest in $(nproc 2>/dev/null || echo 2) processes on the CPU"
JAX_PLATFORMS="${JAX_PLATFORMS:-cpu}" exec "$PYTHON" -m pytest -n auto "$@"
