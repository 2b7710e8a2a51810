"""The space of GPU kernels that Triton's compiler schedules: its rules, sizes, registers, and the model that ranks configs."""
