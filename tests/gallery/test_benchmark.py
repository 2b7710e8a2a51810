"""The benchmark of docs/gallery, tiny and on a CPU: kernels, formulas and libraries agree in their own types."""

import pytest
import torch

from autotune_db import measure
from benchmarks import gallery, timing
from benchmarks.formulas import SHOWN
from benchmarks.peers import as_tensors
from kpt_dsl import targets
from tests.gallery.sizes import SIZES

TINY = {name: dims for name, dims, _ in reversed(SIZES)} | {"grouped_product": {"T": 40, "E": 4, "N": 24, "K": 32, "C": 5}}
CPU = targets.get("cpu")


@pytest.mark.parametrize("name", SHOWN)
def test_a_tiny_case_becomes_a_row(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    case = gallery.case(name, TINY[name], "cpu")
    expected = as_tensors(case.peers["torch"]())[0].float()
    for peer, run in case.peers.items():
        got = as_tensors(run())[0].float().view_as(expected)
        assert (got - expected).norm() <= 0.02 * expected.norm(), peer
    with timing.chooser(0.0) as choose:
        row = timing.row(case, CPU, measure.clock(CPU), choose, 0.001)
    assert row["difference"]["from"] == "torch"
    assert {"kpt", "torch", "Inductor"} <= row["rate"].keys()
    assert row["rate"].keys() | row["missing"].keys() >= gallery.LIBRARIES.get(name, {}).keys()
