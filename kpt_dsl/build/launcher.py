"""What Triton 3.6 starts kernels by, made beside their compilation: a C module a signature, and one that asks the driver.

A C compiler takes a third of a second for each, for which a first launch would wait. Triton 3.9 needs neither.
"""

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress

from kpt_dsl.runtime.triton_module import triton_package


@contextmanager
def made_beside(signature: Mapping[object, str], here: bool) -> Iterator[None]:
    """Meanwhile make what starts a kernel of a signature on an NVIDIA GPU, in Triton's cache; and, if it will be started
    ``here``, what asks the driver. Whatever goes wrong does so again at the launch."""
    from triton.backends.nvidia import driver

    makes: list[Callable[[], object]] = []
    if hasattr(driver, "make_launcher"):
        makes = [lambda: _module(signature), _ask_the_driver] if here else [lambda: _module(signature)]
    started: list[threading.Thread] = []
    with suppress(RuntimeError):  # no thread is left, or Python is about to end: the first launch waits then
        for make in makes:
            thread = threading.Thread(target=_quietly, args=(make,), daemon=True)
            thread.start()
            started.append(thread)
    try:
        yield
    finally:
        for thread in started:
            thread.join()


def _quietly(make: Callable[[], object]) -> None:
    with suppress(Exception):
        make()


def _module(signature: Mapping[object, str]) -> None:
    """As Triton's ``CudaLauncher`` does; of descriptors it asks only whether they are the driver's, as ours are."""
    from triton.backends.nvidia import driver

    described = [True for kind in signature.values() if kind.startswith("tensordesc")]
    text = driver.make_launcher({}, signature, described)
    driver.compile_module_from_src(text, "__triton_launcher", driver.library_dirs(), driver.include_dirs, driver.libraries)


def _ask_the_driver() -> None:
    _ = triton_package().runtime.driver.active
