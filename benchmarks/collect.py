"""One JSON file from those of several benchmarks, and the three numbers to look at first.

    python benchmarks/collect.py --out=PATH --status=NAME=CODE,... FILE...

Used by launch/gpu_check.sh. `summary` holds useful generated tokens per second of our engine by case, the MFU of the
update by arm and prefix share, and the fraction of the data sheet's memory bandwidth that decode reaches by batch;
where the device is not in the table, fractions are of the limits that roofline.py measured.
"""

import argparse
import json
from pathlib import Path


def main():
    """Merges, prints the summary, writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--status", default="", help="exit codes to keep, NAME=CODE separated by commas")
    parser.add_argument("files", nargs="*", type=Path)
    options = parser.parse_args()
    found = {}
    for file in options.files:
        if file.is_file():
            value = json.loads(file.read_text())
            found[value["benchmark"]] = value
    status = dict(pair.split("=") for pair in options.status.split(",") if pair)
    merged = {
        "machine": next((value["machine"] for value in found.values()), None),
        "status": {name: int(code) for name, code in status.items()},
        "summary": summary(found),
        "benchmarks": {name: {k: v for k, v in value.items() if k != "machine"} for name, value in found.items()},
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(merged, indent=1) + "\n")
    print(json.dumps({"status": merged["status"], "summary": merged["summary"]}, indent=1))


def summary(found: dict) -> dict:
    """The headline numbers of what was run."""

    def rows(name):
        return found.get(name, {}).get("results", [])

    rollout = {
        f"{row['model']} {row['dtype']} {row['case']} {row['arm']}": row["tokens_per_s"]["median"]
        for row in rows("rollout")
        if row["arm"].startswith("ours")
    }
    mfu = {f"{row['share']} {row['arm']}": row["mfu"] for row in rows("update") if "mfu" in row}
    sheet = next((row["sheet"] for row in rows("roofline") if row["what"] == "limit: read"), "")
    decode = {
        f"{row['dtype']} {row['what']}": row["rate"] / sheet if sheet else row["bandwidth_fraction"]
        for row in rows("roofline")
        if row["what"].startswith("decode")
    }
    measured = {
        f"{row['dtype']} {row['what']}": row["fraction"]
        for row in rows("roofline")
        if row["what"] in ("prefill", "update")
    }
    return {
        "rollout_tokens_per_s": rollout,
        "update_mfu": mfu,
        "decode_bandwidth_fraction": decode,
        "fraction_of_measured_matmul": measured,
    }


if __name__ == "__main__":
    main()
