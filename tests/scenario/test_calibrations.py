"""Calibration files: those of the catalog load, damaged ones are refused with every fault."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from lcprof.cost.timing.families import PARAMETERS
from lcprof.domain.calibration import Calibration, Parameter
from lcprof.errors import InputError
from lcprof.scenario.calibrations import (
    FOLDER,
    calibration_path,
    calibration_stacks,
    load_calibration,
    read_calibration,
    write_calibration,
)
from lcprof.scenario.files import read_yaml
from lcprof.scenario.gpus import gpu_names

FAMILIES = {"gemm": {"launch_s": Parameter(meaning="", start=1e-6, low=1e-7, high=1e-4)}}
GOOD: dict[str, Any] = {
    "gpu": "h100-sxm",
    "stack": "vllm",
    "source": "someone",
    "licence": "MIT",
    "date": "2026",
    "split": "two thirds",
    "fits": [
        {
            "family": "gemm",
            "variant": "bf16",
            "rows": 12,
            "parameters": {"launch_s": 2e-6},
            "box": {"rows": [1.0, 4096.0]},
            "residuals": {
                "large": {"rows": 12, "median": 0.02, "p90": 0.1, "low": -0.1, "high": 0.1}
            },
        }
    ],
}


def read(data: object) -> Calibration:
    return read_calibration(data, where="mine.yaml", gpu="h100-sxm", families=FAMILIES)


def faults(data: object) -> list[str]:
    with pytest.raises(InputError) as error:
        read(data)
    return [str(fault) for fault in error.value.faults]


def changed(path: list[Any], value: object) -> dict[str, Any]:
    data = deepcopy(GOOD)
    place: Any = data
    for key in path[:-1]:
        place = place[key]
    if value is None:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    return data


FIT = ["fits", 0]


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        (["gpu"], "h200-sxm", ["gpu", "h200-sxm", "measurements of h100-sxm"]),
        (["source"], None, ["source", "nothing"]),
        (["fits"], [], ["fits", "an empty list"]),
        (["speed"], 3, ["speed", "an unknown key"]),
        ([*FIT, "family"], "gem", ["fits[0].family", "gem", "did you mean gemm?"]),
        ([*FIT, "parameters", "launch_s"], None, ["launch_s", "nothing"]),
        ([*FIT, "parameters", "launch_s"], float("nan"), ["(gemm, bf16)", "launch_s", "nan"]),
        ([*FIT, "parameters", "launch_s"], -1e-6, ["launch_s", "-1e-06", "from 1e-07 to 0.0001"]),
        ([*FIT, "parameters", "launch_s"], "fast", ["launch_s", "fast"]),
        ([*FIT, "parameters", "launch_s"], True, ["launch_s", "true"]),
        ([*FIT, "parameters", "lunch_s"], 1e-6, ["lunch_s", "an unknown key"]),
        ([*FIT, "box"], {}, ["box"]),
        ([*FIT, "box"], {"": [0.0, 0.0]}, ["box", "a feature named", "the name of a feature"]),
        ([*FIT, "box"], {" ": [0.0, 0.0]}, ["box", "the name of a feature"]),
        ([*FIT, "box"], {7: [0.0, 0.0]}, ["box", "7", "the name of a feature"]),
        ([*FIT, "box", "rows"], [5.0, 1.0], ["box.rows", "5 above 1"]),
        ([*FIT, "box", "rows"], [1.0, float("inf")], ["box.rows", "inf"]),
        ([*FIT, "residuals"], {"huge": {}}, ["residuals", "large or small"]),
        ([*FIT, "residuals", "large", "p90"], -0.1, ["large.p90", "-0.1"]),
        ([*FIT, "residuals", "large", "high"], -0.2, ["residuals.large", "low above high"]),
        ([*FIT, "rows"], 0, ["rows", "0"]),
        (["fits"], GOOD["fits"] * 2, ["fits[1]", "gemm, bf16 again"]),
    ],
)
def test_a_damaged_file_is_refused_with_the_entry_and_the_reason(
    path: list[Any], value: object, words: list[str]
) -> None:
    (fault,) = faults(changed(path, value))
    assert fault.startswith("mine.yaml")
    for word in words:
        assert word in fault


def test_every_fault_is_told_at_once() -> None:
    data = changed([*FIT, "parameters", "launch_s"], -1.0)
    data["gpu"] = "a100"
    assert len(faults(data)) == 2


@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
        max_leaves=8,
    ),
    st.sampled_from([[*FIT], [*FIT, "box"], [*FIT, "parameters"], [*FIT, "residuals"], ["fits"]]),
)
def test_anything_at_all_in_a_file_is_read_or_refused(value: object, path: list[Any]) -> None:
    data = changed(path, value) if value is not None else {"fits": None}
    try:
        (fit,) = read(data).fits
    except InputError:
        return
    assert path == [*FIT, "box"]
    assert fit.box
    assert all(name.strip() and 0 <= low <= high for name, (low, high) in fit.box.items())


def test_a_calibration_reads_back_as_it_was_written(tmp_path: Path) -> None:
    path = calibration_path("h100-sxm", "vllm", tmp_path)
    whole = read(GOOD)
    write_calibration(whole, path)
    again = read_calibration(read_yaml(path), where="x", gpu="h100-sxm", families=FAMILIES)
    assert again == whole
    assert [p.name for p in tmp_path.iterdir()] == ["h100-sxm--vllm.yaml"]


def test_every_calibration_of_the_catalog_loads_and_names_its_source() -> None:
    paths = sorted(FOLDER.glob("*.yaml"))
    assert len(paths) > 10
    for path in paths:
        gpu, _, stack = path.stem.partition("--")
        calibration = load_calibration(gpu, stack, families=PARAMETERS)
        assert calibration is not None
        assert gpu in gpu_names()
        assert (calibration.gpu, calibration.stack) == (gpu, stack)
        assert stack in calibration_stacks(gpu)
        assert "two thirds" in calibration.split


def test_a_stack_without_a_calibration_is_none_and_a_damaged_one_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert load_calibration("h100-sxm", "unheard-of", families=PARAMETERS) is None
    monkeypatch.setattr("lcprof.scenario.calibrations.FOLDER", tmp_path)
    monkeypatch.setattr(
        "lcprof.scenario.calibrations.calibration_path", lambda g, s: tmp_path / f"{g}--{s}.yaml"
    )
    (tmp_path / "h100-sxm--vllm.yaml").write_text(yaml.safe_dump(changed(["gpu"], "a100")))
    with pytest.raises(InputError, match=r"h100-sxm--vllm\.yaml"):
        load_calibration("h100-sxm", "vllm", families=FAMILIES)
