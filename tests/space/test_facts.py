"""What the rules of a space ask of a kernel."""

import pytest

import kpt_dsl as kd
from kpt_dsl import targets
from kpt_dsl.instance import Instance
from kpt_dsl.space import space

DIMS = {"M": 4096, "N": 256, "P": 8}


@kd.kernel(x="M N", y="M N", total="P N")
def down(x: kd.In, y: kd.Out, total: kd.Out) -> None:
    for p in kd.parallel("P"):
        acc = kd.zeros(["N"])
        for m in kd.sequential(kd.tile("M"), share=p):
            acc = acc + kd.sum(x[m, :], axis=0)
            y[m, :] = x[m, :] * 2.0
        total[p, :] = acc


@kd.kernel(x="M N", y="M N", total="M")
def along(x: kd.In, y: kd.Out, total: kd.Out) -> None:
    for m in kd.parallel("M"):
        acc = kd.zeros([])
        for n in kd.sequential(kd.tile("N")):
            acc = acc + kd.sum(x[m, n], axis=0)
            y[m, n] = x[m, n] * 2.0
        total[m] = acc


@pytest.mark.parametrize(("kernel", "again"), [(down, 1), (along, 0)], ids=["down", "along"])
def test_only_what_streams_is_read_again_so_as_not_to_be_held(kernel: kd.Kernel, again: int) -> None:
    dims = {name: n for name, n in DIMS.items() if any(name in shape for shape in kernel.tensors.values())}
    instance = Instance.of_shapes(kernel, dims, dict.fromkeys(kernel.tensors, "f32"))
    facts = space(instance, targets.get("nvidia-h200")).variants[0].facts
    assert list(map(len, facts.read_again)) == [0, again]
