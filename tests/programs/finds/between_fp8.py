# pallas: from one float8 to the other
# Found by drawing, mended since. Run it with: python -m tests.programs FILE
from tests.generated.arrays import Layout
from tests.programs.program import Call, Tensor

import kpt_dsl as kd


@kd.kernel(x1="M", y1="M")
def drawn(x1: kd.In, y1: kd.Out) -> None:
    for m in kd.parallel(kd.tile("M")):
        y1[m] = x1[m]


CALL = Call(
    tensors=(Tensor('x1', ('M',), 'f8e4m3', layout=Layout(order=(0,), gap=0)), Tensor('y1', ('M',), 'f8e5m2', role='out', layout=Layout(order=(0,), gap=0))),
    extents={'M': 3},
    loops=(('M', True, 0),),
    refusing=('numpy', 'triton', 'pallas'),
    tags=('narrow',),
)
