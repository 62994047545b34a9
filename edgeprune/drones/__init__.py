"""A drone over SSH: set up, given bundles, asked for reports; disk images and containers."""
