"""Arrays that are not what they seem, and memory that arguments share: each gives the right values, or is refused by name."""

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode

import kpt_dsl as kd
from kpt.ops import layer_norm, prefer
from kpt_dsl import runtime
from kpt_dsl.arrays import overlaps

BACKENDS = ("numpy", "triton", "pallas")
X = torch.randn(4, 8, generator=torch.Generator().manual_seed(20))


@kd.kernel(x="M N", y="M N")
def doubled(x: kd.In, y: kd.Out) -> None:
    for m in kd.parallel(kd.tile("M")):
        y[m, :] = x[m, :] * 2.0


@kd.kernel(x="M N", y="M N")
def swapped(x: kd.In, y: kd.Out) -> None:
    for m in kd.parallel(kd.tile("M")):
        a, b = x[m, 0], x[m, 1]
        y[m, 0] = b
        y[m, 1] = a


@kd.kernel(x="M N", y="M N")
def normalised(x: kd.In, y: kd.Out) -> None:
    """Reads a row once for its sum, and again for what it stores, tile by tile."""
    for m in kd.parallel(kd.tile("M")):
        total = kd.zeros([m])
        for n in kd.sequential(kd.tile("N")):
            total += kd.sum(x[m, n], axis=1)
        for n2 in kd.sequential(kd.tile("N")):
            y[m, n2] = x[m, n2] / total[:, None]


@kd.kernel(x="M N", y="M N", z="M N")
def two(x: kd.In, y: kd.Out, z: kd.Out) -> None:
    for m in kd.parallel(kd.tile("M")):
        y[m, :] = x[m, :] * 2.0
        z[m, :] = x[m, :] * 3.0


@kd.kernel(x="M N", y="N")
def summed(x: kd.In, y: kd.Out) -> None:
    for m, n in kd.parallel(kd.tile("M"), kd.tile("N")):
        y[n] += kd.sum(x[m, n], axis=0)


# ------------------------------------------------------------------ negated views
def negated() -> list[torch.Tensor]:
    return [
        torch.randn(4, 8, dtype=torch.complex64).conj().imag,
        torch._neg_view(X.clone()),
        torch._neg_view(X.clone()).T.clone().T,
    ]


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_negated_view_is_read_with_its_sign(backend: str) -> None:
    for x, _ in itertools.product(negated(), range(2)):
        y = torch.empty(4, 8)
        doubled(x, y, backend=backend)
        torch.testing.assert_close(y, (x * 2).clone())
    x, y = X.clone(), torch.empty(4, 8)
    doubled(x, y, backend=backend)  # the layout of the second, and not negated
    torch.testing.assert_close(y, x * 2)


def test_a_negated_output_is_refused() -> None:
    with pytest.raises(kd.InputError, match=r"doubled: output y is a negated view"):
        doubled(X, torch._neg_view(torch.zeros(4, 8)))


@pytest.mark.parametrize("implementation", ["numpy", "triton", "reference"])
def test_ops_read_negated_views_with_their_sign(implementation: str) -> None:
    x = torch._neg_view(X.clone())
    with prefer(implementation):
        layer_norm(X, (8,))
        for _ in range(2):
            torch.testing.assert_close(layer_norm(x, (8,)), torch.nn.functional.layer_norm(-X, (8,)))


# ------------------------------------------------------------------ outputs whose elements are one place
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "output",
    [torch.empty(4, 1).expand(4, 8), torch.empty(8).expand(4, 8), torch.empty(40).as_strided((4, 8), (2, 1)),
     torch.empty(99).as_strided((4, 8), (6, 4))],
    ids=lambda array: f"{tuple(array.shape)}",
)  # fmt: skip
def test_an_output_whose_elements_overlap_is_refused(output: torch.Tensor, backend: str) -> None:
    with pytest.raises(kd.InputError, match=r"doubled: y has shape \(4, 8\) and strides .*one place in memory"):
        doubled(X, output, backend=backend)


@pytest.mark.parametrize(
    "output",
    [torch.empty(4, 8), torch.empty(8, 4).T, torch.empty(99).as_strided((4, 8), (1, 5)),
     torch.empty(199).as_strided((4, 8), (9, 5)), np.empty((4, 8), np.float32)[::-1, ::-1]],
    ids=lambda array: f"{tuple(array.shape)}",
)  # fmt: skip
def test_an_output_with_gaps_or_in_another_order_is_written(output: Any) -> None:
    doubled(X, output)
    np.testing.assert_array_equal(np.asarray(output), X.numpy() * 2)


def test_an_expanded_input_is_read() -> None:
    y = torch.empty(4, 8)
    for backend in BACKENDS:
        doubled(X[:1].expand(4, 8), y, backend=backend)
        torch.testing.assert_close(y, X[:1].expand(4, 8) * 2)


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(-7, 7)), max_size=4))
def test_overlap_is_exact(axes: list[tuple[int, int]]) -> None:
    shape, strides = [n for n, _ in axes], [s for _, s in axes]
    places = [
        sum(i * s for i, s in zip(index, strides, strict=True)) for index in itertools.product(*map(range, shape))
    ]
    assert overlaps(shape, strides) == (len(set(places)) != len(places))


def test_overlap_that_is_too_hard_counts_as_overlap() -> None:
    primes = (10007, 10009, 10037, 10039, 10061, 10067, 10069, 10079)
    assert overlaps([20] * 8, primes) in (True, False)
    assert not overlaps([1000, 1000, 1000], [1, 1000, 1000_000]) and overlaps([1001, 1000, 1000], [1, 1000, 1000_000])


# ------------------------------------------------------------------ what cannot be read as plain memory
class Wrapper(torch.Tensor):
    """A subclass without memory."""

    @staticmethod
    def __new__(cls, like: torch.Tensor) -> "Wrapper":
        made: Wrapper = torch.Tensor._make_wrapper_subclass(cls, like.shape, dtype=like.dtype, device=like.device)  # type: ignore[attr-defined]
        return made

    @classmethod
    def __torch_dispatch__(cls, *_: Any) -> Any:
        raise NotImplementedError


class Plain(torch.Tensor):
    """A subclass that has memory."""


def fake() -> torch.Tensor:
    with FakeTensorMode():
        return torch.empty(4, 8)


def freed() -> torch.Tensor:
    x = X.clone()
    x.untyped_storage().resize_(0)
    return x


def fixed() -> np.ndarray[Any, Any]:
    array = np.zeros((4, 8), np.float32)
    array.flags.writeable = False
    return array


RECORD = np.dtype([("a", "f4"), ("b", "i1")])
REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "list": (lambda: [[1.0]], r"is \[\[1.0\]\], but must be a tensor with dims \(M, N\)"),
    "long list": (lambda: [[0.0] * 99], r"is \[\[0.0, .*\.\.\., but must be a tensor"),
    "number": (lambda: 1.0, "is 1.0, but must be a tensor with dims"),
    "string": (lambda: "x", "is 'x', but must be a tensor"),
    "tensor without dims": (lambda: torch.tensor(1.0), r"has shape \(\), but needs 2 dims \(M, N\)"),
    "NumPy scalar": (lambda: np.float32(1.0), r"has shape \(\), but needs 2 dims"),
    "sparse COO": (X.to_sparse, r"is a sparse_coo tensor.*: {}.to_dense\(\)"),
    "sparse CSR": (X.to_sparse_csr, r"is a sparse_csr tensor.*: {}.to_dense\(\)"),
    "mkldnn": (X.to_mkldnn, r"is a mkldnn tensor.*: {}.to_dense\(\)"),
    "nested": (lambda: torch.nested.nested_tensor([X[0], X[1, :3]]), "is a nested tensor.*to_padded_tensor"),
    "jagged": (lambda: torch.nested.nested_tensor([X[0], X[1, :3]], layout=torch.jagged), "is a nested tensor"),
    "quantised": (lambda: torch.quantize_per_tensor(X, 0.1, 0, torch.qint8), r"is a quantised tensor.*{}.dequantize\(\)"),
    "meta": (lambda: X.to("meta"), "is a Tensor on meta without memory"),
    "fake": (fake, "is a FakeTensor on cpu without memory"),
    "wrapper": (lambda: Wrapper(X), "is a Wrapper .*without memory"),
    "freed": (freed, "is a Tensor on cpu without memory"),
    "gradient": (lambda: X.clone().requires_grad_(), r"requires grad.*torch.no_grad\(\).*{}.detach\(\)"),
    "float64": (X.double, "cannot be served: dtype 'float64'"),
    "complex": (lambda: X.to(torch.complex64), "cannot be served: dtype 'complex64'"),
    "other byte order": (lambda: np.ones((4, 8), ">f4"), r"has dtype >f4.*{}.astype\('float32'\)"),
    "masked": (lambda: np.ma.ones((4, 8), "f4"), r"is a MaskedArray.*{}.filled"),
    "field of a record": (lambda: np.zeros((4, 8), RECORD)["a"], r"has strides of \(40, 5\) bytes.*{}.copy\(\)"),
    "record": (lambda: np.zeros((4, 8), RECORD), "cannot be served: dtype 'void40'"),
    "object": (lambda: np.zeros((4, 8), object), "cannot be served: dtype 'object'"),
}  # fmt: skip


@pytest.mark.parametrize("backend", [None, *BACKENDS])
@pytest.mark.parametrize("what", REFUSED)
def test_what_is_no_plain_memory_is_refused(what: str, backend: str | None) -> None:
    make, words = REFUSED[what]
    doubled(X, torch.empty(4, 8))
    for _ in range(2):
        with pytest.raises(kd.InputError, match="doubled: x " + words.format("x")):
            doubled(make(), torch.empty(4, 8), backend=backend)
        with pytest.raises(kd.InputError, match="doubled: y " + words.format("y")):
            doubled(X, make(), backend=backend)


def test_what_cannot_be_written_is_refused() -> None:
    for backend in ("numpy", "pallas"):
        with pytest.raises(kd.InputError, match=r"doubled: y is read-only.*y\.copy\(\)"):
            doubled(X.numpy(), fixed(), backend=backend)
    doubled(fixed(), np.empty((4, 8), np.float32))


@pytest.mark.parametrize(("transform", "words"), [
    (lambda f: torch.func.vmap(f)(X[None]), "doubled under torch.vmap: a kernel has no rule for batches"),
    (lambda f: torch.func.grad(f)(X), "doubled: x requires grad"),
])  # fmt: skip
def test_function_transforms_are_refused(transform: Callable[..., Any], words: str) -> None:
    def call(x: torch.Tensor) -> torch.Tensor:
        y = torch.empty(4, 8)
        doubled(x, y)
        return y.sum()

    with pytest.raises(kd.InputError, match=words):
        transform(call)


def test_gradients_are_asked_of_each_call() -> None:
    x, y = X.clone().requires_grad_(), torch.empty(4, 8)
    with torch.no_grad():
        doubled(x, y)
    torch.testing.assert_close(y, X * 2)
    with pytest.raises(kd.InputError, match="x requires grad"):
        doubled(x, y)


@pytest.mark.parametrize("backend", BACKENDS)
def test_subclasses_are_what_they_hold(backend: str) -> None:
    y = torch.empty(4, 8).as_subclass(Plain)  # type: ignore[no-untyped-call]
    doubled(X.as_subclass(Plain), y, backend=backend)  # type: ignore[no-untyped-call]
    np.testing.assert_array_equal(y.numpy(), X.numpy() * 2)
    if backend != "triton":
        matrix = np.asmatrix(np.empty((4, 8), np.float32))
        doubled(np.asmatrix(X.numpy()), matrix, backend=backend)
        np.testing.assert_array_equal(np.asarray(matrix), X.numpy() * 2)


def test_arrays_of_another_library_are_named() -> None:
    import jax

    y = torch.empty(4, 8)
    with pytest.raises(kd.InputError, match=r"x is numpy\.ndarray; backend triton takes torch tensors"):
        doubled(X.numpy(), y, backend="triton")
    spec = jax.ShapeDtypeStruct((4, 8), "float32")
    with pytest.raises(kd.InputError, match="x is a ShapeDtypeStruct, which holds no values; only outputs"):
        doubled(spec, spec)


# ------------------------------------------------------------------ shared memory
def views(memory: torch.Tensor) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Inputs and outputs of one shape in one memory."""
    return {
        "the same": (memory[:4, :8], memory[:4, :8]),
        "a row on": (memory[:4, :8], memory[1:5, :8]),
        "a row back": (memory[1:5, :8], memory[:4, :8]),
        "a column on": (memory[:4, :8], memory[:4, 1:9]),
        "interleaved": (memory[:4, :16:2], memory[:4, 1:17:2]),
        "transposed": (memory[:8, :4].T, memory[:4, :8]),
        "expanded": (memory[:1, :8].expand(4, 8), memory[:4, :8]),
    }


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kernel", [doubled, swapped, normalised], ids=lambda k: k.name)
@pytest.mark.parametrize("how", views(torch.empty(8, 20)))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_load_sees_what_was_there_before(how: str, kernel: kd.Kernel, backend: str, dtype: torch.dtype) -> None:
    memory = (torch.rand(8, 20, generator=torch.Generator().manual_seed(20)) + 1).to(dtype)
    x, y = views(memory)[how]
    apart, expected = x.clone(), y.clone()
    if kernel is swapped and backend == "pallas":
        with pytest.raises(kd.TargetError, match="swapped stores y at 2 indices of N"):
            kernel(x, y, backend=backend)
        return
    kernel(apart, expected, backend=backend)
    kernel(x, y, backend=backend)
    torch.testing.assert_close(y, expected)


@pytest.mark.parametrize("backend", BACKENDS)
def test_several_outputs_may_share_memory_with_inputs(backend: str) -> None:
    memory = X.repeat(1, 2).clone()
    x = memory[:, :8].clone()
    two(memory[:, :8], memory[:, :8], memory[:, 8:], backend=backend)
    torch.testing.assert_close(memory, torch.cat([x * 2, x * 3], 1))


@pytest.mark.parametrize("backend", ["numpy", "triton"])
def test_what_is_added_to_may_be_what_is_read(backend: str) -> None:
    x = X.clone()
    summed(x, x[0], backend=backend)
    torch.testing.assert_close(x[0], X.sum(0) + X[0])


@pytest.mark.parametrize("backend", BACKENDS)
def test_outputs_that_share_memory_are_refused(backend: str) -> None:
    y = torch.empty(5, 8)
    with pytest.raises(kd.InputError, match="two: outputs y and z share memory"):
        two(X, y[:4], y[1:], backend=backend)
    interleaved = torch.empty(4, 16)
    two(X, interleaved[:, ::2], interleaved[:, 1::2], backend=backend)
    torch.testing.assert_close(interleaved, torch.stack([X * 2, X * 3], 2).reshape(4, 16))


def test_a_prepared_run_keeps_shared_memory_apart() -> None:
    x = X.clone()
    instance, arguments = runtime.bind(swapped, {"x": x, "y": x})
    config, _ = runtime.chosen(instance, arguments, "numpy")
    runtime.run(instance, arguments, config, "numpy")
    torch.testing.assert_close(x[:, :2], X[:, [1, 0]])
