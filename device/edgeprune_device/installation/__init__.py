"""A bundle becomes the release in use, or everything stays as it was."""
