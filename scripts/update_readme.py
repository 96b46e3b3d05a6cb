"""Runs the commands of the README's `console` blocks and pastes what they print below them.

Run: python scripts/update_readme.py
"""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
BLOCK = re.compile(
    r"^```console\n\$ (?P<command>.*)\n(?P<output>(?:(?!```).*\n)*)```$", re.MULTILINE
)


def pasted(text: str, run: Callable[[list[str]], str]) -> str:
    """`text` with the output of every `console` block as `run` gives it."""

    def block(found: re.Match[str]) -> str:
        command = found["command"]
        return f"```console\n$ {command}\n{run(shlex.split(command)[1:])}```"

    return BLOCK.sub(block, text)


def run_lcprof(arguments: list[str]) -> str:
    """What `lcprof` prints to a pipe; statuses 0 and 3 are both answers."""
    ran = subprocess.run(  # noqa: S603 — the commands of our own README
        [sys.executable, "-m", "lcprof", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if ran.returncode not in (0, 3):
        sys.exit(ran.stderr)
    return ran.stdout


if __name__ == "__main__":
    README.write_text(pasted(README.read_text(encoding="utf-8"), run_lcprof), encoding="utf-8")
