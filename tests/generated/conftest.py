"""What cases need before JAX starts."""

import os

# Each case is compiled once and run once: XLA's optimisations take longer than they save.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true")
