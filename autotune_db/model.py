"""How long a compiled config would take on a chip that is not here, in seconds: for ranking, never shown as measured.

On GPUs the roofline of the space (waves, occupancy, the three rates), with the registers and shared memory that the compiler
really gave in place of estimates; a schedule with a model of its own is taken at its word. On TPUs the compiler's own cycles,
where it tells them.
"""

from dataclasses import dataclass
from functools import cached_property

from kpt_dsl.build import Report
from kpt_dsl.space import Config, Space
from kpt_dsl.space.gpu import model, rules
from kpt_dsl.space.gpu.sizes import GpuSizes


def seconds(space: Space, config: Config, report: Report) -> float:
    """Of one launch."""
    if report.cycles:
        return report.cycles / space.target.clock_hz
    variant = next(v for v in space.variants if all(config[name] == value for name, value in v.choices.items()))
    if variant.rules is rules and report.registers:
        return model.seconds(_Compiled(variant.facts, space.target, config, report))
    return space.seconds(config)


def misfit(space: Space, report: Report) -> str:
    """Why a compiled config is not worth running on its target; "" when it is."""
    target = space.target
    if report.spills:
        return f"{report.spills} spills"
    for have, most, what in (
        (report.shared_bytes, target.shared_bytes, "bytes of shared memory"),
        (report.vmem_bytes, target.vmem_bytes, "bytes of vector memory"),
    ):
        if have and most and have > most:
            return f"{have} {what}, {target.name} has {most}"
    return ""


@dataclass(frozen=True)
class _Compiled(GpuSizes):
    """Sizes as the compiler reported them."""

    report: Report

    @cached_property
    def registers(self) -> int:
        return self.report.registers or 0

    @cached_property
    def shared_bytes(self) -> int:
        return self.report.shared_bytes or 0
