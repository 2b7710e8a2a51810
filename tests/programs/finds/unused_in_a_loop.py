# triton: KeyError: 'm3'
# Found by drawing, mended since. Run it with: python -m tests.programs FILE
from tests.generated.arrays import Layout
from tests.programs.program import Call, Tensor

import kpt_dsl as kd


@kd.kernel(x1="K", x2="M", x3="D", x4="M D", x5="B M N", x6="M", y1="N M")
def drawn(x1: kd.In, x2: kd.In, x3: kd.In, x4: kd.In, x5: kd.In, x6: kd.In, y1: kd.Out, count1: kd.Int, scale1: kd.Float) -> None:
    for m, n in kd.parallel("M", "N"):
        v1 = x1[:]
        acc1 = kd.full(["D"], kd.inf)
        for m1 in kd.sequential(kd.tile("M"), start=count1, stop=count1):
            acc1 = kd.minimum(acc1, kd.min((x4[m1, :] + 0.0), axis=0))
        acc2 = kd.full(["D"], -kd.inf)
        for m2 in kd.sequential(kd.tile("M")):
            last1 = m2.stop
            acc3 = kd.zeros([m2])
            acc4 = kd.zeros([])
            for m3 in kd.sequential(kd.tile("M"), stop=last1):
                acc3 = acc3 + kd.sum(kd.where((m3.index[:, None] <= m2.index[None, :] + 0), ((x4[m2, 15][None, :] * x2[m3][:, None]) + 0.0), 0.0), axis=0)
                acc2 = kd.maximum(acc2, kd.max(kd.max(kd.where((m3.index[:, None, None] <= m2.index[None, None, :] + 0), (kd.where((x6[m2][None, None, :] >= kd.full([m3, "D"], n, kd.i32)[:, :, None]), x4[m2, 15][None, None, :], 0.0) + 0.0), -kd.inf), axis=0), axis=1))
            acc2 = kd.maximum(acc2, kd.max((((x4[m2, :] + 0.0) + acc3[:, None]) + acc4), axis=0))
        y1[n, m] = (((scale1 + kd.sum(v1, axis=0)) + kd.sum(acc1, axis=0)) + kd.min(acc2, axis=-1))


CALL = Call(
    tensors=(Tensor('x1', ('K',), 'f32', layout=Layout(order=(0,), gap=0)), Tensor('x2', ('M',), 'f32', layout=Layout(order=(0,), gap=1)), Tensor('x3', ('D',), 'f32', layout=Layout(order=(0,), gap=1)), Tensor('x4', ('M', 'D'), 'f8e4m3', grain=-2, layout=Layout(order=(0, 1), gap=0)), Tensor('x5', ('B', 'M', 'N'), 'f32', layout=Layout(order=(0, 1, 2), gap=0)), Tensor('x6', ('M',), 'i32', most=3, layout=Layout(order=(0,), gap=0)), Tensor('y1', ('N', 'M'), 'bf16', role='out', layout=Layout(order=(0, 1), gap=1))),
    extents={'M': 1, 'N': 1, 'K': 100, 'D': 16, 'B': 7},
    scalars={'count1': 6, 'scale1': 1.0},
    loops=(('M', False, 0), ('N', False, 0), ('M', True, 2), ('M', True, 2), ('M', True, 3)),
    refusing=('numpy', 'triton', 'pallas'),
    seed=188,
    tags=('bounds', 'narrow', 'loop in a loop', 'tile bounds', 'one dim twice'),
)
