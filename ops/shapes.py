"""Named, realistic shapes: one record, used by benchmarks, tests and tuning presets alike. Each op lists its own."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Shape:
    """Extents of an op's dims as a model has them; ``flags`` are the op's semantic options there."""

    model: str
    dims: Mapping[str, int]
    dtype: str = "bf16"
    flags: Mapping[str, object] = field(default_factory=dict)
