"""``F.cross_entropy`` in a module's own code: a language model's loss, as nanoGPT computes it in its ``forward``."""

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F

from kpt.ops.cross_entropy import contract
from kpt.ops.cross_entropy.op import cross_entropy as op
from kpt.ops.dispatch import DISPATCHERS
from kpt.ops.dtypes import FLOATS
from kpt.ops.replace.functions import pytorchs

KIND = "cross_entropy"

FEWEST_BYTES = 1 << 27
"""Of logits on a GPU. Of fewer, forward and backward take as long as the host takes to start them, and PyTorch's are started in
less (an H200's host, microseconds of PyTorch and kpt): 8192 x 1000 of bfloat16 171 and 366, 2048 x 32000 339 and 504, 512 x
32000 of float32 183 and 327; but 2048 x 32000 of float32 584 and 330."""

find = partial(pytorchs.find, KIND)


def prove(name: str, own: Any) -> pytorchs.Exchange:
    """The op, as PyTorch's function is called."""
    return pytorchs.Exchange(KIND, cross_entropy)


def cross_entropy(
    input: torch.Tensor,  # noqa: A002 (PyTorch's name)
    target: torch.Tensor,
    weight: torch.Tensor | None = None,
    size_average: bool | None = None,
    ignore_index: int = -100,
    reduce: bool | None = None,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> torch.Tensor:
    """``torch.nn.functional.cross_entropy``: through the op where its kernels may compute that, else PyTorch's, which
    ``kpt.ops.counters()`` shows among the fallbacks of the op.

    The loss has the dtype that PyTorch's has, but is not rounded to half precision on the way to it. In a compiled program it
    is PyTorch's: Inductor joins its gradient with that of logits that a model gives besides, zeros as they may be. On an H200
    nanoGPT's 16384 x 50304 so took 2.5 ms in all, and kpt's kernels and that sum 2.6.
    """
    given = (input, target, weight, size_average, ignore_index, reduce, reduction, label_smoothing)
    if torch.compiler.is_compiling():
        return F.cross_entropy(*given)
    reason = why_not(input, target, weight, ignore_index, reduction, label_smoothing)
    if size_average is not None or reduce is not None:
        reason = "size_average or reduce is given"
    if reason is not None:
        DISPATCHERS[KIND].count_outside(f"torch.nn.functional.cross_entropy: {reason}")
        return F.cross_entropy(*given)
    loss = op(input, target, ignore_index=ignore_index, reduction=reduction, label_smoothing=label_smoothing)  # type: ignore[arg-type]
    assert isinstance(loss, torch.Tensor)
    return loss if torch.is_autocast_enabled(input.device.type) else loss.to(input.dtype)


def why_not(x: Any, target: Any, weight: Any, ignore_index: Any, reduction: Any, label_smoothing: Any) -> str | None:
    """What keeps a call from the op: what is wrong with it is left for PyTorch to refuse, in its words; what no kernel
    serves is not widened to float32 first, as the op would."""
    if not isinstance(x, torch.Tensor) or not isinstance(target, torch.Tensor):
        return "logits or targets are no tensor"
    known = reduction in contract.REDUCTIONS
    if type(ignore_index) is not int or type(label_smoothing) not in (int, float) or not known:
        return "ignore_index, label_smoothing or reduction is none of the op's"
    if x.dtype not in FLOATS or x.layout != torch.strided or x.is_nested or x.ndim == 0:
        return "logits are none that the op takes"
    if (reason := contract.why_not(x, target, weight, ignore_index, None)) is not None:
        return reason
    if x.device.type == "cuda" and x.nbytes < FEWEST_BYTES:
        return "logits are so few that kpt's launches take longer than PyTorch's whole"
    fits = target.dtype == torch.int64 and target.shape == contract.rows_shape(x) and x.device == target.device
    return None if fits and 0 <= label_smoothing <= 1 else "logits, targets and label_smoothing do not go together"
