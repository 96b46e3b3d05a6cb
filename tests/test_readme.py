"""Every command that the README shows runs, and prints what the README says."""

from __future__ import annotations

import importlib.util
import re
import shlex
from pathlib import Path
from types import ModuleType

import pytest

from lcprof.cli import main

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
SHELL = "\n".join(re.findall(r"^```(?:sh|console)\n(.*?)^```", README, re.MULTILINE | re.DOTALL))
COMMANDS = list(dict.fromkeys(re.findall(r"(?:^|\$ |&& )lcprof (.*)$", SHELL, re.MULTILINE)))

Output = pytest.CaptureFixture[str]


def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("update", ROOT / "scripts" / "update_readme.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_two_commands_come_first() -> None:
    install = "pip install . && lcprof plan scenarios/llama-3.1-8b-1m-one-h200.yaml"
    assert README.index(install) < README.index("\nscripts/test\n") < README.index("\n## ")
    assert "scripts/test" in (ROOT / ".ci" / "run").read_text()


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_run(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Output
) -> None:
    (tmp_path / "scenarios").symlink_to(ROOT / "scenarios")
    monkeypatch.chdir(tmp_path)
    assert main(shlex.split(command)) in (0, 3), capsys.readouterr().err


def test_pasted_output_is_what_the_commands_print(
    monkeypatch: pytest.MonkeyPatch, capsys: Output
) -> None:
    monkeypatch.chdir(ROOT)

    def run(arguments: list[str]) -> str:
        main(arguments)
        return capsys.readouterr().out

    blocks = README.count("```console")
    assert blocks >= 2
    assert script().pasted(README, run) == README, "run python scripts/update_readme.py"


def test_python_examples_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    (example,) = re.findall(r"^```python\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
    names: dict[str, object] = {}
    exec(example, names)  # noqa: S102 — the README's own lines
    assert names["fitting"]


def test_links_lead_somewhere() -> None:
    for page in ("README.md", "CONTRIBUTING.md", "DESIGN.md"):
        text = (ROOT / page).read_text(encoding="utf-8")
        for target in re.findall(r"\]\(([^)#:]+)\)", text):
            assert (ROOT / target).exists(), f"{page} links to {target}"
