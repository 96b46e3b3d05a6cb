"""KV strategies: how the cache is kept and read, each in one file, composing by wrapping.

A spec is text: `kind[:argument=value[,argument=value]]`, joined with `+` in any order:
`fp8`, `kivi:bits=4,group=32`, `fp8+window:tokens=4096,sinks=4`. The number format is innermost.
"""

from __future__ import annotations

from typing import Any

from lcprof.domain.kv.dense import DTYPE_BYTES, Dense
from lcprof.domain.kv.eviction import H2O, SnapKV
from lcprof.domain.kv.kivi import Kivi
from lcprof.domain.kv.offload import Offload
from lcprof.domain.kv.quantised import Fp8, Int4, Int8
from lcprof.domain.kv.share import Share
from lcprof.domain.kv.sparse import Quest, TopK
from lcprof.domain.kv.strategy import KvStrategy
from lcprof.domain.kv.window import Window
from lcprof.errors import InputError, nearest

STRATEGIES: tuple[type[KvStrategy], ...] = (
    Dense,
    Fp8,
    Int8,
    Int4,
    Kivi,
    Window,
    H2O,
    SnapKV,
    Quest,
    TopK,
    Share,
    Offload,
)
FORMATS = (Fp8, Int8, Int4, Kivi)
MAX_SPEC_CHARACTERS = 500

__all__ = ["STRATEGIES", "KvStrategy", "parse_kv"]


def parse_kv(spec: str, *, where: str, key: str = "kv") -> KvStrategy:
    """The strategy that a spec names.

    Raises InputError with the part of the spec at fault: an unknown kind or argument (with the
    nearest names), a value out of range, two number formats in one chain.
    """
    if len(spec) > MAX_SPEC_CHARACTERS:
        raise InputError.one(
            where, key, given=spec, expected=f"a KV spec of at most {MAX_SPEC_CHARACTERS} letters"
        )
    strategy: KvStrategy = Dense()
    parts = [part.strip() for part in spec.split("+")]
    for part in sorted(parts, key=lambda part: not _is_format(part)):
        strategy = _wrap(strategy, part, where=where, key=key)
    formats = [link.kind for link in strategy.chain() if isinstance(link, FORMATS)]
    if len(formats) > 1:
        raise InputError.one(
            where,
            key,
            given=spec,
            expected="at most one number format, not " + " and ".join(formats),
        )
    return strategy


def _is_format(part: str) -> bool:
    kind = part.partition(":")[0]
    return kind in DTYPE_BYTES or kind in {known.kind for known in FORMATS}


def _wrap(inner: KvStrategy, part: str, *, where: str, key: str) -> KvStrategy:
    kind, _, rest = part.partition(":")
    if kind in DTYPE_BYTES and not rest and inner == Dense():
        return Dense(dtype=kind)
    known = {strategy.kind: strategy for strategy in STRATEGIES if strategy is not Dense}
    if kind not in known:
        names = [*DTYPE_BYTES, *known]
        hint = nearest(kind, names) or "one of " + ", ".join(names)
        raise InputError.one(where, key, given=part, expected=f"a KV strategy; {hint}")
    chosen = known[kind]
    fields: dict[str, Any] = {}
    for item in filter(None, rest.split(",")):
        name, equals, text = (piece.strip() for piece in item.partition("="))
        argument = chosen.arguments.get(name)
        if argument is None or not equals:
            wanted = ", ".join(f"{known}=" for known in chosen.arguments)
            raise InputError.one(where, key, given=part, expected=f"{kind} with {wanted} only")
        if argument.field in fields:
            raise InputError.one(where, key, given=part, expected=f"{name}= once")
        try:
            fields[argument.field] = argument.parse(text)
        except ValueError:
            raise InputError.one(
                where, f"{key} {kind}:{name}", given=text, expected=argument.expected
            ) from None
    if chosen is Share and bool(fields.get("kv_heads")) == bool(fields.get("latent")):
        raise InputError.one(
            where, key, given=part, expected="share:kv_heads=N or share:latent=WIDTH, one of them"
        )
    return chosen(inner=inner, **fields)
