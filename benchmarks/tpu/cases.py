"""What is predicted: attention, products and norms in bfloat16, each with what else computes it."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from benchmarks.case import rate
from benchmarks.tpu import peers
from benchmarks.tpu.cost import Work
from benchmarks.tpu.peers import Program
from kpt.ops.flash_attention.kernels import flash_attention_fwd
from kpt.ops.layer_norm.kernels import layer_norm_fwd
from kpt.ops.linear_act.activations import ACTIVATIONS
from kpt.ops.linear_act.kernels import linear_act_fwd
from kpt.ops.rms_norm.kernels import rms_norm_fwd
from kpt_dsl.instance import Instance

HEADS, WIDTH = 16, 128

Arguments = tuple[tuple[tuple[int, ...], str], ...]
"""Shapes and dtypes."""


@dataclass(frozen=True)
class TpuCase:
    """``problem`` is kpt's kernel, ``peers`` the programs of each peer (one for each size of its blocks), all of ``arguments``;
    ``missing`` says why some peers are not here."""

    name: str
    problem: Instance
    work: Work
    unit: str
    arguments: Arguments
    peers: Mapping[str, tuple[Program, ...]]
    missing: Mapping[str, str] = field(default_factory=dict)

    def rate(self, microseconds: float) -> float:
        """Work a second in ``unit``."""
        return rate(self.work.flops if self.unit == "TFLOP/s" else self.work.bytes, self.unit, microseconds)


def every() -> Iterator[TpuCase]:
    for length in (4096, 16384):
        for causal in (False, True):
            yield attention(HEADS, length, WIDTH, causal)
    for m, n, k in ((4096, 4096, 4096), (8192, 14336, 4096)):
        yield matmul(m, n, k)
    yield layer_norm(8192, 4096)
    yield rms_norm(8192, 4096)


def attention(heads: int, length: int, width: int, causal: bool) -> TpuCase:
    """Forward, causal at half the work; kpt's also writes the log-sum-exp of every row."""
    dims = {"B": 1, "H": heads, "G": heads, "M": length, "N": length, "D": width, "E": width}
    dtypes = {"q": "bf16", "k": "bf16", "v": "bf16", "key_lengths": None, "o": "bf16", "lse": "f32"}
    statics = {"causal": causal, "window": None, "scaled": True}
    problem = Instance.of_shapes(flash_attention_fwd, dims, dtypes, statics)
    flops = 4 * heads * length * length * width / (2 if causal else 1)
    argument = ((1, heads, length, width), "bf16")
    found, missing = peers.attentions(heads, length, width, causal)
    name = f"attention {length // 1024}k" + " causal" * causal
    moved = 4 * heads * length * width * peers.BF16
    return TpuCase(name, problem, Work(flops, moved), "TFLOP/s", (argument,) * 3, found, missing)


def matmul(m: int, n: int, k: int) -> TpuCase:
    """Without bias and activation, which JAX's Pallas kernel has not; kpt takes the weight as PyTorch has it, (n, k)."""
    dtypes = {"x": "bf16", "weight": "bf16", "bias": None, "y": "bf16"}
    statics = {"activation": ACTIVATIONS["none"]}
    problem = Instance.of_shapes(linear_act_fwd, {"M": m, "N": n, "K": k}, dtypes, statics)
    arguments = (((m, k), "bf16"), ((k, n), "bf16"))
    moved = peers.BF16 * (m * k + k * n + m * n)
    return TpuCase(
        f"matmul {m}x{n}x{k}", problem, Work(2.0 * m * n * k, moved), "TFLOP/s", arguments, peers.matmuls(m, n, k)
    )


def layer_norm(m: int, n: int) -> TpuCase:
    dtypes = dict.fromkeys(("x", "weight", "bias", "y"), "bf16")
    problem = Instance.of_shapes(layer_norm_fwd, {"M": m, "N": n}, dtypes)
    arguments = (((m, n), "bf16"), ((n,), "bf16"), ((n,), "bf16"))
    return _norm("layer_norm", problem, m, n, arguments, peers.XLA_LAYER_NORM)


def rms_norm(m: int, n: int) -> TpuCase:
    problem = Instance.of_shapes(rms_norm_fwd, {"M": m, "N": n}, dict.fromkeys(("x", "weight", "y"), "bf16"))
    return _norm("rms_norm", problem, m, n, (((m, n), "bf16"), ((n,), "bf16")), peers.XLA_RMS_NORM)


def _norm(name: str, problem: Instance, m: int, n: int, arguments: Arguments, text: str) -> TpuCase:
    work = Work(0.0, 2 * peers.BF16 * m * n)
    return TpuCase(f"{name} {m}x{n}", problem, work, "GB/s", arguments, {"XLA": (Program(text),)})
