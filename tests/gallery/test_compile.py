"""The kernels of docs/gallery compiled with their first configs for chips that are not here: nothing spills."""

import pytest

from benchmarks.formulas import SHOWN
from kpt_dsl import build, targets
from kpt_dsl.errors import TargetError
from kpt_dsl.space import space
from tests.gallery.sizes import GAPS


@pytest.mark.parametrize("target", ["nvidia-h200", "amd-mi300x"])
@pytest.mark.parametrize("name", SHOWN)
def test_for_gpus(name: str, target: str) -> None:
    chip = targets.get(target)
    for instance in SHOWN[name].instances():
        report = build.compile(instance, chip, space(instance, chip).first)
        assert report.registers
        assert not report.spills, report


@pytest.mark.libtpu
@pytest.mark.parametrize("name", SHOWN)
def test_for_a_tpu(name: str) -> None:
    """At extents up to 256, which compile in a second."""
    pytest.importorskip("libtpu")
    chip = targets.get("tpu-v6e")
    for instance in SHOWN[name].instances():
        small = instance.with_dims(**{dim: min(extent, 256) for dim, extent in instance.extents.dims})
        if name in GAPS:
            with pytest.raises(TargetError, match=GAPS[name]):
                build.compile(small, chip, space(small, chip).first)
        else:
            assert build.compile(small, chip, space(small, chip).first).cycles
