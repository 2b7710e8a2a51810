# triton: AssertionError: cannot cast [56] to int32
# Found by drawing, mended since. Run it with: python -m tests.programs FILE
from tests.generated.arrays import Layout
from tests.programs.program import Call, Tensor

import kpt_dsl as kd


@kd.kernel(x1="K", x2="K D", x3="K M D", x4="B N", x5="Q K M", y1="N M")
def drawn(x1: kd.In, x2: kd.In, x3: kd.In, x4: kd.In, x5: kd.In, y1: kd.Out, count1: kd.Int, count2: kd.Int, scale1: kd.Float) -> None:
    for m, n in kd.parallel(kd.tile("M"), kd.tile("N")):
        v1 = ((count1 - x1[kd.size("K") - 1]) * x2[count2, kd.size("D") - 1].to(kd.i32))
        v2 = kd.sigmoid(kd.maximum(kd.log(kd.abs(scale1) + 1.0), scale1))
        acc1 = kd.full([], -kd.inf)
        for k1 in kd.sequential(kd.tile("K")):
            v3 = kd.abs((x3[k1, m, 1][None, :, :] + x4[0, n][:, None, None]))
            v4 = x5[:, k1, m]
            acc1 = kd.maximum(acc1, kd.max((kd.full([k1], scale1) + 0.0), axis=0))
        y1[n, m] = ((((m.index[None, :] * n.index[:, None]) + v1) + v2) + acc1)


CALL = Call(
    tensors=(Tensor('x1', ('K',), 'i32', layout=Layout(order=(0,), gap=3)), Tensor('x2', ('K', 'D'), 'f8e4m3', layout=Layout(order=(0, 1), gap=0)), Tensor('x3', ('K', 'M', 'D'), 'f32', grain=-1, layout=Layout(order=(0, 1, 2), gap=1)), Tensor('x4', ('B', 'N'), 'f32', grain=-1, layout=Layout(order=(0, 1), gap=0)), Tensor('x5', ('Q', 'K', 'M'), 'i32', layout=Layout(order=(2, 1, 0), gap=3)), Tensor('y1', ('N', 'M'), 'f32', role='out', layout=Layout(order=(1, 0), gap=3), off=0.00014238357543945314)),
    extents={'M': 33, 'N': 17, 'K': 7, 'D': 2, 'B': 3, 'Q': 7},
    scalars={'count1': -1, 'count2': 6, 'scale1': -1.5},
    loops=(('M', True, 0), ('N', True, 0), ('K', True, 2)),
    refusing=('numpy', 'triton', 'pallas'),
    seed=600,
    tags=('smooth', 'cast to int', 'narrow', 'int index', 'one dim twice', 'loaded index'),
)
