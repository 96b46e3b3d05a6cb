"""The terminal page: what it says, and how it is drawn."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

import lcprof
from lcprof.flags import Asked, answers
from lcprof.plan.choice import chosen
from lcprof.plan.row import Row, plan_cases
from lcprof.report.bar import PARTS, bar, cells
from lcprof.report.console import continued, position_note, show_plan, subject
from lcprof.report.screen import Screen, encodable, printable, shorten
from lcprof.report.table import abbreviated, ranked, varying
from lcprof.scenario.measuring import Measuring


class Pipe(io.StringIO):
    """A stream in UTF-8 that is no terminal."""

    encoding = "utf-8"


class Terminal(Pipe):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def plan(**keys: Any) -> list[Row]:
    base = {"model": "llama-3.1-8b", "gpu": "h200-sxm", "context": "1M"}
    return lcprof.plan_scenario({**base, **keys})


def page(rows: list[Row], stream: Pipe | None = None, **environ: str) -> str:
    out = stream or Pipe()
    asked = Asked(rows=rows, question="", measure=Measuring(), keys=frozenset())
    show_plan(rows, answers(subject(rows), asked), "", Screen(out, environ))
    return out.getvalue()


def test_a_plan_that_does_not_fit_says_by_how_much_and_why() -> None:
    text = page(plan())
    verdict = text.splitlines()[0]
    # 16.1 GB of weights and 137.4 GB of KV against 0.9 of 143,771 MiB.
    assert verdict.startswith("Does not fit: needs 155 GB of 136 GB per GPU")
    assert verdict.endswith("KV cache is what breaks it")
    assert "| limit 136 GB" in text
    assert re.search(r"fewest GPUs +2 x h200-sxm \(tp 2\)", text)
    assert "  --kv fp8 " in text


def test_a_plan_that_fits_says_what_is_left_and_what_breaks_first() -> None:
    text = page(plan(context="128K"))
    assert text.startswith("Fits: 34.4 GB of 136 GB per GPU, 101 GB to spare\n")
    assert "KV cache, as the context grows" in text
    assert "headroom 101 GB" in text


def test_weights_alone_can_break_a_plan() -> None:
    text = page(plan(model="llama-3.1-70b", context="4K"))
    assert "weights are what breaks it" in text.splitlines()[0]
    assert re.search(r"longest context at 1 sequence +-", text)


def test_times_stand_beside_their_floors_and_say_what_they_rest_on() -> None:
    text = page(plan(kv="fp8"))
    (ttft,) = [line for line in text.splitlines() if "TTFT, one request" in line]
    assert "extrapolated x" in ttft
    assert "Floor: data-sheet peaks" in text
    assert "vLLM's kernels" in text


def test_what_does_not_fit_has_no_times_unless_it_is_hypothetical() -> None:
    text = page(plan())
    assert "No times: it does not fit" in text
    assert "TTFT" not in text
    rows = [replace(row.case, hypothetical=True) for row in plan()]
    text = page(plan_cases(rows))
    assert "TTFT, one request" in text
    assert "Hypothetical: it does not fit" in text


def test_naive_attention_stands_beside_flash_attention() -> None:
    lines = page(plan()).splitlines()
    flash = next(line for line in lines if line.startswith("  FlashAttention"))
    naive = next(line for line in lines if line.startswith("  naive"))
    # 32 layers, 4 x 4096 FLOPs for each of T(T + 1)/2 or T x T pairs; 32 heads x T x T x 2 B.
    assert "288 PFLOP" in flash
    assert "576 PFLOP" in naive
    assert "70.4 TB per layer" in naive


def test_a_context_beyond_the_positions_is_not_vouched_for() -> None:
    (row,) = plan()
    assert "131,072" in position_note(row)
    assert "factor of 8 " in position_note(row)
    assert "not vouched for" in position_note(row)
    (row,) = plan(context="64K")
    assert position_note(row) == ""


def test_what_if_and_lossy_strategies_are_labelled() -> None:
    assert "what-if on the architecture" in page(plan(kv="share:kv_heads=1"))
    both = page(plan(kv=["bf16", "h2o:budget=20%", "share:latent=512"]))
    assert "h2o: tokens are dropped" in both
    assert "share: what-if" in both


def test_content_is_shown_with_its_factors() -> None:
    rows = lcprof.plan_scenario({"model": "llama-3.1-8b", "gpu": "h200", "code": "30k lines"})
    text = " ".join(page(rows).split())
    assert "30,000 lines × 10 tokens/line = 300,000 tokens" in text


def test_several_rows_are_ranked_by_bytes() -> None:
    rows = plan(kv=["bf16", "int4", "fp8"])
    assert [row.case.kv_spec for row in ranked(rows)] == ["int4", "fp8", "bf16"]
    text = page(rows)
    assert text.startswith("2 of 3 fit; least memory: kv int4, ")
    table = text[text.index("TPOT") :]
    assert table.index("int4") < table.index("fp8") < table.index("bf16 ")
    assert "Try, in place of kv bf16" in text


def test_offers_are_about_the_row_that_a_page_decides_on() -> None:
    # A window drops tokens and int4 narrows them; both take fewer bytes than fp8.
    rows = plan(kv=["fp8", "window:tokens=4096,sinks=4", "int4"])
    assert chosen(rows) is rows[0]
    assert subject(rows) is rows[0]
    text = page(rows)
    assert "least memory: kv window" in text
    assert "in place of kv window" not in text
    # What was asked for first and does not fit is what to remedy.
    rows = plan(kv=["bf16", "int4", "fp8"])
    assert chosen(rows) is rows[2]
    assert subject(rows) is rows[0]


def test_rows_of_a_varying_number_stay_in_order() -> None:
    lines = page(plan(context=["256K", "1M", "512K"], output="1K")).splitlines()
    start = next(index for index, line in enumerate(lines) if line.endswith("TPOT"))
    assert [line.split()[0] for line in lines[start + 1 : start + 4]] == ["256K", "1M", "512K"]


def test_only_what_varies_is_a_column() -> None:
    rows = plan(gpus=[1, 2], kv=["bf16", "fp8"])
    assert varying(rows) == ["gpus", "kv"]
    assert varying(plan(gpus=2, tp=[2], kv="bf16")) == ["kv"]
    assert varying(plan(tp=[1, 2], pp=[1, 2], context="1K")) == ["gpus", "tp", "pp"]


def test_long_tables_say_what_they_leave_out() -> None:
    text = page(plan(context=list(range(1024, 1024 + 230)), concurrency=1))
    assert "and 30 more rows" in text


def test_facts_without_end_are_counted() -> None:
    text = page(plan(context=list(range(200_000, 200_010)), output="1K"))
    assert "and 6 more of the kind" in text


def test_colour_only_on_a_terminal_that_wants_it() -> None:
    rows = plan()
    assert "\x1b[" not in page(rows)
    assert "\x1b[" in page(rows, Terminal())
    assert "\x1b[" not in page(rows, Terminal(), NO_COLOR="1")
    assert "\x1b[" not in page(rows, Terminal(), TERM="dumb")


@pytest.mark.parametrize("spec", ["bf16", "snapkv", "offload"])
def test_the_bar_is_as_wide_as_asked_and_marks_the_limit(spec: str) -> None:
    (row,) = plan(kv=spec)
    for width in (30, 76):
        drawn = bar(row.estimate, width, shades=False).plain
        assert len(drawn) == width
        assert ("|" in drawn) == (not row.estimate.fits)
    if "|" in drawn:
        share = row.estimate.capacity_bytes_per_gpu / row.estimate.total_bytes_per_gpu
        assert drawn.index("|") == pytest.approx(share * 76, abs=1)


def test_the_parts_of_the_bar_add_up_to_the_memory() -> None:
    for row in plan(kv=["bf16", "snapkv", "fp8"], context=["128K", "1M"]):
        total = sum(part.bytes_held(row.estimate) for part in PARTS[:-1])
        assert total == pytest.approx(row.estimate.total_bytes_per_gpu)


@given(st.lists(st.floats(0, 1e15), min_size=6, max_size=6), st.integers(20, 200))
def test_cells_fill_the_width_and_forget_nothing(amounts: list[float], width: int) -> None:
    lengths = cells(amounts, width)
    assert sum(lengths) == (width if any(amounts) else 0)
    for amount, length in zip(amounts, lengths, strict=True):
        assert (length > 0) == (amount > 0)


def test_markup_and_escapes_in_names_are_text() -> None:
    model = {
        "name": "[bold]\x1b[31mx[/]",
        "layers": 2,
        "hidden": 256,
        "q_heads": 8,
        "kv_heads": 2,
        "head_dim": 32,
        "intermediate": 512,
        "vocab": 1000,
    }
    text = page(plan(model=model, context="1K"))
    assert "[bold]?[31mx[/]" in text
    assert "\x1b" not in text


def test_long_names_are_shortened_in_the_middle() -> None:
    assert shorten("abcdefghij", 10) == "abcdefghij"
    assert shorten("abcdefghij", 7) == "abc…hij"
    specs = [
        f"{form}+window:tokens={tokens},sinks={sinks}"
        for form in ("fp8:scale=token-head", "int8:scale=token-head")
        for tokens in (4096, 16384)
        for sinks in (4, 64)
    ]
    lines = page(plan(kv=specs)).splitlines()
    head = next(index for index, line in enumerate(lines) if line.endswith("TPOT"))
    table = lines[head + 1 : head + 1 + len(specs)]
    assert max(map(len, lines)) <= 80
    assert len({line.split()[0] for line in table}) == len(specs)


def test_specs_lose_their_argument_names_first() -> None:
    assert abbreviated("fp8+window:tokens=4096,sinks=4") == "fp8+window:t4096,s4"
    assert abbreviated("fp8:scale=token-head") == "fp8:token-head"


def test_flags_that_wrap_can_still_be_pasted() -> None:
    text = continued("  --gpu h200-sxm --kv kivi:bits=4,group=64 --concurrency 1", 40)
    assert text == "  --gpu h200-sxm \\\n    --kv kivi:bits=4,group=64 \\\n    --concurrency 1"


def test_characters_an_encoding_lacks_get_a_stand_in() -> None:
    assert encodable("3 × 4 · 5 µs █▓ 漢", "ascii") == "3 x 4 * 5 us #= ?"
    assert encodable("3 × 4 █", "latin-1") == "3 × 4 #"
    assert printable("a\u202eb\tc") == "a?b?c"


def test_a_model_without_attention_has_none_on_its_page(tmp_path: Path) -> None:
    config = {
        "model_type": "mamba2", "hidden_size": 4096, "num_hidden_layers": 64, "state_size": 128,
        "num_heads": 128, "head_dim": 64, "n_groups": 8, "expand": 2, "conv_kernel": 4,
        "vocab_size": 32768, "tie_word_embeddings": False,
    }  # fmt: skip
    path = tmp_path / "mamba.json"
    path.write_text(json.dumps(config))
    text = page(plan(model=str(path)))
    assert "of it recurrence" in text
    assert "FlashAttention" not in text


def test_a_strategy_in_short_is_written_out_once() -> None:
    specs = ["bf16", "window:tokens=4096,sinks=4", "fp8+window:tokens=1024,sinks=4", "quest"]
    text = " ".join(page(plan(kv=specs, gpu=["h200-sxm", "h100-sxm"])).split())
    (short, spec) = re.findall(r"KV in short: (\S+) is (\S+)\.", text)[0]
    assert spec in specs
    assert len(short) < len(spec)
    assert text.count("KV in short") == 1
    assert "KV in short" not in page(plan(kv=["bf16", "fp8"]))
