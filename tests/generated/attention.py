"""Ugly attention: grouped heads, M != N, masks that leave rows empty, padded batches, odd head dims and layouts."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import hypothesis.strategies as st
import numpy as np
import torch
from numpy.typing import NDArray

from kpt.ops.flash_attention.kernels import flash_attention_fwd
from tests.generated.arrays import Layout, empty, exact, layouts, or_tidy, place, random
from tests.generated.case import Case, Close
from tests.tolerances import tolerance

CONTIGUOUS = Layout((0, 1, 2, 3))
TOKENS_FIRST = (0, 2, 1, 3)  # a transposed (B, M, H, D)
DIMS_BEFORE_TOKENS = (0, 1, 3, 2)  # no unit last stride


@dataclass(frozen=True, kw_only=True)
class Attention(Case):
    """``lengths``: key lengths as shares of N, None for no key_lengths; ``magnitude`` multiplies the scores' spread; ``E``: the
    head dim of values, None where it is D; ``sides``: how far behind and ahead a window goes; ``starts``: as ``lengths``;
    ``own_end``: the last query stands at the last of the ``lengths``; ``scaled``: scores are those of scaled, rounded queries.
    """

    kernel: ClassVar = flash_attention_fwd
    B: int = 1
    groups: int = 1
    G: int = 1
    M: int
    N: int
    D: int = 64
    E: int | None = None
    dtype: str = "f16"
    causal: bool = False
    window: int | None = None
    lengths: tuple[float, ...] | None = None
    sides: tuple[int | None, int] | None = None
    starts: tuple[float, ...] | None = None
    own_end: bool = False
    scaled: bool = False
    magnitude: float = 1.0
    layout: Layout = CONTIGUOUS
    out_layout: Layout = CONTIGUOUS

    @property
    def width(self) -> int:
        """The head dim of values."""
        return self.D if self.E is None else self.E

    @property
    def rounds_on_the_way(self) -> bool:
        return self.scaled

    def arguments(self) -> dict[str, Any]:
        H = self.G * self.groups
        left, right = self.sides or (None, None)
        return {
            "q": place(random(self.seed, (self.B, H, self.M, self.D), self.magnitude), self.dtype, self.layout),
            "k": place(random(self.seed + 1, (self.B, self.G, self.N, self.D)), self.dtype, self.layout),
            "v": place(random(self.seed + 2, (self.B, self.G, self.N, self.width)), self.dtype, self.layout),
            "key_lengths": self._counts(self.lengths),
            "key_starts": self._counts(self.starts),
            "left": left,
            "right": right,
            "o": empty((self.B, H, self.M, self.width), self.dtype, self.out_layout),
            "lse": empty((self.B, H, self.M), "f32", Layout((0, 1, 2))),
            "scale": 1 / math.sqrt(self.D),
            "window": self.window,
            "causal": self.causal,
            "own_end": self.own_end or None,
            "scaled": self.scaled or None,
        }

    def queries(self, arguments: Mapping[str, Any]) -> NDArray[np.float64]:
        """Those that scores are made of, without the scale."""
        q = arguments["q"]
        if not self.scaled:
            return exact(q)
        factor = float(np.float32(arguments["scale"]) * np.float32(math.log2(math.e)))
        return exact((q.float() * factor).to(q.dtype)) / factor

    def _counts(self, shares: tuple[float, ...] | None) -> torch.Tensor | None:
        if shares is None:
            return None
        return torch.tensor([round(shares[i % len(shares)] * self.N) for i in range(self.B)], dtype=torch.int32)

    def visible(self, lengths: Any) -> NDArray[np.bool_]:
        """Which query sees which key, (B, 1, M, N)."""
        ends = exact(lengths)[:, None, None, None].astype(int) if self.own_end else self.N
        query = np.arange(self.M)[:, None] + ends - self.M
        key = np.arange(self.N)[None, :]
        seen = np.ones((self.B, 1, self.M, self.N), bool)
        if self.causal:
            seen &= key <= query
        if self.window is not None:
            seen &= np.abs(query - key) < self.window
        if self.sides is not None:
            left, right = self.sides
            seen &= (key <= query + right) & (left is None or query - key <= left)
        if lengths is not None:
            seen &= key < exact(lengths)[:, None, None, None]
        if (starts := self._counts(self.starts)) is not None:
            seen &= key >= exact(starts)[:, None, None, None]
        return seen

    def expected(self, arguments: Mapping[str, Any], cuda: bool) -> Mapping[str, Close]:
        q, k, v = self.queries(arguments), exact(arguments["k"]), exact(arguments["v"])
        k, v = (np.repeat(x, self.groups, axis=1) for x in (k, v))
        scores = q @ k.swapaxes(2, 3) * arguments["scale"]
        masked = np.where(self.visible(arguments["key_lengths"]), scores, -np.inf)
        top = np.max(masked, axis=3, initial=-np.inf)
        shift = np.where(np.isinf(top), 0.0, top)
        p = np.exp(masked - shift[..., None])
        total = p.sum(axis=3)
        with np.errstate(divide="ignore"):
            lse = top + np.log(total)
        o = p @ v / np.where(total == 0, 1, total)[..., None]
        # A score is off by some eps of its size, and so, relatively, are the probability and its sum.
        conditioning = tolerance("f32", self.D) * max(1.0, float(np.abs(scores).max(initial=0)))
        largest = float(np.abs(v).max(initial=0))
        allowed = tolerance(self.dtype, self.N) * float(np.abs(o).max(initial=0)) + conditioning * largest
        return {"o": Close(o, allowed), "lse": Close(lse, conditioning + tolerance("f32", self.N))}


_LENGTHS = st.lists(st.sampled_from([0.0, 0.01, 0.3, 0.5, 0.97, 1.0]), min_size=1, max_size=3).map(tuple)
_APART = st.sampled_from([-18, -17, -2, -1, 0, 1, 2, 13, 14, 15, 16, 17, 30, 31, 32, 33, 62, 63, 64, 65, 126])
"""N - M where the edge of a mask falls beside the edge of a tile: only there does a mask that is one lane off show."""
_WINDOW = st.sampled_from([1, 2, 15, 16, 17, 18, 31, 32, 33, 34, 63, 64, 65, 127, 500]) | st.integers(1, 150)
_TOKENS = st.sampled_from([1, 2, 7, 16, 31, 37, 64, 65, 127, 130, 199]) | st.integers(1, 140)


@st.composite
def attention(draw: st.DrawFn) -> Attention:
    """Cases of all of it, small enough for an interpreter."""
    B, G, groups = draw(st.sampled_from([(1, 1, 1), (1, 1, 2), (2, 1, 1), (1, 2, 1), (1, 2, 3), (2, 2, 2), (3, 1, 4)]))
    dtype = draw(st.sampled_from(["f32", "f16", "bf16"]))
    tokens = or_tidy(draw, _TOKENS)
    M, N, apart = draw(tokens), draw(tokens), draw(st.none() | _APART)
    if B * G * groups > 3:
        M, N = min(M, 70), min(N, 128)
    if apart is not None:
        N = max(1, M + apart)
    lengths = draw(st.none() | _LENGTHS)
    return Attention(
        B=B, G=G, groups=groups, M=M, N=N, dtype=dtype,
        D=draw(st.sampled_from([32, 64, 64, 80, 96, 128, 256])),
        E=draw(st.sampled_from([None, None, None, 32, 64, 80])),
        causal=draw(st.booleans()),
        window=draw(st.none() | st.none() | _WINDOW),
        sides=draw(st.none() | st.none() | st.tuples(st.none() | _WINDOW, _WINDOW)),
        lengths=lengths,
        own_end=lengths is not None and draw(st.booleans()),
        starts=draw(st.none() | st.none() | _LENGTHS),
        scaled=draw(st.sampled_from([False, False, True])),
        magnitude=draw(st.sampled_from([1.0, 1.0, 0.01, 30.0])),
        layout=draw(layouts(4, TOKENS_FIRST, TOKENS_FIRST, DIMS_BEFORE_TOKENS)),
        out_layout=draw(layouts(4, TOKENS_FIRST)),
        seed=draw(st.integers(0, 1 << 20)),
    )  # fmt: skip


ALWAYS = (
    Attention(M=1, N=1),
    Attention(M=0, N=37),
    Attention(M=37, N=0),
    Attention(B=0, M=5, N=5),
    Attention(M=130, N=37, causal=True),  # the first 93 rows see no key
    Attention(M=37, N=199, causal=True, window=16, dtype="bf16"),
    Attention(B=2, M=64, N=128, lengths=(0.0, 0.5), dtype="f32"),
    Attention(M=128, N=128, causal=True, groups=4, layout=Layout(TOKENS_FIRST)),
    Attention(M=37, N=199, causal=True, D=80, E=32),
    Attention(B=2, M=130, N=199, sides=(40, 17), starts=(0.0, 0.5)),
    Attention(B=2, M=37, N=199, lengths=(0.1, 0.97), own_end=True, causal=True, window=40),
    Attention(M=70, N=199, causal=True, groups=2, dtype="bf16", scaled=True, magnitude=10.0),
)
"""Cases that every run has."""
