# Found by drawing, mended since. Run it with: python -m tests.programs FILE
from tests.generated.arrays import Layout
from tests.programs.program import Call, Tensor

import kpt_dsl as kd


@kd.kernel(x1="M", x2="N M", x3="K", x4="K M", y1="N M")
def drawn(x1: kd.In, x2: kd.In, x3: kd.In, x4: kd.In, y1: kd.Out) -> None:
    for m, n in kd.parallel(kd.tile("M"), kd.tile("N")):
        v1 = kd.maximum(((x1[m] + 1.0) + 1.0), 1.0)
        v2 = (x2[n, m] + 1.0)
        acc1 = kd.zeros([m])
        for k1 in kd.sequential(kd.tile("K")):
            v3 = kd.exp(kd.minimum(kd.minimum(kd.maximum((kd.full([], 1, kd.i32) * 0.5), -8.0), 8.0), 2.0))
            acc1 = acc1 + kd.sum(((x4[k1, m] + 0.0) + v3), axis=-2)
        y1[n, m] = (((x2[n, m] + v1[None, :]) + v2) + acc1[None, :])


CALL = Call(
    tensors=(Tensor('x1', ('M',), 'f32', layout=Layout(order=(0,), gap=0)), Tensor('x2', ('N', 'M'), 'f32', layout=Layout(order=(0, 1), gap=0)), Tensor('x3', ('K',), 'f32', layout=Layout(order=(0,), gap=0)), Tensor('x4', ('K', 'M'), 'f32', layout=Layout(order=(0, 1), gap=0)), Tensor('y1', ('N', 'M'), 'f32', role='out', layout=Layout(order=(0, 1), gap=0), off=0.00011224947109273981)),
    extents={'M': 3, 'N': 3, 'K': 3},
    loops=(('M', True, 0), ('N', True, 0), ('K', True, 2)),
    refusing=('numpy', 'triton', 'pallas'),
    tags=('smooth',),
)
