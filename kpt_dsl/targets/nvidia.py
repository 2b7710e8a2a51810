"""NVIDIA GPUs.

Limits of a block and a multiprocessor: CUDA C++ Programming Guide, "Technical Specifications per Compute Capability".
Speeds: the vendor's datasheet or architecture whitepaper named beside each device, dense (no sparsity), at boost clock.
Largest tile of a matrix instruction: PTX ISA, ``mma`` (16 rows a warp), ``wgmma`` (64 rows a group of 4), ``tcgen05`` (128).
"""

from dataclasses import replace

from kpt_dsl.targets.target import GPU_RULES, WARP_SPECIALISED, Target

KiB, MiB = 1024, 1024**2
GHZ = GB = 1e9
TFLOPS = 1e12


def _products(tf32: float, two_bytes: float, one_byte: float | None = None) -> dict[str, float]:
    """What tensor cores reach by the operands' dtype, given in TFLOPS by its size: they take both types of a size alike."""
    rates = {"f8e4m3": one_byte, "f8e5m2": one_byte, "bf16": two_bytes, "f16": two_bytes, "tf32": tf32}
    return {dtype: rate * TFLOPS for dtype, rate in rates.items() if rate}


_SM80_DTYPES = frozenset({"f32", "f16", "bf16", "f8e5m2", "i8", "u8", "i32", "i64", "bool"})
_SM89_DTYPES = _SM80_DTYPES | {"f8e4m3"}  # Triton converts e4m3 from compute capability 8.9 on

# A100 datasheet (80 GB, SXM) and "NVIDIA A100 Tensor Core GPU Architecture".
A100 = Target(
    name="nvidia-a100",
    backend="triton",
    vendor="nvidia",
    arch="sm_80",
    device_names=(r"NVIDIA A100.*", r"A100.*"),
    rules=GPU_RULES,
    cores=108,
    clock_hz=1.41 * GHZ,
    bandwidth_bytes_per_s=2039 * GB,
    l2_bytes=40 * MiB,
    flops_per_s=_products(tf32=156, two_bytes=312),
    vector_flops_per_s=19.5 * TFLOPS,
    dtypes=_SM80_DTYPES,
    warp_lanes=32,
    block_threads=1024,
    core_threads=2048,
    core_blocks=32,
    registers=65536,
    thread_registers=255,
    shared_bytes=163 * KiB,
    core_shared_bytes=164 * KiB,
    reserved_shared_bytes=1 * KiB,
    mma_rows=16,
    mma_warps=1,
    async_copies=True,
    staged_stores=True,
    stages=(1, 2, 3, 4, 5),
)

# "NVIDIA Ampere GA102 GPU Architecture"; GeForce halves the rate of products that accumulate in f32.
RTX_3090 = replace(
    A100,
    name="nvidia-rtx-3090",
    arch="sm_86",
    device_names=(r"NVIDIA GeForce RTX 3090",),
    cores=82,
    clock_hz=1.695 * GHZ,
    bandwidth_bytes_per_s=936 * GB,
    l2_bytes=6 * MiB,
    flops_per_s=_products(tf32=35.6, two_bytes=71.2),
    vector_flops_per_s=35.6 * TFLOPS,
    core_threads=1536,
    core_blocks=16,
    shared_bytes=99 * KiB,
    core_shared_bytes=100 * KiB,
)

# A10 datasheet.
A10 = replace(
    RTX_3090,
    name="nvidia-a10",
    device_names=(r"NVIDIA A10G?",),
    cores=72,
    bandwidth_bytes_per_s=600 * GB,
    flops_per_s=_products(tf32=62.5, two_bytes=125),
    vector_flops_per_s=31.2 * TFLOPS,
)

# "NVIDIA Ada GPU Architecture"; GeForce halves the rate of products that accumulate in f32.
RTX_4090 = replace(
    RTX_3090,
    name="nvidia-rtx-4090",
    arch="sm_89",
    device_names=(r"NVIDIA GeForce RTX 4090( D)?",),
    cores=128,
    clock_hz=2.52 * GHZ,
    bandwidth_bytes_per_s=1008 * GB,
    l2_bytes=72 * MiB,
    flops_per_s=_products(tf32=82.6, two_bytes=165.2, one_byte=330.3),
    vector_flops_per_s=82.6 * TFLOPS,
    dtypes=_SM89_DTYPES,
    core_blocks=24,
)

# L4 datasheet.
L4 = replace(
    RTX_4090,
    name="nvidia-l4",
    device_names=(r"NVIDIA L4",),
    cores=58,
    clock_hz=2.04 * GHZ,
    bandwidth_bytes_per_s=300 * GB,
    l2_bytes=48 * MiB,
    flops_per_s=_products(tf32=60, two_bytes=121, one_byte=242.5),
    vector_flops_per_s=30.3 * TFLOPS,
)

# L40S datasheet.
L40S = replace(
    RTX_4090,
    name="nvidia-l40s",
    device_names=(r"NVIDIA L40S",),
    cores=142,
    bandwidth_bytes_per_s=864 * GB,
    l2_bytes=96 * MiB,
    flops_per_s=_products(tf32=183, two_bytes=362, one_byte=733),
    vector_flops_per_s=91.6 * TFLOPS,
)

# "NVIDIA H100 Tensor Core GPU Architecture", SXM5.
H100 = replace(
    A100,
    name="nvidia-h100",
    arch="sm_90",
    device_names=(r"NVIDIA H100 80GB HBM3", r"NVIDIA H100( SXM5?.*)?"),
    cores=132,
    clock_hz=1.83 * GHZ,
    bandwidth_bytes_per_s=3352 * GB,
    l2_bytes=50 * MiB,
    flops_per_s=_products(tf32=494.7, two_bytes=989.4, one_byte=1978.9),
    vector_flops_per_s=66.9 * TFLOPS,
    dtypes=_SM89_DTYPES,
    shared_bytes=227 * KiB,
    core_shared_bytes=228 * KiB,
    mma_rows=64,
    mma_warps=4,
    async_products=True,
    descriptors=True,
    schedules=(WARP_SPECIALISED,),
)

# H100 datasheet, PCIe.
H100_PCIE = replace(
    H100,
    name="nvidia-h100-pcie",
    device_names=(r"NVIDIA H100 PCIe",),
    cores=114,
    clock_hz=1.62 * GHZ,
    bandwidth_bytes_per_s=2039 * GB,
    flops_per_s=_products(tf32=378, two_bytes=756, one_byte=1513),
    vector_flops_per_s=51.2 * TFLOPS,
)

# H200 datasheet: an H100 with faster memory.
H200 = replace(
    H100,
    name="nvidia-h200",
    device_names=(r"NVIDIA H200.*", r"NVIDIA GH200 144G HBM3e"),
    bandwidth_bytes_per_s=4800 * GB,
)

# DGX B200 datasheet, one eighth of it; tensor memory: PTX ISA, ``tcgen05``.
B200 = replace(
    H100,
    name="nvidia-b200",
    arch="sm_100",
    schedules=(),
    device_names=(r"NVIDIA B200.*", r"NVIDIA GB200.*"),
    cores=148,
    clock_hz=1.86 * GHZ,
    bandwidth_bytes_per_s=8000 * GB,
    l2_bytes=126 * MiB,
    flops_per_s=_products(tf32=1125, two_bytes=2250, one_byte=4500),
    vector_flops_per_s=75 * TFLOPS,
    mma_rows=128,
    tensor_memory_bytes=256 * KiB,
)

# "NVIDIA RTX Blackwell GPU Architecture"; GeForce halves the rate of products that accumulate in f32.
RTX_5090 = replace(
    RTX_4090,
    name="nvidia-rtx-5090",
    arch="sm_120",
    device_names=(r"NVIDIA GeForce RTX 5090( D)?",),
    cores=170,
    clock_hz=2.407 * GHZ,
    bandwidth_bytes_per_s=1792 * GB,
    l2_bytes=96 * MiB,
    flops_per_s=_products(tf32=104.8, two_bytes=209.5, one_byte=419),
    vector_flops_per_s=104.8 * TFLOPS,
    descriptors=True,
)

TARGETS = (A100, RTX_3090, A10, RTX_4090, L4, L40S, H100, H100_PCIE, H200, B200, RTX_5090)
