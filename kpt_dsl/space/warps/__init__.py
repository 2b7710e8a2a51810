"""The space of the warp-specialised schedule: its rules and sizes, and the times of chained and of lone products."""
