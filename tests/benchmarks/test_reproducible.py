"""The reproducibility command, on a CPU: it says so when bits differ, and serves only generated code."""

from dataclasses import replace
from typing import Any

import pytest
import torch

import kpt.ops
from benchmarks import reproducible
from kpt.ops import registry
from kpt.ops.dispatch import DISPATCHERS
from kpt_dsl.errors import InputError

SMALL = ["--runs", "2", "--prefer", "numpy"]


@pytest.mark.parametrize("op", registry.OPS)
def test_every_op_of_small_shapes_is_reproducible(op: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert reproducible.main(["--op", op, *SMALL, "--small"]) == 0
    printed = capsys.readouterr().out
    assert (
        printed.count("0 of 2 runs differ") == printed.count(f"{op} ") == len(reproducible.SMALL[registry.get(op).dims])
    )
    assert "served by numpy" in printed


def test_the_same_bits_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Attention's gradients may be added up in any order otherwise; whatever was asked for before holds afterwards."""
    asked = set()

    def repeat(*_: Any) -> int:
        asked.add(torch.are_deterministic_algorithms_enabled())
        return 0

    monkeypatch.setattr(reproducible, "repeat", repeat)
    assert reproducible.main(["--op", "rms_norm", *SMALL, "--small"]) == 0
    assert asked == {True}
    assert not torch.are_deterministic_algorithms_enabled()
    assert torch.utils.deterministic.fill_uninitialized_memory


@pytest.fixture
def changing(monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """An op whose results are these, one after another."""
    results: list[torch.Tensor] = []
    monkeypatch.setitem(DISPATCHERS, "changing", lambda *_: results.pop(0).clone())
    return results


def an_op() -> registry.Op:
    """One that is called so."""

    def changing() -> None: ...

    return replace(registry.get("rms_norm"), public=changing)


@pytest.mark.parametrize(
    ("later", "count"), [([1.0, 2.0], 0), ([1.0, 2.0000002], 1), ([1.0, float("nan")], 1), ([-1.0, 2.0], 1)]
)
def test_a_run_with_other_bits_is_counted(changing: list[torch.Tensor], later: list[float], count: int) -> None:
    changing += [torch.tensor([1.0, 2.0]), torch.tensor(later), torch.tensor([1.0, 2.0])]
    assert reproducible.repeat(an_op(), (), 2) == count


def test_nan_is_itself_and_zeros_have_signs(changing: list[torch.Tensor]) -> None:
    op = an_op()
    changing += [torch.tensor([float("nan")])] * 3
    assert reproducible.repeat(op, (), 2) == 0
    changing += [torch.tensor([0.0]), torch.tensor([-0.0])]
    assert reproducible.repeat(op, (), 1) == 1


def test_what_is_left_unwritten_shows(changing: list[torch.Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    """A result that keeps what its memory held is the same forever unless somebody overwrites it."""
    kept = torch.tensor([1.0, 2.0])
    monkeypatch.setitem(DISPATCHERS, "changing", lambda *_: kept)
    assert reproducible.repeat(an_op(), (), 3) == 2


LARGE = ["--op", "linear_act", "--prefer", "triton", "--like", "M=8192,N=14336,K=4096"]


def test_configs_of_another_shape(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    seen = []

    def repeat(op: registry.Op, arguments: tuple[Any, ...], runs: int) -> int:
        seen.append(kpt.ops.explain("linear_act", *arguments[:3], activation="gelu").kernels[0].config)
        return 0

    monkeypatch.setattr(reproducible, "repeat", repeat)
    assert reproducible.main([*LARGE, "--small"]) == 0
    assert reproducible.main([*LARGE[:4], "--shapes", "M=264,N=520,K=136"]) == 0
    like, own = seen
    assert like != own
    assert "M=37,N=199,K=77 bf16 left out: " in capsys.readouterr().out


def test_a_shape_too_small_for_the_configs_of_another_is_no_success() -> None:
    with pytest.raises(InputError, match="no shape can run"):
        reproducible.main([*LARGE, "--shapes", "M=37,N=199,K=77"])


def test_pytorch_is_not_what_is_checked() -> None:
    with pytest.raises(InputError, match="PyTorch would serve this call"):
        reproducible.main(["--op", "rms_norm", "--small", "--runs", "1"])


@pytest.mark.parametrize("words", [["--shapes", "M=0,N=3"], ["--shapes", "M=4"], ["--flags", "causal=true"]])
def test_bad_words_are_refused(words: list[str]) -> None:
    with pytest.raises(InputError):
        reproducible.main(["--op", "rms_norm", *SMALL, *words])
