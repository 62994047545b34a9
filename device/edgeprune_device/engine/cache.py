"""Engines on this machine's disk: an engine belongs to one ONNX file, one TensorRT, one GPU, and one way to build it.

    ~/.cache/edgeprune/engines/      $EDGEPRUNE_ENGINES, or $XDG_CACHE_HOME/edgeprune/engines; made with mode 0700
        KEY.plan                     the raw plan: `trtexec --loadEngine=KEY.plan` reads it
        KEY.json                     its metadata (`Engine`), signed
        timing-….cache               TensorRT's measurements of its tactics, signed
        build.lock                   held during a build: two at once would spoil each other's measurements

KEY is the SHA-256 of everything that the engine depends on. Deserializing a plan runs native code from it. So TensorRT
is given only plans that this machine has built, or has taken from a bundle whose signer it trusts (`offer`). The
metadata holds the plan's SHA-256 and is signed with the machine's own key. A plan that was copied from elsewhere,
changed, left unfinished, or brought by a key that is no longer trusted is built again, and the engine's warnings give
the reason.
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

from edgeprune_device import strict_json
from edgeprune_device.engine import Engine, Request, library, process
from edgeprune_device.engine.build import Progress
from edgeprune_device.engine.offer import Offer
from edgeprune_device.errors import InputError
from edgeprune_device.files import write_atomic
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
        raise InputError("this user has no home folder: set EDGEPRUNE_ENGINES to a folder of your own") from error


class Cache:
    """The engines of one folder.

    Args:
        path: The folder, by default `folder()`; it is made where it is missing.

    Raises:
        InputError: The folder cannot be made.
    """

    def __init__(self, path: Optional[Union[str, Path]] = None):
        self.folder = Path(path) if path is not None else folder()
        try:
            # An existing folder keeps its mode: it may be another user's, and its content is checked in any case.
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise InputError(
                f"{self.folder}: cannot be made ({str(error.strerror).lower()}); set EDGEPRUNE_ENGINES elsewhere"
            ) from error

    def engine(
        self,
        request: Request,
        device: Any,
        *,
        offers: Sequence[Offer] = (),
        rebuild: bool = False,
        progress: Optional[Progress] = None,
        timeout_s: float = process.TIMEOUT_S,
    ) -> Engine:
        """Return the engine for a request and a GPU: from the cache, from `offers`, or built now (see `process.build`).

        An engine that cannot be kept, for example on a full disk, is returned with a warning.

        Args:
            request: The engine to build.
            device: The GPU (`cuda.Device`).
            offers: Engines that the bundle brings; only one with exactly the key of this request is taken.
            rebuild: Build in any case.
            progress: Called with (share done in [0, 1], text).
            timeout_s: Longest time of a build, s.

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
            found, _ = self._read(key, request)
            if found:
                return found
        with self._locked(progress):
            found, why = (None, None) if rebuild else self._read(key, request)  # another process may just have built it
            if found:
                return found
            engine, unfit = (None, None) if rebuild else _adopted(offers, key, depends, request)
            if engine is None:
                timing = self.folder / _timing_name(depends)
                built = process.build(request, timing_cache=timing, progress=progress, timeout_s=timeout_s)
                if built.onnx_sha256 != depends["onnx_sha256"]:
                    raise InputError(f"{request.name}: was changed while its engine was built; start again")
                engine = replace(built, sm=device.sm, device=device.name)
            told = [text for text in (why, unfit) if text]
            try:
                path: Optional[Path] = self._write(key, engine)
            except InputError as error:
                path = None
                told = [f"the engine is not kept for the next time ({error})"]
        return replace(engine, path=path, key=key, warnings=(*told, *engine.warnings))

    def _read(self, key: str, request: Request) -> Tuple[Optional[Engine], Optional[str]]:
        """(the engine, None), or (None, why the stored engine is not used; None where none is stored)."""
        metadata, plan = self.folder / f"{key}.json", self.folder / f"{key}.plan"
        if not metadata.exists():
            return None, f"{plan}: was left unfinished, and is built anew" if plan.exists() else None
        try:
            with open(metadata, "rb") as stream:
                data = strict_json.loads(stream.read(_MAX_METADATA_BYTES), str(metadata))
            engine = _verified(data, key, str(metadata))
            # Scratch memory limits the build and is not part of the engine's key: an engine that was built with
            # little serves every request without a size of its own.
            if request.workspace_bytes not in (None, engine.workspace_bytes):
                return None, f"{plan}: was built with another --workspace, and is built anew"
            if engine.adopted_from is not None and engine.adopted_from not in keys.trusted():
                raise InputError(f"{plan}: came with a bundle of {engine.adopted_from}, which is not trusted any more")
            content = plan.read_bytes()
            if hashlib.sha256(content).hexdigest() != engine.plan_sha256:
                raise InputError(f"{plan}: is not the plan that was built here")
        except OSError as error:
            return None, f"{error.filename}: {str(error.strerror).lower()}; the engine is built anew"
        except InputError as error:
            return None, f"{error}; the engine is built anew"
        return replace(engine, plan=content, path=plan, cached=True, key=key), None

    def _write(self, key: str, engine: Engine) -> Path:
        signed = {"key": key, "engine": engine.to_json()}
        signature = keys.load_or_create().sign(strict_json.canonical(signed)).signature.hex()
        plan = write_atomic(self.folder / f"{key}.plan", engine.plan, mode=0o600)
        # Last: a plan counts only with its metadata, so a power cut between the two leaves no usable plan.
        write_atomic(self.folder / f"{key}.json", strict_json.pretty({**signed, "signature": signature}), mode=0o600)
        return plan

    @contextmanager
    def _locked(self, progress: Optional[Progress]) -> Iterator[None]:
        import fcntl  # not on Windows, where there is no Jetson either

        path = self.folder / "build.lock"
        with ExitStack() as opened:
            try:
                stream = opened.enter_context(open(path, "ab"))
                try:
                    fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    if progress is not None:
                        progress(0.0, "waiting: another process builds an engine")
                    fcntl.flock(stream, fcntl.LOCK_EX)
            except OSError as error:
                reason = str(error.strerror).lower()
                raise InputError(f"{path}: cannot be locked ({reason}); set EDGEPRUNE_ENGINES elsewhere") from error
            yield  # closing the file releases the lock, and so does any end of the process


def _depends(trt: Any, request: Request, device: Any) -> Dict[str, Any]:
    """Everything in which one engine differs from another."""
    flags = library.flags_of(trt, request.precision, request.fp32_nodes, request.compute)
    return {
        "builder": library.title(trt),
        "sm": device.sm,
        "device": device.name,
        "multiprocessors": device.multiprocessors,
        "onnx_sha256": request.onnx_sha256,
        "precision": request.precision,
        "flags": flags,
        # On a typed network they stand in the file.
        "fp32_nodes": [] if "STRONGLY_TYPED" in flags else sorted(request.fp32_nodes),
    }


def _adopted(
    offers: Sequence[Offer], key: str, depends: Dict[str, Any], request: Request
) -> Tuple[Optional[Engine], Optional[str]]:
    """(the offered engine with exactly this key, None), or (None, why none is taken; None where none is offered)."""
    for offer in offers:
        if offer.key != key:
            continue
        engine = offer.engine
        if request.workspace_bytes not in (None, engine.workspace_bytes):
            return None, f"the bundle's engine {offer.name} was built with another --workspace, and is not used"
        same = all(getattr(engine, name) == depends[name] for name in ("builder", "sm", "device", "onnx_sha256"))
        plan = offer.read()
        if not same or hashlib.sha256(plan).hexdigest() != engine.plan_sha256:
            return None, f"the bundle's engine {offer.name} is not what the bundle says of it, and is not used"
        return replace(engine, plan=plan, cached=True, adopted_from=offer.signer), None
    if not offers:
        return None, None
    brought = dict.fromkeys(f"{o.engine.builder} on {o.engine.device} (SM {o.engine.sm})" for o in offers)
    size = f"SM {depends['sm']}, {depends['multiprocessors']} multiprocessors"
    here = f"{depends['builder']} on {depends['device']} ({size})"
    return None, f"the bundle's engine, built by {', '.join(brought)}, is not for {here}: another was built here"


def _timing_name(depends: Dict[str, Any]) -> str:
    """Name of the timing cache, which is valid for one TensorRT and one GPU, and for every model."""
    words = "-".join(str(depends[name]) for name in ("builder", "device", "sm", "multiprocessors"))
    return f"timing-{re.sub(r'[^A-Za-z0-9.-]+', '_', words)[:150]}.cache"


def _verified(data: Any, key: str, what: str) -> Engine:
    """The engine that the metadata describes.

    Raises:
        InputError: The metadata is not signed by this machine's own key, or belongs to another cache key.
    """
    if not isinstance(data, dict) or set(data) != {"key", "engine", "signature"}:
        raise InputError(f"{what}: is no engine's metadata")
    try:
        signature = bytes.fromhex(data["signature"])
        signed = strict_json.canonical({"key": data["key"], "engine": data["engine"]})
        keys.load_or_create().verify_key.verify(signed, signature)
    except (CryptoError, TypeError, ValueError) as error:
        raise InputError(f"{what}: is not signed by this machine") from error
    if data["key"] != key:
        raise InputError(f"{what}: belongs to another engine")
    return Engine.from_json(data["engine"], what)
