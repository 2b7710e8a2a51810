"""``explain``: which implementation serves a call, with what config and from where, and why the others do not."""

import inspect
from dataclasses import dataclass
from typing import Any

import torch

from kpt.ops.choice import Choice, PassedOver, choose, preferred
from kpt.ops.compiling import is_behind
from kpt.ops.eager import tensors_in
from kpt.ops.fingerprint import of_python
from kpt.ops.registry import KernelChoice, Op, get
from kpt_dsl.errors import InputError, KptError


@dataclass(frozen=True)
class Explanation:
    """How a call is served; printing it reads well. ``call``: the tensors in words."""

    op: str
    call: str
    implementation: str
    kernels: tuple[KernelChoice, ...]
    passed_over: tuple[PassedOver, ...]

    def __str__(self) -> str:
        lines = [f"{self.op}({self.call})", f"  served by   {self.implementation}"]
        for k in self.kernels:
            lines.append(f"  kernel      {k.kernel}: {k.config} ({k.provenance})")
            lines += [f"    {k.extents}: binary {k.binary}"] if k.binary else []
        lines += [f"  passed over {other.name}: {other.reason}" for other in self.passed_over]
        return "\n".join(lines)

    __repr__ = __str__


def explain(op: str, *args: Any, **kwargs: Any) -> Explanation:
    """How ``kpt.ops.<op>(*args, **kwargs)`` would be served here and now; nothing is run.

    ``print(kpt.ops.explain("flash_attention", q, k, v, causal=True))``. Raises InputError for an unknown op and for arguments
    that the op refuses.
    """
    spec = get(op)
    try:
        bound = inspect.signature(spec.public).bind(*args, **kwargs)
    except TypeError as error:
        raise InputError(f"{op}: {error}") from None
    bound.apply_defaults()
    arguments = of_python(tuple(a) if isinstance(a, list) else a for a in bound.arguments.values())
    spec.check(*arguments)
    tensors = tensors_in(arguments)
    needs_grad = torch.is_grad_enabled() and any(t.requires_grad for t in tensors)
    choice = choose(spec, arguments, needs_grad, preferred())
    if is_behind() and preferred() is None:
        choice = _meanwhile(spec, choice, arguments, needs_grad)
    return Explanation(
        op,
        ", ".join(
            f"{name}={_in_words(a)}" for name, a in zip(bound.arguments, arguments, strict=True) if a is not None
        ),
        choice.implementation.name,
        _kernels(choice.implementation.describe, arguments),
        choice.passed_over,
    )


def _meanwhile(op: Op, choice: Choice, arguments: tuple[Any, ...], needs_grad: bool) -> Choice:
    """The choice where nobody waits for a compiler."""
    from kpt.ops import behind

    served = choice.implementation
    reason = behind.state(op, served, arguments, needs_grad and not served.differentiable)
    return choice if reason is None else choose(op, arguments, needs_grad, None, {served.name: reason})


def _kernels(describe: Any, arguments: tuple[Any, ...]) -> tuple[KernelChoice, ...]:
    try:
        found: tuple[KernelChoice, ...] = describe(arguments)
    except KptError as error:
        return (KernelChoice("none", str(error), type(error).__name__),)
    return found


def _in_words(value: Any) -> str:
    if not isinstance(value, torch.Tensor):
        return str(value)
    return f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)}@{value.device}"
