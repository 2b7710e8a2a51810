"""Running a generated case: on a device, through an interpreter, or as NumPy; then comparing with float64."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from kpt_dsl import runtime, targets
from kpt_dsl.instance import Instance
from kpt_dsl.runtime.numpy import run as run_numpy
from tests.generated.arrays import assert_untouched_outside, exact, to_device
from tests.generated.case import Case, Close
from tests.generated.configs import any_legal, any_lengths
from tests.tolerances import assert_within

_EXACT = 1e-9
"""Largest error of the float64 mode, as a part of the result; constants such as log2(e) have 16 digits."""


def check(case: Case, backend: str, device: str) -> None:
    """Run a case with a config drawn by its seed, and compare. Raises AssertionError naming the config."""
    if backend == "pallas" and not case.on_tpu:
        return
    arguments = case.kernel.defaults | case.arguments()
    expected = case.expected(arguments, cuda=device == "cuda")
    given = {name: to_device(a, device) if isinstance(a, torch.Tensor) else a for name, a in arguments.items()}
    instance = Instance.bind(case.kernel, given)
    if backend == "numpy":
        config = any_lengths(instance, case.seed)
    elif device == "cuda":
        config = any_legal(instance, _present(), case.seed, most_steps=1 << 20)
    else:
        config = any_legal(instance, runtime.runtime(backend).target(given), case.seed)
    try:
        returned = runtime.run(instance, given, config, backend)
        outputs: Mapping[str, Any] = given if returned is None else returned
        for name in case.outputs:
            expected[name].check(outputs[name], name)
            assert_untouched_outside(given[name], name)
    except Exception as error:
        error.add_note(f"config: {config}")
        raise


def check_exactly(case: Case) -> None:
    """The float64 mode of NumPy and the reference were written apart and must agree to many digits."""
    if case.rounds_on_the_way:
        return
    arguments = case.kernel.defaults | case.arguments()
    instance = Instance.bind(case.kernel, arguments)
    outputs = {name: exact(arguments[name]) for name in case.outputs}
    run_numpy(instance, arguments | outputs, any_lengths(instance, case.seed), precision="f64")
    for name, wanted in case.expected(arguments, cuda=False).items():
        least = wanted.beside if isinstance(wanted, Close) else 0.0
        scale = np.max(np.abs(wanted.values), initial=least, where=np.isfinite(wanted.values))
        values = wanted.values if isinstance(wanted, Close) else wanted.saturated
        assert_within(wanted.compared(outputs[name]), values, _EXACT * scale, name)


def _present() -> targets.Target:
    found = targets.of_device(torch.cuda.get_device_name())
    assert found is not None, f"no target is known for {torch.cuda.get_device_name()}"
    return found
