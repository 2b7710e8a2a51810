"""The suite of host costs, tiny and on a CPU: every op with its gradients and without, and a step under DDP."""

from argparse import Namespace

import pytest

from benchmarks import host

TINY = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2,
    "num_key_value_heads": 1, "vocab_size": 64,
}  # fmt: skip
OPS = ("layer_norm", "rms_norm", "linear_act", "flash_attention")


def test_every_op_has_a_row_with_gradients_and_one_without() -> None:
    found = host.compared("cpu", 1, 2, llama=TINY)
    rows = {row["case"]: row for row in found.rows}
    assert list(rows) == [*(f"{op}{how}" for op in OPS for how in ("", ", forward and backward")), host.STEP]
    for case, row in rows.items():
        known = {"kpt", "torch", *(["an empty autograd function"] if "backward" in case else [])}
        assert row["microseconds"].keys() - {"Liger"} == known
        assert all(each > 0 for each in row["microseconds"].values())
        assert row["kpt over"]["kpt"] == 1
    assert not found.failed


def test_only_what_is_asked_for_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "compared", lambda device, calls, rounds, only: (device, only))
    assert host.measure(Namespace(only="rms_norm")) == ("cuda", "rms_norm")
    monkeypatch.undo()
    found = host.compared("cpu", 1, 1, "rms_norm, forward")
    assert [row["case"] for row in found.rows] == ["rms_norm, forward and backward"]


def test_a_side_that_fails_is_named() -> None:
    row = host._row("case", {"kpt": _fails, "torch": lambda: dict}, 1, 1)
    assert row["missing"] == {"kpt": "ValueError: no"}
    assert row["kpt over"] == {}
    assert "missing: kpt" in host._line(row)


def _fails() -> host.Run:
    raise ValueError("no")
