"""Sums of columns, which gradients of weights and biases end with, written once for every device: always in the same order."""

import kpt_dsl as kd


@kd.kernel(x="M N", partial="P N")
def partial_column_sums(x: kd.In, partial: kd.Out) -> None:
    """Float32 sums of the columns of x over P shares of its rows."""
    for p, n in kd.parallel("P", kd.tile("N")):
        total = kd.zeros([n])
        for m in kd.sequential(kd.tile("M"), share=p):
            total += kd.sum(x[m, n], axis=0)
        partial[p, n] = total


@kd.kernel(first="P N", second="P N", first_sum="N", second_sum="N")
def column_sums(first: kd.In, second: kd.In, first_sum: kd.Out, second_sum: kd.Out) -> None:
    """The sums of the columns of one or two matrices of partial sums, rounded to the outputs' types.

    There are few rows, so each program reads all of its columns at once: it waits for memory once.
    """
    for n in kd.parallel(kd.tile("N")):
        first_sum[n] = kd.sum(first[:, n], axis=0)
        if second is not None:
            second_sum[n] = kd.sum(second[:, n], axis=0)


def share_count(wanted: int, most: int) -> int:
    """How many shares to deal rows out in: ``most``, or where fewer are wanted a power of two. Each number has kernels of its
    own, and the rows of a program change with every call."""
    return most if wanted >= most else 1 << max(0, wanted.bit_length() - 1)
