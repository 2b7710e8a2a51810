# triton: AssertionError: block offset start must be 16-byte aligned
# Found by drawing, mended since. configs: block_N=64; block_N=8; block_N=16; block_N=16 num_warps=4 descriptors=True
# Run it with: python -m tests.programs FILE
from tests.generated.arrays import Layout
from tests.programs.program import Call, Tensor

import kpt_dsl as kd


@kd.kernel(x1="K", x2="M N", x3="B M D", x4="M", x5="M D N", y1="N M")
def drawn(x1: kd.In, x2: kd.In, x3: kd.In, x4: kd.In, x5: kd.In, y1: kd.Out) -> None:
    for m, n in kd.parallel("M", kd.tile("N", starts=x1)):
        group1 = n.group
        v1 = ((x2[m, n][None, :] + x2[:, kd.size("N") - 1][:, None]) + 0.0)
        v2 = (kd.dot(x3[x4[m], :, :], x5[m, :, n]) + 0.0)
        v1, v2 = v2, (v1 + v2)
        v3 = (((x2[m, n] + x2[m, n]) + 1.0) + 1.0)
        y1[n, m] = ((v3 + group1) + v3)


CALL = Call(
    tensors=(Tensor('x1', ('K',), 'i32', fill='starts', most=16, layout=Layout(order=(0,), gap=0)), Tensor('x2', ('M', 'N'), 'f16', layout=Layout(order=(0, 1), gap=0)), Tensor('x3', ('B', 'M', 'D'), 'f32', layout=Layout(order=(0, 2, 1), gap=0)), Tensor('x4', ('M',), 'i32', fill='index', most=2, layout=Layout(order=(0,), gap=0)), Tensor('x5', ('M', 'D', 'N'), 'f32', layout=Layout(order=(0, 1, 2), gap=0)), Tensor('y1', ('N', 'M'), 'f32', role='out', layout=Layout(order=(0, 1), gap=0))),
    extents={'M': 2, 'N': 16, 'K': 16, 'D': 16, 'B': 2},
    loops=(('M', False, 0), ('N', True, 0)),
    refusing=('numpy', 'triton', 'pallas'),
    seed=24,
    tags=('tidy', 'smooth', 'groups', 'narrow', 'product', 'loaded index'),
)
