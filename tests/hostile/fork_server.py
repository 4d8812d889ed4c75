"""Runs commands of `snnc`, each in a child process of its own that starts in milliseconds.

This process imports everything once.  Per line of standard input, a JSON request, it forks; the
child sets its limits and runs what `python -m snncompiler` runs.  One JSON line answers.
"""

from __future__ import annotations

import json
import os
import resource
import runpy
import signal
import sys
import time
import traceback
from typing import Any

#: Address space of a child, enough for onnxruntime, not for a tensor of 2^40 elements.
MEMORY = 4 << 30


def run_command(request: dict[str, Any]) -> None:
    """In the child: never returns."""
    code: object = 70
    try:
        os.setpgid(0, 0)
        limits = {"RLIMIT_AS": MEMORY, "RLIMIT_CORE": 0, **request.get("limits", {})}
        for name, limit in limits.items():
            resource.setrlimit(getattr(resource, name), (limit, limit))
        os.chdir(request["folder"])
        os.environ.update(request.get("environment", {}))
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
        # Files may have a limit of size too, pipes have none.
        for stream, path in ((1, request["out"]), (2, request["err"])):
            os.dup2(os.open(path, flags), stream)
        sys.argv = ["snnc", *request["args"]]
        runpy.run_module("snncompiler", run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as end:
        code = end.code
    except BaseException:
        traceback.print_exc()
        code = 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0 if code is None else code if isinstance(code, int) else 1)


def answer(request: dict[str, Any]) -> dict[str, Any]:
    started = time.monotonic()
    child = os.fork()
    if not child:
        run_command(request)
    late = False
    while True:
        done, status, used = os.wait4(child, os.WNOHANG)
        if done:
            break
        if not late and time.monotonic() - started > request["timeout"]:
            late = True
            os.kill(child, signal.SIGKILL)
        time.sleep(0.002)
    return {
        "code": os.waitstatus_to_exitcode(status),
        "late": late,
        "seconds": used.ru_utime + used.ru_stime,
        "wall": time.monotonic() - started,
    }


def main() -> None:
    replies = os.fdopen(os.dup(1), "w")
    import onnxruntime  # noqa: F401

    import snncompiler.cli.main  # noqa: F401

    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line))), file=replies, flush=True)


if __name__ == "__main__":
    main()
