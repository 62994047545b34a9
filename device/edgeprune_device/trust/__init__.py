"""Trusted keys, signatures, and the signed bundle with its manifest."""
