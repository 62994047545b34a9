"""The host's `edgeprune` with torch loaded once: a server forks a process for each command of a page.

    python host.py SOCKET           the server; prints "ready"
    python -S client.py …           `edgeprune` on the PATH; `python FILE` works the same way

The forked process runs the real command line with its own arguments, folder, environment, standard input and output.
"""

from __future__ import annotations

import array
import json
import os
import socket
import sys
from contextlib import suppress
from pathlib import Path

#: `edgeprune` on the PATH. It passes on its streams, waits, and exits with the same code.
CLIENT = """#!{python} -S
import array, json, os, socket, sys
s = socket.socket(socket.AF_UNIX)
s.connect({socket!r})
asked = json.dumps([{kind!r}, sys.argv[1:], os.getcwd(), dict(os.environ)]).encode()
s.sendmsg([len(asked).to_bytes(4, "big")], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [0, 1, 2]))])
s.sendall(asked)
sys.exit(int(s.makefile().readline() or 99))
"""


def serve(path: str) -> None:
    """Load the large libraries, then fork for each request, until the parent ends this process."""
    server = socket.socket(socket.AF_UNIX)
    server.bind(path)
    server.listen()
    _load()
    print("ready", flush=True)
    while True:
        link, _ = server.accept()
        if os.fork() == 0:
            server.close()
            _answer(link)
        link.close()
        with suppress(ChildProcessError):  # reap finished processes
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass


def _load() -> None:
    import onnxruntime  # noqa: F401
    import torch
    import ultralytics  # noqa: F401

    import edgeprune as ep
    from edgeprune import demo
    from edgeprune.exporting import to_onnx  # noqa: F401
    from edgeprune.workflow import stages

    # edgeprune.api.build is both the function and the module.
    ep.build, ep.compare, ep.analyze  # noqa: B018
    build = sys.modules["edgeprune.api.build"]

    torch.set_num_threads(1)
    # The demo is also a stand-in; tests/host/test_default.py runs the real one (slow).
    weights = os.environ.get("DOCS_DEMO_WEIGHTS")
    if weights:
        demo.WEIGHTS = demo.NETWORKS["detect"] = Path(weights)
        build.DEMO_SCENES = (8, 4)
        stages.POOR = 0.0  # random weights detect nothing, which does not matter here


def _answer(link: socket.socket) -> None:
    code = 70
    try:
        size, rights, _, _ = link.recvmsg(4, socket.CMSG_SPACE(12))
        streams = array.array("i", rights[0][2])
        data = link.makefile("rb").read(int.from_bytes(size, "big"))
        kind, argv, folder, environment = json.loads(data)
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
        # Python's stream objects remember whether they were files.
        sys.stdin, sys.stdout, sys.stderr = open(0, closefd=False), _writer(1), _writer(2)  # noqa: SIM115
        os.chdir(folder)
        os.environ.clear()
        os.environ.update(environment)
        code = _python(argv) if kind == "python" else _edgeprune(argv)
    except SystemExit as leave:
        code = leave.code if isinstance(leave.code, int) else 1
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        link.sendall(f"{code}\n".encode())
        os._exit(0)


def _writer(number: int):
    return open(number, "w", buffering=1, closefd=False)


def _edgeprune(argv: list[str]) -> int:
    from edgeprune_device import cli

    return cli.main(argv)


def _python(argv: list[str]) -> int:
    sys.path.insert(0, os.getcwd())
    sys.argv = argv
    code = compile(Path(argv[0]).read_text(), argv[0], "exec")
    exec(code, {"__name__": "__main__"})
    return 0


if __name__ == "__main__":
    serve(sys.argv[1])
