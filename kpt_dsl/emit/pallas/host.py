"""The function around a Pallas kernel: it brings arrays into the kernel's shapes, calls it, and brings the outputs back."""

from kpt_dsl import ir
from kpt_dsl.emit.pallas.blocks import Block
from kpt_dsl.emit.pallas.expressions import JAX_DTYPES
from kpt_dsl.emit.pallas.kernel import KernelText, words
from kpt_dsl.emit.text import Writer

_SCALAR = {"float": "jnp.float32", "int": "jnp.int32", "bool": "jnp.int32"}
"""How elements that are read one at a time lie in scalar memory, which has 32-bit words."""


def host(made: KernelText, vmem_bytes: int) -> str:
    """The text of the function; the kernel may use ``vmem_bytes`` of vector memory."""
    kernel, plan, out = made.kernel, made.plan, Writer()
    kept = made.blocks.kept
    inputs = [t.name for t in kernel.tensors if t.role == "in"] + [b.tensor.name for b in kept]
    results = [b.tensor.name for b in made.blocks.written]
    grid = [g.dim if isinstance(g, ir.Each) else f"pl.cdiv({g.dim}, {g.block})" for g in kernel.grid]
    semantics = ['"parallel"'] * len(grid)
    if plan.steps:
        grid.append(str(plan.steps))
        semantics.append('"arbitrary"')
    given = [*(f"{name}: jax.Array" for name in inputs), *(f"{s.name}: {s.dtype.kind}" for s in kernel.scalars)]
    gives = "jax.Array" if len(results) == 1 else f"tuple[{', '.join(['jax.Array'] * len(results))}]"
    out.call(f"def {kernel.name}(", [*given, "interpret: bool = False"], tail=f") -> {gives}:")
    with out.indented():
        shapes = [f"{b.tensor.name} ({', '.join(b.tensor.dims)}) {b.tensor.dtype}" for b in made.blocks.written]
        out.line(f'"""Gives {", ".join(shapes)}."""')
        out.line(f"axes = manual_axes({', '.join(inputs)})")
        with out.block(f"{_tuple(results)} = pl.pallas_call("):
            out.line(f"{kernel.name}_kernel,")
            with out.block("grid_spec=pltpu.PrefetchScalarGridSpec("):
                out.line(f"num_scalar_prefetch={len(made.prefetched)},")
                out.line(f"grid={_tuple(grid)},")
                for name, blocks in (("in_specs", made.blocks.read), ("out_specs", made.blocks.written)):
                    with out.block(f"{name}=["):
                        for block in blocks:
                            out.call("pl.BlockSpec(", _spec(made, block), tail=f"),  # {block.tensor.name}")
                        for block in kept if name == "in_specs" else ():
                            out.line(f"pl.BlockSpec(memory_space=pl.ANY),  # what {block.tensor.name} holds")
                    out.line("],")
                if plan.kept:
                    with out.block("scratch_shapes=["):
                        for name, kind in plan.kept.items():
                            shape = made.text.shape(kind, "wide" if plan.wide(kind) else None)
                            out.line(f"pltpu.VMEM({shape}, {JAX_DTYPES[kind.dtype.name]}),  # {name}")
                    out.line("],")
            out.line("),")
            out.line(f"out_shape=[{', '.join(map(made.blocks.out_shape, made.blocks.written))}],")
            if kept:
                first = len(made.prefetched) + len(made.blocks.read)
                outputs = [made.blocks.written.index(block) for block in kept]
                pairs = ", ".join(f"{first + i}: {output}" for i, output in enumerate(outputs))
                out.line(f"input_output_aliases={{{pairs}}},  # what is not stored stays")
            with out.block("compiler_params=pltpu.CompilerParams("):
                out.line(f"dimension_semantics={_tuple(semantics)},")
                out.line(f"vmem_limit_bytes={vmem_bytes},")
            out.line("),")
            out.line("interpret=interpret,")
            out.line(f'name="{kernel.name}",')
        with out.block(")("):
            for array in _arguments(made):
                out.line(f"{array},")
        out.line(")")
        out.line(f"return {', '.join(map(made.blocks.restored, made.blocks.written, results))}")
    return out.text().rstrip()


def _arguments(made: KernelText) -> list[str]:
    """What the kernel is called on: scalars first, which index maps may read."""
    elements = [f"{t.name}.astype({_SCALAR[t.dtype.kind]})" for t in made.blocks.scalars]
    scalars = [f"jnp.asarray({s.name}, {JAX_DTYPES[s.dtype.name]}).reshape(1)" for s in made.kernel.scalars]
    blocks = [*made.blocks.read, *made.blocks.kept]
    return elements + scalars + [made.blocks.array(b, b.tensor.name) for b in blocks]


def _spec(made: KernelText, block: Block) -> list[str]:
    """A block's shape, and which block a step sees: an index map takes the step's place in the grid, then all scalars."""
    place = made.blocks.place(block, made.text, made.calls)
    rest = ["*_"] if made.prefetched else []
    if not words(place).isdisjoint(made.prefetched):
        rest = made.prefetched
    return [made.blocks.shape(block, made.text), f"lambda {', '.join([*made.axes, *rest])}: {place}"]


def _tuple(entries: list[str]) -> str:
    return f"({', '.join(entries)}{',' if len(entries) == 1 else ''})"
