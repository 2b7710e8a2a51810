"""The NumPy run: every type that kernels hold, no limit but memory. Speeds: one ordinary core, orders of magnitude."""

from kpt_dsl.dtypes import ALL
from kpt_dsl.targets.target import CPU_RULES, Target

CPU = Target(
    name="cpu",
    backend="numpy",
    vendor="any",
    arch="numpy",
    device_names=(r"cpu",),
    rules=CPU_RULES,
    cores=1,
    clock_hz=3e9,
    bandwidth_bytes_per_s=2e10,
    l2_bytes=1024**2,
    flops_per_s={"f32": 5e10},
    vector_flops_per_s=5e9,
    dtypes=frozenset(ALL),
)

TARGETS = (CPU,)
