"""`python -m lcprof.calibrate.published DATA`: refits the calibrations from committed rows.

With `--select DIR`, first takes the rows that fits may see from the whole tables in DIR.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from lcprof.calibrate.published.refit import refit, select
from lcprof.calibrate.published.tables import TABLES
from lcprof.errors import LcprofError


def main() -> int:
    """Refits; prints one line per fit. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m lcprof.calibrate.published")
    parser.add_argument("data", type=Path, help="folder of <table>.csv.gz, benchmarks/data")
    parser.add_argument("--select", type=Path, help="folder of whole tables to take the rows from")
    parser.add_argument("--table", action="append", help="only this table (may be repeated)")
    arguments = parser.parse_args()
    tables = [t for t in TABLES if not arguments.table or t.name in arguments.table]
    try:
        if arguments.select:
            for table in tables:
                print(f"{table.name}: {select(table, arguments.select, arguments.data)} rows")
        for name, fit in refit(tables, arguments.data, keep=bool(arguments.table)):
            figures = " ".join(
                f"{kind} {100 * found.median:.1f}/{100 * found.p90:.1f} %"
                for kind, found in fit.residuals.items()
            )
            print(f"{name} {fit.family} {fit.variant}: {fit.rows} rows, left out {figures}")
    except LcprofError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
