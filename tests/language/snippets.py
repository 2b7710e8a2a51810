"""Kernels written as text, for tests of the front end: each snippet becomes a real file, as an author's would be."""

import importlib.util
import itertools
import textwrap
from pathlib import Path

from kpt_dsl import ir
from kpt_dsl.instance import Instance
from kpt_dsl.kernel import Kernel

_count = itertools.count()

HEADER = """
import math
import kpt_dsl as kd

FACTOR = 3.0

@kd.function
def double(x):
    return x + x

@kd.function
def forever(x):
    return forever(x)

@kd.function
def both(x, y):
    total = x + y
    return total, x - y

@kd.function
def turns(x, m):
    count = 0
    for n in kd.sequential("N"):
        count = count + 1
    return count

def plain(x):
    return x

"""

SIGNATURE = """
@kd.kernel(x="M N", w="N", ids="M", y="M N", row="M")
def snippet(x: kd.In, w: kd.In, ids: kd.In, y: kd.Out, row: kd.Out, eps: kd.Float, shift: kd.Int, flag: kd.Static) -> None:
"""


def kernel(folder: Path, text: str) -> Kernel:
    """The kernel ``snippet`` of a module with HEADER and ``text``."""
    file = folder / f"snippet_{next(_count)}.py"
    file.write_text(HEADER + text)
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found = module.snippet
    assert isinstance(found, Kernel)
    return found


def lower(folder: Path, body: str, *, choices: dict[str, object] | None = None, **dtypes: str | None) -> ir.Kernel:
    """The IR of a kernel with SIGNATURE and a body; tensors are bf16 unless said, ids i32, row f32."""
    found = kernel(folder, SIGNATURE + textwrap.indent(textwrap.dedent(body).strip("\n"), "    ") + "\n")
    kinds: dict[str, str | None] = {"x": "bf16", "w": "bf16", "ids": "i32", "y": "bf16", "row": "f32"} | dtypes
    return Instance.of_shapes(found, {"M": 37, "N": 199}, kinds, {"flag": True}).lower(choices)
