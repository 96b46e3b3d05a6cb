"""Every import points down. The floors are those of DESIGN.md."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FLOORS = {
    "lcprof.errors": 1,
    "lcprof.num": 1,
    "lcprof_kernels": 1,
    "lcprof.units": 2,
    "lcprof.domain": 2,
    "lcprof.catalog": 2,
    "lcprof.scenario": 3,
    "lcprof.cost": 3,
    "lcprof.plan": 4,
    "lcprof.measure": 4,
    "lcprof.compare": 5,
    "lcprof.calibrate": 5,
    "lcprof.report": 6,
    "lcprof.flags": 7,
    "lcprof.pages": 7,
    "lcprof.notebook": 7,
    "lcprof.cli": 7,
    "lcprof.cli_measure": 7,
}
FORBIDDEN = [
    ("lcprof.plan", "lcprof.measure"),
    ("lcprof.measure", "lcprof.plan"),
    ("lcprof.plan", "lcprof_kernels"),
    ("lcprof.compare", "lcprof.plan"),
    ("lcprof.cost", "lcprof.scenario"),
    ("lcprof.cost", "lcprof_kernels"),
    ("lcprof.scenario", "lcprof.cost"),
    ("lcprof_kernels", "lcprof"),
]


def room(module: str) -> str | None:
    """The named room that `module` belongs to, or None for other packages and the face."""
    names = [name for name in FLOORS if module == name or module.startswith(name + ".")]
    return max(names, key=len) if names else None


def modules() -> list[tuple[str, Path]]:
    found = []
    for base in (ROOT, ROOT / "kernels"):
        package = "lcprof" if base == ROOT else "lcprof_kernels"
        for path in sorted((base / package).rglob("*.py")):
            parts = path.relative_to(base).with_suffix("").parts
            found.append((".".join(p for p in parts if p != "__init__"), path))
    return found


def imports(module: str, path: Path) -> set[str]:
    names: set[str] = set()
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")[: len(package.split(".")) - node.level + 1]
            source = ".".join([*(base if node.level else []), *filter(None, [node.module])])
            names |= {source} | {f"{source}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize(("module", "path"), modules(), ids=[m for m, _ in modules()])
def test_imports_point_down(module: str, path: Path) -> None:
    here = room(module)
    if here is None:
        assert module in {"lcprof", "lcprof.__main__"}, f"{module} stands on no floor"
        return
    for name in imports(module, path):
        there = room(name)
        if there is None or there == here:
            continue
        assert FLOORS[there] <= FLOORS[here], f"{module} imports {name}, which is above it"
        assert (here, there) not in FORBIDDEN, f"{module} must not import {name}"


def test_a_module_that_climbs_is_caught(tmp_path: Path) -> None:
    bad = tmp_path / "bad.py"
    bad.write_text("from lcprof.cli import main\nfrom ..plan import x\n")
    found = imports("lcprof.domain.bad", bad)
    assert "lcprof.cli" in found
    assert "lcprof.plan" in found
    assert FLOORS[room("lcprof.cli.main") or ""] > FLOORS[room("lcprof.domain.bad") or ""]
