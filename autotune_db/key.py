"""The key of an entry: everything that decides which config is best, and nothing that does not.

A key is stored whole, readable, beside its entry. Two calls share an entry exactly when their keys are equal. What is left
out on purpose: scalar arguments such as eps, and extents within one bucket. Knows no file and no device.
"""

import hashlib
import json
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from kpt_dsl import dtypes
from kpt_dsl.buckets import Span, bucket, exact_dims
from kpt_dsl.errors import StoreError
from kpt_dsl.instance import Instance
from kpt_dsl.layouts import layout_class
from kpt_dsl.specialisation import Specialisation
from kpt_dsl.values import told_apart

Flag = bool | int | float | str | None

_WORDS = ("kernel", "source", "device", "backend", "compiler")
_PARTS = ("dtypes", "layouts", "flags", "shape")

LONGEST_WORD = 1000
"""Characters of a name or value in a key; a kernel's import name is the longest there is."""


@dataclass(frozen=True, eq=False)
class Key:
    """What an entry is for. Keys are equal where their digests are: 1, 1.0 and True are three flags.

    ``kernel``   qualified name, ``package.module:name``
    ``source``   hash of the kernel's source, its inlined helpers and constants
    ``device``   exact name of the device (``NVIDIA H200``), or the target's name where none was present
    ``backend``, ``compiler``   ``triton`` and ``triton 3.9.0``
    ``dtypes``   tensor -> dtype name; None for an optional tensor that is absent
    ``layouts``  tensor -> layout class
    ``flags``    static arguments
    ``shape``    dim -> exact extent or bucket
    """

    kernel: str
    source: str
    device: str
    backend: str
    compiler: str
    dtypes: tuple[tuple[str, str | None], ...]
    layouts: tuple[tuple[str, str], ...]
    flags: tuple[tuple[str, Flag], ...]
    shape: tuple[tuple[str, Span], ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON; an exact extent is a number, a bucket a string."""
        return {
            "kernel": self.kernel,
            "source": self.source,
            "device": self.device,
            "backend": self.backend,
            "compiler": self.compiler,
            "dtypes": dict(self.dtypes),
            "layouts": dict(self.layouts),
            "flags": dict(self.flags),
            "shape": {dim: span.low if span.low == span.high else str(span) for dim, span in self.shape},
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Key":
        """The inverse of ``to_dict``, for data from outside. Raises StoreError for what is no key, with the reason."""
        if not isinstance(data, Mapping):
            raise StoreError(f"not a key of the config database: {str(data)[:80]}")
        words: list[Any] = [data.get(name) for name in _WORDS]
        parts: list[Any] = [data.get(name) for name in _PARTS]
        for name, word in zip(_WORDS, words, strict=True):
            if not is_word(word):
                raise StoreError(f"not a key: {name} is {str(word)[:80]!r}, which is no string of printable characters")
        for name, part in zip(_PARTS, parts, strict=True):
            if not isinstance(part, dict) or not all(is_word(of) for of in part):
                raise StoreError(f"not a key: {name} is {str(part)[:80]}, which is no object")
            for of, value in part.items():
                if not _SOUND[name](value):
                    raise StoreError(f"not a key: {name} of {of!r} is {str(value)[:80]!r}")
        kernel, source, device, backend, compiler = words
        types, layouts, flags, shape = (tuple(part.items()) for part in parts)
        spans = tuple((dim, Span.parse(str(span))) for dim, span in shape)
        return cls(kernel, source, device, backend, compiler, types, layouts, flags, spans)

    @cached_property
    def digest(self) -> str:
        """A short name for the key, the same in every process and on every machine."""
        text = json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:32]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Key) and self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)

    @property
    def exact_flags(self) -> tuple[tuple[str, Hashable], ...]:
        """The static arguments, to be compared."""
        return tuple((name, told_apart(value)) for name, value in self.flags)

    @property
    def title(self) -> str:
        """The kernel's own name, dtypes, flags and shape on one line, for people."""
        names = dict.fromkeys(name for _, name in self.dtypes if name)
        flags = [f"{name}={str(value).partition('@')[0]}" for name, value in self.flags if value not in (None, False)]
        shape = ",".join(f"{dim}={span}" for dim, span in self.shape)
        return " ".join([self.kernel.rpartition(":")[2], "/".join(names), shape, *flags])


def key_of(instance: Instance, device: str, backend: str, compiler: str) -> Key:
    """The key of an instance on a device (its exact name), compiled by a backend and compiler version."""
    known, extents = instance.specialisation, instance.extents
    kernel = instance.lower({})
    present, exact = {tensor.name: tensor.dims for tensor in kernel.tensors}, exact_dims(kernel)
    elements = dict(known.dtypes)
    layouts = tuple(
        (name, layout_class(extents.shape(present[name]), strides, elements[name] or "", name in extents.aligned))
        for name, strides in extents.strides
        if name in present
    )
    return Key(
        kernel=known.kernel.qualname,
        source=known.meaning.hash,
        device=device,
        backend=backend,
        compiler=compiler,
        dtypes=known.dtypes,
        layouts=layouts,
        flags=tuple((name, _flag(known, name, value)) for name, value in known.statics),
        shape=tuple((dim, Span(n, n) if dim in exact else bucket(n)) for dim, n in extents.dims),
    )


def _flag(known: Specialisation, name: str, value: Any) -> Flag:
    """A static argument as plain data. A ``@kd.function`` counts by its name and source."""
    function = known.functions.get(name)
    plain: Flag = value if function is None else f"{function.name}@{function.hash}"
    return plain


def is_word(value: object) -> bool:
    """Whether something is a name or a value that can be stored and shown: no control characters, no endless text."""
    return isinstance(value, str) and len(value) <= LONGEST_WORD and value.isprintable()


def _is_flag(value: object) -> bool:
    if isinstance(value, int):
        return abs(value) <= _LARGEST
    return value is None or is_word(value) or (isinstance(value, float) and value == value)


def _is_span(value: object) -> bool:
    try:
        span = Span.parse(str(value)) if isinstance(value, int | str) else None
    except ValueError:
        return False
    return span is not None and 0 <= span.low <= span.high <= _LARGEST and str(span) == str(value)


_LARGEST = 2**63 - 1

_SOUND: dict[str, Callable[[object], bool]] = {
    "dtypes": lambda value: value is None or (isinstance(value, str) and value in dtypes.ALL),
    "layouts": is_word,
    "flags": _is_flag,
    "shape": _is_span,
}
"""What the values of each part of a key may be."""
