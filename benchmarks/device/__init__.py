"""Pre- and post-processing beside Ultralytics' own; see __main__.py."""
