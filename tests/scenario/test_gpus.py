"""The GPU catalog against the table it was written from, and GPUs that users bring."""

from __future__ import annotations

import csv
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from lcprof.errors import InputError
from lcprof.scenario.gpus import (
    FOLDER,
    gpu_card,
    gpu_names,
    gpu_schema,
    load_gpu,
    read_gpu,
)

FACTS = Path(__file__).resolve().parent.parent / "fixtures" / "gpus.csv"
OTHER_NAMES = {
    "A100-40GB-SXM4": "a100-40gb-sxm",
    "A100-80GB-SXM4": "a100-80gb-sxm",
    "H100-SXM5": "h100-sxm",
    "H800-SXM5": "h800-sxm",
    "H20-SXM": "h20",
    "H200-SXM5": "h200-sxm",
    "B200-SXM6": "b200",
    "B300-SXM6": "b300",
    "GB200 (per GPU)": "gb200",
    "GB300 (per GPU)": "gb300",
    "RTX-PRO-6000-Blackwell-Server": "rtx-pro-6000",
}
MINE = {
    "name": "mine",
    "memory_marketed": "80 GB",
    "bandwidth": "3 TB/s",
    "peak": {"bf16": "900 TFLOP/s"},
}


def facts() -> list[dict[str, str]]:
    with FACTS.open(newline="") as file:
        return list(csv.DictReader(file))


def figures(data: dict[str, Any]) -> dict[str, Any]:
    found = {key: value for key, value in data.items() if isinstance(value, dict)}
    peaks = found.pop("peak")
    return found | {f"peak.{key}": value for key, value in peaks.items()}


def test_every_gpu_of_the_table_is_in_the_catalog_and_no_other() -> None:
    assert gpu_names() == sorted(OTHER_NAMES.get(row["gpu"], row["gpu"].lower()) for row in facts())


@pytest.mark.parametrize("row", facts(), ids=lambda row: row["gpu"])
def test_figures_equal_the_table(row: dict[str, str]) -> None:
    gpu = load_gpu(OTHER_NAMES.get(row["gpu"], row["gpu"].lower()), where="test")
    assert gpu.vendor == row["vendor"]
    assert gpu.architecture == row["architecture"]
    assert gpu.memory_type == row["mem_type"]
    assert gpu.compute_capability == row["compute_capability"]
    assert gpu.marketed_bytes == float(row["mem_marketed_gb"]) * 1e9
    assert gpu.usable_bytes == float(row["usable_mem_bytes"] or gpu.marketed_bytes)
    assert gpu.bandwidth_bytes_per_s == float(row["mem_bw_bytes_s"])
    peaks = {
        dtype: row[f"peak_dense_{dtype}_{unit}"]
        for dtype, unit in [
            ("fp32", "tflops"),
            ("tf32", "tflops"),
            ("bf16", "tflops"),
            ("fp8", "tflops"),
            ("int8", "tops"),
            ("fp4", "tflops"),
        ]
    }
    assert gpu.peak_flops == pytest.approx(
        {dtype: float(peak) * 1e12 for dtype, peak in peaks.items() if peak}, rel=1e-12
    )
    assert gpu.link_bytes_per_s == float(row["link_per_direction_gb_s"]) * 1e9
    assert gpu.pcie_bytes_per_s == float(row["pcie_per_direction_gb_s"] or 0) * 1e9
    assert gpu.boost_hz == (float(row["boost_mhz"]) * 1e6 if row["boost_mhz"] else None)
    assert gpu.tdp_w == (float(row["tdp_w"]) if row["tdp_w"] else None)
    price = row["price_usd_per_gpu_hour"]
    assert gpu.price_usd_per_hour == (float(price) if price else None)
    assert gpu.price_date == (row["price_date"] if price else "")
    if row["sm_count"].isdigit():
        assert gpu.sm_count == int(row["sm_count"])
    if whole := re.match(r"\d+", row["l2_mb"]):
        assert gpu.l2_bytes == int(whole[0]) * 2**20


@pytest.mark.parametrize("name", gpu_names())
def test_every_figure_has_a_source_beside_it(name: str) -> None:
    data = yaml.safe_load((FOLDER / f"{name}.yaml").read_text())
    assert data["name"] == name
    assert len(figures(data)) >= 6
    for key, figure in figures(data).items():
        assert len(figure["source"]) > 3, key
        if key == "price_usd_per_hour":
            assert re.match(r"20\d\d", figure["date"])
    gpu = load_gpu(name, where="test")
    assert "given by the user" not in gpu.sources.values()
    assert gpu.sources["usable_bytes"]
    jsonschema.validate(data, gpu_schema())


def test_marketed_and_driver_memory_are_two_facts() -> None:
    gpu = load_gpu("h200-sxm", where="test")
    assert gpu.marketed_bytes == 141e9
    assert gpu.usable_bytes == 143_771 * 2**20
    assert gpu.sources["usable_bytes"] != gpu.sources["marketed_bytes"]
    unknown = load_gpu("mi325x", where="test")
    assert unknown.usable_bytes == unknown.marketed_bytes
    assert any("the marketed size is taken as usable" in note for note in unknown.notes)


@pytest.mark.parametrize(
    ("typed", "name"),
    [
        ("h200", "h200-sxm"),
        ("H100", "h100-sxm"),
        ("a100", "a100-80gb-sxm"),
        ("NVIDIA H200 SXM", "h200-sxm"),
        ("H100_PCIe", "h100-pcie"),
        ("L40S", "l40s"),
        ("4090", "rtx-4090"),
        ("AMD Instinct MI300X", "mi300x"),
    ],
)
def test_names_as_people_type_them(typed: str, name: str) -> None:
    assert load_gpu(typed, where="test").name == name


def test_aliases_name_gpus_and_hide_none() -> None:
    aliases = yaml.safe_load((FOLDER / "_aliases.yaml").read_text())
    assert set(aliases.values()) <= set(gpu_names())
    assert not set(aliases) & set(gpu_names())


@pytest.mark.parametrize("typed", ["h300", "h200-smx", "b20"])
def test_an_unknown_gpu_gets_the_nearest_names(typed: str) -> None:
    with pytest.raises(InputError, match=r"did you mean .*[hb]20") as caught:
        load_gpu(typed, where="s.yaml", key="gpu[1]")
    (fault,) = caught.value.faults
    assert (fault.where, fault.key, fault.given) == ("s.yaml", "gpu[1]", repr(typed))


def test_a_gpu_of_ones_own(tmp_path: Path) -> None:
    gpu = read_gpu(MINE | {"memory_driver": {"value": "79 GB", "source": "me"}}, where="s.yaml")
    assert (gpu.marketed_bytes, gpu.usable_bytes) == (80e9, 79e9)
    assert gpu.bandwidth_bytes_per_s == 3e12
    assert gpu.peak_flops == {"bf16": 900e12}
    assert gpu.flops_per_s("fp8") == 900e12
    assert gpu.sources["usable_bytes"] == "me"
    assert gpu.sources["bandwidth_bytes_per_s"] == "given by the user"
    jsonschema.validate(MINE, gpu_schema())
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(MINE))
    assert load_gpu(str(path), where="s.yaml").name == "mine"
    assert load_gpu("mine.yaml", where="s.yaml", base=tmp_path).name == "mine"
    with pytest.raises(InputError, match="no such file"):
        load_gpu("./gone.yaml", where="s.yaml", base=tmp_path)


def test_all_faults_of_a_gpu_come_at_once() -> None:
    data = {
        "name": 7,
        "memory_marketed": "80",
        "memory_driver": None,
        "bandwidth": {"value": "3 TB", "source": "me"},
        "peak": {"bf17": 1, "fp8": -1},
        "link": {"valeu": 1},
        "notes": "one",
        "tpd": "700 W",
    }
    with pytest.raises(InputError) as caught:
        read_gpu(data, where="s.yaml")
    found = {fault.key: fault for fault in caught.value.faults}
    assert set(found) == {
        "gpu.name",
        "gpu.memory_marketed",
        "gpu.memory_driver",
        "gpu.bandwidth.value",
        "gpu.peak.bf16",
        "gpu.peak.bf17",
        "gpu.peak.fp8.value",
        "gpu.link",
        "gpu.notes",
        "gpu.tpd",
    }
    assert found["gpu.tpd"].expected == "a known key; did you mean tdp?"
    assert found["gpu.memory_marketed"].expected == "more; is a unit missing?"
    assert all(fault.where == "s.yaml" for fault in caught.value.faults)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(data, gpu_schema())


@pytest.mark.parametrize("data", [None, [], "h200", 3, {}])
def test_what_is_no_gpu(data: object) -> None:
    with pytest.raises(InputError, match=r"s\.yaml: gpu"):
        read_gpu(data, where="s.yaml")


def test_the_card_says_every_figure_with_its_source() -> None:
    card = {line.key: line for line in gpu_card("H200")}
    assert card["bandwidth"].value == "4.8 TB/s"
    assert card["bandwidth"].source == "NVIDIA H200 datasheet"
    assert card["peak.bf16"].value == "989.4 TFLOP/s"
    assert card["memory_driver"].value == "143771 MiB"
    assert card["price_usd_per_hour"].date == "2025-2026"
    assert card["architecture"].value == "Hopper"
    for name in gpu_names():
        assert len(gpu_card(name)) > 8
    with pytest.raises(InputError, match="did you mean"):
        gpu_card("h2000")
