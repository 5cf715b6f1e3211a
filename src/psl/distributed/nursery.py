"""Worker processes that start at once: one process imports psl and torch, then forks a worker when asked to."""

import contextlib
import ctypes
import importlib
import itertools
import json
import os
import selectors
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from pathlib import Path

from psl.errors import PSLError, expected
from psl.models.tracing import trace
from psl.models.zoo import cnn

_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
_PR_SET_PDEATHSIG, _CLONE_NEWNET = 1, 0x40000000
_PRELOADED = "psl.distributed.star.worker"
_IN_WORKER = "PSL_WORKER"  # set in the environment of workers, which may not start workers of their own


class Worker:
    """A process that a `Nursery` forked.

    Attributes:
        pid: its number.
        code: its exit code, −n if signal n killed it; None while it runs.
        log: file of what it writes.
    """

    def __init__(self, pid: int, log: Path):
        self.pid, self.log = pid, log
        self.code: int | None = None
        self._ended = threading.Event()

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
        self._ended.wait(timeout)
        return self.code

    def last_words(self, size: int = 1500) -> str:
        """Return the end of what it wrote, after what gloo's last words mean if they are the last."""
        words = self.log.read_text(errors="replace").strip()[-size:] if self.log.exists() else ""
        if self.code == -signal.SIGABRT and "gloo::EnforceNotMet" in words:
            words = f"aborted inside gloo: a peer sent more than its header says ({words})"
        return words

    def why(self) -> str:
        """Return how it ended: its last words, and the signal that killed it."""
        if self.code is not None and self.code < 0:
            killed = f"killed by signal {-self.code} ({signal.Signals(-self.code).name})"
            return "; ".join(filter(None, (killed, self.last_words())))
        return self.last_words() or f"exit code {self.code}"

    def _end(self, code: int) -> None:
        self.code = code
        self._ended.set()


class Nursery:
    """Starts worker processes; a context manager that ends them all.

    A worker runs ``module.main(arguments)`` with one torch thread. It is killed when the nursery ends, and that ends
    with the process that made it, however that happens: nothing is left behind. POSIX only, as it forks.

    Raises:
        PSLError: it could not start.
    """

    def __init__(self):
        if _IN_WORKER in os.environ:
            fix = 'put what starts processes under: if __name__ == "__main__":'
            raise expected(
                "run", "a program", "a worker that imports it, and would start workers of its own", fix, PSLError
            )
        environment = os.environ | _ONE_THREAD | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        self._process = subprocess.Popen(
            [sys.executable, "-c", "from psl.distributed.nursery import serve; serve()"],
            env=environment, text=True, bufsize=1, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C is for whoever started this, who then ends it
        )  # fmt: skip
        self._workers: dict[int, Worker] = {}
        self._lock = threading.Lock()
        self._started: dict[int, Worker] = {}  # by the number of their order
        self._orders = itertools.count()
        self._over = False
        self._news = threading.Condition(self._lock)
        self._reader = threading.Thread(target=self._read, name="nursery", daemon=True)
        self._reader.start()

    @property
    def pid(self) -> int:
        """Number of the process that forks the workers."""
        return self._process.pid

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def start(self, module: str, arguments: Sequence[str], log: Path, namespace: str | None = None) -> Worker:
        """Start a worker.

        Args:
            module: name of a module with a function ``main(arguments)``.
            arguments: strings.
            log: file for what it writes; continued if it exists.
            namespace: network namespace to run in.
        """
        order = {"module": module, "arguments": list(map(str, arguments)), "log": str(log), "namespace": namespace}
        with self._news:
            order["id"] = number = next(self._orders)
            try:
                self._process.stdin.write(json.dumps(order) + "\n")
            except (OSError, ValueError) as cause:
                fix = "see what it wrote to the terminal"
                raise expected("worker", "a nursery that runs", "one that has ended", fix, PSLError) from cause
            while number not in self._started:
                if self._over or not self._news.wait(60):
                    fix = "see what it wrote to the terminal"
                    raise expected("worker", "a process within 60 s", "none", fix, PSLError)
            worker = self._started.pop(number)
            worker.log = Path(log)
        return worker

    def close(self) -> None:
        """Kill all workers and end the nursery."""
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        self._process.wait()
        self._reader.join()
        self._process.stdout.close()

    def _read(self) -> None:
        for line in self._process.stdout:
            news = json.loads(line)
            with self._news:
                if "code" in news:
                    self._workers.pop(news["pid"])._end(news["code"])
                else:
                    worker = self._workers[news["pid"]] = Worker(news["pid"], Path())
                    self._started[news["id"]] = worker
                    self._news.notify_all()
        with self._news:
            self._over = True
            for worker in self._workers.values():
                worker._end(-signal.SIGKILL)
            self._news.notify_all()


def serve() -> None:
    """Fork a worker for every line of standard input, tell when one ends, and kill all at its end."""
    importlib.import_module(_PRELOADED)
    trace(cnn(), (1, 8, 8))  # the first export imports half of torch
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    wake_out, wake_in = os.pipe()
    os.set_blocking(wake_in, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wake_in)
    workers: set[int] = set()
    inbox = b""
    with selectors.DefaultSelector() as ready:
        ready.register(0, selectors.EVENT_READ)
        ready.register(wake_out, selectors.EVENT_READ)
        while True:
            for key, _ in ready.select():
                data = os.read(key.fd, 1 << 16)
                if key.fd == wake_out:
                    _reap(workers)
                    continue
                if not data:
                    _end(workers)
                    return
                *lines, inbox = (inbox + data).split(b"\n")
                for line in lines:
                    order = json.loads(line)
                    pid = os.fork()
                    if pid == 0:
                        _become(order, (wake_out, wake_in))
                    workers.add(pid)
                    _tell({"pid": pid, "id": order["id"]})


def _tell(news: dict) -> None:
    os.write(1, (json.dumps(news) + "\n").encode())


def _reap(workers: set[int]) -> None:
    for pid in list(workers):
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            workers.remove(pid)
            _tell({"pid": pid, "code": os.waitstatus_to_exitcode(status)})


def _end(workers: set[int]) -> None:
    signal.set_wakeup_fd(-1)
    for pid in workers:
        os.kill(pid, signal.SIGKILL)
    for pid in workers:
        os.waitpid(pid, 0)


def _become(order: dict, descriptors: tuple[int, ...]) -> None:
    """Turn the forked process into a worker; never returns."""
    code = 1
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        nothing = os.open(os.devnull, os.O_RDONLY)
        for old, new in ((nothing, 0), (log, 1), (log, 2)):
            os.dup2(old, new)
        for descriptor in (*descriptors, log, nothing):
            os.close(descriptor)
        die_with_parent()
        os.environ[_IN_WORKER] = "1"
        if order["namespace"] is not None:
            enter_namespace(order["namespace"])
        importlib.import_module(order["module"]).main(order["arguments"])
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
        os._exit(code)  # threads of gloo have nothing left to do


def die_with_parent() -> None:
    """Let the kernel kill this process when its parent dies, however that happens (Linux)."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def enter_namespace(name: str) -> None:
    """Move this process, which must not have started threads yet, into a network namespace."""
    with open(f"/run/netns/{name}") as namespace:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.setns(namespace.fileno(), _CLONE_NEWNET) != 0:
            reason = os.strerror(ctypes.get_errno())
            raise expected(f"namespace {name}", "one to enter", reason, "run as root", PSLError)


def wait_all(workers: Sequence[Worker], seconds: float) -> None:
    """Give workers some time to end by themselves."""
    end = time.monotonic() + seconds
    for worker in workers:
        worker.wait(max(end - time.monotonic(), 0))
