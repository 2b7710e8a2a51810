"""rotary: every implementation against float64 and against what Transformers writes, in the shapes and layouts of models."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

import kpt
from kpt.ops import backends, prefer, rotary
from kpt.ops.registry import get
from kpt.ops.rotary.backward import rotary_backward
from tests.tolerances import assert_close, assert_within

BACKENDS = ("reference", "numpy", "triton", "pallas")
DTYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16, "f64": torch.float64}


def randn(*shape: int, dtype: str = "f32") -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape))).to(DTYPES[dtype])


def heads_last(batch: int, positions: int, heads: int, dim: int, dtype: str = "f32") -> torch.Tensor:
    """(batch, heads, positions, dim) as a projection gives it."""
    return randn(batch, positions, heads, dim, dtype=dtype).transpose(1, 2)


def angles(shape: tuple[int, ...], interleaved: bool = False, dtype: str = "f32") -> tuple[torch.Tensor, torch.Tensor]:
    """cos and sin of as many columns as the last extent says."""
    angle = randn(*shape[:-1], shape[-1] // 2, dtype="f64") * 3
    angle = angle.repeat_interleave(2, -1) if interleaved else torch.cat((angle, angle), -1)
    return angle.cos().to(DTYPES[dtype]), angle.sin().to(DTYPES[dtype])


def turned(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, interleaved: bool) -> torch.Tensor:
    """In float64, by complex numbers; cos and sin broadcast against x."""
    x, cos, sin = x.double(), cos.double(), sin.double()
    columns = cos.shape[-1]
    pairs = x[..., :columns].unflatten(-1, (-1, 2)) if interleaved else x[..., :columns].unflatten(-1, (2, -1)).mT
    cos, sin = (t[..., ::2] if interleaved else t[..., : columns // 2] for t in (cos, sin))
    y = torch.view_as_real(torch.complex(pairs[..., 0], pairs[..., 1]) * torch.complex(cos, sin))
    return torch.cat(((y if interleaved else y.mT).flatten(-2), x[..., columns:]), -1)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("heads", "kv_heads", "positions", "dim", "columns", "dtype", "angle_dtype"),
    [
        (4, 2, 37, 32, 32, "f32", "f32"),
        (1, 1, 1, 2, 2, "f32", "f32"),
        (3, 2, 5, 24, 16, "bf16", "f32"),
        (4, 1, 199, 8, 6, "f16", "f16"),
        (2, 2, 3, 760, 38, "bf16", "bf16"),
    ],
)
@pytest.mark.parametrize("interleaved", [False, True])
def test_values_and_gradients(
    backend: Any, heads: int, kv_heads: int, positions: int, dim: int, columns: int, dtype: str, angle_dtype: str,
    interleaved: bool,
) -> None:  # fmt: skip
    q, k = (heads_last(2, positions, n, dim, dtype).requires_grad_() for n in (heads, kv_heads))
    cos, sin = angles((2, positions, columns), interleaved, angle_dtype)
    with prefer(backend):
        outputs = rotary(q, k, cos, sin, interleaved)
        slopes = [randn(*o.shape, dtype=dtype) for o in outputs]
        found = torch.autograd.grad(outputs, (q, k), slopes)
    cos, sin = cos[:, None], sin[:, None]
    for x, y, dy, dx in zip((q, k), outputs, slopes, found, strict=True):
        assert (y.dtype, y.shape, y.stride(), dx.dtype) == (x.dtype, x.shape, x.stride(), x.dtype)
        assert_close(y.detach(), turned(x.detach(), cos, sin, interleaved), dtype)
        assert_close(dx, turned(dy, cos, -sin, interleaved), dtype)
        assert torch.equal(y[..., columns:], x[..., columns:])


@pytest.mark.parametrize("interleaved", [False, True])
def test_finite_differences(interleaved: bool) -> None:
    """In float64, of the angles too, whose gradients PyTorch makes."""
    q, k = randn(1, 2, 3, 6, dtype="f64").requires_grad_(), randn(1, 1, 3, 6, dtype="f64").requires_grad_()
    cos, sin = (t.requires_grad_() for t in angles((3, 4), interleaved, "f64"))
    torch.autograd.gradcheck(lambda *t: rotary(*t, interleaved), (q, k, cos, sin), fast_mode=True)
    with prefer("numpy"), pytest.raises(kpt.InputError, match="no kernel makes the gradients of cos and sin"):
        rotary(q.float(), k.float(), cos.float(), sin.float(), interleaved)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("interleaved", [False, True])
def test_each_column_has_a_cosine_and_a_sine_of_its_own(backend: Any, interleaved: bool) -> None:
    """Models that make unlike ones for a pair get what their own formula gives, and its gradient."""
    q, k = randn(2, 3, 5, 8).requires_grad_(), randn(2, 2, 5, 8).requires_grad_()
    cos, sin = randn(2, 5, 6), randn(1, 2, 5, 6)[0]
    slopes = randn(2, 3, 5, 8) + 1, randn(2, 2, 5, 8)
    with prefer(backend):
        outputs = rotary(q, k, cos, sin, interleaved)
        found = torch.autograd.grad(outputs, (q, k), slopes)
    exact = [t.detach().double().requires_grad_() for t in (q, k)]
    expected = []
    for x in exact:
        y = x[..., :6]
        a, b = (y[..., ::2], y[..., 1::2]) if interleaved else y.chunk(2, -1)
        far = torch.stack((-b, a), -1).flatten(-2) if interleaved else torch.cat((-b, a), -1)
        expected.append(torch.cat((y * cos[:, None] + far * sin[:, None], x[..., 6:]), -1))
    wanted = torch.autograd.grad(expected, exact, [t.double() for t in slopes])
    for got, want in zip((*outputs, *found), (*expected, *wanted), strict=True):
        assert_close(got.detach(), want.detach(), "f32", scale=10.0)


FORMS: dict[str, tuple[tuple[int, ...], bool]] = {
    "positions": ((7, 8), False),
    "one batch entry": ((1, 7, 8), False),
    "batch": ((2, 7, 8), False),
    "unsqueezed at 1": ((2, 1, 7, 8), False),
    "unsqueezed at 1, one batch entry": ((1, 1, 7, 8), False),
    "unsqueezed at 2": ((2, 7, 1, 8), True),
    "unsqueezed at 2, one batch entry": ((1, 7, 1, 8), True),
}


@pytest.mark.parametrize("backend", ["reference", "numpy"])
@pytest.mark.parametrize("positions", [7, 1])
@pytest.mark.parametrize("form", FORMS)
def test_forms_of_angles(form: str, positions: int, backend: Any) -> None:
    shape, last = FORMS[form]
    cos, sin = angles(tuple(positions if n == 7 else n for n in shape))
    q, k = (heads_last(2, positions, n, 12) for n in (7, 3))  # as many heads as positions, which says nothing
    wide = [t if t.ndim == 4 else t.unsqueeze(-3) for t in (cos, sin)]
    if last:
        q, k = q.transpose(1, 2), k.transpose(1, 2)
    with prefer(backend):
        for x, y in zip((q, k), rotary(q, k, cos, sin), strict=True):
            assert_close(y, turned(x, *wide, False), "f32")
            assert y.stride() == x.stride()


@pytest.mark.parametrize(("heads", "kv_heads"), [(1, 2), (2, 1), (1, 1)])
def test_one_position_whose_heads_stand_last(heads: int, kv_heads: int) -> None:
    q, k, (cos, sin) = randn(2, 1, heads, 8), randn(2, 1, kv_heads, 8), angles((2, 1, 1, 8))
    with prefer("numpy"):
        for x, y in zip((q, k), rotary(q, k, cos, sin), strict=True):
            assert_close(y, turned(x, cos, sin, False), "f32")


def test_it_is_what_transformers_write() -> None:
    llama = pytest.importorskip("transformers.models.llama.modeling_llama")
    cohere = pytest.importorskip("transformers.models.cohere.modeling_cohere")
    glm = pytest.importorskip("transformers.models.glm4.modeling_glm4")
    q, k = heads_last(2, 5, 4, 16, "bf16"), heads_last(2, 5, 2, 16, "bf16")
    halves, pairs = angles((2, 5, 16), dtype="bf16"), angles((2, 5, 16), True, dtype="bf16")
    of_half = tuple(t[..., :8] for t in pairs)
    packed = [torch.cat((t[..., ::2], t[..., ::2]), -1) for t in of_half]  # GLM spreads the first half itself
    for got, wanted in (
        (rotary(q, k, *halves), llama.apply_rotary_pos_emb(q, k, *halves)),
        (rotary(q, k, *pairs, interleaved=True), cohere.apply_rotary_pos_emb(q, k, *pairs)),
        (rotary(q, k, *of_half, interleaved=True), glm.apply_rotary_pos_emb(q, k, *packed)),
    ):
        for g, w in zip(got, wanted, strict=True):
            assert_close(g, w, "bf16")
    y, z = rotary(q, k, *halves), llama.apply_rotary_pos_emb(q, k, *halves)
    assert all(map(torch.equal, y, z))  # PyTorch's rounds as the model does


@pytest.mark.parametrize("dtype", ["f16", "bf16"])
def test_kernels_round_once(dtype: str) -> None:
    q, (cos, sin) = randn(1, 2, 64, 64, dtype=dtype), angles((64, 64))
    exact = turned(q, cos, sin, False)
    with prefer("numpy"):
        y, _ = rotary(q, q, cos, sin)
    assert_within(y, exact, (0.501 * torch.finfo(y.dtype).eps * exact.abs() + 1e-6).numpy())


LAYOUTS: dict[str, tuple[Callable[[], tuple[torch.Tensor, ...]], bool]] = {
    "projections": (lambda: (heads_last(2, 5, 4, 16), heads_last(2, 5, 2, 16)), True),
    "one projection": (
        lambda: tuple(t.unflatten(2, (-1, 16)).transpose(1, 2) for t in randn(2, 5, 8 * 16).split((64, 32, 32), 2)[:2]), True
    ),
    "contiguous": (lambda: (randn(2, 4, 5, 16), randn(2, 2, 5, 16)), True),
    "one head for all": (lambda: (randn(2, 4, 5, 16), randn(2, 1, 5, 16).expand(2, 2, 5, 16)), True),
    "columns apart": (lambda: (randn(2, 4, 5, 32)[..., ::2], randn(2, 2, 5, 16)), False),
}  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    make, in_place = LAYOUTS[layout]
    q, k = make()
    cos, sin = angles((2, 5, 12))
    seen: list[tuple[Any, ...]] = []
    launched = backends.Launches.__call__
    monkeypatch.setattr(backends.Launches, "__call__", lambda self, *given: (seen.append(given), launched(self, *given)))
    with prefer("numpy"):
        outputs = rotary(q, k, cos, sin)
    (kernel, q_in, k_in, *_), = seen  # one launch for both
    assert kernel.name == "rotary_halves"
    assert ((q_in.data_ptr(), k_in.data_ptr()) == (q.data_ptr(), k.data_ptr())) == in_place
    for x, y, native in zip((q, k), outputs, rotary(q, k, cos, sin), strict=True):
        assert_close(y, turned(x, cos[:, None], sin[:, None], False), "f32")
        assert y.stride() == native.stride()


@pytest.mark.parametrize("backend", BACKENDS)
def test_only_the_gradients_that_are_needed(backend: Any) -> None:
    q, k = heads_last(2, 5, 4, 16).requires_grad_(), heads_last(2, 5, 2, 16).requires_grad_()
    cos, sin = angles((2, 5, 12))
    with prefer(backend):
        back = rotary_backward(None, k.detach(), cos, sin)
        frozen = rotary(q.detach(), k, cos, sin)
        dk = torch.autograd.grad(frozen[1].sum(), k)
        unused = torch.autograd.grad(rotary(q, k, cos, sin)[0].sum(), (q, k), allow_unused=True)
    ones = torch.ones(2, 5, 4, 16).transpose(1, 2)
    for got, of in ((back[0], k.detach()), (dk[0], ones[:, :2]), (unused[0], ones)):
        assert_close(got, turned(of, cos[:, None], -sin[:, None], False), "f32")
    assert len(back) == 1
    assert unused[1] is None
    with prefer("numpy"), torch.no_grad():
        assert not any(t.requires_grad for t in rotary(q, k, cos, sin))


def test_only_the_angles_are_saved() -> None:
    q, k = heads_last(2, 5, 4, 16).requires_grad_(), heads_last(2, 5, 2, 16).requires_grad_()
    cos, sin = angles((2, 5, 12))
    saved: list[torch.Tensor] = []
    with prefer("numpy"), torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        rotary(q, k, cos, sin)
    assert [t.data_ptr() for t in saved] == [cos.data_ptr(), sin.data_ptr()]


def test_a_second_derivative_is_refused() -> None:
    q, k, (cos, sin) = randn(1, 2, 3, 4).requires_grad_(), randn(1, 2, 3, 4), angles((3, 4))
    with prefer("numpy"):
        (dq,) = torch.autograd.grad(rotary(q, k, cos, sin)[0].square().sum(), q, create_graph=True)
        with pytest.raises(kpt.KptError, match="double backward is not offered"):
            dq.sum().backward()


def test_autocast_leaves_it_alone() -> None:
    q, k, (cos, sin) = heads_last(1, 5, 2, 8, "bf16"), heads_last(1, 5, 1, 8, "bf16"), angles((5, 8))
    with torch.autocast("cpu", dtype=torch.float16):
        outputs = rotary(q, k, cos, sin)
    assert all(map(torch.equal, outputs, rotary(q, k, cos, sin)))
    assert outputs[0].dtype == torch.bfloat16


def test_transforms_get_pytorchs() -> None:
    q, k, (cos, sin) = randn(3, 1, 2, 5, 8), randn(3, 1, 1, 5, 8), angles((3, 5, 8))
    for got, q_, k_, c, s in zip(zip(*torch.vmap(rotary)(q, k, cos, sin), strict=True), q, k, cos, sin, strict=True):
        for g, w in zip(got, rotary(q_, k_, c, s), strict=True):
            assert_close(g, w, "f32")


def test_compiles_into_one_graph_of_any_length() -> None:
    def block(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        q, k = (t.unflatten(2, (-1, 16)).transpose(1, 2) for t in x.split((64, 32), 2))
        q, k = rotary(q, k, cos, sin)
        return q.transpose(1, 2).sum(2) + k.transpose(1, 2).sum(2)

    torch._dynamo.reset()
    compiled = torch.compile(block, fullgraph=True, dynamic=True, backend="aot_eager")
    for length in (5, 6, 9):
        x, given = randn(2, length, 96).requires_grad_(), angles((1, length, 12))
        got, wanted = compiled(x, *given), block(x, *given)
        assert_close(got.detach(), wanted.detach(), "f32", 4)
        (dx,), (right,) = (torch.autograd.grad(y.square().sum(), x) for y in (got, wanted))
        assert_close(dx, right, "f32", 4)


def test_its_kernels_are_recorded() -> None:
    dims = {"B": 2, "H": 4, "G": 2, "T": 8, "D": 16, "R": 8}
    (instance,) = get("rotary").instances(dims, "bf16")
    assert instance.kernel.name == "rotary_halves"
    assert dict(instance.extents.dims) == {"B": 2, "K": 2, "N": 2, "M": 1, "T": 8, "R": 2, "P": 4, "S": 8}
    (instance,) = get("rotary_backward").instances(dims, "bf16", interleaved=True)
    assert instance.kernel.name == "rotary_neighbours"
    with prefer("numpy"):
        explained = kpt.ops.explain("rotary", randn(1, 2, 3, 4), randn(1, 2, 3, 4), *angles((3, 4)), False)
    assert explained.implementation == "numpy"


Q, K, C = torch.zeros(2, 4, 5, 8), torch.zeros(2, 2, 5, 8), torch.zeros(5, 8)


@pytest.mark.parametrize(
    ("message", "call"),
    [
        ("q is of shape (4, 5, 8), rank 3; accepted: rank 4", lambda: rotary(Q[0], K, C, C)),
        ("q is of dtype torch.int64", lambda: rotary(Q.long(), K.long(), C, C)),
        ("k is of dtype torch.float16; accepted: the dtype of q, torch.float32", lambda: rotary(Q, K.half(), C, C)),
        ("k is of shape (2, 2, 4, 8); accepted: but for its heads the shape of q, (2, 4, 5, 8)",
         lambda: rotary(Q, K[:, :, :4], C, C)),
        ("k is on meta; accepted: the device of q, cpu", lambda: rotary(Q, K.to("meta"), C, C)),
        ("cos is of shape (8,), rank 1; accepted: (positions, columns)", lambda: rotary(Q, K, C[0], C[0])),
        ("cos is of shape (4, 8); accepted: 5 positions", lambda: rotary(Q, K, C[:4], C[:4])),
        ("cos is of shape (3, 5, 8); accepted: 5 positions, and one batch entry or 2",
         lambda: rotary(Q, K, C.expand(3, 5, 8), C.expand(3, 5, 8))),
        ("cos is of shape (2, 4, 5, 8); accepted: 5 positions", lambda: rotary(Q, K, Q, Q)),
        ("cos is of 7 columns; accepted: an even number of them, from 2 to the head dim, 8",
         lambda: rotary(Q, K, C[:, :7], C[:, :7])),
        ("cos is of 10 columns", lambda: rotary(Q, K, torch.zeros(5, 10), torch.zeros(5, 10))),
        ("cos is of 0 columns", lambda: rotary(Q, K, C[:, :0], C[:, :0])),
        ("cos is of dtype torch.float16; accepted: torch.float32", lambda: rotary(Q, K, C.half(), C.half())),
        ("sin is of shape (5, 6); accepted: the shape of cos, here (5, 8)", lambda: rotary(Q, K, C, C[:, :6])),
        ("sin is of dtype torch.bfloat16; accepted: the dtype of cos",
         lambda: rotary(Q.bfloat16(), K.bfloat16(), C, C.bfloat16())),
        ("interleaved is 1 (int); accepted: True or False", lambda: rotary(Q, K, C, C, 1)),  # type: ignore[arg-type]
        ("dq and dk is None; accepted: one of them at least", lambda: rotary_backward(None, None, C, C)),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(message: str, call: Callable[[], Any]) -> None:
    with pytest.raises(kpt.InputError) as error:
        call()
    assert f": {message}" in str(error.value)
