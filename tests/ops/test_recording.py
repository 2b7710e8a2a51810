"""What a program calls: noted, shown, saved, loaded."""

import json
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

import kpt
from kpt.ops import Call, Calls, dispatch, recording
from kpt_dsl import targets
from kpt_dsl.errors import TargetError

X, W = torch.randn(7, 64), torch.ones(64)
Q = torch.randn(2, 4, 9, 16)


def norms(times: int, rows: int = 7) -> None:
    for _ in range(times):
        kpt.ops.rms_norm(torch.ones(rows, 64), (64,), W)


def counted(calls: Calls) -> dict[str, int]:
    return {str(call): call.often for call in calls}


def test_calls_are_counted_by_kind_within_the_block_only() -> None:
    norms(2)
    with recording() as calls:
        norms(3)
        norms(1, rows=8)
        kpt.ops.flash_attention(Q, Q, Q, causal=True, window=3)
    norms(4)
    assert list(counted(calls).values()) == [3, 1, 1]
    assert next(iter(calls)) == Call("rms_norm", next(iter(calls)).arguments, 3, "reference")
    assert "rms_norm(input=float32[8,64], normalized_shape=(64,), weight=float32[64])" in str(calls)
    assert (
        "flash_attention(q=float32[2,4,9,16], k=float32[2,4,9,16], v=float32[2,4,9,16], causal=True, window=3"
        in str(calls)
    )


def test_gradients_are_calls_too(at_home: None) -> None:
    x, w = torch.randn(6, 32, requires_grad=True), torch.randn(8, 32, requires_grad=True)
    with recording() as calls:
        kpt.ops.linear_act(x, w, activation="gelu").sum().backward()
    served = {call.op: call.served for call in calls}
    assert served["linear_act_backward"] == served["linear_act_saving"] == "numpy"


def test_kinds_that_are_forgotten_meanwhile_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "DECISIONS_KEPT", 4)
    with recording() as calls:
        for rows in range(20, 40):
            norms(2, rows)
        norms(1, rows=20)
    found = {call.arguments[0].shape[0]: call.often for call in calls}
    assert found == {20: 3, **dict.fromkeys(range(21, 40), 2)}


def test_one_within_the_other_and_other_threads() -> None:
    with recording() as outer:
        norms(1)
        with recording() as inner:
            thread = threading.Thread(target=norms, args=(5,))
            thread.start()
            thread.join()
    assert (list(counted(inner).values()), list(counted(outer).values())) == ([5], [6])


def test_a_call_costs_nothing_more_while_it_is_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even one Python function is called that is not called otherwise."""
    import sys

    def functions() -> list[str]:
        seen: list[str] = []
        sys.setprofile(lambda frame, event, _: seen.append(frame.f_code.co_name) if event == "call" else None)
        kpt.ops.rms_norm(X, (64,), W)
        sys.setprofile(None)
        return seen

    norms(1)
    kpt.ops.rms_norm(X, (64,), W)
    plain = functions()
    with recording():
        assert functions() == plain


def test_every_op_comes_back_from_a_file(tmp_path: Path) -> None:
    narrow, scale = kpt.ops.quantize_fp8(torch.randn(16, 32))
    turned = Q.transpose(1, 2).contiguous().transpose(1, 2)
    with recording() as calls, kpt.ops.prefer("numpy"):
        kpt.ops.layer_norm(X, [64], W, None, 1e-3)
        kpt.ops.linear_act(X, torch.randn(8, 64), activation="silu")
        kpt.ops.flash_attention(turned, Q, Q, scale=0.5, key_lengths=torch.tensor([3, 9], dtype=torch.int32))
        kpt.ops.quantize_fp8(torch.randn(16, 32))
        kpt.ops.fp8_matmul(narrow, narrow.t(), scale, scale, out_dtype=torch.float16)
    calls.save(tmp_path / "calls.json")
    again = Calls.load(tmp_path / "calls.json")
    assert str(again) == str(calls) and len(again) == 5
    for call, saved in zip(calls, again, strict=True):
        for a, b in zip(call.arguments, saved.arguments, strict=True):
            assert type(a) is type(b) and (a.stride() == b.stride() if isinstance(a, torch.Tensor) else a == b)
        assert call.instances(targets.get("nvidia-h200")) == saved.instances(targets.get("nvidia-h200"))
    assert [p.name for p in tmp_path.iterdir()] == ["calls.json"]


GOOD: dict[str, Any] = {
    "op": "rms_norm",
    "arguments": [{"dtype": "float32", "shape": [7, 64], "strides": [64, 1]}, [64], None, None],
    "calls": 2,
}


def entry(**changed: Any) -> str:
    return json.dumps({"format": "kpt calls 1", "calls": [GOOD, GOOD | changed]})


def x(**changed: Any) -> dict[str, Any]:
    return {"arguments": [{**GOOD["arguments"][0], **changed}, *GOOD["arguments"][1:]]}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "cannot be read as calls"),
        ("[]", "format must be 'kpt calls 1'"),
        (json.dumps({"format": "kpt calls 2", "calls": []}), "of a newer kpt"),
        (entry(op="softmax"), "call 2: .*softmax"),
        (entry(calls=0), "call 2: calls is 0"),
        (entry(calls=True), "call 2: calls is True"),
        (entry(arguments=[]), "call 2: "),
        (entry(arguments="x"), "call 2 is no object"),
        (entry(**x(dtype="float33")), "call 2: dtype 'float33'"),
        (entry(**x(shape=[7, 65])), "call 2: rms_norm: input is of shape"),
        (entry(**x(shape=[7])), "that of no tensor"),
        (entry(**x(shape=[7, -64])), "that of no tensor"),
        (entry(**x(strides=None)), "that of no tensor"),
    ],
)
def test_a_file_that_is_none_is_refused_by_name(text: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "calls.json"
    path.write_text(text)
    with pytest.raises(kpt.InputError, match=said):
        Calls.load(path)
    with pytest.raises(kpt.InputError, match="cannot be read"):
        Calls.load(tmp_path / "another.json")


def test_a_table_for_a_target_says_what_calls_take_and_where_configs_come_from(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with recording() as calls:
        norms(3)
        kpt.ops.rms_norm(torch.ones(4, 64, dtype=torch.float64), (64,))
    assert calls.target == "" and "ms in all" not in str(calls)
    head, norm, wide = calls.table("nvidia-h200").splitlines()
    assert head.split() == ["calls", "ms", "in", "all", "configs", "served", "by", "call"]
    assert norm.split()[0] == "3" and float(norm.split()[1]) > 0 and norm.split()[2] == "rule"
    assert wide.split()[:3] == ["1", "-", "-"]  # no kernel computes in float64
    calls.target = "nvidia-h200"
    calls.save(tmp_path / "calls.json")
    loaded = Calls.load(tmp_path / "calls.json")
    assert str(loaded) == calls.table("nvidia-h200")
    (tmp_path / "calls.json").write_text((tmp_path / "calls.json").read_text().replace("nvidia-h200", "nvidia-z900"))
    assert Calls.load(tmp_path / "calls.json").target == ""
    with pytest.raises(TargetError, match="nvidia-z900"):
        calls.table("nvidia-z900")


def test_what_was_measured_is_what_the_table_says(monkeypatch: pytest.MonkeyPatch) -> None:
    from types import SimpleNamespace

    from kpt.ops import estimates

    with recording() as calls:
        norms(4)
    entry = SimpleNamespace(microseconds=250.0)
    config = SimpleNamespace(entry=entry, config=None, provenance="measured", sibling="")
    monkeypatch.setattr(estimates, "lookup", SimpleNamespace(choose=lambda *_: config))
    assert calls.table("nvidia-h200").splitlines()[1].split()[:3] == ["4", "1", "measured"]
    config.sibling = "another width"
    modelled = SimpleNamespace(seconds=lambda _: 3e-6)
    monkeypatch.setattr(estimates, "options", lambda *_: modelled)
    assert calls.table("nvidia-h200").splitlines()[1].split()[:2] == ["4", "0.012"], "a time of other calls is none of these"
