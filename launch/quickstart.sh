#!/usr/bin/env bash
# Fresh machine -> trained model: makes .venv once, trains the embedded default with IIB-LPO, exports the result.
# Arguments go to the training: launch/quickstart.sh --config.train.steps=20
# Running it again resumes runs/quickstart; delete that folder to start from the beginning.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

environment ""
cd "$ROOT"
workdir=runs/quickstart

say "training: configs/arithmetic.py in $workdir"
"$PYTHON" -m iiblpo_jax.train --config=configs/arithmetic.py --workdir="$workdir" "$@"

say "export: $workdir/export, a Hugging Face directory"
"$PYTHON" -m iiblpo_jax.export --workdir="$workdir" --out="$workdir/export"

say "done: the table above is held-out accuracy before and after"
say "model:  $ROOT/$workdir/export"
say "report: $ROOT/$workdir/report.html"
