"""The page of a record: one HTML file with its style, its script, its data and what draws it.

The same record gives the same bytes with the same version of vl-convert.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from html import escape
from pathlib import Path
from typing import Any

from lcprof.report.html.charts import DRAWINGS, drawn
from lcprof.report.html.figures import HEADS
from lcprof.report.html.markup import Markup
from lcprof.report.html.run_charts import RUN_DRAWINGS
from lcprof.report.html.sections import SECTIONS

HERE = Path(__file__).parent
STYLE = (HERE / "page.css").read_text(encoding="utf-8")
POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; img-src data:; "
    "script-src 'unsafe-inline' 'unsafe-eval'"
)
"""Nothing may be fetched; Vega compiles its expressions in the page."""
NO_SCRIPT = "Charts and sliders need JavaScript; the tables hold every figure without it."


def html_page(record: Mapping[str, Any]) -> str:
    """The whole page. Nothing of it is fetched from elsewhere."""
    drawings = (*DRAWINGS, *RUN_DRAWINGS)
    specs = {each.name: spec for each in drawings if (spec := drawn(record, each)) is not None}
    markup = Markup(record, specs.keys())
    body = "".join(section(markup) for section in SECTIONS)
    title = escape(str(markup.value("about", "title")))
    script = (HERE / "page.js").read_text(encoding="utf-8")
    return (
        "<!doctype html>\n"
        '<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        f'<link rel="icon" href="data:,">\n<title>{_short(title)}</title>\n'
        f"<style>\n{STYLE}</style>\n</head>\n<body>\n"
        f"<header><h1>{markup.figure('about', 'title')}</h1>"
        f"<noscript><p>{NO_SCRIPT}</p></noscript></header>\n"
        f"<main>\n{body}</main>\n"
        '<div id="tip" role="status" hidden></div>\n'
        f"{_data('tables', record['tables'])}{_data('heads', HEADS)}{_data('specs', specs)}"
        f"<script>{_library()}</script>\n<script>\n{script}</script>\n</body>\n</html>\n"
    )


@cache
def _library() -> str:
    """Vega, Vega-Lite and Vega-Embed as one script, which takes a second to put together."""
    import vl_convert

    script: str = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")
    return script.replace("</script", "<\\/script")


def _short(title: str) -> str:
    return title if len(title) <= 120 else f"{title[:119]}…"


def _data(name: str, value: object) -> str:
    """A script element that holds data. Its text cannot end the element or open a comment."""
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    for letter in "<>&\u2028\u2029":
        text = text.replace(letter, f"\\u{ord(letter):04x}")
    return f'<script type="application/json" id="{name}">{text}</script>\n'
