"""The kernels of docs/gallery beside what one would write in PyTorch instead, eager and compiled, and what libraries offer.

``python -m benchmarks.gallery`` needs no GPU: it prints what kpt's model says of an H200, and what was measured on one, as the
pages quote it.
"""

import json
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path

import torch
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks import peers
from benchmarks.case import OpCase, Run
from benchmarks.formulas import SHOWN, Dims, Tensor
from kpt_dsl import targets
from kpt_dsl.space import space

MEASURED = Path(__file__).parent / "results/nvidia-h200/gallery.json"

TITLE = "The gallery, bf16 (bytes of what is read and written once, or FLOPs)"


def cases() -> Iterator[tuple[str, Callable[[], OpCase]]]:
    for name, shown in SHOWN.items():
        yield name, partial(case, name, shown.dims)


def case(name: str, dims: Dims, device: str = "cuda") -> OpCase:
    shown = SHOWN[name]
    arrays = shown.arguments(dims, device)

    read = shown.read(arrays, shown.formula)
    makers: dict[str, Callable[[], Run]] = {
        "torch": lambda: partial(shown.formula, **read),
        "Inductor": lambda: peers.compiled(shown.formula, lambda fast: partial(fast, **read)),
    }
    for peer, make in LIBRARIES.get(name, {}).items():
        makers[peer] = partial(make, **shown.read(arrays, make))
    found, missing = peers.available(makers)
    kpt: dict[str, Run] = {"kpt": partial(shown.run, arrays)}
    return OpCase(name, shown.bound(arrays), kpt, shown.worth(arrays, dims), shown.unit, found, missing=missing)


def predicted(name: str, target: str = "nvidia-h200") -> float:
    """Microseconds of a page's kernels with their first configs, by the model that ranks configs."""
    options = [space(instance, targets.get(target)) for instance in SHOWN[name].instances()]
    return sum(each.seconds(each.first) for each in options) * 1e6


@cache
def measured() -> dict[str, tuple[float, float, str]]:
    """Of each kernel, microseconds on an H200, those of the fastest beside it, and what that is."""
    rows = json.loads(MEASURED.read_text())["rows"]
    return {r["case"]: (r["microseconds"]["kpt"], r["microseconds"][r["best peer"]], r["best peer"]) for r in rows}


def line(name: str) -> str:
    """What a page says of a kernel's size and times: a row of a Markdown table."""
    dims = ", ".join(f"{dim} {extent}" for dim, extent in SHOWN[name].dims.items())
    found = measured().get(name)  # of a new kernel there is nothing yet
    told = f"{_digits(found[0], 3)} | {_digits(found[1], 3)}, {found[2]}" if found else "not yet |"
    return f"| `{name}` | {dims} | {_digits(predicted(name), 2)} | {told} |"


def _digits(microseconds: float, digits: int) -> str:
    return f"{float(f'{microseconds:.{digits}g}'):g}"


# ------------------------------------------------------------------ what libraries offer
def _cross_entropy(x: Tensor, target: Tensor) -> Run:
    return lambda: functional.cross_entropy(x, target, reduction="none")


def _block_scaled_fp8(a: Tensor, scale_a: Tensor, b: Tensor, scale_b: Tensor) -> Run:
    """It wants the scales of the left operand column by column."""
    left, right, columns = a.flatten(1), b.flatten(2).flatten(0, 1).T, scale_a.T.contiguous().T
    return lambda: torch._scaled_mm(left, right, scale_a=columns, scale_b=scale_b.T, out_dtype=torch.bfloat16)


def _grouped_product(x: Tensor, weight: Tensor, cu: Tensor) -> Run:
    return lambda: functional.grouped_mm(x, weight.transpose(1, 2), offs=cu[1:])


def _dense(backend: SDPBackend) -> Callable[..., Run]:
    """Of all keys: as many count."""

    def make(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Run:
        rows = q.flatten(1, 2)[:, :, None]

        def attention() -> Tensor:
            with sdpa_kernel(backend):
                return functional.scaled_dot_product_attention(rows, k, v, scale=scale, enable_gqa=True)

        return attention

    return make


def _packed_attention(q: Tensor, k: Tensor, v: Tensor, cu: Tensor, scale: float) -> Run:
    varlen_attn, causal = peers.varlen_attn(causal=True)
    longest = int(cu.diff().max())
    return lambda: varlen_attn(q, k, v, cu, cu, longest, longest, scale=scale, **causal)


def _paged_attention(q: Tensor, k: Tensor, v: Tensor, table: Tensor, length: Tensor, scale: float) -> Run:
    varlen_attn, grouped = peers.varlen_attn(causal=False)
    rows, first = q.flatten(1, 2), torch.arange(len(length) + 1, dtype=torch.int32, device=length.device)
    known = {"scale": scale, "seqused_k": length, "block_table": table, **grouped}
    return lambda: varlen_attn(rows, k, v, first, None, 1, table.shape[1] * k.shape[1], **known)


LIBRARIES: dict[str, dict[str, Callable[..., Run]]] = {
    "cross_entropy": {"F.cross_entropy": _cross_entropy},
    "block_scaled_fp8": {"torch._scaled_mm": _block_scaled_fp8},
    "grouped_product": {"F.grouped_mm": _grouped_product},
    "split_kv_decode": {
        "SDPA flash": _dense(SDPBackend.FLASH_ATTENTION), "SDPA cuDNN": _dense(SDPBackend.CUDNN_ATTENTION),
    },
    "packed_attention": {"varlen_attn": _packed_attention},
    "paged_attention": {"varlen_attn": _paged_attention},
}  # fmt: skip
"""Makers of peers that are no formula, of the same arguments, by the name of a kernel."""


if __name__ == "__main__":
    print("\n".join(map(line, SHOWN)))
