"""Launches that check, on a driver that is none: what is launched, what is read afterwards, and what is remembered."""

import os
import subprocess
import sys
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import kpt
import kpt_dsl as kd
from kpt_dsl import configs, targets
from kpt_dsl.checks import is_on
from kpt_dsl.instance import Instance
from kpt_dsl.runtime import triton as runtime
from kpt_dsl.runtime import triton_launch
from kpt_dsl.runtime.triton_launch import CheckedLaunch, Launch
from kpt_dsl.space import space
from tests.indices import kernels
from tests.indices.running import whole
from tests.no_gpu import started_by

H200 = targets.get("nvidia-h200")


class Device:
    """In place of a GPU: notes launches, and writes ``word`` as a kernel would."""

    def __init__(self) -> None:
        self.launched: list[list[Any]] = []
        self.words: list[torch.Tensor] = []
        self.word = 0

    def new_word(self, _: int) -> torch.Tensor:
        self.words.append(torch.zeros(1, dtype=torch.int64))
        return self.words[-1]

    def start(self, programs: int, stream: int, values: list[Any]) -> None:
        self.launched.append(values)
        for word in self.words:
            if self.word and word.data_ptr() == values[-1] and not int(word):
                word.fill_(self.word)


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Device:
    from triton.runtime import driver

    from kpt_dsl.build import triton as build

    active = SimpleNamespace(get_current_device=lambda: 0, get_current_stream=lambda _: 77)
    monkeypatch.setattr(driver, "_active", active, raising=False)
    monkeypatch.setattr(torch.cuda, "device", lambda _: nullcontext())
    made = Device()
    monkeypatch.setattr(runtime, "present", lambda _: H200)
    monkeypatch.setattr(build, "binary", lambda *_: SimpleNamespace(name="kernel"))
    monkeypatch.setattr(triton_launch, "starter", lambda _: started_by(made.start))
    monkeypatch.setattr(triton_launch, "_word", made.new_word)
    runtime._prepared.cache_clear()
    yield made
    runtime._prepared.cache_clear()


def arguments(index: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return torch.arange(12.0).reshape(6, 2), index, torch.empty(len(index), 2)


def prepared(kernel: kd.Kernel, *given: Any) -> Launch:
    instance = Instance.bind(kernel, kernel.bind(*given))
    return runtime.prepare(instance, space(instance, H200).first, 0)


def test_a_launch_is_checked_within_the_block_only(device: Device) -> None:
    given = arguments(whole(0, 1, 2))
    before = prepared(kernels.rows, *given)
    with kd.checking():
        assert is_on()
        inside = prepared(kernels.rows, *given)
        with kd.checking():
            assert prepared(kernels.rows, *given) is inside
        assert prepared(kernels.rows, *given) is inside
    assert not is_on()
    assert (type(before), type(inside)) == (Launch, CheckedLaunch)
    assert prepared(kernels.rows, *given) is before
    before(*given)
    inside(*given)
    plain, checked = device.launched
    assert (checked[:3], checked[-1]) == (plain[:3], device.words[0].data_ptr())
    assert device.words[0].data_ptr() not in plain


def test_a_kernel_without_such_an_index_is_the_same_within(device: Device) -> None:
    given = (torch.ones(3, 6), torch.empty(3))
    before = prepared(kernels.sixth, *given)
    with kd.checking():
        assert prepared(kernels.sixth, *given) is before


@kd.kernel(x="T", cu="C", y="T")
def in_groups(x: kd.In, cu: kd.In, y: kd.Out) -> None:
    """No index of its may be of no element, but groups may begin anywhere."""
    for m in kd.parallel(kd.tile("T", starts=cu)):
        y[m] = x[m] * (cu[m.group + 1] - cu[m.group])


def test_where_groups_begin_is_looked_at_before_a_launch(device: Device) -> None:
    given = (torch.ones(9), whole(0, 4, 9), torch.empty(9))
    assert type(prepared(in_groups, *given)) is Launch
    with kd.checking():
        launch = prepared(in_groups, *given)
        launch(*given)
        assert device.words[0].data_ptr() not in device.launched[0]
        with pytest.raises(kd.IndexRangeError, match=r"in_groups: cu\[1\] is 4 and cu\[2\] is 3; where groups begin must"):
            launch(given[0], whole(0, 4, 3), given[2])
    assert len(device.launched) == 1


def test_what_the_word_says_is_raised_once(device: Device) -> None:
    given = arguments(whole(0, 1, 2))
    with kd.checking():
        launch = prepared(kernels.rows, *given)
        launch(*given)
        device.word = 1 << 32 | -3 & 0xFFFFFFFF
        with pytest.raises(
            kd.IndexRangeError, match=r"rows indexes table\[V, D\] along V with -3, but its extent is 6"
        ):
            launch(*given)
        device.word = 0
        launch(*given)


def test_the_measured_launch_is_never_checked(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    bound = kernels.rows.bind(*arguments(whole(0, 1, 2)))
    monkeypatch.setattr(runtime, "_device", lambda _: SimpleNamespace(type="cuda", index=0))
    instance = Instance.bind(kernels.rows, bound)
    with kd.checking():
        runtime.launcher(instance, bound, space(instance, H200).first, H200)()
    assert not device.words
    assert len(device.launched) == 1


def test_who_remembers_launches_forgets_them() -> None:
    seen = [configs.generation()]
    with kd.checking():
        seen.append(configs.generation())
    seen.append(configs.generation())
    assert len(set(seen)) == 3
    with pytest.raises(ZeroDivisionError), kd.checking():
        raise ZeroDivisionError
    assert not is_on()


def test_an_op_does_not_fall_back_from_a_bad_index(monkeypatch: pytest.MonkeyPatch) -> None:
    from kpt.ops.dispatch import DISPATCHERS

    def bad(*_: Any) -> Any:
        raise kd.IndexRangeError("an index")

    x = torch.randn(4, 8)
    dispatcher = DISPATCHERS["rms_norm"]
    kpt.ops.rms_norm(x, (8,))
    newest = list(dispatcher._decisions.values())[-1]
    monkeypatch.setattr(newest, "ready", bad)
    with pytest.raises(kd.IndexRangeError, match="an index"):
        kpt.ops.rms_norm(x, (8,))


@pytest.mark.parametrize(("value", "wanted"), [("1", "True"), ("0", "False"), ("", "False"), (None, "False")])
def test_the_environment_does_the_same(value: str | None, wanted: str) -> None:
    environment = {k: v for k, v in os.environ.items() if k != "KPT_CHECK"} | (
        {} if value is None else {"KPT_CHECK": value}
    )
    code = "import kpt_dsl.checks as c; print(c.is_on())"
    done = subprocess.run([sys.executable, "-c", code], env=environment, check=True, capture_output=True, text=True)
    assert done.stdout.strip() == wanted
