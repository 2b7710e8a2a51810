"""Which tensors a tensor descriptor can hold: aligned, with a unit last stride and aligned strides before it."""

from typing import TYPE_CHECKING

from kpt_dsl.dtypes import dtype

if TYPE_CHECKING:
    from kpt_dsl.problem import Problem

ALIGNMENT = 16
"""Bytes to which addresses and strides must be aligned (CUDA driver API, cuTensorMapEncodeTiled)."""
MAX_RANK = 5
"""Most dims of a tensor (ibid.)."""

def describable(problem: "Problem", tensor: str) -> bool:
    """Whether a descriptor can hold a tensor of the problem."""
    extents, strides = problem.shape(tensor), problem.stride(tensor)
    size = dtype(dict(problem.dtypes)[tensor]).bytes
    if tensor not in problem.aligned or not 1 <= len(strides) <= MAX_RANK or 0 in extents:
        return False
    # The stride of a dim of one element is never used; libraries set it to anything.
    used = [stride for extent, stride in zip(extents[:-1], strides[:-1], strict=True) if extent > 1]
    return (strides[-1] == 1 or extents[-1] == 1) and all(s > 0 and s * size % ALIGNMENT == 0 for s in used)
