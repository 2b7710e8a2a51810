"""Scalars of tensors on Pallas: named in index maps, lowered for a TPU, and inside functions that JAX traces."""

import re
from typing import Any

import pytest
import torch

import kpt_dsl as kd
from kpt_dsl import targets
from kpt_dsl.emit import emit
from kpt_dsl.instance import Instance
from kpt_dsl.space import space
from tests.indices import kernels

jax = pytest.importorskip("jax")

from kpt_dsl.build.pallas import lower  # noqa: E402

V6E = targets.get("tpu-v6e")
EXTENTS = {"V": 100, "M": 24, "N": 300, "D": 300, "B": 9, "H": 6, "G": 3}
INTEGERS = {"index": "i32", "first": "i32", "second": "i32", "low": "i32", "high": "i32", "stop": "i32", "counts": "i32",
            "found": "i32", "z": "i32", "flag": "bool", "keep": "bool"}  # fmt: skip
KERNELS = [k for k in vars(kernels).values() if isinstance(k, kd.Kernel)]


def instance(kernel: kd.Kernel, dtype: str) -> Instance:
    dims = {dim: EXTENTS[dim] for dim in kernel.dim_names}
    return Instance.of_shapes(kernel, dims, {name: INTEGERS.get(name, dtype) for name in kernel.tensors})


def text(kernel: kd.Kernel, dtype: str = "f32") -> str:
    found = instance(kernel, dtype)
    return emit(found, V6E, space(found, V6E).first).text


@pytest.mark.parametrize("dtype", ["f32", "bf16", "f16"])
@pytest.mark.parametrize("kernel", KERNELS, ids=[k.name for k in KERNELS])
def test_it_lowers(kernel: kd.Kernel, dtype: str) -> None:
    found = instance(kernel, dtype)
    assert "tpu_custom_call" in lower(emit(found, V6E, space(found, V6E).first))


def test_index_maps_name_what_they_read() -> None:
    (maps,) = re.findall(r"pl\.BlockSpec\(\(None, 1, D\), lambda (.*)\),  # table", text(kernels.rows))
    assert maps == "m, index_ref: (jnp.clip(index_ref[m], 0, V - 1), 0, 0)"
    two = text(kernels.two_tables)
    assert two.count("lambda m, first_ref, second_ref: (jnp.clip(") == 3
    assert two.count("lambda m, *_: (m, 0, 0)") == 1  # of the output, which reads none
    assert "*scalars" not in text(kernels.bounded)


def test_only_outputs_that_are_stored_in_part_are_handed_in() -> None:
    assert "input_output_aliases={2: 0}" in text(kernels.scattered)
    assert "input_output_aliases={1: 0}" in text(kernels.into_sixth)
    assert "input_output_aliases" not in text(kernels.rows)


def test_it_is_traced() -> None:
    import jax.numpy as jnp

    table = jnp.arange(600.0).reshape(6, 100)

    @jax.jit
    def doubled(index: Any) -> Any:
        out = jax.ShapeDtypeStruct((3, 100), jnp.float32)
        return 2 * kernels.rows(table, index, out)["y"]

    assert (doubled(jnp.array([5, 0, 3])) == 2 * table[jnp.array([5, 0, 3])]).all()
    assert (doubled(jnp.array([9, -2, 3])) == 2 * table[jnp.array([5, 0, 3])]).all()
    new = kernels.scattered(table[:2], jnp.array([4, 1]), jax.ShapeDtypeStruct((6, 100), jnp.float32))["y"]
    assert (new == jnp.zeros((6, 100)).at[jnp.array([4, 1])].set(table[:2])).all()


@kd.kernel(table="V N", index="V", y="M N")
def wandering(table: kd.In, index: kd.In, y: kd.Out) -> None:
    """Each step's row is told by the last one."""
    for m in kd.parallel("M"):
        i = kd.full([], 0, kd.i32)
        for n in kd.sequential("N"):
            i = index[i]
            y[m, n] = table[i, n]


@pytest.mark.parametrize("backend", ["numpy", "triton", "pallas"])
def test_what_a_loop_computes_is_followed(backend: str) -> None:
    table, index = torch.randn(6, 3), torch.tensor([3, 0, 1, 5, 2, 4], dtype=torch.int32)
    y = torch.empty(2, 3)
    wandering(table, index, y, backend=backend)
    torch.testing.assert_close(y, table[[3, 5, 4], [0, 1, 2]].expand(2, 3))
    if backend == "pallas":
        return  # which clamps an index that is none: docs/language.md
    index[3] = 6
    with pytest.raises(kd.IndexRangeError, match=r"wandering indexes (table|index).* with 6"):
        wandering(table, index, y, backend=backend)
