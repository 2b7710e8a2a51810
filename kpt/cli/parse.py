"""Words of the command line as values: shapes, durations, flags, dtypes. Raises InputError that quotes the word."""

import re
from collections.abc import Sequence

from kpt_dsl.dtypes import dtype
from kpt_dsl.errors import InputError

FlagValue = bool | int | float | str | None

_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0}
_WORDS: dict[str, FlagValue] = {"true": True, "false": False, "none": None}


def shapes(texts: Sequence[str]) -> list[dict[str, int]]:
    """``["M=4096,N=1024", …]`` as extents; one text may hold several shapes, with semicolons between them."""
    return [_shape(one.strip(), text) for text in texts for one in text.split(";")]


def seconds(text: str) -> float:
    """``60s``, ``2m``, ``1h`` or ``90`` as seconds."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smh]?)", text.strip())
    if not match or float(match[1]) == 0:
        raise InputError(f"--budget {text!r} is not a duration; write 60s, 2m, 1h, or a number of seconds")
    return float(match[1]) * _UNITS[match[2] or "s"]


def flags(texts: Sequence[str]) -> dict[str, FlagValue]:
    """``["causal=true,window=512"]`` as values: true, false, none, numbers, else strings."""
    found: dict[str, FlagValue] = {}
    for text in texts:
        for name, value in _pairs(text, "--flags", "causal=true,window=512"):
            if name in found:
                raise InputError(f"--flags {text!r}: {name} is given twice")
            found[name] = _value(value)
    return found


def dtypes(text: str, tensors: Sequence[str]) -> dict[str, str | None]:
    """``bf16`` for every tensor, or ``bf16,scale=f32,bias=none``: one for all, then exceptions; none for an absent tensor."""
    common, named = None, {}
    for part in filter(None, map(str.strip, text.split(","))):
        name, equals, value = part.partition("=")
        if not equals:
            common = dtype(part).name
        elif name in tensors:
            named[name] = None if value == "none" else dtype(value).name
        else:
            raise InputError(f"--dtype {text!r}: the kernel has no tensor {name!r}; it has {', '.join(tensors)}")
    if missing := [name for name in tensors if name not in named and common is None]:
        raise InputError(
            f"--dtype {text!r} says nothing about {', '.join(missing)}; write one for all, as in bf16,scale=f32"
        )
    return {name: named.get(name, common) for name in tensors}


def _shape(text: str, whole: str) -> dict[str, int]:
    found: dict[str, int] = {}
    for name, value in _pairs(text, "--shapes", "M=4096,N=1024"):
        if not value.isdecimal() or int(value) == 0:
            raise InputError(f"--shapes {whole!r}: {name}={value!r} is not a positive whole number")
        if name in found:
            raise InputError(f"--shapes {whole!r}: {name} is given twice; put a semicolon between shapes")
        found[name] = int(value)
    return found


def _pairs(text: str, option: str, example: str) -> list[tuple[str, str]]:
    pairs = []
    for part in text.split(","):
        name, equals, value = (piece.strip() for piece in part.partition("="))
        if not (name.isidentifier() and equals and value):
            raise InputError(f"{option} {text!r}: {part.strip()!r} is not NAME=VALUE; write it like {example!r}")
        pairs.append((name, value))
    return pairs


def _value(text: str) -> FlagValue:
    if text.lower() in _WORDS:
        return _WORDS[text.lower()]
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
