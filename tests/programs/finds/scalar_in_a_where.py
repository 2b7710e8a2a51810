# triton: ValueError: too many indices for tensor of rank 0
# Found by drawing, mended since. Run it with: python -m tests.programs FILE
from tests.generated.arrays import Layout
from tests.programs.program import Call, Tensor

import kpt_dsl as kd


@kd.kernel(x1="N", x2="N", x3="N", x4="N", x5="N", x6="M", y1="N M K")
def drawn(x1: kd.In, x2: kd.In, x3: kd.In, x4: kd.In, x5: kd.In, x6: kd.In, y1: kd.Out, scale1: kd.Float) -> None:
    for m, n, k in kd.parallel(kd.tile("M"), kd.tile("N"), "K"):
        v1 = kd.where(((x1[:] + x2[:])[None, :] == kd.where((x4[n] > x3[n]), n.index, n.index)[:, None]), kd.max(kd.where((x1[:][None, :] != x1[:][:, None]), x5[:][:, None], 0.0), axis=0)[None, :], 0.0)
        v2 = (x6[m] + 0.0)
        v3 = (m.index.to(kd.f32) + 0.0)
        v2, v3 = v3, (v2 + v3)
        last1 = n.stop + 5
        acc1 = kd.full([n], -kd.inf)
        seen1 = kd.full([], 0, kd.i32)
        for n1 in kd.sequential(kd.tile("N"), stop=last1):
            v4 = (~(n1.index < 8))
            acc1 = kd.maximum(acc1, kd.max(kd.where((n1.index[:, None] <= n.index[None, :] + 5), ((kd.where((x1[n][None, :] == n1.index[:, None]), 1.0, 0.0) + 0.0) + kd.where(v4, 1.0, 0.0)[:, None]), -kd.inf), axis=0))
        y1[n, m, k] = (((kd.full([n, m], scale1) + kd.sum(v1, axis=1)[:, None]) + acc1[:, None]) + seen1)


CALL = Call(
    tensors=(Tensor('x1', ('N',), 'i32', most=40, layout=Layout(order=(0,), gap=0)), Tensor('x2', ('N',), 'i32', most=3, layout=Layout(order=(0,), gap=0)), Tensor('x3', ('N',), 'bf16', grain=-1, layout=Layout(order=(0,), gap=0)), Tensor('x4', ('N',), 'f32', layout=Layout(order=(0,), gap=0)), Tensor('x5', ('N',), 'f32', grain=-2, layout=Layout(order=(0,), gap=1)), Tensor('x6', ('M',), 'f8e4m3', grain=-2, layout=Layout(order=(0,), gap=3)), Tensor('y1', ('N', 'M', 'K'), 'f32', role='out', layout=Layout(order=(0, 1, 2), gap=3))),
    extents={'M': 37, 'N': 16, 'K': 3},
    scalars={'scale1': 2.0},
    loops=(('M', True, 0), ('N', True, 0), ('K', False, 0), ('N', True, 3)),
    refusing=('numpy', 'triton', 'pallas'),
    seed=533,
    tags=('one dim twice', 'narrow', 'bounds', 'tile bounds'),
)
