"""Google TPUs, one record a device as JAX sees it: a chip, but for tpu7x, whose chip is two devices.

Speeds: Google Cloud's page of each generation. VMEM: what its compiler (libtpu 0.0.51) accepts. Clocks are inferred from the
peak rates and the published size of the matrix unit; the vendor publishes none. A vector register is 8 sublanes of 128 lanes
of 32 bits.
"""

from dataclasses import replace

from kpt_dsl.targets.target import TPU_RULES, Target

MiB = 1024**2
GHZ = GB = 1e9
TFLOPS = 1e12

# Vector units do 8x128 lanes of 4 operations a clock ("How to Scale Your Model", chapter on TPUs); f16 has no hardware at all.
_VPU_FLOPS_PER_CLOCK = 2 * 4 * 8 * 128

V4 = Target(
    name="tpu-v4",
    backend="pallas",
    vendor="google",
    arch="v4",
    device_names=(r"TPU v4",),
    rules=TPU_RULES,
    cores=2,
    clock_hz=1.05 * GHZ,
    bandwidth_bytes_per_s=1228 * GB,
    flops_per_s={"bf16": 275 * TFLOPS, "f32": 275 / 6 * TFLOPS},
    vector_flops_per_s=2 * 1.05 * GHZ * _VPU_FLOPS_PER_CLOCK,
    dtypes=frozenset({"f32", "bf16", "i32", "bool"}),
    vmem_bytes=16 * MiB,
    lanes=128,
    sublanes=8,
    mxu=128,
)
"""f32 products take six passes of bf16 (jax.lax.Precision.HIGHEST)."""

V5E = replace(
    V4,
    name="tpu-v5e",
    arch="v5e",
    device_names=(r"TPU v5 lite", r"TPU v5e"),
    cores=1,
    clock_hz=1.5 * GHZ,
    bandwidth_bytes_per_s=819 * GB,
    flops_per_s={"bf16": 197 * TFLOPS, "f32": 197 / 6 * TFLOPS},
    vector_flops_per_s=1.5 * GHZ * _VPU_FLOPS_PER_CLOCK,
    dtypes=V4.dtypes | {"f8e4m3", "f8e5m2"},
    vmem_bytes=128 * MiB,
)

V5P = replace(
    V5E,
    name="tpu-v5p",
    arch="v5p",
    device_names=(r"TPU v5", r"TPU v5p"),
    cores=2,
    clock_hz=1.75 * GHZ,
    bandwidth_bytes_per_s=2765 * GB,
    flops_per_s={"bf16": 459 * TFLOPS, "f32": 459 / 6 * TFLOPS},
    vector_flops_per_s=2 * 1.75 * GHZ * _VPU_FLOPS_PER_CLOCK,
    vmem_bytes=64 * MiB,
)

V6E = replace(
    V5E,
    name="tpu-v6e",
    arch="v6e",
    device_names=(r"TPU v6 lite", r"TPU v6e"),
    clock_hz=1.75 * GHZ,
    bandwidth_bytes_per_s=1638 * GB,
    flops_per_s={"bf16": 918 * TFLOPS, "f32": 918 / 6 * TFLOPS},
    vector_flops_per_s=1.75 * GHZ * _VPU_FLOPS_PER_CLOCK,
    mxu=256,
)

TPU7X = replace(
    V6E,
    name="tpu-tpu7x",
    arch="tpu7x",
    device_names=(r"TPU ?7x", r"TPU v7"),
    clock_hz=2.2 * GHZ,
    bandwidth_bytes_per_s=3690 * GB,
    flops_per_s={
        "f8e4m3": 2307 * TFLOPS,
        "f8e5m2": 2307 * TFLOPS,
        "bf16": 1153.5 * TFLOPS,
        "f32": 1153.5 / 6 * TFLOPS,
    },
    vector_flops_per_s=2.2 * GHZ * _VPU_FLOPS_PER_CLOCK,
    vmem_bytes=64 * MiB,
)

TARGETS = (V4, V5E, V5P, V6E, TPU7X)
