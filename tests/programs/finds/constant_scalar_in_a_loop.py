# pallas: AttributeError: 'int' object has no attribute 'astype'
# Found by drawing, mended since. Run it with: python -m tests.programs FILE
from tests.generated.arrays import Layout
from tests.programs.program import Call, Tensor

import kpt_dsl as kd


@kd.kernel(x1="M", y1="K N M")
def drawn(x1: kd.In, y1: kd.Out) -> None:
    for m, n, k in kd.parallel(kd.tile("M"), "N", "K"):
        v1 = (x1[m] + 1.0)
        acc1 = kd.zeros([m, "M"])
        acc2 = kd.zeros([m])
        for m1 in kd.sequential(kd.tile("M"), start=m.start - 0):
            acc3 = kd.zeros([])
            seen1 = kd.full([], 0, kd.i32)
            for m2 in kd.sequential(kd.tile("M")):
                acc3 = acc3 + kd.sum((x1[m2] + 0.0), axis=-1)
            acc1 = acc1 + kd.sum(kd.where((m1.index[:, None, None] >= m.index[None, :, None] - 0), ((((x1[m][None, :, None] + (x1[:][None, :] + x1[m1][:, None])[:, None, :]) + 0.0) + acc3) + seen1), 0.0), axis=-3)
            acc2 = acc2 + kd.sum(kd.where((m1.index[:, None] >= m.index[None, :] - 0), ((x1[m][None, :] + x1[m1][:, None]) + 0.0), 0.0), axis=-2)
        y1[k, n, m] = (((x1[m] + v1) + kd.sum(acc1, axis=-1)) + acc2)


CALL = Call(
    tensors=(Tensor('x1', ('M',), 'f32', layout=Layout(order=(0,), gap=0)), Tensor('y1', ('K', 'N', 'M'), 'f32', role='out', layout=Layout(order=(0, 1, 2), gap=0))),
    extents={'M': 3, 'N': 2, 'K': 2},
    loops=(('M', True, 0), ('N', False, 0), ('K', False, 0), ('M', True, 3), ('M', True, 4)),
    refusing=('numpy', 'triton', 'pallas'),
    seed=744,
    tags=('bounds', 'tile bounds', 'loop in a loop', 'one dim twice'),
)
