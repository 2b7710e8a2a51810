"""Where PyTorch is not installed (CPython 3.12 in CI), the files that need its tensors are not collected, and are named."""

import re
from importlib.util import find_spec
from pathlib import Path

collect_ignore = (
    []
    if find_spec("torch")
    else sorted(f.name for f in Path(__file__).parent.glob("test_*.py") if re.search("^import torch", f.read_text(), re.M))
)


def pytest_report_header() -> str:
    return f"not collected, for they need torch: {', '.join(collect_ignore)}" if collect_ignore else ""
