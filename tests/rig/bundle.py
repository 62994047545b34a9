"""A bundle of the built-in detector for `--target cpu`, made in seconds with edgeprune's own functions.

Nothing is pruned or trained; INT8 is calibrated with a few scenes and not gated. Its accuracy is really measured, but
on too few images to be meaningful.
"""

from __future__ import annotations

from pathlib import Path

#: Number of scenes for calibration, and in the bundle.
CALIBRATED, CARRIED = 6, 4


def make(folder: Path, name: str = "rig") -> Path:
    """Make folder/NAME.epb, signed with the key of $EDGEPRUNE_HOME."""
    from edgeprune_device.target import Target

    from edgeprune import demo
    from edgeprune import quantize as q
    from edgeprune.data import dataset, samples
    from edgeprune.exporting import precisions
    from edgeprune.exporting.to_onnx import to_onnx
    from edgeprune.measuring.accuracy import evaluate
    from edgeprune.model import checkpoint
    from edgeprune.workflow import pack

    source = checkpoint.load(demo.WEIGHTS)
    imgsz = source.input_size(None)
    data = dataset.load(demo.write_dataset(folder / "scenes", CALIBRATED, CARRIED))
    target = Target.load("cpu")
    fp32 = to_onnx(source.model, imgsz)
    pictures = [x[None].numpy() for x in samples.read(data, data.train, imgsz).pictures]
    ranges = q.calibrate(fp32, pictures)
    int8 = q.to_int8(fp32, ranges, method="max", activations=target.int8_activations, reduce_range=True)
    q.check(int8, activations=target.int8_activations)
    models, files, accuracy = {}, {}, {}
    for precision, model in (("fp32", fp32), ("int8", int8)):
        files[precision] = folder / f"model.{precision}.onnx"
        files[precision].write_bytes(model.SerializeToString())
        session = precisions.session(target, precision, model)
        evaluated, matches = evaluate(session, data, data.val, imgsz)
        accuracy[precision] = pack.figures(matches, range(len(data.val)))
        models[precision] = {
            **accuracy[precision],
            "runtime": session.description,
            "pictures": evaluated.pictures,
            **({"weight_bits": 7} if precision == "int8" else {}),
        }
    bundle = pack.pack(
        folder / f"{name}.epb",
        pack.Contents(
            name=name,
            target=target.name,
            task="detect",
            names=source.names,
            imgsz=imgsz,
            models=models,
            files=files,
            engines={},
            plans={},
            evaluation=pack.evaluation_set(data, data.val),
            described={
                "pictures": len(data.val),
                "boxes": int(data.boxes(data.val).sum()),
                "accuracy": accuracy,
            },
            lineage={"made_by": "tests/rig: the demo's network unchanged, INT8 not gated"},
        ),
    )
    return bundle.path
