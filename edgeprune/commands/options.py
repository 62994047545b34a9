"""Options that several commands share: each is declared once, here."""

from __future__ import annotations

import argparse
from pathlib import Path


def weights(parser: argparse.ArgumentParser, *, required: bool, text: str = "an Ultralytics checkpoint (.pt)") -> None:
    parser.add_argument("--weights", type=Path, required=required, metavar="FILE", help=text)


def data(parser: argparse.ArgumentParser, *, required: bool, text: str = "an Ultralytics data.yaml") -> None:
    parser.add_argument("--data", type=Path, required=required, metavar="FILE", help=text)


def imgsz(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--imgsz", type=int, metavar="N", help="network input, pixels (default: what the weights were trained at)"
    )


def ratio(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--ratio", type=float, required=True, metavar="R", help="fraction of the prunable channels to remove, in [0, 1)"
    )


def criterion(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--criterion",
        default="auto",
        metavar="NAME",
        help="who chooses: energy, bn_scale (Network Slimming), module:function, or auto = the better by measurement",
    )


def target(parser: argparse.ArgumentParser, *, required: bool) -> None:
    parser.add_argument(
        "--target",
        required=required,
        default=None if required else "jetson-orin",
        metavar="NAME",
        help="the device, see `edgeprune targets`" + ("" if required else " (default jetson-orin)"),
    )


def training(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--epochs", type=int, default=10, metavar="N", help="fine-tuning epochs (default 10)")
    parser.add_argument(
        "--batch", type=int, default=4, metavar="N", help="pictures a step (default 4; halved when memory runs out)"
    )
    parser.add_argument("--lr", type=float, default=1e-4, help="peak learning rate, AdamW with cosine (default 1e-4)")
    parser.add_argument("--device", default="cpu", help="cpu or a GPU number (default cpu)")
    parser.add_argument(
        "--workers", type=int, default=0, metavar="N", help="data loading processes (default 0: never crashes)"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="(default 0)")


def precision(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--precision", default="fp32,fp16,int8", metavar="LIST", help="models to make (default fp32,fp16,int8)"
    )
    parser.add_argument(
        "--max-drop",
        type=float,
        default=0.003,
        metavar="X",
        help="absolute mAP50-95 that a precision may lose against FP32 before the job fails (default 0.003)",
    )


def out(parser: argparse.ArgumentParser, text: str) -> None:
    parser.add_argument("--out", type=Path, metavar="PATH", help=text)


def quiet(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--quiet", action="store_true", help="no progress; warnings and results only")


def splitted(text: str) -> tuple[str, ...]:
    return tuple(p for p in (part.strip() for part in text.split(",")) if p)
