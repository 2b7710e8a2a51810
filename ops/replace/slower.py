"""Where kpt was measured, or is predicted, to be slower than what a module does now: ``kpt.optimize`` leaves that as it is.

Asked of modules on a GPU; on a CPU, PyTorch serves in any case. What was measured decides where something was. A prediction
compares what kpt's kernels take, measured or by their model, with what PyTorch's operations take to move as many bytes and
multiply as much, for ``ROWS`` rows.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from math import log
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import nn

from kpt.ops.calls import Call
from kpt.ops.dtypes import KERNEL_FLOATS, torch_dtype
from kpt.ops.estimates import estimate
from kpt.ops.registry import get
from kpt.ops.replace.fused import fused_layers
from kpt.ops.replace.rates import microseconds
from kpt_dsl import runtime
from kpt_dsl.dtypes import dtype as named

if TYPE_CHECKING:
    from kpt_dsl.targets import Target

ROWS = 8192
"""As a batch of 4 has with 2048 tokens."""


class Measured(NamedTuple):
    """How many ``times`` as long as PyTorch's operations kpt's took, in half precision, for features ``k`` in and ``n`` out."""

    activation: str
    n: int
    k: int
    times: float


MEASURED: Mapping[tuple[str, str], tuple[Measured, ...]] = {
    ("nvidia-h200", "linear"): (
        Measured("gelu_tanh", 14336, 4096, 0.959),
        Measured("gelu_tanh", 4096, 4096, 0.947),
        Measured("gelu_tanh", 3072, 768, 0.773),
        Measured("gelu", 3072, 768, 0.75),
        Measured("gelu", 3072, 768, 0.73),
    ),
    ("nvidia-h200", "linear_training"): (
        Measured("gelu_tanh", 14336, 4096, 0.981),
        Measured("gelu_tanh", 4096, 4096, 0.944),
        Measured("gelu_tanh", 3072, 768, 0.914),
        Measured("gelu", 3072, 768, 0.831),
        Measured("gelu", 3072, 768, 0.87),
    ),
    ("nvidia-h100", "linear"): (Measured("gelu_tanh", 14336, 4096, 0.952), Measured("gelu_tanh", 4096, 4096, 0.943)),
    ("nvidia-h100", "linear_training"): (Measured("gelu_tanh", 14336, 4096, 0.994), Measured("gelu_tanh", 4096, 4096, 0.946)),
}
"""By target and suite of benchmarks (benchmarks/results): linear layers with activations, forward, and forward and backward."""

PASSES = {"layer_norm": 2, "rms_norm": 2, "gated_act": 5, "linear_act": 2}
"""How often PyTorch's operations beside products read or write as many elements as the result has: an activation, for each
operation that it is."""

MODEL_ERRS = 1.5
"""By so much a prediction must lose before it counts: the model ranks configs, and is not exact about microseconds."""


def why_slower(module: nn.Module, kind: str, served: Any) -> str | None:
    """Why a module is better left as it is than replaced by what is of this kind; None where nothing is known to speak for
    that. ``served``: what would serve a module of a form, or None."""
    first = next(module.parameters(), None)
    if first is None or first.device.type != "cuda" or first.dtype not in KERNEL_FLOATS or kind not in SIZES:
        return None
    target = runtime.runtime("triton").present(first.device.index or 0)
    return slower_on(target, module, kind, served, named(str(first.dtype).removeprefix("torch.")).name)


def slower_on(target: "Target", module: nn.Module, kind: str, served: Any, dtype: str) -> str | None:
    """The same of a module with parameters of a type on a target."""
    sizes = list(SIZES[kind](module, served))
    operations = getattr(served, "operations", 1)  # what was measured had an activation of one
    known = MEASURED.get((target.name, suite := _suite(module)), ())
    if known and kind == "linear_act" and dtype != "f32" and operations == 1:
        for dims, flags in sizes:
            nearest = min(known, key=lambda m: _distance(m, flags["activation"], dims))
            if nearest.times > 1:
                took = f"{nearest.times:.3g} times as long, with {nearest.k} features to {nearest.n} (benchmarks {suite})"
                return f"measured slower on {target.name}: {took}"
        return None
    ours = theirs = 0.0
    for some, flags in sizes:
        dims = {"M": ROWS, **some}
        found = estimate(Call(kind, get(kind).arguments(dims, dtype, "meta", **flags)), target)
        if found is None:
            return f"no kernel of {kind} runs on {target.name}"
        ours += found.microseconds
        theirs += _pytorchs(PASSES[kind] * operations, dims, dtype, target)
    if ours <= MODEL_ERRS * theirs:
        return None
    return f"predicted slower on {target.name}: {ours:.3g} µs for {ROWS} rows, PyTorch's operations {theirs:.3g}"


def _suite(module: nn.Module) -> str:
    return "linear_training" if module.training else "linear"


def _distance(measured: Measured, activation: str, dims: Mapping[str, int]) -> tuple[bool, float]:
    """How unlike a call what was measured is."""
    return measured.activation != activation, abs(log(measured.n / dims["N"])) + abs(log(measured.k / dims["K"]))


def _pytorchs(passes: int, dims: Mapping[str, int], dtype: str, target: "Target") -> float:
    """Microseconds of PyTorch's operations."""
    own = torch_dtype(dtype)
    moved = passes * dims["M"] * dims["N"] * own.itemsize
    return microseconds(target, moved, 2 * dims["M"] * dims["N"] * dims.get("K", 0), own)


# ------------------------------------- the sizes of the calls that modules make, but for rows, and what else is said of them
Sizes = Iterator[tuple[Mapping[str, int], Mapping[str, Any]]]


def _of_norm(module: nn.Module, _: Any) -> Sizes:
    yield {"N": next(module.parameters()).numel()}, {}


def _of_gated(module: nn.Module, served: Any) -> Sizes:
    layers = [getattr(module, name) for name in served.products]
    yield {"N": sum(layer.out_features for layer in layers) // 2}, {"activation": served.activation}


def _of_linear(module: nn.Module, served: Any) -> Sizes:
    called_by_text = isinstance(module, nn.Linear)
    layers: Iterable[tuple[Any, str]] = [(module, served.activation)] if called_by_text else fused_layers(module, served)
    for layer, activation in layers:
        transposed = not isinstance(layer, nn.Linear)
        n, k = layer.weight.mT.shape if transposed else layer.weight.shape
        yield {"N": n, "K": k}, {"activation": activation, "bias": layer.bias is not None, "transposed": transposed}


SIZES: Mapping[str, Callable[[nn.Module, Any], Sizes]] = {
    "layer_norm": _of_norm,
    "rms_norm": _of_norm,
    "gated_act": _of_gated,
    "linear_act": _of_linear,
}
