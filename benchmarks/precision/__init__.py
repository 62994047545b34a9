"""INT8 and FP16 compared with other tools; see __main__.py."""
