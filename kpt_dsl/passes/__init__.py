"""Passes: functions from tile IR to tile IR, between the front end and an emitter. None knows a backend.

``padding`` keeps the lanes that hold no element from being seen; ``split`` cuts loops so that most tiles need no mask.
"""
