"""The text that is learnt: what Python itself ships about itself, as bytes. Nothing is downloaded.

``topics`` is the reference manual behind ``help("assert")``, the module ``pydoc_data.topics`` (0.5 MB). ``docstrings`` are the
standard library's, read from its sources without importing them (1.6 MB, a few seconds). Both are under Python's licence.
"""

import ast
import hashlib
import sys
import sysconfig
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

HELD_OUT = 0.05
"""The last part of the text, which no step sees."""

NOT_LIBRARY = frozenset({"site-packages", "dist-packages", "test", "tests", "idlelib"})
"""Folders beside the standard library's modules whose docstrings are not it."""


@dataclass(frozen=True)
class Text:
    """Bytes, as uint8 (n,), split into what is learnt and what is held out; ``source`` says whose they are."""

    learnt: torch.Tensor
    held_out: torch.Tensor
    source: str
    digest: str

    @property
    def size(self) -> int:
        """Bytes in all."""
        return self.learnt.numel() + self.held_out.numel()


def topics() -> str:
    """Every topic of Python's interactive help."""
    from pydoc_data.topics import topics as found

    return "\n\n".join(found[name] for name in sorted(found))


def docstrings() -> str:
    """The docstrings of the standard library's modules, classes and functions, in the order of their files."""
    library = Path(sysconfig.get_paths()["stdlib"])
    files = (f for f in sorted(library.rglob("*.py")) if not NOT_LIBRARY & set(f.relative_to(library).parts))
    return "\n\n".join(text for file in files for text in _docstrings(file.read_bytes()))


def _docstrings(source: bytes) -> Iterator[str]:
    try:
        tree = ast.parse(source)
    except SyntaxError:  # a template, or a deliberately broken file
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text:
                yield text


TEXTS: dict[str, Callable[[], str]] = {"topics": topics, "docstrings": docstrings}


def read(names: tuple[str, ...]) -> Text:
    """The named texts of this Python, one after another."""
    data = "\n\n".join(TEXTS[name]() for name in names).encode()
    every = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    learnt = int(len(data) * (1 - HELD_OUT))
    version = ".".join(map(str, sys.version_info[:3]))
    source = f"the {' and '.join(names)} of Python {version}, {len(data):,} bytes"
    return Text(every[:learnt], every[learnt:], source, hashlib.sha256(data).hexdigest())


def batches(text: torch.Tensor, count: int, size: int, length: int, seed: int) -> torch.Tensor:
    """``count`` batches of ``size`` stretches of ``length + 1`` bytes from random places: (count, size, length + 1), uint8."""
    generator = torch.Generator().manual_seed(seed)
    starts = torch.randint(0, text.numel() - length, (count, size, 1), generator=generator)
    return text[starts + torch.arange(length + 1)]
