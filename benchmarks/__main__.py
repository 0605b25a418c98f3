"""`python -m benchmarks`: each figure beside the limit of the machine, in one run.

--short         a few minutes less, for CI
--check         exit 1 where a ratio misses its bound by half
--json FILE     the same figures for programs
--only NAME     intake, drain, size or peers (repeatable)
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from benchmarks import drain, intake, peers, size
from benchmarks.machine import describe
from benchmarks.table import Row, as_json, print_table

PARTS = {"intake": intake.rows, "drain": drain.rows, "size": size.rows, "peers": peers.rows}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--short", action="store_true")
    parser.add_argument("--check", action="store_true")
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
    missed = [row.name for row in rows if not row.holds(slack=2.0)]
    if options.check and missed:
        print(f"\ngross regressions: {', '.join(missed)}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
