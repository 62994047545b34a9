"""The terminal: progress, the time left, figures as text."""
