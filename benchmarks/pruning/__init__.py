"""Pruning methods side by side: one command, one machine, one run (`python -m benchmarks.pruning --help`)."""
