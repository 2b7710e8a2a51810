"""``kpt_dsl.source`` and ``kpt_dsl.compile``: what a kernel becomes, for people who want to look.

Neither needs the device. Extents and dtypes that are not given are sensible examples, since generated code depends on few of
them: whole dims, the dtypes, and whether dims are multiples of their blocks.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from kpt_dsl import ir, targets
from kpt_dsl.configs import choose
from kpt_dsl.emit import emit
from kpt_dsl.errors import InputError
from kpt_dsl.instance import Instance
from kpt_dsl.kernel import Kernel
from kpt_dsl.space import Config, space

if TYPE_CHECKING:
    from kpt_dsl.build import Report

EXAMPLE_EXTENT = {"index": 8, "tiled": 4096, "whole": 1024, "contracted": 128}
"""Extents for dims that were not given: looped over one by one, in tiles, taken whole, and taken whole by a product."""


def source(
    kernel: Kernel,
    target: str = "nvidia-h200",
    config: Config | Mapping[str, Any] | None = None,
    *,
    shapes: Mapping[str, int] | None = None,
    dtypes: str | Mapping[str, str | None] = "bf16",
    **static: Any,
) -> str:
    """The text generated for a kernel: Triton, Pallas or NumPy source, by target.

    ``config``: knobs to set, over those that the database or the first-config rule gives. ``shapes``: dim -> extent.
    ``dtypes``: one for all tensors, or tensor -> dtype. ``static``: static arguments, and ``name=None`` for absent ones.
    Raises TargetError, ConfigError or InputError for a target, a config or an argument that does not fit.
    """
    instance = example(kernel, shapes or {}, dtypes, static)
    chip = targets.get(target)
    return emit(instance, chip, _config(instance, chip, config)).text


def compile(
    kernel: Kernel,
    target: str = "nvidia-h200",
    config: Config | Mapping[str, Any] | None = None,
    *,
    shapes: Mapping[str, int] | None = None,
    dtypes: str | Mapping[str, str | None] = "bf16",
    **static: Any,
) -> "Report":
    """Compile a kernel for a target, present or not, and report its registers, spills, memory, and cycles where known.

    Arguments and errors as for ``source``; also CompileError where the compiler refuses or the result does not fit the chip,
    and MissingPackageError where a TPU's compiler is not installed.
    """
    from kpt_dsl import build

    instance = example(kernel, shapes or {}, dtypes, static)
    chip = targets.get(target)
    return build.compile(instance, chip, _config(instance, chip, config))


def example(
    kernel: Kernel, shapes: Mapping[str, int], dtypes: str | Mapping[str, str | None], static: Mapping[str, Any]
) -> Instance:
    """An instance of a kernel with example extents where none are given."""
    absent = {name for name, value in static.items() if value is None and name in kernel.tensors}
    statics = {name: value for name, value in static.items() if name not in absent}
    if unknown := set(statics) - set(kernel.other_parameters):
        raise InputError(
            f"{kernel.name} has no static argument {', '.join(sorted(unknown))}; it has "
            f"{', '.join(kernel.other_parameters) or 'none'}, and tensors {', '.join(kernel.tensors)} (None where absent)"
        )
    given = dict.fromkeys(kernel.tensors.keys() - kernel.defaults, dtypes) if isinstance(dtypes, str) else dict(dtypes)
    kinds: dict[str, str | None] = {**given, **dict.fromkeys(absent)}
    small = Instance.of_shapes(kernel, dict.fromkeys(kernel.dim_names, 1) | dict(shapes), kinds, statics)
    found = dict.fromkeys(dict(small.extents.dims), EXAMPLE_EXTENT["whole"]) | _extents(small.specialisation.unchecked({}))
    return Instance.of_shapes(kernel, found | dict(shapes), kinds, statics)


def _extents(kernel: ir.Kernel) -> dict[str, int]:
    """Example extents by how each dim is used."""
    loops = [*kernel.grid, *(s.over for s in ir.statements(kernel.body) if isinstance(s, ir.For))]
    found = {g.dim: EXAMPLE_EXTENT["tiled" if isinstance(g, ir.Tile) else "index"] for g in loops}
    for node in ir.every_expr(kernel.body):
        if isinstance(node, ir.Dot):
            axes = {*node.a.type.shape, *node.b.type.shape}
            found |= {a.dim: EXAMPLE_EXTENT["contracted"] for a in axes if a.tile is None}
    return found


def _config(instance: Instance, target: targets.Target, config: Config | Mapping[str, Any] | None) -> Config:
    """The config asked for, laid over what would be used anyway."""
    chosen, _ = choose(instance, target)
    return chosen if config is None else space(instance, target).overridden(chosen, config)
