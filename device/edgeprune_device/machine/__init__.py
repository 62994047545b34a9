"""The board, its state and its load, read before and beside a measurement."""
