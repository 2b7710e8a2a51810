"""The demo: tunes kpt's ops, shows generated code, runs a real sentence model through it, and writes one report."""
