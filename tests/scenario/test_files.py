"""Files that a stranger wrote: read as plain data, or refused in bounded time and memory."""

from __future__ import annotations

import os
import time
from itertools import pairwise
from pathlib import Path

import pytest
import yaml

from lcprof.errors import InputError
from lcprof.scenario import files
from lcprof.scenario.files import parse_json, parse_yaml, read_json, read_yaml

SECONDS = 5.0


def refused(text: str) -> str:
    begin = time.monotonic()
    with pytest.raises(InputError) as caught:
        parse_yaml(text, where="s.yaml")
    assert time.monotonic() - begin < SECONDS
    assert all(fault.where.startswith("s.yaml") for fault in caught.value.faults)
    assert all(fault.given and fault.expected for fault in caught.value.faults)
    return str(caught.value)


def refused_json(text: str) -> str:
    begin = time.monotonic()
    with pytest.raises(InputError) as caught:
        parse_json(text, where="c.json")
    assert time.monotonic() - begin < SECONDS
    return str(caught.value)


def test_plain_data_is_read() -> None:
    text = (
        "a: 1\nb: [2.5, x, yes, 1:30, 2026-11-23, ~, true, '1', 1_000, 0x10, 1e3]\n"
        "c: {d: 128K, e: }\nf: |\n  two\n  lines\n'2': quoted\n"
    )
    assert parse_yaml(text, where="s.yaml") == {
        "a": 1,
        "b": [2.5, "x", "yes", "1:30", "2026-11-23", None, True, "1", 1000, "0x10", 1000.0],
        "c": {"d": "128K", "e": None},
        "f": "two\nlines\n",
        "2": "quoted",
    }


def test_both_parsers_of_pyyaml_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = ["a: [1, {b: 2}]\n", "a: 1\na: 2\n", "a: !x 1\n", "- &a 1\n- *a\n", "a: [", "? []\n: 1"]
    fast = [outcome(text) for text in texts]
    monkeypatch.setattr(files, "_LOADER", yaml.SafeLoader)
    assert [outcome(text) for text in texts] == fast


def outcome(text: str) -> object:
    try:
        return parse_yaml(text, where="s.yaml")
    except InputError as error:
        return [(fault.key, fault.expected) for fault in error.faults]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a: 1\nb: 2\na: 3\n", "line 3: a: given again (first on line 1)"),
        ("a:\n- b: 1\n  b: 2\n", "line 3: a[0].b: given again (first on line 2)"),
        ("a: !!python/object/apply:os.system ['touch x']\n", "line 1: a: given the tag"),
        ("a: !mine 1\n", "given the tag '!mine'"),
        ("a: !!str 1\n", "given the tag"),
        ("a: ! 1\n", "given the tag '!'"),
        ("a: &x [1]\n", "given the anchor &x"),
        ("a: &x [*x]\n", "given the alias *x"),
        ("<<: {a: 1}\n", "a merge key (<<)"),
        ("1: a\n", "given the key 1; expected text keys"),
        ("null: a\n", "given the key null"),
        ("true: a\n", "given the key true"),
        ("? [a, b]\n: 1\n", "a list, a mapping or an alias as a key"),
        ("a: 1\n---\nb: 2\n", "a second document (---)"),
        ("# only a comment\n", "nothing but comments"),
        ("a: [1, 2\n", "expected YAML"),
        ("a: 'x\n", "expected YAML"),
        ("a: b: c\n", "line 1, column 5"),
        ("a: .nan\n", "a: given '.nan'; expected a finite number"),
        ("a: -.inf\n", "expected a finite number"),
        ("a: 1e400\n", "a 64-bit float"),
        ("a: " + "9" * 100_000 + "\n", "at most 300 digits"),
        ("a: 1." + "9" * 100_000 + "\n", "at most 300 digits"),
        ("9" * 1000 + ": 1\n", "text keys"),
        ('a: "\\ud800"\n', "s.yaml"),
        ("a: \x01\n", "s.yaml"),
        ("[" * 1_000_000, "nested more than 64 levels"),
        ("{a: " * 100_000, "nested more than 64 levels"),
        ("- " * 100_000, "nested more than 64 levels"),
        ("-\n" * 2_000_000, "more than 100,000 values"),
        ("[" + "1," * 2_000_000 + "]", "more than 100,000 values"),
        ("a: '" + "x" * 4_000_000, "expected YAML"),
        ("%YAML 9.9\n---\na: 1\n", "expected YAML"),
    ],
    ids=lambda value: repr(value[:30]),
)
def test_yaml_that_is_refused(text: str, says: str) -> None:
    assert says in refused(text)


def test_all_faults_of_a_document_come_at_once() -> None:
    message = refused("a: !x 1\nb: &y 2\nc: .nan\nc: *y\n2: d\n")
    for part in ("tag '!x'", "anchor &y", "'.nan'", "again", "alias *y", "the key 2"):
        assert part in message
    assert message.count("\n") == 5


def test_an_alias_bomb_never_grows() -> None:
    lines = ["a: &a [lol, lol]"]
    names = "abcdefghijklmnopqrstuvwxyz"
    for before, name in pairwise(names):
        lines.append(f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]")
    assert "alias *a" in refused("\n".join(lines))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('{"a": 1, "b": 2, "a": 3}', "c.json: a: given twice in one object"),
        ('{"a": NaN}', "given NaN"),
        ('{"a": -Infinity}', "given -Infinity"),
        ('{"a": 1e400}', "a 64-bit float"),
        ("9" * 100_000, "a number of 100000 digits"),
        ('{"a": [1, 2', "breaks off at line 1"),
        ('{"a": "x', "Unterminated string"),
        ('{"a": tru}', "line 1, column 7"),
        ('{"a": 1} x', "Extra data"),
        ("{'a': 1}", "line 1, column 2"),
        ("[" * 1_000_000, "nested more than 64 levels"),
        ("[" * 65 + "]" * 65, "nested more than 64 levels"),
        ('{"a":' * 65 + "1" + "}" * 65, "nested more than 64 levels"),
        ('["\\ud800"]', "valid Unicode"),
        ('{"\\udc00": 1}', "valid Unicode"),
    ],
    ids=lambda value: repr(value[:30]),
)
def test_json_that_is_refused(text: str, says: str) -> None:
    assert says in refused_json(text)


def test_json_as_deep_as_allowed_is_read() -> None:
    assert parse_json("[" * 64 + "]" * 64, where="c.json")
    assert parse_json('{"a": [1, 2.5, null, "é", true]}', where="c.json") == {
        "a": [1, 2.5, None, "é", True]
    }


def made(tmp_path: Path, kind: str) -> Path:
    path = tmp_path / f"{kind}.yaml"
    if kind == "empty":
        path.touch()
    elif kind == "blank":
        path.write_text(" \n\t\n")
    elif kind == "binary":
        path.write_bytes(bytes(range(256)) * 100)
    elif kind == "latin":
        path.write_bytes("é: 1".encode("latin-1"))
    elif kind == "utf-16":
        path.write_bytes("a: 1".encode("utf-16"))
    elif kind == "sparse":
        path.touch()
        os.truncate(path, 1 << 30)
    elif kind == "large":
        path.write_bytes(b"#" * ((16 << 20) + 1))
    elif kind == "directory":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "loop":
        path.symlink_to(path)
    elif kind == "dangling":
        path.symlink_to(tmp_path / "gone")
    return path


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("missing", "no such file"),
        ("empty", "an empty file"),
        ("blank", "an empty file"),
        ("binary", "binary data (a NUL at byte 0)"),
        ("latin", "bytes that are not UTF-8 (at byte 0)"),
        ("utf-16", "binary data"),
        ("sparse", "a file of 1,024 MiB"),
        ("large", "a file of 16 MiB"),
        ("directory", "a directory"),
        ("pipe", "a pipe"),
        ("loop", "symbolic link"),
        ("dangling", "no such file"),
    ],
)
@pytest.mark.parametrize("read", [read_yaml, read_json])
def test_files_that_are_refused(tmp_path: Path, kind: str, says: str, read: object) -> None:
    assert callable(read)
    path = made(tmp_path, kind)
    begin = time.monotonic()
    with pytest.raises(InputError) as caught:
        read(path)
    assert time.monotonic() - begin < SECONDS
    (fault,) = caught.value.faults
    assert fault.where == str(path)
    assert says in fault.given
    assert "MiB" in fault.expected


@pytest.mark.parametrize("device", ["/dev/zero", "/dev/random", "/dev/null"])
def test_devices_are_not_read(device: str) -> None:
    with pytest.raises(InputError, match="a device"):
        read_yaml(Path(device))


@pytest.mark.parametrize("name", ["a\0b.yaml", "x" * 5000, "a" + "/b" * 5000])
def test_impossible_paths(name: str) -> None:
    with pytest.raises(InputError, match="expected a YAML text file"):
        read_yaml(Path(name))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission(tmp_path: Path) -> None:
    path = tmp_path / "s.yaml"
    path.write_text("a: 1")
    path.chmod(0)
    with pytest.raises(InputError, match="permission denied"):
        read_yaml(path)


def test_a_byte_order_mark_is_no_fault(tmp_path: Path) -> None:
    path = tmp_path / "s.yaml"
    path.write_bytes(b"\xef\xbb\xbfa: 1\n")
    assert read_yaml(path) == {"a": 1}
    path.write_bytes(b'\xef\xbb\xbf{"a": 1}')
    assert read_json(path) == {"a": 1}


def test_nothing_is_executed(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    for tag in ("python/object/apply:os.system", "python/object/new:os.mkdir", "python/name:os"):
        refused(f"a: !!{tag} ['touch {mark}']\n")
    assert not mark.exists()
