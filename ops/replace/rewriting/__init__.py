"""Forwards made again of their own text, in which what one op computes is one call of it.

All else stays as it is written: control flow, caches, keywords that are handed on. Tracing by torch.fx would decide ``is None``
once for all calls, and cannot hand ``**kwargs`` on. Knows neither modules nor ops.
"""
