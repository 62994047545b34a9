"""Engines on this machine's disk, each for one ONNX file, one TensorRT, one GPU and one set of build options.

    ~/.cache/edgeprune/engines/      $EDGEPRUNE_ENGINES, or $XDG_CACHE_HOME/edgeprune/engines; created with mode 0700
        KEY.plan                     the raw plan: `trtexec --loadEngine=KEY.plan` reads it
        KEY.json                     its metadata (`Engine`), signed
        timing-….cache               TensorRT's measurements of its tactics, signed
        build.lock                   held during a build: simultaneous builds would distort each other's timings

KEY is the SHA-256 of everything on which the engine depends. Deserializing a plan runs native code from it, so TensorRT
gets only plans that this machine has built, or has taken from a bundle whose signer it trusts (`offer`). The metadata
contains the plan's SHA-256 and is signed with the machine's own key. A plan that was copied from another machine,
changed, incomplete, or brought by a key that is no longer trusted is built again, and the engine's warnings give the
reason.
"""

from __future__ import annotations

import hashlib
import os
import re
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Dict, Iterator, Optional, Sequence, Tuple, Union

from nacl.exceptions import CryptoError

from edgeprune_device import deadline, strict_json
from edgeprune_device.cuda import Device
from edgeprune_device.engine import Engine, Request, library, process
from edgeprune_device.engine.offer import Offer
from edgeprune_device.errors import InputError, reason
from edgeprune_device.files import make_folder, opener, write_atomic
from edgeprune_device.option import named
from edgeprune_device.progress import Progress, silent
from edgeprune_device.trust import keys

__all__ = ["Cache", "folder"]

_MAX_METADATA_BYTES = 1 << 20


def folder() -> Path:
    """The folder of the engines.

    Raises:
        InputError: The user has no home folder.
    """
    if os.environ.get("EDGEPRUNE_ENGINES"):
        return Path(os.environ["EDGEPRUNE_ENGINES"])
    if os.environ.get("XDG_CACHE_HOME"):
        return Path(os.environ["XDG_CACHE_HOME"]) / "edgeprune" / "engines"
    try:
        return Path.home() / ".cache" / "edgeprune" / "engines"
    except RuntimeError as error:
        raise InputError("home folder: not found for this user; set EDGEPRUNE_ENGINES to a private folder") from error


class Cache:
    """The engines of one folder.

    Args:
        path: The folder, by default `folder()`; created if it is missing.

    Raises:
        InputError: The folder cannot be created.
    """

    def __init__(self, path: Optional[Union[str, Path]] = None):
        self.folder = Path(path) if path is not None else folder()
        try:
            # An existing folder keeps its mode: it may belong to another user, and its content is always verified.
            make_folder(self.folder, 0o700)
        except OSError as error:
            raise InputError(
                f"{self.folder}: cannot be created ({reason(error)}); set EDGEPRUNE_ENGINES to another folder"
            ) from error

    def engine(
        self,
        request: Request,
        device: Device,
        *,
        offers: Sequence[Offer] = (),
        rebuild: bool = False,
        progress: Progress = silent,
        timeout_s: float = process.TIMEOUT_S,
    ) -> Engine:
        """Return the engine for a request and a GPU: from the cache, from `offers`, or built now (see `process.build`).

        An engine that cannot be stored, for example on a full disk, is returned with a warning.

        Args:
            request: The engine to build.
            device: The GPU.
            offers: Engines in the bundle; only one with exactly the key of this request is used.
            rebuild: Always build.
            progress: Receives the progress of a build.
            timeout_s: Time limit of a build, s.

        Raises:
            RuntimeUnavailable: The library is not installed or does not load.
            InputError: See `process.build`; or the ONNX file changed during the build.
            GateError: See `process.build`.
            DeviceError: See `process.build`.
        """
        trt = library.load(request.library)
        depends = _depends(trt, request, device)
        key = hashlib.sha256(strict_json.canonical(depends)).hexdigest()
        if not rebuild:
            stored, _ = self._read(key, request)
            if stored:
                return stored
        with deadline.paused(), self._locked(progress):  # waiting and building do not count towards the limit of a load
            # Another process may just have built it.
            stored, why = (None, None) if rebuild else self._read(key, request)
            if stored:
                return stored
            engine, unfit = (None, None) if rebuild else _adopted(offers, key, depends, request)
            if engine is None:
                timing = self.folder / _timing_name(depends)
                built = process.build(request, timing_cache=timing, progress=progress, timeout_s=timeout_s)
                if built.onnx_sha256 != depends["onnx_sha256"]:
                    raise InputError(f"{request.name}: changed while its engine was built; run the command again")
                engine = replace(built, sm=device.sm, device=device.name)
            remarks = [text for text in (why, unfit) if text]
            try:
                path: Optional[Path] = self._write(key, engine)
            except InputError as error:
                path = None
                remarks = [f"the engine is not cached ({error})"]
        return replace(engine, path=path, key=key, warnings=(*remarks, *engine.warnings))

    def _read(self, key: str, request: Request) -> Tuple[Optional[Engine], Optional[str]]:
        """Return (the engine, None), or (None, why the stored engine is not used; None if none is stored)."""
        metadata, plan = self.folder / f"{key}.json", self.folder / f"{key}.plan"
        if not metadata.exists():
            return None, f"{plan}: incomplete; the engine is built again" if plan.exists() else None
        try:
            with open(metadata, "rb") as stream:
                data = strict_json.loads(stream.read(_MAX_METADATA_BYTES), str(metadata))
            engine = _verified(data, key, str(metadata))
            # Scratch memory limits the build and is not part of the engine's key: an engine that was built with little
            # memory is used for all requests that state no size.
            if request.workspace_bytes not in (None, engine.workspace_bytes):
                return None, f"{plan}: built with a different {named('workspace')}; the engine is built again"
            if engine.adopted_from is not None and engine.adopted_from not in keys.trusted():
                raise InputError(
                    f"{plan}: the engine comes from a bundle signed by {engine.adopted_from}, a key that is no longer "
                    "trusted"
                )
            content = plan.read_bytes()
            if hashlib.sha256(content).hexdigest() != engine.plan_sha256:
                raise InputError(f"{plan}: damaged or changed")
        except OSError as error:
            return None, f"{error.filename}: {reason(error)}; the engine is built again"
        except InputError as error:
            return None, f"{error}; the engine is built again"
        return replace(engine, plan=content, path=plan, cached=True, key=key), None

    def _write(self, key: str, engine: Engine) -> Path:
        signed = {"key": key, "engine": engine.to_json()}
        signature = keys.load_or_create().sign(strict_json.canonical(signed)).signature.hex()
        plan = write_atomic(self.folder / f"{key}.plan", engine.plan, mode=0o600)
        # Written last: a plan is valid only with its metadata, so a power cut in between leaves no usable plan.
        write_atomic(self.folder / f"{key}.json", strict_json.pretty({**signed, "signature": signature}), mode=0o600)
        return plan

    @contextmanager
    def _locked(self, progress: Progress) -> Iterator[None]:
        import fcntl  # not available on Windows

        path = self.folder / "build.lock"
        with ExitStack() as opened:
            try:
                stream = opened.enter_context(open(path, "ab", opener=opener))
                try:
                    fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    progress(0.0, "waiting for another process that builds an engine")
                    fcntl.flock(stream, fcntl.LOCK_EX)
            except OSError as error:
                raise InputError(
                    f"{path}: cannot be locked ({reason(error)}); set EDGEPRUNE_ENGINES to another folder"
                ) from error
            yield  # closing the file or ending the process releases the lock


def _depends(trt: Any, request: Request, device: Device) -> Dict[str, Any]:
    """The fields of the cache key: all properties that distinguish one engine from another."""
    flags = library.flags_of(trt, request.precision, request.fp32_nodes, request.compute)
    return {
        "builder": library.title(trt),
        "sm": device.sm,
        "device": device.name,
        "multiprocessors": device.multiprocessors,
        "onnx_sha256": request.onnx_sha256,
        "precision": request.precision,
        "flags": flags,
        # For a typed network the file contains them.
        "fp32_nodes": [] if "STRONGLY_TYPED" in flags else sorted(request.fp32_nodes),
    }


def _adopted(
    offers: Sequence[Offer], key: str, depends: Dict[str, Any], request: Request
) -> Tuple[Optional[Engine], Optional[str]]:
    """Return (the offered engine with exactly this key, None), or (None, why none is used; None without offers)."""
    for offer in offers:
        if offer.key != key:
            continue
        engine = offer.engine
        if request.workspace_bytes not in (None, engine.workspace_bytes):
            other = named("workspace")
            return None, f"the bundle's engine {offer.name} is not used, because it was built with a different {other}"
        same = all(getattr(engine, name) == depends[name] for name in ("builder", "sm", "device", "onnx_sha256"))
        plan = offer.read()
        if not same or hashlib.sha256(plan).hexdigest() != engine.plan_sha256:
            return None, f"the bundle's engine {offer.name} is not used, because its description does not match it"
        return replace(engine, plan=plan, cached=True, adopted_from=offer.signer), None
    if not offers:
        return None, None
    brought = dict.fromkeys(f"{o.engine.builder} on {o.engine.device} (SM {o.engine.sm})" for o in offers)
    size = f"SM {depends['sm']}, {depends['multiprocessors']} multiprocessors"
    here = f"{depends['builder']} on {depends['device']} ({size})"
    return None, f"the bundle's engine (built by {', '.join(brought)}) does not run on {here}; an engine was built here"


def _timing_name(depends: Dict[str, Any]) -> str:
    """Name of the timing cache, which is valid for one TensorRT and one GPU, and for every model."""
    words = "-".join(str(depends[name]) for name in ("builder", "device", "sm", "multiprocessors"))
    return f"timing-{re.sub(r'[^A-Za-z0-9.-]+', '_', words)[:150]}.cache"


def _verified(data: Any, key: str, what: str) -> Engine:
    """The engine that the metadata describes.

    Raises:
        InputError: The metadata is not signed with this machine's own key, or belongs to another cache key.
    """
    if not isinstance(data, dict) or set(data) != {"key", "engine", "signature"}:
        raise InputError(f"{what}: invalid metadata (expected key, engine and signature)")
    try:
        signature = bytes.fromhex(data["signature"])
        signed = strict_json.canonical({"key": data["key"], "engine": data["engine"]})
        keys.load_or_create().verify_key.verify(signed, signature)
    except (CryptoError, TypeError, ValueError) as error:
        raise InputError(f"{what}: not signed by this machine") from error
    if data["key"] != key:
        raise InputError(f"{what}: describes another engine")
    return Engine.from_json(data["engine"], what)
