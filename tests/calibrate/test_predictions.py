"""What is expected of points before they are measured."""

from __future__ import annotations

import pytest
from calibrating import DECODE, GPU, decode_shapes, record, rows
from msgspec.structs import replace

from lcprof.calibrate.predictions import expectations
from lcprof.calibrate.runs import calibrate
from lcprof.cost.timing.families import PARAMETERS
from lcprof.domain.calibration import Calibration
from lcprof.measure.floors import Prediction, join
from lcprof.measure.points import Point, chosen_operations, points_of
from lcprof.plan.fits import finder
from lcprof.scenario.calibrations import calibration_path, write_calibration
from lcprof.scenario.cases import expand
from lcprof.scenario.schema import read_scenario
from lcprof.scenario.transport import Calibrations

CATALOG = finder(Calibrations(PARAMETERS), GPU)


def points(context: str = "128K", impls: tuple[str, ...] = ("triton",)) -> list[Point]:
    """Of one sequence of Llama-3.1-8B: pages of 16, and in one piece."""
    asked = {"model": "llama-3.1-8b", "gpu": "h200-sxm", "context": context}
    cases = expand(read_scenario(asked, where="test"), where="test")
    only = chosen_operations(("decode_attention", "token_scores"))
    return points_of(cases, impls=impls, only=only, device="cuda")


def told(given: list[Point], fits: object = CATALOG) -> dict[str, Prediction]:
    found = expectations(given, GPU, fits)  # type: ignore[arg-type]  # fits of a test
    return {each.name: each for each in found}


def test_the_catalog_predicts_by_the_published_kernel_most_like_it() -> None:
    given = points()
    found = told(given)
    assert set(found) == {point.key for point in given}
    for each in found.values():
        assert each.basis == "transported: vllm vllm_flash_attn_fa3 bf16 cache on h200-sxm"
        assert each.held_out is True
        assert each.low is not None
        assert each.seconds is not None
        assert each.high is not None
        # 128 K tokens of 4 KiB at 4.8 TB/s take 112 us at least.
        assert 100e-6 < each.low < each.seconds < each.high < 300e-6
    assert join(given, list(found.values()))[given[0].key].seconds == found[given[0].key].seconds


def test_what_no_stack_computes_or_lies_far_away_has_no_expectation() -> None:
    assert told(points(impls=("naive",))) == {}
    refused = [replace(point, why="no reason") for point in points()]
    assert told(refused) == {}
    # The published steps end at 128 K.
    assert told(points("16M")) == {}


@pytest.fixture(scope="module")
def made() -> Calibration:
    given = rows("decode_attention", decode_shapes([(32, 8), (16, 8), (64, 8)]), DECODE)
    found = calibrate([record("run", given)], GPU, before=CATALOG, command="lcprof calibrate run")
    return found.calibrations[0]


def test_a_calibration_predicts_its_own_kernel(
    made: Calibration, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("calibrations")
    write_calibration(made, calibration_path("h200-sxm", "lcprof", folder))
    fits = finder(Calibrations(PARAMETERS, folder), GPU)
    kernel = "lcprof bf16 cache, pages of 16 on h200-sxm, calibrated on 2026-11-26"
    for context, basis, held_out in (
        ("128K", f"measured: {kernel}", False),
        ("64K", f"interpolated: {kernel}", True),
        ("512K", f"extrapolated x4: {kernel}", True),
    ):
        given = points(context)
        found = told(given, fits)
        (paged,) = (found[p.key] for p in given if p.shape["page_tokens"])
        assert (paged.basis, paged.held_out) == (basis, held_out)
    # No row was of a cache in one piece: the same kernel over pages is most like it.
    (whole,) = (found[p.key] for p in given if not p.shape["page_tokens"])
    assert (whole.basis, whole.held_out) == (f"transported: {kernel}", True)
