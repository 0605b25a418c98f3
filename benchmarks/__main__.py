"""`python -m benchmarks`: each figure beside the limit of the machine, in one run.

--short         a few minutes less, for CI
--check         exit 1 where a ratio misses its bound by half
--json FILE     the same figures for programs
--only NAME     intake, drain, size, gateway, postgresql, page or peers (repeatable)
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from benchmarks import drain, gateway, intake, page, peers, postgresql, size
from benchmarks.machine import describe
from benchmarks.table import Row, as_json, print_table

BASELINE = Path(__file__).parent / "baseline.json"
PARTS = {
    "intake": intake.rows,
    "drain": drain.rows,
    "size": size.rows,
    "gateway": gateway.rows,
    "postgresql": postgresql.rows,
    "page": page.rows,
    "peers": peers.rows,
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--short", action="store_true")
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--record", action="store_true")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--only", action="append", choices=PARTS)
    options = parser.parse_args()
    wanted = options.only or [name for name in PARTS if not (options.short and name == "peers")]
    rows: list[Row] = []
    for name in wanted:
        print(f"measuring {name} ...", file=sys.stderr, flush=True)
        rows += PARTS[name](options.short)
    machine = describe()
    print_table(rows, machine)
    if options.json:
        options.json.write_text(as_json(rows, machine) + "\n")
    if options.record:
        ratios = {row.name: round(row.ratio, 3) for row in rows if row.ratio is not None}
        BASELINE.write_text(json.dumps(ratios, indent=1) + "\n")
    before = json.loads(BASELINE.read_text()) if options.check else {}
    regressed = [row.name for row in rows if row.regressed(before.get(row.name))]
    if regressed:
        print(f"\ngross regressions: {', '.join(regressed)}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
