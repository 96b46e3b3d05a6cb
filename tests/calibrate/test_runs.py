"""Calibrations from records whose times follow from known parameters."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from calibrating import DECODE, GPU, PREFILL, decode_shapes, record, rows, standard_rows
from measuring import row
from msgspec.structs import replace

from lcprof.calibrate.calls import called
from lcprof.calibrate.runs import (
    FLOOR,
    LEAST_ROWS,
    Calibrated,
    NothingFittedError,
    calibrate,
    gpu_of,
)
from lcprof.cost.timing.ceilings import ceilings_of
from lcprof.cost.timing.families import FAMILIES, PARAMETERS
from lcprof.domain.calibration import Calibration
from lcprof.errors import InputError
from lcprof.measure.record import Record
from lcprof.measure.row import Predicted
from lcprof.plan.fits import finder
from lcprof.scenario.gpus import load_gpu
from lcprof.scenario.transport import Calibrations

BEFORE = finder(Calibrations(PARAMETERS), GPU)


def fitted(*records: Record, **keys: Any) -> Calibrated:
    return calibrate(records, GPU, before=BEFORE, command="lcprof calibrate run", **keys)


@pytest.fixture(scope="module")
def standard() -> Calibrated:
    return fitted(record("run", standard_rows()))


@pytest.fixture(scope="module")
def held_out() -> Calibrated:
    return fitted(record("run", standard_rows()), hold_out=True)


def only(found: Calibrated) -> Calibration:
    (made,) = found.calibrations
    return made


@pytest.mark.parametrize(
    ("operation", "variant", "true", "shape"),
    [
        (
            "decode_attention",
            "bf16 cache, pages of 16",
            DECODE,
            decode_shapes([(48, 8)])[4] | {"context_tokens": 65536, "batch": 8},
        ),
        (
            "prefill_attention",
            "prompt bf16, heads of 128",
            PREFILL,
            {"batch": 1, "query_tokens": 32768, "context_tokens": 32768, "q_heads": 48,
             "kv_heads": 8, "head_dim": 128, "window_tokens": 0, "sink_tokens": 0,
             "dtype": "bf16"},
        ),
    ],
)  # fmt: skip
def test_a_fit_says_what_the_known_parameters_say_of_a_shape_it_has_not_seen(
    standard: Calibrated, operation: str, variant: str, true: dict[str, float], shape: Any
) -> None:
    made = called(operation, shape, "triton", GPU)
    fit = only(standard).fit(operation, variant)
    assert fit is not None
    ceilings = ceilings_of(GPU)
    family = FAMILIES[operation]
    wanted = family.seconds(made.call, ceilings, true)
    assert family.seconds(made.call, ceilings, fit.parameters) == pytest.approx(wanted, rel=0.03)
    assert fit.rows == sum(score.seen.rows for score in standard.scores if score.variant == variant)


def test_what_rows_determine_is_found(standard: Calibrated) -> None:
    """Caches are cold in every row, so that both fixed times of a call show in their sum alone."""
    fit = only(standard).fit("decode_attention", "bf16 cache, pages of 16")
    assert fit is not None
    fixed_s = fit.parameters["launch_s"] + fit.parameters["cold_s"]
    assert fixed_s == pytest.approx(DECODE["launch_s"] + DECODE["cold_s"], rel=0.05)
    assert fit.box["context_tokens"] == (4096.0, 131072.0)
    assert fit.residuals["large"].median < 0.02


def test_where_a_calibration_comes_from(standard: Calibrated) -> None:
    made = only(standard)
    assert (made.gpu, made.stack, made.date) == ("h200-sxm", "lcprof", "2026-11-26")
    assert made.source.startswith("lcprof calibrate run (NVIDIA H200, driver 580.1, torch 2.11")
    assert "lcprof 0.1.0 at abc" in made.source
    assert made.points == {each.key for each in standard_rows()}
    assert made.split.startswith("all rows")


def test_held_out_shapes_were_not_seen_and_are_predicted(held_out: Calibrated) -> None:
    made = only(held_out)
    assert made.split.startswith("half to two thirds of the rows")
    assert len(held_out.scores) == 2
    for score in held_out.scores:
        assert score.unseen is not None
        rows_of = score.seen.rows + score.unseen.rows
        assert rows_of / 3 <= score.unseen.rows <= rows_of / 2
        assert score.unseen.median < 0.03
        assert score.unseen.p90 < 0.08
        assert score.inside is not None
        assert score.inside >= 0.8
        assert score.before is not None
        assert score.before.rows == score.unseen.rows
        assert score.before.median > score.unseen.median
        assert score.before_basis == "vllm on h200-sxm"
    assert len(made.points) == sum(score.seen.rows for score in held_out.scores)
    # Decode steps have four pairs of heads: whole ones are held out.
    decodes = [each for each in standard_rows() if each.operation == "decode_attention"]
    seen = {each.shape["q_heads"] for each in decodes if each.key in made.points}
    unseen = {each.shape["q_heads"] for each in decodes if each.key not in made.points}
    assert seen | unseen == {8, 16, 32, 64}
    assert not seen & unseen


def test_the_same_point_in_two_runs_is_held_out_in_both() -> None:
    given = rows("decode_attention", decode_shapes([(32, 8)]), DECODE)
    found = fitted(record("one", given), record("two", given), hold_out=True)
    (score,) = found.scores
    assert score.unseen is not None
    points = only(found).points
    assert score.seen.rows == 2 * len(points)
    assert score.unseen.rows == 2 * (len(given) - len(points))
    # With one shape of heads, batches are held out whole, as published tables do.
    seen = {each.shape["batch"] for each in given if each.key in points}
    assert len(seen) == 2


def test_the_order_of_rows_decides_nothing() -> None:
    given = rows("decode_attention", decode_shapes(), DECODE)
    one, other = (only(fitted(record("run", each), hold_out=True)) for each in (given, given[::-1]))
    assert one.points == other.points


def test_few_rows_are_said_and_not_fitted() -> None:
    few = rows("decode_attention", decode_shapes()[: LEAST_ROWS - 1], DECODE)
    found = fitted(record("run", [*standard_rows()[36:], *few]))
    assert [score.operation for score in found.scores] == ["prefill_attention"]
    (line,) = found.unfitted
    assert line == (
        "decode_attention, lcprof bf16 cache, pages of 16: 5 rows of 5 shapes; a fit needs 6 of 3"
    )
    with pytest.raises(NothingFittedError, match="run: nothing to calibrate from: decode_att"):
        fitted(record("run", few))


def test_one_shape_many_times_is_no_fit() -> None:
    given = rows("decode_attention", decode_shapes()[:1], DECODE)
    with pytest.raises(NothingFittedError, match="8 rows of 1 shape; a fit needs"):
        fitted(*(record(f"run {index}", given) for index in range(8)))


def test_rows_of_another_status_and_ceilings_are_left_out() -> None:
    good = rows("decode_attention", decode_shapes(), DECODE)
    bad = [replace(good[0], key=f"{each} x", status=each) for each in ("wrong", "refused")]  # type: ignore[arg-type]
    ceiling = row("ceiling read", operation="ceiling", shape={}, implementation="torch")
    naive = replace(good[0], key="by naive", implementation="naive")
    found = fitted(record("run", [*good, *bad, ceiling, naive]))
    assert only(found).points == {each.key for each in good}
    assert found.unfitted == (
        "decode_attention by naive: no stack has decode_attention by naive (1 row)",
    )


def test_stacks_have_a_calibration_each() -> None:
    shapes = [
        {"rows": m, "depth": 4096, "columns": n, "format": "bf16"}
        for m in (1, 16, 256, 4096)
        for n in (1024, 4096, 14336)
    ]
    gemm = {name: p.start for name, p in PARAMETERS["gemm"].items()}
    products = rows("gemm", shapes, gemm, "torch")
    found = fitted(record("run", [*standard_rows(), *products]))
    assert [made.stack for made in found.calibrations] == ["lcprof", "torch"]
    assert [fit.variant for fit in found.calibrations[1].fits] == ["bfloat16"]
    assert found.calibrations[1].points == {each.key for each in products}


def test_what_nothing_published_is_like_is_compared_with_its_floor() -> None:
    shapes = [
        {"batch": batch, "query_tokens": 1, "context_tokens": context, "heads": 64,
         "index_dim": 128, "format": "fp8", "page_tokens": 64}
        for batch in (1, 8)
        for context in (4096, 65536, 131072, 1048576)
    ]  # fmt: skip
    true = {"launch_s": 3e-6, "stream": 0.5, "cached": 0.5, "row_bytes_per_s": 2e10}
    given = rows("token_scores", shapes, true)
    (score,) = fitted(record("run", given)).scores
    assert score.before_basis == FLOOR
    assert score.before is not None
    # The floors of these rows are half of what they took.
    assert score.before.median == pytest.approx(0.5, abs=0.01)
    assert score.seen.median < 0.02
    bare = [replace(each, predicted=Predicted()) for each in given]
    (score,) = fitted(record("run", bare)).scores
    assert (score.before, score.before_basis) == (None, "")


def test_records_of_a_processor_have_nothing_to_calibrate() -> None:
    cpu = record("cpu", [], device="cpu", gpu="AMD EPYC")
    with pytest.raises(NothingFittedError, match="cpu: measured on a processor"):
        gpu_of([cpu])


@pytest.mark.parametrize(
    ("other", "expected"),
    [
        ({"gpu": "NVIDIA L4"}, "two: given 'NVIDIA L4'; expected a run on NVIDIA H200, as one is"),
        ({"device": "cpu", "gpu": "AMD EPYC"}, "two: given 'AMD EPYC'; expected a run on NVIDIA"),
        ({"mig": True}, "two: given 'a run on a MIG slice'; expected a whole GPU"),
    ],
)
def test_runs_that_do_not_go_together_are_refused(other: dict[str, Any], expected: str) -> None:
    with pytest.raises(InputError, match=expected):
        gpu_of([record("one", []), record("two", [], **other)])


def test_a_gpu_that_the_catalog_lacks_must_be_named() -> None:
    unheard = record("run", [], gpu="NVIDIA Unheard 9000")
    with pytest.raises(InputError, match=r"run: given 'NVIDIA Unheard 9000'.*--gpu NAME"):
        gpu_of([unheard])
    mine = load_gpu("l4", where="test")
    assert gpu_of([unheard], mine) is mine
    assert gpu_of([record("run", [])]).name == "h200-sxm"


def test_a_fit_with_few_rows_stays_near_the_kernel_that_is_like_it() -> None:
    """Without a prior, five scattered starts find other parameters for as few rows."""
    few = rows("decode_attention", decode_shapes([(32, 8)])[:LEAST_ROWS], DECODE)
    fit = only(fitted(record("run", few))).fits[0]
    like = BEFORE("decode_attention", (("vllm", "vllm_flash_attn_fa3 bf16 cache"),))
    assert like is not None
    undetermined = "wide_cost"
    near = fit.parameters[undetermined] / like.fit.parameters[undetermined]
    assert abs(np.log(near)) < 0.01
