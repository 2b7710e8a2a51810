"""What calls cost a device, before or after they were made: microseconds of their kernels, and where the configs come from."""

from typing import TYPE_CHECKING, NamedTuple

from autotune_db import lookup
from kpt.ops.registry import get
from kpt_dsl.classes import options
from kpt_dsl.errors import KptError

if TYPE_CHECKING:
    from kpt.ops.calls import Call
    from kpt_dsl.targets import Target


class Estimate(NamedTuple):
    """``microseconds`` of all kernels of a call: as measured where such calls were, else by the model that ranks configs, which
    is right about order, not about microseconds. ``configs``: where they come from ("measured", "shipped", …, "rule"), each
    once, in the order of the kernels."""

    microseconds: float
    configs: tuple[str, ...]


def estimate(call: "Call", target: "Target") -> Estimate | None:
    """What a call would take on a target, by the first of several ways; None where no kernel serves it there."""
    try:
        instances = get(call.op).record(call.arguments, target, first=True)
        answers = [(instance, lookup.choose(instance, target)) for instance in instances]
        times = [
            answer.entry.microseconds
            if answer.entry is not None and answer.entry.microseconds is not None and not answer.sibling
            else options(instance, target).seconds(answer.config) * 1e6
            for instance, answer in answers
        ]
    except KptError:
        return None
    return Estimate(sum(times), tuple(dict.fromkeys(answer.provenance for _, answer in answers))) if answers else None
