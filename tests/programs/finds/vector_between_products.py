# gluon: a vector loaded between products, in two functions
# Found by drawing, mended since. Run it with: python -m tests.programs FILE
from tests.generated.arrays import Layout
from tests.programs.program import Call, Tensor

import kpt_dsl as kd


@kd.kernel(q="M D", k="N D", w="N D", y1="M D")
def drawn(q: kd.In, k: kd.In, w: kd.In, y1: kd.Out, count1: kd.Int, scale1: kd.Float) -> None:
    for m in kd.parallel(kd.tile("M")):
        query = q[m, :]
        acc, total = kd.zeros([m, "D"]), kd.zeros([m])
        for n in kd.sequential(kd.tile("N"), stop=count1):
            scores = kd.dot(query, k[n, :].T)
            p = ((kd.minimum(kd.maximum(scores, -8.0), 8.0) + q[m, 127][:, None]) * scale1)
            total = total + kd.sum(p, axis=1)
            acc = kd.dot(p.to(kd.bf16), w[n, :], acc)
        y1[m, :] = kd.maximum((acc + total[:, None]), 0.0)


CALL = Call(
    tensors=(Tensor('q', ('M', 'D'), 'bf16', most=1, layout=Layout(order=(0, 1), gap=0)), Tensor('k', ('N', 'D'), 'bf16', most=1, layout=Layout(order=(0, 1), gap=0)), Tensor('w', ('N', 'D'), 'bf16', most=1, layout=Layout(order=(0, 1), gap=0)), Tensor('y1', ('M', 'D'), 'bf16', role='out', layout=Layout(order=(0, 1), gap=0))),
    extents={'M': 64, 'N': 64, 'D': 128},
    scalars={'count1': 17, 'scale1': 0.0},
    loops=(('M', True, 0), ('N', True, 1)),
    refusing=('numpy', 'triton', 'pallas'),
    seed=360,
    tags=('tidy', 'products'),
)
