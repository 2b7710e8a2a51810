"""What kpt knows of a device: one frozen record of limits and speeds, with units.

A target is data. Passes, spaces and emitters read its fields and never ask for its vendor; it knows none of them.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

GPU_RULES = "kpt_dsl.space.gpu.rules"
"""Space rules of chips that run blocks of warps with shared memory and registers."""
WARP_SPECIALISED = ("warp_specialised", "kpt_dsl.space.warps.rules")
"""Producer and consumer warps with registers of their own, and products that warpgroups issue ahead."""
TPU_RULES = "kpt_dsl.space.tpu.rules"
"""Space rules of chips that pipeline blocks through a software-managed vector memory."""
CPU_RULES = "kpt_dsl.space.cpu"
"""Space rules of the NumPy run, where a tile is an array."""


@dataclass(frozen=True, kw_only=True)
class Target:
    """A device that kernels are generated for. A field is 0 or empty where the chip has no such thing.

    ``core`` is the unit that runs programs: a streaming multiprocessor, a compute unit, a TensorCore.
    """

    name: str
    """``vendor-chip``, as on the command line: "nvidia-h200"."""
    backend: str
    """Which emitter and runtime serve it: "triton", "pallas", "numpy", or that of another package."""
    vendor: str
    arch: str
    """The compiler's name of the instruction set: "sm_90", "gfx942", "v6e"."""
    device_names: tuple[str, ...]
    """Regular expressions; one must match the whole name that the device's driver reports."""
    rules: str
    """The module that derives the search space and judges configs (``kpt_dsl.space`` describes its functions)."""
    schedules: tuple[tuple[str, str], ...] = ()
    """Further schedules that its emitter knows: the knob's value, and the module with the rules of configs that have it."""

    # ---------------------------------------------------------------- speed
    cores: int
    clock_hz: float
    bandwidth_bytes_per_s: float
    """Of device memory."""
    l2_bytes: int = 0
    flops_per_s: Mapping[str, float] = field(hash=False)
    """Peak dense flops/s of products with f32 accumulation, by the operand dtypes that the matrix unit takes.

    "tf32" is f32 operands rounded to 11 bits of mantissa, "f32" full precision.
    """
    vector_flops_per_s: float
    """Peak f32 flops/s outside matrix units."""
    dtypes: frozenset[str]
    """Element types that its compiler loads, stores and converts."""

    # ---------------------------------------------------------------- blocks of warps
    warp_lanes: int = 0
    block_threads: int = 0
    """Most threads in a block."""
    core_threads: int = 0
    """Most threads resident on a core."""
    core_blocks: int = 0
    """Most blocks resident on a core."""
    registers: int = 0
    """32-bit registers of a core."""
    thread_registers: int = 0
    """Most 32-bit registers of a thread."""
    shared_bytes: int = 0
    """Most shared memory that one block may ask for."""
    core_shared_bytes: int = 0
    reserved_shared_bytes: int = 0
    """Shared memory that the system takes of a core for each resident block."""
    mma_rows: int = 0
    """Rows of the tile that one (group of) warp(s) gives its fastest matrix instruction."""
    mma_warps: int = 0
    """How many warps issue that instruction together."""
    async_products: bool = False
    """Products read operands from shared memory while the next are issued, so each stage has a buffer of its own."""
    fragment_copies: int = 1
    """How many times a matrix instruction wants its operands in the registers of a warp."""
    buffer_per_stage: bool = False
    """Copies go to shared memory while products read it, so that each stage of a pipeline has a buffer of its own."""
    tensor_memory_bytes: int = 0
    """Memory of a core in which its matrix unit keeps accumulators, so that no warp has a part of the product of its own."""
    staged_stores: bool = False
    """A product's result passes through shared memory on its way out, so that rows are stored whole."""
    async_copies: bool = False
    """Copies from device to shared memory do not pass through registers."""
    descriptors: bool = False
    """Has a unit that copies tiles between device and shared memory, described by tensor descriptors (TMA)."""
    stages: tuple[int, ...] = ()
    """Depths of software pipelining that its compiler knows."""
    options: tuple[tuple[str, tuple[int, ...]], ...] = ()
    """Further options of its compiler that are worth searching; the first value of each is the default."""

    # ---------------------------------------------------------------- vector memory
    vmem_bytes: int = 0
    """Vector memory of a core."""
    lanes: int = 0
    """Columns of a vector register; blocks are whole multiples of them."""
    sublanes: int = 0
    """Rows of a vector register, of 32 bits."""
    mxu: int = 0
    """Side of the square matrix unit."""

    @property
    def exact_blocks(self) -> bool:
        """Whether blocks may be as long as a dim, whatever its extent: configs follow from exact extents then. Blocks of warps
        have powers of two."""
        return not self.warp_lanes

    def matrix_dtype(self, dtype: str) -> str | None:
        """The type in which the matrix unit multiplies operands of a dtype: itself or a wider one; None where it cannot."""
        return dtype if dtype in self.flops_per_s else next((n for n in _WIDER.get(dtype, ()) if n in self.flops_per_s), None)

    def peak(self, dtype: str) -> float:
        """Flops/s that a product of operands of a dtype can reach, on the vector units where the matrix unit cannot take it."""
        name = self.matrix_dtype(dtype)
        return self.vector_flops_per_s if name is None else self.flops_per_s[name]


_WIDER: Mapping[str, tuple[str, ...]] = {
    "f8e4m3": ("f16", "bf16", "f32"),
    "f8e5m2": ("f16", "bf16", "f32"),
    "f16": ("f32",),
    "bf16": ("f32",),
}
