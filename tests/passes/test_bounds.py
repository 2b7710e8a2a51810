"""Loop bounds that are plain after all, and those that only look so."""

import kpt_dsl as kd
from kpt_dsl import ir
from kpt_dsl.instance import Instance
from kpt_dsl.kernel import Kernel
from kpt_dsl.passes.bounds import settle


@kd.kernel(x="M N", lengths="M", total="M")
def narrowed(x: kd.In, lengths: kd.In, total: kd.Out, causal: kd.Static) -> None:
    for m in kd.parallel(kd.tile("M")):
        first, last = 0, kd.size("N")
        if lengths is not None:
            last = kd.minimum(last, kd.max(lengths[m], axis=0))
        if causal:
            last = kd.minimum(last, m.stop)
        seen = kd.zeros([m])
        for n in kd.sequential(kd.tile("N"), start=first, stop=last):
            seen += kd.sum(x[m, n], axis=1)
        total[m] = seen


@kd.kernel(x="M N", total="M")
def moved(x: kd.In, total: kd.Out) -> None:
    """``last`` is a size in the first loop, and something else in the second."""
    for m in kd.parallel(kd.tile("M")):
        last = kd.size("N")
        seen = kd.zeros([m])
        for n in kd.sequential(kd.tile("N"), stop=last):
            seen += kd.sum(x[m, n], axis=1)
            last = kd.minimum(last, n.start)
        for n2 in kd.sequential(kd.tile("N"), stop=last):
            seen += kd.sum(x[m, n2], axis=1)
        total[m] = seen


def loops(kernel: Kernel, **given: object) -> list[ir.For]:
    dtypes = dict.fromkeys(kernel.tensors, "f32") | {k: v for k, v in given.items() if k in kernel.tensors}
    statics = {k: v for k, v in given.items() if k in kernel.statics}
    instance = Instance.of_shapes(kernel, {"M": 8, "N": 8}, dtypes, statics)  # type: ignore[arg-type]
    settled = settle(instance.lower())
    return [s for s in settled.body if isinstance(s, ir.For)]


def test_a_bound_that_nothing_narrowed_is_the_size() -> None:
    (loop,) = loops(narrowed, lengths=None, causal=False)
    assert isinstance(loop.stop, ir.Size) and loop.stop.dim == "N"
    assert isinstance(loop.start, ir.Const) and loop.start.value == 0


def test_the_variable_that_nobody_reads_any_more_is_gone() -> None:
    instance = Instance.of_shapes(narrowed, {"M": 8, "N": 8}, dict(x="f32", lengths=None, total="f32"), {"causal": False})
    assert "last" in {s.name for s in instance.lower().body if isinstance(s, ir.Assign)}
    assert "last" not in {s.name for s in settle(instance.lower()).body if isinstance(s, ir.Assign)}


def test_a_bound_that_was_narrowed_stays() -> None:
    for given in (dict(lengths="i32", causal=False), dict(lengths=None, causal=True)):
        (loop,) = loops(narrowed, **given)
        assert not isinstance(loop.stop, ir.Size)


def test_what_a_loop_changes_is_not_known_behind_it() -> None:
    first, second = loops(moved)
    assert isinstance(first.stop, ir.Size)
    assert not isinstance(second.stop, ir.Size)
