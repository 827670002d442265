#!/usr/bin/env bash
# What a GPU can change, checked on one that has no network: the tests that depend on the backend, then all benchmarks.
#
#   launch/gpu_check.sh [--tiny] [--out=gpu_check.json] [--wheels=DIR]
#
# Needs Python 3.12 with jax and its CUDA packages already installed. Packages that are missing are installed, without
# any index, from the folder of wheels (default: wheels/ beside the repository) into .venv-gpu; make that folder where
# there is a network:
#
#   pip download --dest wheels --only-binary=:all: --python-version=3.12 --platform=manylinux_2_28_x86_64 \
#     --platform=manylinux_2_27_x86_64 --platform=manylinux2014_x86_64 \
#     'jax>=0.11' 'flax>=0.12' optax ml_collections absl-py pytest
#
# Writes one JSON: tokens/s, MFU of the update, fraction of the memory bandwidth in decode, all results, exit codes.
# Peers that are not installed are skipped, and the log says so. On a machine without a GPU it runs on the CPU, where
# --tiny takes minutes and means nothing. PYTHON_BASE names another interpreter.
set -euo pipefail

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
OUT="$PWD/gpu_check.json"
PACKAGES="$ROOT/.venv-gpu"
WHEELS="$ROOT/../wheels"
TINY=()
NEEDED=(flax optax ml_collections absl pytest numpy)
GPU_TESTS=(
  tests/rollout tests/model/test_attention.py tests/model/test_logprobs.py tests/model/packed
  tests/model/steering/test_psa.py tests/objectives tests/update
)
BENCHMARKS=(rollout update logprobs compile roofline)

say() { printf '==> %s\n' "$*"; }
fail() { printf 'error: %s\n' "$*" >&2; exit 1; }

for argument in "$@"; do
  case "$argument" in
    --tiny) TINY=(--tiny) ;;
    --out=*) OUT="$(realpath -m "${argument#--out=}")" ;;
    --wheels=*) WHEELS="$(realpath -m "${argument#--wheels=}")" ;;
    *) fail "unknown argument $argument; use --tiny, --out=FILE or --wheels=DIR" ;;
  esac
done

# missing: prints the needed modules that PYTHON cannot import.
missing() {
  "$PYTHON" -c 'import importlib.util as u, sys; print(*(m for m in sys.argv[1:] if u.find_spec(m) is None))' "${NEEDED[@]}"
}

# site_packages: where earlier runs of this script have installed something.
site_packages() {
  [ ! -d "$PACKAGES" ] || find "$PACKAGES" -type d \( -name site-packages -o -name dist-packages \) -printf '%p:'
}

export PYTHONPATH
PYTHONPATH="$(site_packages)"
PYTHON="$(command -v "${PYTHON_BASE:-python3.12}" || command -v python3 || true)"
[ -n "$PYTHON" ] || fail "no Python found; name one: PYTHON_BASE=/path/to/python3.12 $0"
"$PYTHON" -c 'import jax' 2>/dev/null || fail "$PYTHON has no jax; install jax[cuda12] for it, or name another: PYTHON_BASE=..."
if [ -n "$(missing)" ]; then
  [ -d "$WHEELS" ] || fail "not installed: $(missing); lay their wheels into $WHEELS (the top of this script says how)"
  wanted="$(missing)"
  say "environment: $wanted from $WHEELS into $PACKAGES"
  # A prefix keeps what is installed as it is, whether PYTHON is a system's or a virtual environment's.
  # shellcheck disable=SC2086 # a list of names
  "$PYTHON" -m pip install --quiet --no-index --find-links "$WHEELS" --prefix "$PACKAGES" ${wanted//absl/absl-py}
  PYTHONPATH="$(site_packages)"
  [ -z "$(missing)" ] || fail "still not installed: $(missing)"
fi

cd "$ROOT"
export PYTHONPATH="$ROOT:$PYTHONPATH" XLA_PYTHON_CLIENT_PREALLOCATE=false
BACKEND="$("$PYTHON" -c 'import jax; print(jax.default_backend())')"
say "backend: $BACKEND, $("$PYTHON" -c 'import jax; print(jax.devices()[0].device_kind, "jax", jax.__version__)')"
[ "$BACKEND" = gpu ] || say "no GPU: what follows checks this script, not the machine"
WORK="$(mktemp -d)"
trap 'rm -rf "$WORK"' EXIT
STATUS=()

# attempt NAME COMMAND...: runs it to the end whatever happens, and keeps its exit code.
attempt() {
  local name="$1" code=0
  shift
  say "$name: $*"
  "$@" || code=$?
  STATUS+=("$name=$code")
}

if [ ${#TINY[@]} -gt 0 ]; then GPU_TESTS=(tests/rollout/test_sampling.py); fi
# Tests compare with float32 results: without TF32. conftest.py would choose the CPU if nobody chose.
platform=cpu
if [ "$BACKEND" = gpu ]; then platform=cuda; fi
attempt tests env JAX_PLATFORMS="$platform" JAX_DEFAULT_MATMUL_PRECISION=highest \
  "$PYTHON" -m pytest -q -p no:cacheprovider "${GPU_TESTS[@]}"

FILES=()
for name in "${BENCHMARKS[@]}"; do
  arguments=("--json=$WORK/$name.json" "${TINY[@]}")
  if [ "$BACKEND" = gpu ] && [ ${#TINY[@]} -eq 0 ]; then
    case "$name" in
      rollout) arguments+=(--models=qwen3-0.6b --dtypes=bfloat16) ;;
      roofline) arguments+=(--model=qwen3-0.6b --dtypes=bfloat16 "--batches=1,16,64,256") ;;
    esac
  fi
  attempt "$name" "$PYTHON" "benchmarks/$name.py" "${arguments[@]}"
  FILES+=("$WORK/$name.json")
done

joined="$(IFS=,; printf '%s' "${STATUS[*]}")"
"$PYTHON" benchmarks/collect.py --out="$OUT" --status="$joined" "${FILES[@]}"
say "written: $OUT"
for status in "${STATUS[@]}"; do
  if [ "${status##*=}" != 0 ]; then fail "${status%=*} failed with exit code ${status##*=}; its output is above"; fi
done
