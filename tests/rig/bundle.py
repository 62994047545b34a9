"""A bundle of the embedded detector for `--target cpu`, made in seconds by edgeprune's own parts.

Nothing is pruned or trained; INT8 is calibrated on a few scenes and not gated. Its accuracy is truly measured, on
pictures that are too few to mean anything.
"""

from __future__ import annotations

from pathlib import Path

#: Scenes to calibrate with, and those that travel with the bundle.
CALIBRATED, CARRIED = 6, 4


def make(folder: Path, name: str = "rig") -> Path:
    """folder/NAME.epb, signed by the key of $EDGEPRUNE_HOME."""
    from edgeprune_device.target import Target

    from edgeprune import checkpoint, dataset, demo, exporting, measure, pack, precisions, samples
    from edgeprune import quantize as q

    source = checkpoint.load(demo.WEIGHTS)
    imgsz = source.input_size(None)
    data = dataset.load(demo.write_dataset(folder / "scenes", CALIBRATED, CARRIED))
    target = Target.load("cpu")
    fp32 = exporting.to_onnx(source.model, (imgsz, imgsz))
    pictures = [x[None].numpy() for x in samples.read(data, data.train, imgsz).pictures]
    ranges = q.calibrate(fp32, pictures)
    int8 = q.to_int8(fp32, ranges, method="max", activations=target.int8_activations, reduce_range=True)
    q.check(int8, activations=target.int8_activations)
    models, files, accuracy = {}, {}, {}
    for precision, model in (("fp32", fp32), ("int8", int8)):
        files[precision] = folder / f"model.{precision}.onnx"
        files[precision].write_bytes(model.SerializeToString())
        session = precisions.session(target, precision, model)
        found, matches = measure.evaluate(session, data, data.val, imgsz)
        accuracy[precision] = pack.figures(matches, range(len(data.val)))
        models[precision] = {
            **accuracy[precision],
            "runtime": session.description,
            "pictures": found.pictures,
            **({"weight_bits": 7} if precision == "int8" else {}),
        }
    bundle = pack.pack(
        folder / f"{name}.epb",
        name=name,
        target=target.name,
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
        lineage={"made_by": "tests/rig: the demo's network as it is, INT8 not gated"},
    )
    return bundle.path
