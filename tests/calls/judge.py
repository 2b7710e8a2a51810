"""Makes a drawn call and says what is wrong with its answer, by the same call in float64."""

import inspect
import math
import warnings
from collections import Counter
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from typing import Any

import torch

import kpt.ops
from kpt.ops.flash_attention.scores import sides
from kpt.ops.registry import get
from tests.calls.draw import Call, draw, laid_out, values
from tests.tolerances import tolerance

SHORT = {
    torch.float64: "f32", torch.float32: "f32", torch.float16: "f16", torch.bfloat16: "bf16",
    torch.float8_e4m3fn: "f8e4m3", torch.float8_e5m2: "f8e5m2",
}  # fmt: skip

MODES: dict[str, Any] = {"no_grad": torch.no_grad, "inference_mode": torch.inference_mode}

ON_THE_WAY = 4.0
"""Roundings to the narrow type between an input's gradient and the output's, beside that of the result."""

PYTORCHS = 3.0
"""How many times PyTorch's own error is allowed where that is larger: sums that cancel err in all orders."""


SMALLEST = 1e-12
"""Below what is drawn nothing is told apart: where float64 has an exact zero, an exponential may be left of it."""

CAPPED = 2.0**-23
"""Of the cap of logits, what may be left: the target's is capped apart from its row, by another tanh of XLA's on a CPU, which
has one for vectors and one for what does not fill one."""


@dataclass(frozen=True)
class Answer:
    """What a call gave: its outputs, and the gradients that were wanted, by name."""

    outputs: list[torch.Tensor]
    gradients: dict[str, torch.Tensor]


def some(
    first: int, count: int, device: str, backends: tuple[str, ...], ops: tuple[str, ...]
) -> tuple[list[tuple[str, str | None]], Counter[str]]:
    """Make those of some calls that are of these ops: each in words, and what is wrong with it; and by reason how often PyTorch
    served in a kernel's place, of two times that each is made."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    before = _fallbacks()
    calls = [draw(number, device, backends) for number in range(first, first + count)]
    found = [(f"{call.number}: {call}", trouble(call)) for call in calls if call.op in ops]
    return found, _fallbacks() - before


def _fallbacks() -> Counter[str]:
    return Counter(
        {f"{op}: {why}": n for op, counted in kpt.ops.counters().items() for why, n in counted["fallbacks"].items()}
    )


def trouble(call: Call) -> str | None:
    """None where the answer is right, else what is wrong with it.

    The call is made twice, on different numbers: the second takes the way that the first one prepared.
    """
    torch.manual_seed(call.number)
    generator = torch.Generator().manual_seed(call.number)
    for _ in range(2):
        numbers = {n: None if t is None else values(t, generator) for n, t in call.tensors.items()}
        slopes = torch.Generator().manual_seed(call.number + 1)
        try:
            got = _answer(call, numbers, call.backend, slopes)
        except kpt.InputError as error:
            return None if _may_refuse(call, str(error)) else f"refused: {error}"
        except Exception as error:
            return f"raised {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        wide = {n: t if t is None or not t.is_floating_point() else _wide(call, n, t) for n, t in numbers.items()}
        try:
            exact = _answer(call, wide, "reference", slopes, exact=True)
            native = _answer(call, numbers, "reference", slopes)
        except RuntimeError:  # PyTorch does not compute it: its attention on GPUs refuses some strides
            return None
        if found := _compare(call, numbers, got, exact, native):
            return found
    return None


def _wide(call: Call, name: str, t: torch.Tensor) -> torch.Tensor:
    return t.double() if not (call.op == "fp8_matmul" and name in "ab") else t


def _may_refuse(call: Call, said: str) -> bool:
    """A preferred kernel says so where it cannot serve; unasked, nothing is refused."""
    return call.backend in ("numpy", "triton", "pallas") and "is preferred but cannot serve this call" in said


def _answer(call: Call, numbers: dict[str, Any], backend: str, slopes: torch.Generator, exact: bool = False) -> Answer:
    leaves: dict[str, torch.Tensor] = {}
    given: dict[str, Any] = {}
    for name, t in call.tensors.items():
        source = numbers[name]
        if t is None or source is None:
            given[name] = None
            continue
        leaf = source.to(call.device).clone().requires_grad_(t.grad)
        if t.grad:
            leaves[name] = leaf
        given[name] = leaf if exact else _as_laid_out(leaf, t.layout, call.device)
    lengths = next((t for n in ("key_lengths", "cache_lengths") if (t := given.get(n)) is not None), None)
    if lengths is not None and given.get("block_table") is None and not exact:
        given |= {name: _unwritten(given[name], lengths) for name in "kv"}
    flags = dict(call.flags)
    if exact and "eps" in flags and flags["eps"] is None and call.tensors["input"].dtype != torch.float64:  # type: ignore[union-attr]
        flags["eps"] = torch.finfo(torch.float32).eps
    if exact and call.op == "fp8_matmul":
        flags["out_dtype"] = torch.float64
    with ExitStack() as around:
        if backend != "unasked":
            around.enter_context(kpt.ops.prefer(backend))  # type: ignore[arg-type]
        if call.autocast is not None and not exact:
            around.enter_context(torch.autocast(call.device, dtype=call.autocast))
        if not leaves:
            around.enter_context(MODES.get(call.mode, nullcontext)())
        outputs = _call(call, given, flags, exact)
    outputs = list(outputs) if isinstance(outputs, list | tuple) else [outputs]
    followed = [o for o in outputs if o.requires_grad]
    gradients: dict[str, torch.Tensor] = {}
    if leaves and followed:
        slopes.manual_seed(call.number + 2)
        dy = [torch.randn(o.shape, generator=slopes).to(o) for o in outputs]
        dy = [slope for slope, o in zip(dy, outputs, strict=True) if o.requires_grad]
        found = torch.autograd.grad(followed, list(leaves.values()), dy, allow_unused=True)
        gradients = {n: g for n, g in zip(leaves, found, strict=True) if g is not None}
    return Answer([o.detach() for o in outputs], gradients)


def _call(call: Call, given: dict[str, Any], flags: dict[str, Any], exact: bool) -> Any:
    op = get(call.op)
    arguments = {**given, **flags}
    names = inspect.signature(op.public).parameters
    if exact:  # without the checks of dtypes
        return op.reference(*[arguments.get(n) for n in names])
    if call.mode == "torch.ops":
        given = [arguments.get(n) for n in names]
        if "window" in arguments:
            given[list(names).index("window")], ahead = sides(call.op, arguments["window"])
            given.append(ahead)
        return getattr(torch.ops.kpt, call.op)(*given)
    return op.public(**arguments)


def _as_laid_out(leaf: torch.Tensor, layout: str, device: str) -> torch.Tensor:
    """The leaf's numbers in another layout, from which its gradient comes back."""
    if not leaf.requires_grad:
        return laid_out(leaf, layout, device)
    made: torch.Tensor = _LaidOut.apply(leaf, layout, device)
    return made


class _LaidOut(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, leaf: torch.Tensor, layout: str, device: str) -> torch.Tensor:
        return laid_out(leaf, layout, device)

    @staticmethod
    def backward(ctx: Any, dy: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        return dy, None, None


def _unwritten(t: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """NaN behind the lengths: memory that nobody has written. The exact answer comes from numbers there: they do not matter."""
    behind = torch.arange(t.shape[2], device=t.device) >= lengths[:, None]
    if t.requires_grad or t.is_neg():
        return t.masked_fill(behind[:, None, :, None], math.nan)
    hidden = behind[:, None, :, None].expand(t.shape)
    return torch.where(hidden, math.nan, t) if 0 in t.stride() else t.masked_fill_(hidden, math.nan)


# ------------------------------------------------------------------ comparing
def _terms(call: Call, name: str, numbers: dict[str, Any]) -> float:
    """The size of what is summed in a result that may cancel to nothing: of one key, of a row of one element."""
    size = {n: 0.0 if t is None or not t.numel() else float(t.double().abs().max()) for n, t in numbers.items()}
    if call.op == "flash_attention" and name in ("mask", "sinks"):  # sums over what it is broadcast along
        q, k = call.tensors["q"], call.tensors["k"]
        assert q is not None
        assert k is not None
        rows = math.prod(q.shape[:-1])
        return 3.0 * size["v"] * math.sqrt(rows * (k.shape[2] if name == "mask" else 1))
    if call.op == "flash_attention" and name != "v":
        q = call.tensors["q"]
        assert q is not None
        scale = q.shape[-1] ** -0.5 if call.flags["scale"] is None else abs(call.flags["scale"])
        return 3.0 * size["v"] * scale * size["k" if name == "q" else "q"] * math.sqrt(q.shape[-1])
    if call.op == "linear_act" and name == "output":  # one row and alike weights: all outputs may cancel
        rms = {n: 0.0 if t is None or not t.numel() else float(t.double().square().mean().sqrt()) for n, t in numbers.items()}
        return rms["x"] * rms["weight"] * math.sqrt(call.length) + rms["bias"]
    if call.op == "linear_act" and call.flags["activation"] != "none":  # slopes change with the pre-activation
        z = size["x"] * size["weight"] * math.sqrt(call.length)
        return 3.0 * z * {"x": size["weight"], "weight": size["x"], "bias": 1.0}[name]
    if call.op == "cross_entropy":  # a probability, less the target's one
        rows = max(1, numbers["target"].numel())
        return 3.0 / (rows if call.flags["reduction"] == "mean" and not call.flags["return_lse"] else 1)
    if call.op == "linear_cross_entropy":
        rows = max(1, numbers["target"].numel())
        slope = 3.0 / (rows if call.flags["reduction"] == "mean" else 1)
        return slope * {"x": size["weight"], "weight": size["x"] * math.sqrt(rows), "bias": math.sqrt(rows)}[name]
    if call.op == "gated_act":  # an activation is of size one where its terms cancel, or of the gate's
        return 3.0 * {"gate": size["up"], "up": size["gate"], "output": size["up"]}[name]
    if call.op == "rotary":  # two products
        angles = max(size["cos"], size["sin"])
        return 3.0 * {"q": angles, "k": angles, "output": angles * max(size["q"], size["k"])}.get(name, 0.0)
    if name in ("input", "residual"):
        dims = tuple(range(-len(call.flags["normalized_shape"]), 0))
        x, eps = numbers["input"].double(), call.flags["eps"] or torch.finfo(torch.float32).eps
        if "residual" in numbers:
            x = x + numbers["residual"].double()
        spread = x.var(dims, correction=0) if call.op.endswith("layer_norm") else x.square().mean(dims)
        weight = 1.0 if call.tensors["weight"] is None else size["weight"]
        return 3.0 * weight / math.sqrt(float(spread.min()) + eps) if x.numel() else 0.0
    return 0.0


def _compare(call: Call, numbers: dict[str, Any], got: Answer, exact: Answer, native: Answer) -> str | None:
    if len(got.outputs) != len(exact.outputs):
        return f"{len(got.outputs)} outputs, not {len(exact.outputs)}"
    if set(got.gradients) != set(exact.gradients):
        return f"gradients of {sorted(got.gradients)}, not of {sorted(exact.gradients)}"
    narrow = _narrow(call)
    for number, (g, e, n) in enumerate(zip(got.outputs, exact.outputs, native.outputs, strict=True)):
        terms = _terms(call, "output", numbers) if call.op in ("gated_act", "rotary", "linear_act") else 0.0
        if found := _difference(call, f"output {number}", g, e, n, narrow, 1.0, terms):
            return found
    for name, g in got.gradients.items():
        t = call.tensors[name]
        assert t is not None
        if g.dtype != t.dtype:
            return f"gradient of {name} is {g.dtype}"
        others = exact.gradients[name], native.gradients[name]
        terms = _terms(call, name, numbers)
        if found := _difference(call, f"gradient of {name}", g, *others, narrow, ON_THE_WAY, terms):
            return found
    return None


def _narrow(call: Call) -> str:
    """The narrowest type that values are rounded to on the way."""
    dtypes = [t.dtype for t in call.tensors.values() if t is not None and t.dtype in SHORT]
    dtypes += [call.autocast] if call.autocast is not None else []
    if call.op == "fp8_matmul":
        dtypes = [call.flags["out_dtype"]]
    if call.op == "quantize_fp8":
        return SHORT[call.flags["dtype"]]
    return max((SHORT[d] for d in dtypes), key=tolerance)


def _steps(t: torch.Tensor) -> list[int]:
    """The strides that are ever taken."""
    return [step for step, extent in zip(t.stride(), t.shape, strict=True) if extent > 1]


def _difference(
    call: Call, what: str, got: torch.Tensor, exact: torch.Tensor, native: torch.Tensor, narrow: str, times: float,
    terms: float,
) -> str | None:  # fmt: skip
    if got.shape != exact.shape:
        return f"{what} is of shape {tuple(got.shape)}, not {tuple(exact.shape)}"
    if got.dtype != native.dtype:
        return f"{what} is {got.dtype}, PyTorch's {native.dtype}"
    if _steps(got) != _steps(native) and what.startswith("output") and got.numel():
        return f"{what} has strides {got.stride()}, PyTorch's {native.stride()}"
    g, e, n = got.double().cpu(), exact.double().cpu(), native.double().cpu()
    limit = torch.finfo(got.dtype).max * 0.99
    fits = e.isfinite() & (e.abs() <= limit)
    if not torch.equal(g[~e.isfinite()], e[~e.isfinite()]) and not torch.equal(
        torch.nan_to_num(g[~e.isfinite()]), torch.nan_to_num(n[~e.isfinite()])
    ):
        return f"{what} is not infinite, or not a number, where it should be"
    if not fits.any():
        return None
    error = (g - e).abs()[fits]
    pytorchs = (n - e).abs()[fits].nan_to_num(0.0).max()
    scale = max(terms, float(e[fits].abs().max()))
    capped = CAPPED * (call.flags.get("softcap") or 0.0) if call.op.endswith("cross_entropy") else 0.0
    allowed = max(times * tolerance(narrow, call.length) * scale, PYTORCHS * float(pytorchs), SMALLEST, capped)
    worst = float(error.nan_to_num(math.inf).max())
    if worst > allowed:
        place = (
            tuple(int(i) for i in (((g - e).abs().nan_to_num(math.inf) * fits) == worst).nonzero()[0]) if g.ndim else ()
        )
        return (
            f"{what} is off by {worst:.3g} at {place}: {float(g[place]):.6g} for {float(e[place]):.6g}; allowed {allowed:.3g}, "
            f"PyTorch {float(pytorchs):.3g}"
        )
    return None
