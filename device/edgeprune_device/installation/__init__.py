"""Installs a bundle as the release in use, or leaves everything unchanged."""
