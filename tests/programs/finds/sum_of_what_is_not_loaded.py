# triton: ValueError: max() arg is an empty sequence (of the loads of a loop that has none)
# Found by drawing, mended since. Run it with: python -m tests.programs FILE
from tests.generated.arrays import Layout
from tests.programs.program import Call, Tensor

import kpt_dsl as kd


@kd.kernel(x1="N M", x2="N", x3="M N", x4="M N", x5="D N K", x6="B", y1="N M")
def drawn(x1: kd.In, x2: kd.In, x3: kd.In, x4: kd.In, x5: kd.In, x6: kd.In, y1: kd.Out, scale1: kd.Float, flag1: kd.Static) -> None:
    for m, n in kd.parallel("M", kd.tile("N")):
        v1 = x1[n, :].T
        v2 = (kd.where((x2[n][None, None, :] < x3[:, :][:, :, None]), 1, 0) + 0.0)
        v3 = ((v1[:, None, :] + x4[:, :][:, :, None]) + 0.0)
        v2, v3 = v3, (v2 + v3)
        v4 = ((kd.exp(kd.minimum((x5[:, n, :] * 0.5), 2.0)) + (-x1[n, m])[None, :, None]) + 0.0)
        if flag1 is True:
            v4 = v4 + 1.0
        elif isinstance(flag1, float):
            v4 = v4 + 2.0
        else:
            v4 = v4 + 3.0
        acc1 = kd.zeros([n])
        for b1 in kd.sequential(kd.tile("B")):
            acc1 = acc1 + kd.sum((kd.full([b1, n], scale1) + 0.0), axis=-2)
        y1[n, m] = ((x1[n, m] + kd.sum(kd.sum(v4, axis=-1), axis=-2)) + acc1)


CALL = Call(
    tensors=(Tensor('x1', ('N', 'M'), 'f32', layout=Layout(order=(0, 1), gap=0)), Tensor('x2', ('N',), 'i32', most=40, layout=Layout(order=(0,), gap=0)), Tensor('x3', ('M', 'N'), 'i32', layout=Layout(order=(0, 1), gap=0)), Tensor('x4', ('M', 'N'), 'f32', layout=Layout(order=(0, 1), gap=0)), Tensor('x5', ('D', 'N', 'K'), 'i32', layout=Layout(order=(0, 2, 1), gap=0)), Tensor('x6', ('B',), 'f32', layout=Layout(order=(0,), gap=0)), Tensor('y1', ('N', 'M'), 'f32', role='out', layout=Layout(order=(0, 1), gap=0))),
    extents={'M': 2, 'N': 0, 'K': 0, 'D': 3, 'B': 3},
    scalars={'scale1': 1.0},
    statics={'flag1': True},
    before=({'flag1': 1}, {'flag1': 1.0}),
    loops=(('M', False, 0), ('N', True, 0), ('B', True, 2)),
    refusing=('numpy', 'triton', 'pallas'),
    seed=416,
    tags=('empty', 'smooth', 'empty dim', 'one dim twice', 'static'),
)
