"""Which tensors a tensor descriptor can hold: aligned, with a unit last stride and aligned strides before it."""

from typing import TYPE_CHECKING

from kpt_dsl.dtypes import dtype
from kpt_dsl.emit.triton.facts import TMA_BYTES, TMA_RANK, effective_strides

if TYPE_CHECKING:
    from kpt_dsl.problem import Problem


def describable(problem: "Problem", tensor: str) -> bool:
    """Whether a descriptor can hold a tensor of the problem."""
    strides = effective_strides(problem, tensor)
    size = dtype(dict(problem.dtypes)[tensor]).bytes
    described = strides[-1] == 1 and all(s > 0 and s * size % TMA_BYTES == 0 for s in strides[:-1])
    return tensor in problem.aligned and described and len(strides) <= TMA_RANK and 0 not in problem.shape(tensor)
