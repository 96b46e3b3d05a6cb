"""What is expected of points before they are measured."""

from __future__ import annotations

import pytest
from calibrating import DECODE, GPU, decode_shapes, record, rows
from msgspec.structs import replace

from lcprof.calibrate.predictions import expectations, uncalibrated
from lcprof.calibrate.runs import calibrate
from lcprof.cost.timing.families import PARAMETERS
from lcprof.domain.calibration import Calibration
from lcprof.measure.floors import Prediction, join
from lcprof.measure.points import Point, chosen_operations, points_of
from lcprof.plan.fits import finder, power_for, published_fits
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


def prompts(context: str) -> list[Point]:
    """The attention of the last 8 K tokens of a prompt."""
    asked = {"model": "llama-3.1-8b", "gpu": "h200-sxm", "context": context}
    cases = expand(read_scenario(asked, where="test"), where="test")
    return points_of(cases, impls=("triton",), only=("prefill_attention",), device="cuda")


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


POWER = power_for(GPU, 700.0)


def test_a_step_below_the_power_limit_draws_by_its_seconds_bytes_and_flops() -> None:
    given = points()
    found = {each.name: each for each in expectations(given, GPU, CATALOG, POWER)}
    for each in found.values():
        assert each.seconds is not None
        assert each.sustained_s == pytest.approx(each.seconds)
        # Of a Hopper at boost clock (catalog/power/hopper.yaml): 75 W idle and 217 W busy, 77 pJ a
        # byte, 0.89 x 1.22 pJ a FLOP of attention. One sequence of 128 K tokens: 8 heads of 128, K
        # and V in 2 bytes; 32 query heads, two products.
        moved, flops = 131_072 * 8 * 128 * 2 * 2, 131_072 * 32 * 128 * 4
        joules = (75 + 217) * each.seconds + 77e-12 * moved + 0.89e-12 * 1.22 * flops
        assert each.energy_j == pytest.approx(joules, rel=0.01)
        assert each.energy_low_j is not None
        assert each.energy_high_j is not None
        assert each.energy_low_j < each.energy_j < each.energy_high_j


def test_a_prompt_at_the_power_limit_takes_longer_than_a_burst_and_draws_the_limit() -> None:
    (each,) = expectations(prompts("32K"), GPU, CATALOG, POWER)
    assert each.seconds is not None
    assert each.sustained_s is not None
    # One H200 ran a long prefill 18 % slower at its 700 W than in a burst.
    assert 1.1 < each.sustained_s / each.seconds < 1.25
    assert each.energy_j == pytest.approx(700 * each.sustained_s)
    assert each.sustained_low_s is not None
    assert each.sustained_high_s is not None
    assert each.sustained_low_s < each.sustained_s < each.sustained_high_s
    (lower,) = expectations(prompts("32K"), GPU, CATALOG, power_for(GPU, 500.0))
    assert lower.sustained_s is not None
    assert lower.sustained_s > each.sustained_s
    (unknown,) = expectations(prompts("32K"), GPU, CATALOG)
    assert (unknown.sustained_s, unknown.energy_j) == (None, None)


def test_what_is_uncalibrated_knows_other_gpus_alone() -> None:
    given = [*points(), *prompts("32K")]
    found = {each.name: each for each in uncalibrated(given, GPU, published_fits(GPU), POWER)}
    assert set(found) == {point.key for point in given}
    for point in given:
        each = found[point.key]
        assert each.uncalibrated_basis.startswith("transported: vllm ")
        assert each.uncalibrated_basis.endswith(" on h100-sxm")
        assert (each.seconds, each.basis, each.held_out) == (None, "", None)
        assert each.uncalibrated_s is not None
        assert each.uncalibrated_sustained_s is not None
        assert each.uncalibrated_sustained_s >= each.uncalibrated_s
        assert each.uncalibrated_energy_j
    # Both kinds of predictions of a point are joined.
    merged = join(given, [*expectations(given, GPU, CATALOG, POWER), *found.values()])
    for told in merged.values():
        assert told.seconds
        assert told.uncalibrated_s


def test_where_nothing_like_a_point_was_published_its_floor_is_uncalibrated() -> None:
    asked = {"model": "deepseek-v3.2", "gpu": "h200-sxm", "gpus": 8, "context": "8K"}
    cases = expand(read_scenario(asked, where="test"), where="test")
    given = points_of(cases, impls=("triton",), only=("token_scores",), device="cuda")
    (found,) = uncalibrated(given, GPU, published_fits(GPU))
    assert found.uncalibrated_basis == "floor"
    # Keys of 128 bytes and a scale of 4, at 4.8 TB/s.
    assert found.uncalibrated_s is not None
    assert found.uncalibrated_s >= 8192 * 132 / 4.8e12
