"""Content instead of tokens: what an hour of video or a code base is in tokens.

Each factor's default stands here with its public source; a scenario may give its own.
"""

from __future__ import annotations

import math

from msgspec import Struct


class ContentFactor(Struct, frozen=True, kw_only=True):
    """A default conversion factor and where it was published."""

    value: float
    source: str


_GEMINI_VIDEO = "Google, Gemini API documentation, Video understanding; others differ"

FACTORS = {
    "video_fps": ContentFactor(value=1.0, source=_GEMINI_VIDEO),
    "video_tokens_per_frame": ContentFactor(value=258.0, source=_GEMINI_VIDEO),
    "audio_tokens_per_s": ContentFactor(value=32.0, source=_GEMINI_VIDEO),
    "code_tokens_per_line": ContentFactor(
        value=10.0,
        source="16x Engineer, Code to Tokens Conversion (2024): 100 lines are about 1,000 tokens",
    ),
    "text_tokens_per_word": ContentFactor(
        value=1.33,
        source="OpenAI Help Center, What are tokens: 100 tokens are about 75 English words",
    ),
}


class Converted(Struct, frozen=True, kw_only=True):
    """Tokens of a content, and the conversion as a sentence to show."""

    tokens: int
    note: str


def video(seconds: float, *, fps: float, tokens_per_frame: float) -> Converted:
    """Frames sampled at `fps`, each of `tokens_per_frame`."""
    frames = _up(seconds * fps)
    tokens = _up(frames * tokens_per_frame)
    sum_text = f"{_n(seconds)} s × {_n(fps)} frames/s × {_n(tokens_per_frame)} tokens/frame"
    used = {"video_fps": fps, "video_tokens_per_frame": tokens_per_frame}
    return _converted("video", sum_text, tokens, used)


def audio(seconds: float, *, tokens_per_s: float) -> Converted:
    """Sound at `tokens_per_s`."""
    sum_text = f"{_n(seconds)} s × {_n(tokens_per_s)} tokens/s"
    used = {"audio_tokens_per_s": tokens_per_s}
    return _converted("audio", sum_text, _up(seconds * tokens_per_s), used)


def code(lines: int, *, tokens_per_line: float) -> Converted:
    """Source code by the line."""
    sum_text = f"{lines:,} lines × {_n(tokens_per_line)} tokens/line"
    used = {"code_tokens_per_line": tokens_per_line}
    return _converted("code", sum_text, _up(lines * tokens_per_line), used)


def text(words: int, *, tokens_per_word: float) -> Converted:
    """Prose by the word."""
    sum_text = f"{words:,} words × {_n(tokens_per_word)} tokens/word"
    used = {"text_tokens_per_word": tokens_per_word}
    return _converted("text", sum_text, _up(words * tokens_per_word), used)


def _converted(kind: str, sum_text: str, tokens: int, used: dict[str, float]) -> Converted:
    sources = dict.fromkeys(
        FACTORS[name].source if value == FACTORS[name].value else f"{name} as given"
        for name, value in used.items()
    )
    return Converted(
        tokens=tokens, note=f"{kind}: {sum_text} = {tokens:,} tokens ({'; '.join(sources)})"
    )


def _up(value: float) -> int:
    """Rounded up, forgiving the last digits that a product of decimals gains."""
    return math.ceil(round(value, 6))


def _n(value: float) -> str:
    return f"{value:,.6f}".rstrip("0").rstrip(".")
