"""`.ci/run` fetches a browser where it can, and runs the tests whatever comes of that."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
TOOLS = ("bash", "dirname", "env", "timeout", "sleep")
GET = "apt-get -o DPkg::Lock::Timeout=20 -o Acquire::Retries=1"


def ran(folder: Path, user: int, **programs: str) -> tuple[int, list[str]]:
    """The exit status, and what was called, with nothing but `programs` beside the tools."""
    for name in (".ci", "scripts", "bin"):
        (folder / name).mkdir()
    shutil.copy(ROOT / ".ci" / "run", folder / ".ci" / "run")
    log = folder / "log"
    log.touch()
    for tool in TOOLS:
        found = shutil.which(tool)
        assert found is not None
        (folder / "bin" / tool).symlink_to(found)
    scripts = {"bin/id": f"echo {user}", "scripts/test": f"echo tests >>{log}; exit 7"}
    scripts |= {
        f"bin/{name}": f'echo "{name} $*" >>{log}; {code}' for name, code in programs.items()
    }
    for name, code in scripts.items():
        path = folder / name
        path.write_text(f"#!/usr/bin/env bash\n{code}\n")
        path.chmod(0o755)
    done = subprocess.run(
        [str(folder / ".ci" / "run")],
        env={"PATH": str(folder / "bin"), "HOME": os.environ.get("HOME", "/")},
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert done.stdout + done.stderr == b""
    return done.returncode, log.read_text().splitlines()


@pytest.mark.parametrize("code", ["exit 0", "echo no network >&2; exit 100"])
def test_a_browser_is_fetched_by_root_and_may_fail(tmp_path: Path, code: str) -> None:
    status, called = ran(tmp_path, 0, **{"apt-get": code})
    assert status == 7
    assert called[-1] == "tests"
    assert [line.startswith(GET) for line in called[:-1]] == [True, True]
    assert called[0].endswith(" update")
    assert called[1].endswith(" install -y --no-install-recommends chromium")


def test_others_fetch_nothing(tmp_path: Path) -> None:
    assert ran(tmp_path, 1000, **{"apt-get": "exit 0"}) == (7, ["tests"])


def test_a_browser_that_is_there_is_left_alone(tmp_path: Path) -> None:
    assert ran(tmp_path, 0, **{"apt-get": "exit 0", "chromium": "exit 0"}) == (7, ["tests"])


def test_without_apt_the_tests_run(tmp_path: Path) -> None:
    assert ran(tmp_path, 0) == (7, ["tests"])
