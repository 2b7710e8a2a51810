"""How long a compiled config would take on a chip that is not here, in seconds: for ranking, never shown as measured.

On GPUs the roofline of the space (waves, occupancy, the three rates), with the registers and shared memory that the compiler
really gave in place of estimates; a schedule with a model of its own is taken at its word. On TPUs the compiler's own cycles,
where it tells them, of which none is believed that would be above 0.95 of the peak rate of products.
"""

from dataclasses import dataclass
from functools import cached_property

from kpt_dsl.build import Report
from kpt_dsl.build.tpu_bundles import BELIEVED
from kpt_dsl.space import Config, Space
from kpt_dsl.space.gpu import model, rules
from kpt_dsl.space.gpu.sizes import GpuSizes
from kpt_dsl.space.space import Variant
from kpt_dsl.space.tpu.rules import STEP
from kpt_dsl.space.tpu.sizes import TpuSizes

SECONDS_A_BUNDLE = 1.5e-3
"""That a TPU's compiler takes on two busy cores: 680 to 5,400 bundles, of products, attention and norms, took 1.0 to 2.3 ms
each."""

AVERAGES = 0.01
"""How far the steps of a causal kernel, on average, may be from those that its cycles were counted with."""


def seconds(space: Space, config: Config, report: Report) -> float:
    """Of one launch."""
    if report.cycles:
        return report.cycles / space.target.clock_hz
    variant = _variant(space, config)
    if variant.rules is rules and report.registers:
        return model.seconds(_Compiled(variant.facts, space.target, config, report))
    return space.seconds(config)


def held(space: Space, config: Config, report: Report) -> str:
    """That the code of a config on a TPU would be quicker than products are believed to be, and its time is theirs; "" where it
    is not."""
    target = space.target
    if not report.cycles:
        return ""
    sizes = TpuSizes(_variant(space, config).facts, target, config)
    products = sizes.programs * sum(
        2 * sizes.count((p.m, p.n, p.k)) * sizes.steps[p.scope] / target.peak(p.dtype.name) for p in sizes.facts.products
    )
    if products < BELIEVED * (1 - AVERAGES) * seconds(space, config, report):
        return ""
    return f"held at {BELIEVED:.0%} of the peak of {target.name}: more is not believed"


def code_size(space: Space, config: Config) -> int | None:
    """Bundles of code of a step on a TPU, whose compiler unrolls what is done with a block: what it takes its time for. None
    where code does not grow so."""
    target = space.target
    if not target.lanes:
        return None
    sizes = TpuSizes(_variant(space, config).facts, target, config)
    step = space.seconds(config) * target.cores / (sizes.programs * sum(sizes.visits))
    return max(1, round((step - STEP) * target.clock_hz))


def _variant(space: Space, config: Config) -> Variant:
    return next(v for v in space.variants if all(config[name] == value for name, value in v.choices.items()))


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
