"""Rotary position embedding of queries and keys in one launch, written once for every device.

The two elements of a pair are turned by the angle of their position (Su et al. 2021, arXiv:2104.09864). cos and sin have a
column for each element, as models make them; the two of a pair may differ, as a model's own formula allows. Heads come in K
groups of N query and M key heads, a program each, so that a tile of cosines is read once for all of a group. ``back``
multiplies with each pair's transposed matrix, which is the gradient. Columns beyond the pairs are passed on (``rest``,
``kept``).
"""

import kpt_dsl as kd


@kd.function
def turned(
    a: kd.Value, b: kd.Value, cos_a: kd.Value, cos_b: kd.Value, sin_a: kd.Value, sin_b: kd.Value
) -> tuple[kd.Value, kd.Value]:
    """A pair by its angle."""
    return a * cos_a - b * sin_a, b * cos_b + a * sin_b


@kd.kernel(
    q="B K N T R P", k="B K M T R P", cos="B T R P", sin="B T R P", q_out="B K N T R P", k_out="B K M T R P",
    q_rest="B K N T S", k_rest="B K M T S", q_kept="B K N T S", k_kept="B K M T S",
)  # fmt: skip
def rotary_halves(
    q: kd.In, k: kd.In, cos: kd.In, sin: kd.In, q_out: kd.Out, k_out: kd.Out,
    q_rest: kd.In, k_rest: kd.In, q_kept: kd.Out, k_kept: kd.Out, back: kd.Static,
) -> None:  # fmt: skip
    """The two of a pair are half a row apart: R is 2."""
    for b, g, t in kd.parallel("B", "K", kd.tile("T")):
        cos_a, cos_b = cos[b, t, 0, :].to(kd.f32), cos[b, t, 1, :].to(kd.f32)
        sin_a, sin_b = sin[b, t, 0, :].to(kd.f32), sin[b, t, 1, :].to(kd.f32)
        if back:
            sin_a, sin_b = -sin_b, -sin_a
        if q is not None:
            for n in kd.sequential("N"):
                first, second = turned(q[b, g, n, t, 0, :], q[b, g, n, t, 1, :], cos_a, cos_b, sin_a, sin_b)
                q_out[b, g, n, t, 0, :] = first
                q_out[b, g, n, t, 1, :] = second
                if q_rest is not None:
                    q_kept[b, g, n, t, :] = q_rest[b, g, n, t, :]
        if k is not None:
            for m in kd.sequential("M"):
                first, second = turned(k[b, g, m, t, 0, :], k[b, g, m, t, 1, :], cos_a, cos_b, sin_a, sin_b)
                k_out[b, g, m, t, 0, :] = first
                k_out[b, g, m, t, 1, :] = second
                if k_rest is not None:
                    k_kept[b, g, m, t, :] = k_rest[b, g, m, t, :]


@kd.kernel(
    q="B K N T P R", k="B K M T P R", cos="B T P R", sin="B T P R", q_out="B K N T P R", k_out="B K M T P R",
    q_rest="B K N T S", k_rest="B K M T S", q_kept="B K N T S", k_kept="B K M T S",
)  # fmt: skip
def rotary_neighbours(
    q: kd.In, k: kd.In, cos: kd.In, sin: kd.In, q_out: kd.Out, k_out: kd.Out,
    q_rest: kd.In, k_rest: kd.In, q_kept: kd.Out, k_kept: kd.Out, back: kd.Static,
) -> None:  # fmt: skip
    """The two of a pair are neighbours: R is 2."""
    for b, g, t in kd.parallel("B", "K", kd.tile("T")):
        cos_a, cos_b = kd.split(cos[b, t, :, :].to(kd.f32))
        sin_a, sin_b = kd.split(sin[b, t, :, :].to(kd.f32))
        if back:
            sin_a, sin_b = -sin_b, -sin_a
        if q is not None:
            for n in kd.sequential("N"):
                even, odd = kd.split(q[b, g, n, t, :, :])
                even, odd = turned(even, odd, cos_a, cos_b, sin_a, sin_b)
                q_out[b, g, n, t, :, :] = kd.join(even, odd, "R")
                if q_rest is not None:
                    q_kept[b, g, n, t, :] = q_rest[b, g, n, t, :]
        if k is not None:
            for m in kd.sequential("M"):
                even, odd = kd.split(k[b, g, m, t, :, :])
                even, odd = turned(even, odd, cos_a, cos_b, sin_a, sin_b)
                k_out[b, g, m, t, :, :] = kd.join(even, odd, "R")
                if k_rest is not None:
                    k_kept[b, g, m, t, :] = k_rest[b, g, m, t, :]
