"""What rotary and its gradient ask of their arguments, where heads and positions stand in them, and the kernel call of both."""

import math
from collections.abc import Iterable, Iterator
from typing import Any

import torch

from kpt.ops import checks
from kpt.ops.backends import Launch, unit_last_stride, wide_dtype
from kpt.ops.dtypes import FLOATS
from kpt.ops.memory_order import empty_like
from kpt.ops.registry import WHOLE, Placed, Sharding
from kpt.ops.rotary.kernels import rotary_halves, rotary_neighbours


def head_dim(tensors: Iterable[torch.Tensor], cos: torch.Tensor) -> int:
    """Which dim of the tensors are heads, 1 or 2: as ``cos``, where it has one for them, is to be broadcast; else 1."""
    last = cos.ndim == 4 and cos.shape[2] == 1 and (cos.shape[1] != 1 or any(t.shape[2] != 1 for t in tensors))
    return 2 if last else 1


def check(op: str, tensors: dict[str, Any], cos: Any, sin: Any, interleaved: Any) -> None:
    """Raises InputError, in the name of ``op``, unless the given ones of two tensors fit together, with cos and sin."""
    given = {name: t for name, t in tensors.items() if t is not None}
    if not given:
        checks.reject(op, " and ".join(tensors), "None", "one of them at least")
    for name, t in given.items():
        checks.rank(op, name, t, (4,), "rank 4, (batch, heads, positions, head dim)")
    first, x = next(iter(given.items()))
    checks.dtype(op, first, x.dtype, FLOATS)
    checks.same_dtype(op, first, x, **given)
    checks.same_device(op, first, x, **given)
    checks.rank(op, "cos", cos, (2, 3, 4), "(positions, columns), (batch or 1, positions, columns), or that with a 1 for heads")
    heads = head_dim(given.values(), cos)
    batch, positions = x.shape[0], x.shape[3 - heads]
    for name, t in given.items():
        if (t.shape[0], t.shape[3 - heads], t.shape[3]) != (batch, positions, x.shape[3]):
            checks.reject(op, name, checks.shape_of(t), f"but for its heads the shape of {first}, {tuple(x.shape)}")
    columns = cos.shape[-1]
    wanted = [positions, columns] if cos.ndim < 4 else [positions, 1, columns] if heads == 2 else [1, positions, columns]
    if list(cos.shape[-len(wanted) :]) != wanted or (cos.ndim > 2 and cos.shape[0] not in (1, batch)):
        fits = f"{positions} positions, and one batch entry or {batch}, as {first} is {checks.shape_of(x)}"
        checks.reject(op, "cos", checks.shape_of(cos), fits)
    if columns % 2 or not 2 <= columns <= x.shape[3]:
        checks.reject(op, "cos", f"of {columns} columns", f"an even number of them, from 2 to the head dim, {x.shape[3]}")
    checks.dtype(op, "cos", cos.dtype, (x.dtype, torch.float32) if x.dtype.itemsize == 2 else (x.dtype,))
    checks.shape(op, "sin", sin, cos.shape, "the shape of cos")
    checks.same_dtype(op, "cos", cos, sin=sin)
    checks.same_device(op, first, x, cos=cos, sin=sin)
    checks.flag(op, "interleaved", interleaved)


def why_not(
    q: torch.Tensor | None, k: torch.Tensor | None, cos: torch.Tensor, sin: torch.Tensor, *_: Any
) -> str | None:
    """Why the kernels do not serve a call, or None."""
    if (cos.requires_grad or sin.requires_grad) and torch.is_grad_enabled():
        return "no kernel makes the gradients of cos and sin"
    return wide_dtype(q, k)


def fake(q: torch.Tensor | None, k: torch.Tensor | None, *_: Any) -> list[torch.Tensor]:
    """Room for what is turned: of each that is given, in its memory order."""
    return [empty_like(t) for t in (q, k) if t is not None]


def shardings(
    _: int, q: torch.Tensor | None, k: torch.Tensor | None, cos: torch.Tensor, *__: Any
) -> Iterator[Sharding]:
    """By batch entries, positions and heads."""
    given = [t for t in (q, k) if t is not None]
    heads = head_dim(given, cos)
    of_cos: dict[int, Placed] = {
        0: 0 if cos.ndim > 2 and cos.shape[0] == given[0].shape[0] else WHOLE,
        heads: WHOLE,
        3 - heads: 3 - heads if cos.ndim == 4 else cos.ndim - 2,
    }
    for dim, placed in of_cos.items():
        inputs = [None if t is None else dim for t in (q, k)]
        yield Sharding((dim,) * len(given), (*inputs, placed, placed, None))


def turn(
    launch: Launch,
    q: torch.Tensor | None,
    k: torch.Tensor | None,
    cos: torch.Tensor,
    sin: torch.Tensor,
    interleaved: bool,
    *,
    back: bool,
) -> list[torch.Tensor]:
    """Launch the kernel on the given ones of q and k."""
    given = [t for t in (q, k) if t is not None]
    heads, columns = head_dim(given, cos), cos.shape[-1]
    groups = math.gcd(*[t.shape[heads] for t in given])
    pairs = (columns // 2, 2) if interleaved else (2, columns // 2)

    def seen(t: torch.Tensor | None) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """(batch, groups, heads of a group, positions, pairs), and its other columns."""
        if t is None:
            return None, None
        parts = (t if heads == 1 else t.transpose(1, 2)).unflatten(1, (groups, -1))
        return parts[..., :columns].unflatten(-1, pairs), parts[..., columns:] if columns < t.shape[3] else None

    def of_pairs(t: torch.Tensor) -> torch.Tensor:
        """(batch, positions, pairs)."""
        t = t.unflatten(-1, pairs)
        t = t.squeeze(heads) if t.ndim == 5 else t
        return t.expand(given[0].shape[0], -1, -1, -1)

    outputs = [empty_like(t) for t in given]
    rooms = iter(outputs)
    tensors = [None if t is None else unit_last_stride(t) for t in (q, k)]
    (q_in, q_rest), (k_in, k_rest) = map(seen, tensors)
    (q_out, q_kept), (k_out, k_kept) = (seen(None if t is None else next(rooms)) for t in (q, k))
    launch(
        rotary_neighbours if interleaved else rotary_halves,
        q_in, k_in, of_pairs(cos), of_pairs(sin), q_out, k_out, q_rest, k_rest, q_kept, k_kept, back,
    )  # fmt: skip
    return outputs
