"""The FP8 matrix product, written once for every device."""

import kpt_dsl as kd


@kd.kernel(a="M K", b="N K", scale_a="M", scale_b="N", bias="N", y="M N")
def fp8_matmul_fwd(a: kd.In, b: kd.In, scale_a: kd.In, scale_b: kd.In, bias: kd.In, y: kd.Out) -> None:
    """y = (a @ b.T) * scale_a[:, None] * scale_b[None, :] + bias, accumulated in float32; a tensor-wise scale is a vector
    of stride 0."""
    for m, n in kd.parallel(kd.tile("M"), kd.tile("N")):
        acc = kd.zeros([m, n])
        for k in kd.sequential(kd.tile("K")):
            acc = kd.dot(a[m, k], b[n, k].T, acc)
        scaled = acc * scale_a[m][:, None] * scale_b[n][None, :]
        if bias is not None:
            scaled = scaled + bias[n][None, :]
        y[m, n] = scaled
