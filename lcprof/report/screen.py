"""Where a page is printed: its width, its colours and its character set."""

from __future__ import annotations

import io
import os
import shutil
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from rich.console import RenderableType

PIPE_WIDTH = 80
NARROWEST, WIDEST = 40, 120

_STAND_INS = str.maketrans(
    {"·": "*", "×": "x", "…": "~", "µ": "u", "—": "-", "–": "-", "≈": "~", "→": ">", "²": "2"}
    | {"█": "#", "▓": "=", "▒": "+", "░": "~", "▞": "%", "“": '"', "”": '"', "‘": "'", "’": "'"}
)
"""One character for one, so that columns stay aligned."""


class Screen:
    """A stream to print on.

    Colour only on a terminal, and not under NO_COLOR (no-color.org) or TERM=dumb; elsewhere plain
    text of 80 columns. Characters that the stream's encoding lacks get a stand-in.
    """

    def __init__(self, stream: TextIO, environ: Mapping[str, str] = os.environ) -> None:
        self.stream = stream
        terminal = stream.isatty()
        plain = environ.get("NO_COLOR") or environ.get("TERM") == "dumb"
        self.colour = bool(terminal and not plain)
        columns = shutil.get_terminal_size((PIPE_WIDTH, 24)).columns if terminal else PIPE_WIDTH
        self.width = min(max(columns, NARROWEST), WIDEST)
        self.encoding = stream.encoding or "ascii"

    def can_print(self, text: str) -> bool:
        """Whether the stream's encoding has every character of `text`."""
        return all(_fits(character, self.encoding) for character in text)

    def show(self, parts: Iterable[RenderableType]) -> None:
        """Prints rich renderables one below the other."""
        self.stream.write(self.render(parts))

    def paste(self, lines: Iterable[str]) -> None:
        """Prints lines that are meant to be pasted into a shell: never wrapped or cut."""
        for line in lines:
            self.stream.write(encodable(printable(line), self.encoding) + "\n")

    def render(self, parts: Iterable[RenderableType]) -> str:
        """The text that `show` prints."""
        from rich.console import Console

        buffer = io.StringIO()
        console = Console(
            file=buffer,
            width=self.width,
            force_terminal=self.colour,
            color_system="standard" if self.colour else None,
            no_color=not self.colour,
            force_jupyter=False,
            legacy_windows=False,
            highlight=False,
            markup=False,
            emoji=False,
        )
        for part in parts:
            console.print(part)
        lines = (line.rstrip() for line in buffer.getvalue().split("\n"))
        return encodable("\n".join(lines), self.encoding)


def encodable(text: str, encoding: str) -> str:
    """`text` with what `encoding` lacks replaced, character by character."""
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        kept = (ch if _fits(ch, encoding) else ch.translate(_STAND_INS) for ch in text)
        return "".join(kept).encode(encoding, "replace").decode(encoding)
    return text


def _fits(character: str, encoding: str) -> bool:
    try:
        character.encode(encoding)
    except UnicodeEncodeError:
        return False
    return True


def printable(text: str) -> str:
    """`text` with control, bidirectional and other invisible characters made visible as "?"."""
    return "".join(ch if ch.isprintable() else "?" for ch in text)


def shorten(text: str, width: int) -> str:
    """`text` within `width` characters; what is cut comes from the middle, as names tend to differ
    at their ends."""
    if len(text) <= width:
        return text
    tail = (width - 1) // 2
    return text[: width - 1 - tail] + "…" + text[len(text) - tail :]
