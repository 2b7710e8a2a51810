"""Functions that a module's code calls and that an op serves, a file each.

Each has ``KIND``, ``find(forward)``, which gives the global names under which a forward calls such a function, and
``prove(name, function)``, which gives what takes its place, or why nothing does.
"""
