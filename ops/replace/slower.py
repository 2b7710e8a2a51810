"""Where kpt was measured, or is predicted, to be slower than what a module does now: ``kpt.optimize`` leaves that as it is.

Asked of modules on a GPU; on a CPU, PyTorch serves in any case. A prediction compares what kpt's kernels take, measured or by
their model, with what PyTorch's operations take to move as many bytes and multiply as much, for ``ROWS`` rows.
"""

from collections.abc import Callable, Iterator, Mapping
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from torch import nn

from kpt.ops.calls import Call
from kpt.ops.dtypes import KERNEL_FLOATS, torch_dtype
from kpt.ops.estimates import estimate
from kpt.ops.registry import get
from kpt.ops.replace.modules import activation_name
from kpt.ops.replace.rates import microseconds
from kpt.ops.replace.rules import Rule
from kpt_dsl import runtime
from kpt_dsl.dtypes import dtype as named

if TYPE_CHECKING:
    from kpt_dsl.targets import Target

ROWS = 8192
"""As a batch of 4 has with 2048 tokens."""

MEASURED = {
    ("nvidia-h200", "linear_act"): "forward and backward took 1.03 and 1.06 times as long (benchmarks linear_training)"
}
"""Target and kind, in training -> what was measured."""

PASSES = {"layer_norm": 2, "rms_norm": 2, "gated_act": 5, "linear_act": 2}
"""How often PyTorch's operations beside products read or write as many elements as the result has."""

MODEL_ERRS = 1.5
"""By so much a prediction must lose before it counts: the model ranks configs, and is not exact about microseconds."""


def why_slower(module: nn.Module, rule: Rule) -> str | None:
    """Why a module is better left as it is; None where nothing is known to speak for that."""
    first = next(module.parameters(), None)
    if first is None or first.device.type != "cuda" or first.dtype not in KERNEL_FLOATS or rule.kind not in SIZES:
        return None
    target = runtime.runtime("triton").present(first.device.index or 0)
    return slower_on(target, module, rule, named(str(first.dtype).removeprefix("torch.")).name)


def slower_on(target: "Target", module: nn.Module, rule: Rule, dtype: str) -> str | None:
    """The same of a module with parameters of a type on a target."""
    if module.training and (known := MEASURED.get((target.name, rule.kind))) is not None:
        return f"measured slower on {target.name}: {known}"
    ours = theirs = 0.0
    for sizes in SIZES[rule.kind](module, rule):
        dims = {"M": ROWS, **sizes}
        found = estimate(Call(rule.kind, get(rule.kind).arguments(dims, dtype, "meta")), target)
        if found is None:
            return f"no kernel of {rule.kind} runs on {target.name}"
        ours += found.microseconds
        theirs += _pytorchs(rule.kind, dims, dtype, target)
    if ours <= MODEL_ERRS * theirs:
        return None
    return f"predicted slower on {target.name}: {ours:.3g} µs for {ROWS} rows, PyTorch's operations {theirs:.3g}"


def _pytorchs(kind: str, dims: Mapping[str, int], dtype: str, target: "Target") -> float:
    """Microseconds of PyTorch's operations."""
    own = torch_dtype(dtype)
    moved = PASSES[kind] * dims["M"] * dims["N"] * own.itemsize
    return microseconds(target, moved, 2 * dims["M"] * dims["N"] * dims.get("K", 0), own)


# ------------------------------------------------------------------ the sizes of the calls that modules make, but for rows
def _of_norm(module: nn.Module, _: Rule) -> Iterator[dict[str, int]]:
    yield {"N": next(module.parameters()).numel()}


def _of_gated(module: nn.Module, rule: Rule) -> Iterator[dict[str, int]]:
    kind: Any = rule.replacement
    layers = [getattr(module, name) for name in kind.served.products]
    yield {"N": sum(layer.out_features for layer in layers) // 2}


def _of_linear(module: nn.Module, rule: Rule) -> Iterator[dict[str, int]]:
    served, layers = vars(rule.replacement).get("served"), []
    if isinstance(module, nn.Linear):
        layers = [module]
    elif isinstance(module, nn.Sequential):
        pairs = pairwise(module.children())
        layers = [a for a, b in pairs if isinstance(a, nn.Linear) and activation_name(b) is not None]
    else:
        layers = [getattr(module, "linear1" if served is None else served.first[0])]
    for layer in layers:
        n, k = layer.weight.shape if isinstance(layer, nn.Linear) else layer.weight.mT.shape
        yield {"N": n, "K": k}


SIZES: Mapping[str, Callable[[nn.Module, Rule], Iterator[dict[str, int]]]] = {
    "layer_norm": _of_norm,
    "rms_norm": _of_norm,
    "gated_act": _of_gated,
    "linear_act": _of_linear,
}
