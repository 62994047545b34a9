"""INT8 and FP16 side by side, against peers; see __main__.py."""
