# triton: a descriptor of conditions
# Found by drawing, mended since. Run it with: python -m tests.programs FILE
from tests.generated.arrays import Layout
from tests.programs.program import Call, Tensor

import kpt_dsl as kd


@kd.kernel(x1="K", x2="K D N M", x3="M N", x4="B", x5="K B M", x6="M B", y1="N M")
def drawn(x1: kd.In, x2: kd.In, x3: kd.In, x4: kd.In, x5: kd.In, x6: kd.In, y1: kd.Out, scale1: kd.Float, scale2: kd.Float) -> None:
    for m, n in kd.parallel(kd.tile("M"), kd.tile("N")):
        v1 = (kd.where((x1[0] < 0), (kd.sum(x2[0, :, n, m], axis=-3) + scale1), 0.0) + 0.0)
        v2 = (x3[m, n].T + 0.0)
        v1, v2 = v2, (v1 + v2)
        acc1 = kd.zeros([m])
        acc2 = kd.zeros([m, "N"])
        for b1 in kd.sequential(kd.tile("B"), stop=8):
            acc1 = acc1 + kd.sum((x5[0, b1, m] + 0.0), axis=-2)
            acc2 = kd.dot(x6[m, b1], kd.minimum(kd.maximum((kd.full([b1, "N"], scale2) + 1.0), -8.0), 8.0), acc2)
        y1[n, m] = (kd.full([n, m], kd.size("M"), kd.i32) < 0)


CALL = Call(
    tensors=(Tensor('x1', ('K',), 'i32', most=3, layout=Layout(order=(0,), gap=0)), Tensor('x2', ('K', 'D', 'N', 'M'), 'f32', layout=Layout(order=(0, 1, 2, 3), gap=0)), Tensor('x3', ('M', 'N'), 'f16', layout=Layout(order=(0, 1), gap=0)), Tensor('x4', ('B',), 'f32', layout=Layout(order=(0,), gap=0)), Tensor('x5', ('K', 'B', 'M'), 'f32', layout=Layout(order=(0, 1, 2), gap=0)), Tensor('x6', ('M', 'B'), 'f32', layout=Layout(order=(0, 1), gap=0)), Tensor('y1', ('N', 'M'), 'bool', role='out', layout=Layout(order=(0, 1), gap=0))),
    extents={'M': 16, 'N': 16, 'K': 2, 'D': 16, 'B': 16},
    scalars={'scale1': 1.0, 'scale2': 1.0},
    loops=(('M', True, 0), ('N', True, 0), ('B', True, 2)),
    refusing=('numpy', 'triton', 'pallas'),
    seed=1,
    tags=('tidy', 'loaded index', 'narrow', 'bounds', 'product'),
)
