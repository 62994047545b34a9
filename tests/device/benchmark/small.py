"""Options of a very short benchmark, and a manifest with two models."""

QUICK = {"seconds": 0.05, "warmup_seconds": 0.05}


def both(manifest, target):
    entry = manifest["models"]["fp32"]
    return {"models": {"int8": entry, "fp32": entry}, "target": target}
