"""Names the packages: those that lie under their own names, and the folder ops/, which installs as kpt.ops."""

from setuptools import find_packages, setup

setup(
    packages=[
        *find_packages(include=["kpt", "kpt.*", "kpt_dsl", "kpt_dsl.*", "autotune_db", "autotune_db.*"]),
        "kpt.ops",
        *(f"kpt.ops.{package}" for package in find_packages("ops")),
    ]
)
