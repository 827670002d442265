# shellcheck shell=bash
# Sourced by the launchers: makes the virtual environment .venv once and keeps it in step with setup.py.
# Sets ROOT (the repository) and PYTHON (the environment's interpreter), and works from any directory.

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
PYTHON="$ROOT/.venv/bin/python"

say() { printf '==> %s\n' "$*"; }
fail() { printf 'error: %s\n' "$*" >&2; exit 1; }

# find_python: prints a Python of at least 3.11; the variable PYTHON_BASE overrides the search.
find_python() {
  local candidate
  for candidate in ${PYTHON_BASE:-python3.12 python3.13 python3.11 python3 python}; do
    if command -v "$candidate" >/dev/null && "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      command -v "$candidate"
      return
    fi
  done
  return 1
}

# environment EXTRAS: .venv with the package and these extras (comma-separated, may be empty).
# A stamp is the last thing written, so an environment that an interruption left half-made is never used.
environment() {
  local extras="$1" wanted lock
  wanted="$(cksum <"$ROOT/setup.py")"
  if command -v flock >/dev/null; then # two launchers at once: the second waits for the first
    exec {lock}>"$ROOT/.venv.lock"
    flock "$lock"
  fi
  if up_to_date "$extras" "$wanted"; then
    say "environment: $ROOT/.venv is up to date"
  else
    if ! compgen -G "$ROOT/.venv/.installed-*" >/dev/null; then
      make_venv
    fi
    install "$extras"
    printf '%s\n' "$wanted" >"$ROOT/.venv/.installed-${extras:-core}"
    trap - EXIT
  fi
  if [ -n "${lock:-}" ]; then exec {lock}>&-; fi
}

# interpreter EXTRAS: PYTHON becomes $IIBLPO_PYTHON where that is set (an environment of your own, a container), else
# that of .venv with these extras.
interpreter() {
  if [ -n "${IIBLPO_PYTHON:-}" ]; then PYTHON="$IIBLPO_PYTHON"; else environment "$1"; fi
}

# up_to_date EXTRAS STAMP: whether these extras were installed from this setup.py; any extra includes the core.
up_to_date() {
  local stamp
  for stamp in "$ROOT/.venv/.installed-"${1:-*}; do
    if [ -x "$PYTHON" ] && [ "$(cat "$stamp" 2>/dev/null)" = "$2" ]; then return 0; fi
  done
  return 1
}

# make_venv: an empty environment, removed again if anything goes wrong before it is stamped.
make_venv() {
  local base
  base="$(find_python)" || fail "no Python 3.11 or newer found; install one, or name it: PYTHON_BASE=/path/to/python3.12 $0"
  say "environment: making $ROOT/.venv with $("$base" --version) (once; about 2 minutes and 1.5 GB)"
  trap 'rm -rf "$ROOT/.venv"' EXIT
  rm -rf "$ROOT/.venv"
  "$base" -m venv "$ROOT/.venv" || fail "$base cannot make a virtual environment; on Debian or Ubuntu: apt install python3-venv"
}

# install EXTRAS: pip, quietly; its own words only when it fails.
install() {
  local log="$ROOT/.venv/install.log"
  say "environment: installing iiblpo_jax${1:+[$1]}"
  "$PYTHON" -m pip install --quiet --no-compile -e "$ROOT${1:+[$1]}" >"$log" 2>&1 || install_failed "$log"
}

install_failed() {
  tail -n 20 "$1" >&2
  fail "installing the packages failed (the last lines are above); check the network and free disk space, then run $0 again"
}
