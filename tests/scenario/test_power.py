"""Power constants: those of the catalog, how they are transported, and damaged files."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest

from lcprof.errors import InputError
from lcprof.scenario.files import read_yaml
from lcprof.scenario.gpus import gpu_names, load_gpu, read_gpu
from lcprof.scenario.power import FOLDER, OTHER_CHIP_SPREAD, power_model, read_power

GOOD: dict[str, Any] = {
    "architecture": "Hopper",
    "basis": "measured",
    "gpus": ["h100-sxm"],
    "measured_on": ["h100-sxm"],
    "idle_w": {"value": 75, "source": "s"},
    "busy_w": {"value": 200, "source": "s"},
    "joules_per_flop": {"bf16": {"value": 1e-12, "source": "s"}},
    "joules_per_hbm_byte": {"value": 1e-10, "source": "s"},
    "attention": {"value": 1.2, "source": "s"},
    "clock_exponent": {"value": 2.5, "source": "s"},
    "low": {"value": 0.8, "source": "s"},
    "high": {"value": 1.2, "source": "s"},
}


def changed(path: list[str], value: object) -> dict[str, Any]:
    data = deepcopy(GOOD)
    place: Any = data
    for key in path[:-1]:
        place = place[key]
    if value is None:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    return data


def faults(data: object) -> list[str]:
    with pytest.raises(InputError) as caught:
        read_power(data, where="mine.yaml")
    return [str(fault) for fault in caught.value.faults]


def test_a_good_file() -> None:
    assert read_power(GOOD, where="mine.yaml").busy_w.value == 200


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        (["idle_w"], None, ["idle_w", "nothing", "a value"]),
        (["busy_w", "source"], None, ["busy_w.source", "nothing"]),
        (["busy_w", "source"], "", ["busy_w.source", "length >= 1"]),
        (["busy_w", "value"], "200 W", ["busy_w.value", "'200 W'", "a number"]),
        (["busy_w", "value"], -1, ["busy_w.value", "-1", "watts from 1"]),
        (["busy_w", "value"], float("nan"), ["busy_w.value", "nan", "watts from 1"]),
        (["low", "value"], 1.1, ["low.value", "1.1", "a factor from 0.2 to 1"]),
        (["high", "value"], 0.9, ["high.value", "a factor from 1 to 5"]),
        (["attention", "value"], 4, ["attention.value", "a factor from 0.5 to 3"]),
        (["clock_exponent", "value"], 4, ["clock_exponent.value", "a number from 1.2 to 3"]),
        (["joules_per_flop", "bf16"], None, ["joules_per_flop.bf16", "nothing"]),
        (["joules_per_flop", "bf16", "value"], 1.0, ["joules_per_flop.bf16", "1e-14"]),
        (["joules_per_flop", "bf8"], {"value": 1e-12, "source": "s"}, ["bf8", "fp32"]),
        (["joules_per_hbm_byte", "value"], 75, ["joules_per_hbm_byte.value", "75"]),
        (["measured_on"], [], ["measured_on", "length >= 1"]),
        (["basis"], "guessed", ["basis", "guessed"]),
        (["idel_w"], {"value": 1, "source": "s"}, ["idel_w", "did you mean idle_w"]),
    ],
)
def test_damaged_files_are_refused(path: list[str], value: object, words: list[str]) -> None:
    (line,) = faults(changed(path, value))
    assert line.startswith("mine.yaml: ")
    assert all(word in line for word in words), line


def test_all_faults_come_at_once() -> None:
    data = changed(["idle_w"], None) | {"busy_w": 3, "extra": 1}
    assert len(faults(data)) == 3
    assert len(faults([])) == 1


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.yaml")), ids=lambda path: path.stem)
def test_the_catalogs_files(path: Any) -> None:
    file = read_power(read_yaml(path), where=path.name)
    assert file.architecture.lower() == path.stem
    assert {load_gpu(name, where=path.name).architecture for name in file.gpus} == {
        file.architecture
    }
    assert set(file.measured_on) <= set(gpu_names())


@pytest.mark.parametrize("name", gpu_names())
def test_every_gpu_with_a_tdp_has_a_model(name: str) -> None:
    gpu = load_gpu(name, where=name)
    model = power_model(gpu)
    if gpu.tdp_w is None:
        assert model is None
        return
    assert model is not None
    assert model.limit_w == gpu.tdp_w
    assert 0 < model.idle_w < 0.3 * gpu.tdp_w
    assert model.low < 1 < model.high
    assert set(gpu.peak_flops) <= set(model.joules_per_flop)
    # A matrix product at three quarters of the peak, or a stream at nine tenths of the bandwidth,
    # draws a good part of the TDP, and not much over twice as much (an H100 PCIe throttles hard).
    for work in (
        0.75 * gpu.peak_flops["bf16"] * model.flop_j("bf16"),
        0.9 * gpu.bandwidth_bytes_per_s * model.joules_per_hbm_byte,
    ):
        assert 0.3 < (model.idle_w + model.busy_w + work) / gpu.tdp_w < 2.2
    assert model.sources["idle_w"]


def test_what_was_measured_says_so() -> None:
    h200, pcie, other = (
        power_model(load_gpu(name, where=name)) for name in ("h200-sxm", "h100-pcie", "mi300x")
    )
    assert h200 is not None
    assert pcie is not None
    assert other is not None
    assert (h200.basis, pcie.basis, other.basis) == ("measured", "transported", "transported")
    assert pcie.joules_per_flop["bf16"] == h200.joules_per_flop["bf16"]
    assert pcie.idle_w == pytest.approx(h200.idle_w * 350 / 700)
    assert other.low < pcie.low < h200.low
    assert other.high == pytest.approx(h200.high * OTHER_CHIP_SPREAD)
    # The same share of the TDP at the peak rate.
    h100, mi300x = load_gpu("h100-sxm", where=""), load_gpu("mi300x", where="")
    assert other.flop_j("bf16") * mi300x.peak_flops["bf16"] / 750 == pytest.approx(
        h200.flop_j("bf16") * h100.peak_flops["bf16"] / 700
    )


def test_an_ultra_is_of_its_architecture() -> None:
    b200, b300 = (power_model(load_gpu(name, where=name)) for name in ("b200", "b300"))
    assert b200 is not None
    assert b300 is not None
    assert b300.joules_per_flop["bf16"] == b200.joules_per_flop["bf16"]
    assert b300.basis == "transported"


def test_a_limit() -> None:
    gpu = load_gpu("h200-sxm", where="")
    held, free = power_model(gpu, 500.0), power_model(gpu, 900.0)
    assert held is not None
    assert free is not None
    assert (held.limit_w, free.limit_w) == (500.0, 700.0)
    with pytest.raises(InputError, match=r"power_limit: given '60 W'; expected more than the 75 W"):
        power_model(gpu, 60.0)


def test_a_users_gpu() -> None:
    data = {
        "name": "mine",
        "memory_marketed": "80 GB",
        "bandwidth": "2 TB/s",
        "peak": {"bf16": "500 TFLOP/s"},
    }
    assert power_model(read_gpu(data, where="mine")) is None
    model = power_model(read_gpu(data | {"tdp": "350 W"}, where="mine"))
    assert model is not None
    assert model.basis == "transported"
    assert model.limit_w == 350
