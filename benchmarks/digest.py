"""Digests of short runs: does a change of the code leave every number as it was?

    python benchmarks/digest.py --out=before.json                 # at the old state
    python benchmarks/digest.py --against=before.json             # at the new one, on the same machine

Each case is a training run in a process of its own, through the command line. Its digest is that of everything in
metrics.jsonl that does not depend on the clock, of the rollout logs, and of the exported weights. With --against a case
is `equal` (to the bit), `close` (the first step has the same tokens, losses agree to 1e-5) or `differs`; anything but
equal and close ends in status 1. --cases=countdown,mesh runs some of them, --repo=DIR another checkout.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
QUICK = ("eval.problems=32", "checkpoint.every=0", "log.rollouts=1")
CASES = {  # config, devices, overrides
    "quickstart": ("arithmetic", 1, ("train.steps=20",)),
    "countdown": ("countdown", 1, ("train.steps=20",)),
    "smollm2": ("smollm2_sums", 1, ("train.steps=2", "eval.samples=1", "eval.k=(1,)", "eval.greedy=False")),
    "mesh": ("arithmetic", 4, ("train.steps=5", "mesh.data=1", "mesh.fsdp=2", "mesh.tensor=2")),
}
LOSS = 1e-5  # how far losses and metrics of the first step may lie apart in a `close` run


def main():
    """Runs the cases, prints one line for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--against", type=Path)
    parser.add_argument("--cases", default=",".join(CASES))
    parser.add_argument("--repo", type=Path, default=ROOT)
    options = parser.parse_args()
    before = json.loads(options.against.read_text()) if options.against else {}
    found, failed = {}, False
    for name in options.cases.split(","):
        found[name] = run(name, options.repo)
        verdict = compare(before[name], found[name]) if name in before else ""
        failed |= verdict == "differs"
        print(f"{name:12} {found[name]['digest'][:16]}  loss {found[name]['losses'][0]:.9g}  {verdict}", flush=True)
    if options.out:
        options.out.write_text(json.dumps(found, indent=1) + "\n")
    sys.exit(failed)


def run(name: str, repo: Path) -> dict:
    """One case: digest of all of it, digest of the tokens of the first step, losses."""
    config, devices, overrides = CASES[name]
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
    environment = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(repo)}

    def verb(verb: str, *arguments: str) -> None:
        command = [sys.executable, "-m", f"iiblpo_jax.{verb}", *arguments]
        done = subprocess.run(command, env=environment, cwd=repo, capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(f"{' '.join(command)}\n{done.stdout}{done.stderr}")

    with tempfile.TemporaryDirectory() as folder:
        workdir = f"--workdir={folder}/run"
        verb("train", f"--config=configs/{config}.py", workdir, *(f"--config.{o}" for o in (*QUICK, *overrides)))
        verb("export", workdir, f"--out={folder}/export")
        return digest(Path(folder))


def digest(folder: Path) -> dict:
    """What a finished run in `folder` came to."""
    rows = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    rows = [{k: v for k, v in row.items() if not k.startswith("time/") and "tokens_per_s" not in k} for row in rows]
    logs = [path.read_text() for path in sorted((folder / "run" / "rollouts").glob("*.jsonl"))]
    weights = (folder / "export" / "model.safetensors").read_bytes()
    whole = hashlib.sha256(json.dumps(rows, sort_keys=True).encode() + "".join(logs).encode() + weights)
    tokens = [json.loads(line)["tokens"] for line in logs[0].splitlines()]
    return {
        "digest": whole.hexdigest(),
        "first_tokens": hashlib.sha256(json.dumps(tokens).encode()).hexdigest(),
        "losses": [row["update/loss"] for row in rows if "update/loss" in row],
    }


def compare(before: dict, after: dict) -> str:
    """`equal`, `close` or `differs`."""
    if before["digest"] == after["digest"]:
        return "equal"
    same = before["first_tokens"] == after["first_tokens"]
    return "close" if same and abs(before["losses"][0] - after["losses"][0]) <= LOSS else "differs"


if __name__ == "__main__":
    main()
