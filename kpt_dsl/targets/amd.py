"""AMD GPUs.

Sizes: ROCm documentation, "AMD GPU specifications" (compute units, local data share, L2, vector registers), and the
CDNA 2 to 4 and RDNA 3 instruction-set references (512 vector registers a work-item with accumulation registers, 256 on RDNA 3).
Speeds: the vendor's product page of each device, dense, at peak engine clock.
Compiler options: the AMD back end of Triton; 32x32 and 16x16 are the two square tiles of its matrix instructions.
"""

from dataclasses import replace

from kpt_dsl.targets.target import GPU_RULES, Target

KiB, MiB = 1024, 1024**2
GHZ = GB = 1e9
TFLOPS = 1e12

_WAVES = ("waves_per_eu", (0, 1, 2, 3))
_MATRIX_TILE = ("matrix_instr_nonkdim", (16, 32))
_K_PACK = ("kpack", (1, 2))

# One graphics compute die, which is what a process sees as a device; the card has two.
MI250X = Target(
    name="amd-mi250x",
    backend="triton",
    vendor="amd",
    arch="gfx90a",
    device_names=(r"AMD Instinct MI2[15]0X?.*",),
    rules=GPU_RULES,
    cores=110,
    clock_hz=1.7 * GHZ,
    bandwidth_bytes_per_s=1638 * GB,
    l2_bytes=8 * MiB,
    flops_per_s={"bf16": 191.5 * TFLOPS, "f16": 191.5 * TFLOPS, "f32": 47.9 * TFLOPS},
    vector_flops_per_s=23.9 * TFLOPS,
    dtypes=frozenset({"f32", "f16", "bf16", "f8e4m3", "f8e5m2", "i8", "u8", "i32", "i64", "bool"}),
    warp_lanes=64,
    block_threads=1024,
    core_threads=2048,
    core_blocks=32,
    registers=131072,
    thread_registers=512,
    shared_bytes=64 * KiB,
    core_shared_bytes=64 * KiB,
    mma_rows=32,
    mma_warps=1,
    stages=(1, 2, 3),
    options=(_WAVES, _MATRIX_TILE),
)

# The chip multiplies the "fnuz" 8-bit floats, not those that kernels hold, so 8-bit operands are widened to f16.
MI300X = replace(
    MI250X,
    name="amd-mi300x",
    arch="gfx942",
    device_names=(r"AMD Instinct MI3(00|25)[AX].*",),
    cores=304,
    clock_hz=2.1 * GHZ,
    bandwidth_bytes_per_s=5300 * GB,
    l2_bytes=32 * MiB,
    flops_per_s={"bf16": 1307.4 * TFLOPS, "f16": 1307.4 * TFLOPS, "f32": 163.4 * TFLOPS},
    vector_flops_per_s=163.4 * TFLOPS,
    options=(_WAVES, _MATRIX_TILE, _K_PACK),
)

MI355X = replace(
    MI300X,
    name="amd-mi355x",
    arch="gfx950",
    device_names=(r"AMD Instinct MI35[05]X.*",),
    cores=256,
    clock_hz=2.4 * GHZ,
    bandwidth_bytes_per_s=8000 * GB,
    flops_per_s={
        "f8e4m3": 5033 * TFLOPS,
        "f8e5m2": 5033 * TFLOPS,
        "bf16": 2516.6 * TFLOPS,
        "f16": 2516.6 * TFLOPS,
        "f32": 157.3 * TFLOPS,
    },
    vector_flops_per_s=157.3 * TFLOPS,
    buffer_per_stage=True,
    shared_bytes=160 * KiB,
    core_shared_bytes=160 * KiB,
    options=(_WAVES, _MATRIX_TILE),
)

# RX 7900 XTX. Its matrix instruction has one tile, 16x16, whose operands both halves of a wave hold; 96 MiB of Infinity Cache
# stand behind L2.
RX_7900 = replace(
    MI250X,
    name="amd-rx-7900",
    arch="gfx1100",
    device_names=(r"AMD Radeon RX 7900 .*", r"Radeon RX 7900 .*"),
    cores=96,
    clock_hz=2.5 * GHZ,
    bandwidth_bytes_per_s=960 * GB,
    l2_bytes=6 * MiB,
    flops_per_s={"bf16": 122.8 * TFLOPS, "f16": 122.8 * TFLOPS},
    vector_flops_per_s=61.4 * TFLOPS,
    warp_lanes=32,
    registers=98304,
    thread_registers=256,
    core_threads=1024,
    mma_rows=16,
    fragment_copies=2,
    options=(_WAVES,),
)

TARGETS = (MI250X, MI300X, MI355X, RX_7900)
