"""The normal distribution function as a helper of generated text, which Triton and JAX lack or make of many cases.

The polynomial is a fit of least squares whose weights grow where errors are largest, until these are alike (Lawson 1961): over
t from 0 to 6, for log2(2 ndtr(-t)) and without a constant, so that half is half. An error counts as what it makes of
max(t, 1/2) ndtr(-t), and as 1e-5 at least: gelu and its slope are what most kernels want of it.
"""


def ndtr(language: str) -> str:
    """The function in Python, of what a module calls ``language``."""
    return f'''\
def ndtr(x):
    """Below zero the exponential of a polynomial, fitted to log2(2 ndtr) from -6 on so that the largest errors are alike; above
    zero the rest to 1. Off by less than 1.4e-7; beyond -6, where ndtr is 1e-9, the polynomial falls faster still."""
    t = {language}.abs(x)
    far = ((-1.1953126204e-6 * t + 1.9783383323e-5) * t - 9.3934526376e-5) * t - 3.5572535125e-4
    near = (((far * t + 7.3404079303e-3) * t - 5.2677996457e-2) * t - 4.5915359259e-1) * t - 1.1511105299
    below = {language}.exp2(near * t - 1.0)
    return {language}.where(x < 0.0, below, 1.0 - below)
'''
