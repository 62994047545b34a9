"""Pruning methods compared in one run on one machine (`python -m benchmarks.pruning --help`)."""
