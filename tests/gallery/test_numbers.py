"""The kernels of docs/gallery against their formulas in float64, on every backend that has a form of them, at odd sizes."""

import pytest
import torch

from benchmarks.formulas import SHOWN
from kpt_dsl.errors import TargetError
from tests.gallery.sizes import GAPS, SIZES, TILES, Own
from tests.language.backends import BACKENDS
from tests.tolerances import assert_close

NARROW = {"block_scaled_fp8": "bf16"}
"""The narrowest type on the way, where it is not float32."""


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("name", "dims", "own"), SIZES)
def test_numbers(name: str, dims: dict[str, int], own: Own, backend: str) -> None:
    torch.manual_seed(0)
    shown = SHOWN[name]
    arrays = shown.arguments(dims, wide=True, **own)
    exact = {n: array.double() if array.is_floating_point() else array for n, array in arrays.items()}
    expected = shown.formula(**shown.read(exact, shown.formula))
    if backend == "pallas" and name in GAPS:
        with pytest.raises(TargetError, match=GAPS[name]):
            shown.run(arrays, backend=backend)
        return
    for got, wanted in zip(shown.run(arrays, backend=backend, config=TILES.get(name)), expected, strict=True):
        assert_close(got, wanted, NARROW.get(name, "f32"), max(dims.values()))
