"""``F.scaled_dot_product_attention`` in a module's own code."""

from functools import partial
from typing import Any

from kpt.ops.flash_attention.sdpa import scaled_dot_product_attention
from kpt.ops.replace.functions import pytorchs

KIND = "scaled_dot_product_attention"

find = partial(pytorchs.find, KIND)


def prove(name: str, own: Any) -> pytorchs.Exchange:
    """The op."""
    return pytorchs.Exchange(KIND, scaled_dot_product_attention)
