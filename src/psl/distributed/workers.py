"""Worker processes that start at once: the standard library's fork server imports psl and torch first."""

import contextlib
import ctypes
import importlib
import json
import multiprocessing
import os
import signal
import sys
import sysconfig
import threading
import time
import traceback
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

from tqdm import tqdm

from psl.errors import PSLError, expected

_ONE_THREAD: dict[str, str] = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
FIRST_JOBS = "PSL_FIRST_JOBS"
_PR_SET_PDEATHSIG, _CLONE_NEWNET = 1, 0x40000000
_WITHIN = 180.0  # s to start a process
_INSTALLED = tuple(sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib"))  # folders of packages
_lock, _imported_at = threading.Lock(), time.time()
_context = multiprocessing.get_context("forkserver")


class Worker:
    """A process that runs ``function(connection, argument)``; killed when this one ends, however that happens.

    Args:
        function: "module:function".
        argument: plain values.
        log: file for what it writes; continued if it exists.
        namespace: network namespace to run in.

    Attributes:
        pid: its number.
        log: file of what it writes.

    Raises:
        PSLError: it could not be started.
    """

    def __init__(self, function: str, argument: dict[str, Any], log: Path, namespace: str | None = None):
        self.log, self._failure = Path(log), None
        self._connection, theirs = _context.Pipe()
        order = json.dumps(argument), function, str(log), namespace, {**os.environ} | _ONE_THREAD
        self._process = _context.Process(target=_become, args=(theirs, *order), daemon=True)
        starting = threading.Thread(target=self._start, daemon=True)  # a fork server that hangs must not hang us
        starting.start()
        starting.join(_WITHIN)
        theirs.close()
        if isinstance(self._failure, PSLError):
            raise self._failure
        if starting.is_alive() or self._failure is not None or self._process.pid is None:
            got, fix = str(self._failure or "none"), "see what it wrote to the terminal; restart this program"
            raise expected("worker", f"a process within {_WITHIN:g} s", got, fix, PSLError)
        self.pid: int = self._process.pid

    def _start(self) -> None:
        try:
            start_fork_server()
            self._process.start()
        except Exception as cause:  # said where it is waited for
            self._failure = cause

    @property
    def code(self) -> int | None:
        """Its exit code, −n if signal n killed it; None while it runs."""
        return self._process.exitcode

    @property
    def running(self) -> bool:
        """Whether it still runs."""
        return self.code is None

    def signal(self, number: int = signal.SIGKILL) -> None:
        """Send a signal, unless it has ended."""
        if self.running:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def wait(self, timeout: float | None = None) -> int | None:
        """Wait until it ends and return its exit code, None after the timeout in s."""
        self._process.join(timeout)
        return self.code

    def tell(self, **order: Any) -> None:
        """Send it plain values."""
        with contextlib.suppress(OSError):
            self._connection.send_bytes(json.dumps(order).encode())

    def news(self) -> list[dict[str, Any]]:
        """Return what it has sent since the last call."""
        found = []
        with contextlib.suppress(EOFError, OSError):
            while self._connection.poll():
                found.append(json.loads(self._connection.recv_bytes()))
        return found

    def last_words(self, size: int = 1500) -> str:
        """Return the end of what it wrote."""
        return self.log.read_text(errors="replace").strip()[-size:] if self.log.exists() else ""

    def why(self) -> str:
        """Return how it ended: its last words, and the signal that killed it."""
        if self.code is not None and self.code < 0:
            killed = f"killed by signal {-self.code} ({signal.Signals(-self.code).name})"
            return "; ".join(filter(None, (killed, self.last_words())))
        return self.last_words() or f"exit code {self.code}"


def start_fork_server(*jobs: dict[str, Any]) -> None:
    """Start the process that workers are forked from, unless it runs; it imports psl first, with one thread.

    Args:
        jobs: whose models it traces, if it starts now, so that its workers find that done.

    Raises:
        PSLError: this process is a worker that imports the program.
    """
    told = _ONE_THREAD | {FIRST_JOBS: json.dumps({"path": sys.path, "jobs": jobs})}
    with _lock:
        before = {name: os.environ.get(name) for name in told}
        os.environ.update(told)
        try:
            forkserver.set_forkserver_preload(["psl.distributed.preload"])
            forkserver.ensure_running()
        except RuntimeError as cause:  # the standard library's, in thirty lines
            fix = 'put what starts processes under: if __name__ == "__main__":'
            got = "a worker that imports the program, and would start workers of its own"
            raise expected("run", "the program itself", got, fix, PSLError) from cause
        finally:
            for name, value in before.items():
                os.environ.pop(name) if value is None else os.environ.update({name: value})


def _become(
    connection, argument: str, function: str, log: str, namespace: str | None, environment: dict[str, str]
) -> None:
    """Turn the forked process into a worker; never returns."""
    code = 1
    try:
        opened = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        for number in (1, 2):
            os.dup2(opened, number)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        if sys.platform == "linux":  # the kernel ends it with the fork server, which ends with whoever started it
            with contextlib.suppress(OSError, AttributeError):
                ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if namespace is not None:
            enter_namespace(namespace)
        os.environ.update(environment)
        forget_changed()
        tqdm.set_lock(threading.RLock())  # its own is a semaphore, which who ends at once leaves behind
        place, _, name = function.partition(":")
        getattr(importlib.import_module(place), name)(connection, json.loads(argument))
        code = 0
    except PSLError as failure:
        print(f"{type(failure).__name__}: {failure}", file=sys.stderr)
    except SystemExit as request:
        code = request.code if isinstance(request.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)  # gRPC's threads have nothing left to do


def forget_changed() -> None:
    """Let the user's modules be imported anew whose files have changed since the fork server began.

    What is installed, psl too, stays as it was imported: half of a package anew would not fit the other half.
    """
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__dict__", {}).get("__file__")  # a lazy module that is asked itself would import more
        if file is None or file.startswith(_INSTALLED) or name.partition(".")[0] in ("psl", "__main__"):
            continue
        with contextlib.suppress(OSError):
            if os.stat(file).st_mtime > _imported_at:
                del sys.modules[name]


def enter_namespace(name: str) -> None:
    """Move this process, which must not have started threads yet, into a network namespace."""
    with open(f"/run/netns/{name}") as namespace:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.setns(namespace.fileno(), _CLONE_NEWNET) != 0:
            reason = os.strerror(ctypes.get_errno())
            raise expected(f"namespace {name}", "one to enter", reason, "run as root", PSLError)
