"""`python -m lcprof` and the `lcprof` command."""

from __future__ import annotations

import sys


def main() -> None:
    """Runs the command line and exits with its status."""
    from lcprof.cli import main as run

    sys.exit(run())


if __name__ == "__main__":
    main()
