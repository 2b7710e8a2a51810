"""What modules of any class are recognised by, a file a form.

Each has ``match(module)``, which gives what the parts of a module of this form are called, or None, and
``prove(module, matched, kinds)``, which gives what serves it, why nothing does, or None where none of the kinds is meant.
"""
