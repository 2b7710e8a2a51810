"""Whether a config computes what the kernel says: some programs of the very launch, against float64.

The programs of a grid are independent, so a few of them, first and last and some between, are run by NumPy from the same IR in
float64, on the same arguments, and their part of the outputs is compared; of outputs that programs add to, some parts, with all
that is added there. That costs about the same for any shape. A config is never compared with another config.
"""

import math
import random
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

from autotune_db import programs, sums
from kpt_dsl import ir
from kpt_dsl.emit.numpy import Precision
from kpt_dsl.extents import Extents
from kpt_dsl.instance import Instance
from kpt_dsl.runtime.numpy import as_numpy
from kpt_dsl.space import Config

ROUNDINGS = 4.0
"""Roundings of the coarsest type on the way to an output that may add up, in units of the largest output."""

CONDITION = 8.0
"""Where a kernel amplifies roundings (a quotient of sums that cancel), NumPy in the kernel's own types shows by how much; a
device, which sums in another order, may be off by so many times that."""

TIPPED = 2.0**-14
"""Share of the whole numbers, or conditions, of a part that may be others where floats decide them (a rounding of x / step to
int8, an argmax, a comparison): float32 tips what is nearly even. Of such roundings to int8 it was 2**-16."""

_UNIT_ROUNDOFF = {"f32": 2.0**-24, "f16": 2.0**-11, "bf16": 2.0**-9, "f8e4m3": 2.0**-4, "f8e5m2": 2.0**-3}

FP8_PRODUCT_ROUNDOFF = 2.0**-12
"""Hopper adds fp8 products with 14 bits or so unless asked otherwise (DeepSeek-V3 report, 3.3.2), as cuBLASLt does."""


def wrong(instance: Instance, config: Config, arguments: Mapping[str, Any], seed: int) -> str:
    """What is wrong with the outputs in ``arguments`` (torch tensors) that a launch has written; "" for nothing.

    Before it, outputs that the kernel adds to held zeros.
    """
    kernel = instance.lower(config)
    # A kernel may read what it writes nowhere but in its outputs, so inputs are still what the launch saw.
    inputs = {t.name: as_numpy(t.name, arguments[t.name].cpu()) for t in kernel.tensors if t.role == "in"}
    known = inputs | {scalar.name: arguments[scalar.name] for scalar in kernel.scalars}
    allowed = _allowed(kernel, instance.extents)
    for expected in _expected(kernel, instance.extents, config, known, random.Random(seed)):
        exact = expected("f64")
        if not any(_difference(arguments[name][index], value, allowed) for name, index, value in exact):
            continue
        for (name, index, value), (_, _, rough) in zip(exact, expected("typed"), strict=True):
            spread = _tipped(kernel, rough, value) if _is_whole(value) else CONDITION * _error(rough, value)
            if difference := _difference(arguments[name][index], value, allowed, spread):
                return f"{name} at {_shown(index)}: {difference}"
    return ""


def _expected(
    kernel: ir.Kernel, extents: Extents, config: Config, known: Mapping[str, Any], chance: random.Random
) -> Iterator[Callable[[Precision], list[programs.Write]]]:
    """Functions that compute parts of the outputs."""
    added = ir.added(kernel)

    def stored(one: ir.Kernel, precision: Precision) -> list[programs.Write]:
        return [w for w in programs.written(one, extents, config, known, precision) if w[0] not in added]

    names = [loop.name for loop in kernel.grid]
    for place in programs.places(kernel.grid, extents, config, chance):
        yield partial(stored, programs.at(kernel, extents, config, dict(zip(names, place, strict=True))))
    for tensor in added:
        for part in sums.parts(kernel, tensor, extents, config, chance):
            yield partial(part.added, extents, known)


# ------------------------------------------------------------------ comparing
def _allowed(kernel: ir.Kernel, extents: Extents) -> float:
    """Largest error in units of the largest output: roundings to the coarsest type that is met on the way, and sums in f32."""
    met = {t.dtype.name for t in kernel.tensors if t.role == "out" and t.dtype.is_float} | {"f32"}
    products = 0.0
    for node in ir.every_expr(kernel.body):
        if isinstance(node, ir.Cast) and node.type.dtype.is_float:
            met.add(node.type.dtype.name)
        if isinstance(node, ir.Dot) and node.a.type.dtype.is_fp8:
            products = FP8_PRODUCT_ROUNDOFF
    coarsest = max(_UNIT_ROUNDOFF[name] for name in met)
    length = max((n for _, n in extents.dims), default=1)
    return ROUNDINGS * (coarsest + products + math.sqrt(length) * _UNIT_ROUNDOFF["f32"])


def _is_whole(value: Any) -> bool:
    import numpy as np

    return not np.issubdtype(np.asarray(value).dtype, np.floating)


def _tipped(kernel: ir.Kernel, rough: Any, exact: Any) -> float:
    """How many whole numbers may differ: none where no float decides them."""
    import numpy as np

    if not any(node.type.dtype.is_float for node in ir.every_expr(kernel.body)):
        return 0.0
    return CONDITION * int(np.sum(np.asarray(rough) != np.asarray(exact))) + TIPPED * np.size(exact)


def _error(rough: Any, exact: Any) -> float:
    """Largest difference of two results where both are finite."""
    import numpy as np

    with np.errstate(invalid="ignore"):
        difference = np.abs(np.asarray(rough, dtype=np.float64) - np.asarray(exact, dtype=np.float64))
    return float(np.max(difference, where=np.isfinite(difference), initial=0.0))


def _difference(got: Any, expected: Any, allowed: float, spread: float = 0.0) -> str:
    """How a part of an output differs from float64, in words; "" where it does not.

    Allowed are ``allowed`` in units of the largest output, and ``spread``; of whole numbers ``spread`` may differ.
    """
    import numpy as np

    want = np.asarray(expected)
    if _is_whole(want):
        differ = int((got.cpu().numpy() != want).sum())
        return f"{differ} of {want.size} integers differ" if differ > spread else ""
    have = got.double().cpu().numpy()
    want = np.broadcast_to(want.astype(np.float64), have.shape)
    finite = np.isfinite(want)
    if not np.array_equal(have[~finite], want[~finite], equal_nan=True):
        return "NaN or infinity is not where float64 has it"
    if not np.isfinite(have[finite]).all():
        return "NaN or infinity where float64 is finite"
    if not finite.any():
        return ""
    error, largest = float(np.abs(have - want)[finite].max()), float(np.abs(want[finite]).max())
    bound = allowed * largest + spread
    return "" if error <= bound else f"error {error:.3g} against float64, allowed are {bound:.3g}"


def _shown(index: Any) -> str:
    parts = index if isinstance(index, tuple) else (index,)
    return ", ".join(
        str(p) if not isinstance(p, slice) else ":" if p == slice(None) else f"{p.start}:{p.stop}" for p in parts
    )
