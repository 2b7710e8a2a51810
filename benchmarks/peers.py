"""What kpt is measured against: PyTorch's attentions, FlashAttention CuTe, compiled functions, and their backwards.

A peer is made by a function that may fail: ``available`` names those that do as missing, with the reason.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.case import Run

Tensor = torch.Tensor
Attention = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Of contiguous q, k and v: (B, H, S, D), except for CuTe, (B, S, H, D)."""


def available(makers: Mapping[str, Callable[[], Run]]) -> tuple[dict[str, Run], dict[str, str]]:
    """The peers that could be made and run once, and why the others could not."""
    found: dict[str, Run] = {}
    missing: dict[str, str] = {}
    for name, make in makers.items():
        try:
            run = make()
            run()
        except Exception as error:  # whatever a package, compiler or driver raises
            missing[name] = reason(error)
        else:
            found[name] = run
    return found, missing


def reason(error: Exception) -> str:
    """An error in a line."""
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0][:200]}"


def forward(function: Callable[..., object], *inputs: Tensor) -> Run:
    """The function on these inputs, without gradients."""

    def run() -> object:
        with torch.no_grad():
            return function(*inputs)

    return run


def backward(function: Callable[..., Tensor], gradient: Tensor, *inputs: Tensor) -> Run:
    """The backward alone: the graph is made once and kept, autograd runs it each time. Gives a gradient for every input."""
    leaves = [x.detach().requires_grad_() for x in inputs]
    output = function(*leaves)
    return lambda: torch.autograd.grad(output, leaves, gradient, retain_graph=True)


def forward_backward(function: Callable[..., Tensor], gradient: Tensor, *inputs: Tensor) -> Run:
    """The forward, then the backward. Gives a gradient for every input."""
    leaves = [x.detach().requires_grad_() for x in inputs]
    return lambda: torch.autograd.grad(function(*leaves), leaves, gradient)


def varlen_attn(causal: bool) -> tuple[Callable[..., Any], dict[str, Any]]:
    """PyTorch's attention of packed entries, and what to tell it, by its release, of causality and of heads that share keys.
    Raises ImportError where this release has none."""
    from torch.nn.attention.varlen import varlen_attn as found

    names = inspect.signature(found).parameters
    told: dict[str, Any] = {"window_size": (-1, 0)} if "window_size" in names else {"is_causal": True}
    return found, (told if causal else {}) | ({"enable_gqa": True} if "enable_gqa" in names else {})


def compiled(function: Callable[..., Any], example: Callable[[Callable[..., Any]], Run]) -> Run:
    """What ``example`` makes of the function behind torch.compile, which compiles now and for these shapes only.

    Forgets what was compiled before, else Dynamo falls back after several shapes. Buffers are not donated to the backward,
    since a graph that is kept must not lose them.
    """
    import torch._functorch.config

    torch._dynamo.reset()
    with torch._functorch.config.patch(donated_buffer=False):
        run = example(torch.compile(function, dynamic=False))
        run()
    return run


def sdpa(backend: SDPBackend, causal: bool, gqa: bool = False) -> Attention:
    """PyTorch's attention by one of its backends; ``gqa``: heads of queries share those of keys."""

    def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        with sdpa_kernel(backend):
            return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=gqa)

    return attention


def flex_attention(causal: bool, length: int, device: str) -> Attention:
    """FlexAttention, with its block mask where causal; it is meant to be compiled."""
    from torch.nn.attention import flex_attention as flex

    def below(b: Tensor, h: Tensor, m: Tensor, n: Tensor) -> Tensor:
        return m >= n

    mask = flex.create_block_mask(below, None, None, length, length, device=device) if causal else None

    def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        o = flex.flex_attention(q, k, v, block_mask=mask)
        assert isinstance(o, Tensor)
        return o

    return attention


def cute_attention(causal: bool) -> Attention:
    """FlashAttention in CuTe, of (B, S, H, D) tensors: the folder flash_attn/cute of Dao-AILab/flash-attention.

    Raises ImportError where it is not installed.
    """
    from flash_attn.cute import flash_attn_func

    def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return as_tensors(flash_attn_func(q, k, v, causal=causal))[0]  # newer ones give the log-sum-exp too

    return attention


def attentions(measure: Callable[..., Run], causal: bool, *tensors: Tensor) -> dict[str, Callable[[], Run]]:
    """Makers of every attention. ``tensors``: (B, H, S, D) each, queries first; ``measure(attention, *tensors)`` makes the run.

    CuTe gets its own layout, and its results are views in the others'.
    """
    q = tensors[0]

    def flex() -> Run:
        attention = flex_attention(causal, q.shape[2], str(q.device))
        return compiled(attention, lambda fast: measure(fast, *tensors))

    def cute() -> Run:
        run = measure(cute_attention(causal), *(t.transpose(1, 2).contiguous() for t in tensors))
        return lambda: [t.transpose(1, 2) for t in as_tensors(run())]

    return {
        "SDPA flash": lambda: measure(sdpa(SDPBackend.FLASH_ATTENTION, causal), *tensors),
        "SDPA cuDNN": lambda: measure(sdpa(SDPBackend.CUDNN_ATTENTION, causal), *tensors),
        "FlexAttention": flex,
        "FA CuTe": cute,
    }


def as_tensors(result: object) -> list[Tensor]:
    """What a run gives, a tensor or a sequence of them."""
    if isinstance(result, Tensor):
        return [result]
    assert isinstance(result, Sequence), f"a run gave {type(result).__name__}"
    return list(result)
