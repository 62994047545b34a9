"""Pre- and post-processing compared with Ultralytics'; see __main__.py."""
