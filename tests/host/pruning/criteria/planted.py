"""One useless channel."""

HIDDEN = "model.2.m.0.cv1.conv"  # made by one convolution and its norm, read by one convolution


def planted(model, channels, factor=1e-3):
    """Scale all weights that make or read channel 5 of the hidden width by a tiny factor."""
    for layer in ("cv1.conv", "cv1.bn"):
        model.get_submodule(f"model.2.m.0.{layer}").weight.data[5] *= factor
    model.get_submodule("model.2.m.0.cv2.conv").weight.data[:, 5] *= factor
    return channels.out[HIDDEN]
