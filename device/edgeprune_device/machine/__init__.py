"""The board, its state and its load, read before and during a measurement."""
