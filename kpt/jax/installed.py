"""Whether JAX is there, and new enough."""

from importlib.metadata import PackageNotFoundError, version

from kpt_dsl.errors import MissingPackageError

OLDEST = (0, 10)
"""The first release whose types say over which axes of a mesh an array varies (``jax.sharding.ManualAxisType``)."""


def check_jax() -> None:
    """Raises MissingPackageError where JAX is missing or too old, with what to install."""
    wanted = f"kpt.jax needs JAX {'.'.join(map(str, OLDEST))} or newer: pip install 'kpt-dsl[tpu]'"
    try:
        found = version("jax")
    except PackageNotFoundError as error:
        raise MissingPackageError(f"{wanted}; it is not installed") from error
    if tuple([int(part) for part in found.split(".")[:2]]) < OLDEST:
        raise MissingPackageError(f"{wanted}; {found} is installed")
