"""The terminal: progress, the time left, figures and tables as text."""
