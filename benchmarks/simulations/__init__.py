"""Simulations whose tables and figures are in docs/; each is a command: `python -m benchmarks.simulations.pruning`."""
