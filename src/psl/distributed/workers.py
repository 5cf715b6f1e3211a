"""Processes of a run: started together, watched together, and never left behind."""

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from psl.distributed.namespaces import Namespaces
from psl.errors import PSLError

_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
_PR_SET_PDEATHSIG = 1


class Workers:
    """Python processes that run a module of `psl`, one per member; a context manager that ends what still runs.

    Args:
        module: run as ``python -m module *arguments``; it calls `die_with_parent` first.
        arguments: (P,) lists of strings.
        folder: where their error output goes, ``stderr-0`` and so on.
        network: namespaces to run in, one per process; None for the machine's own network, of which they use loopback.

    Raises:
        PSLError: in `wait`, when a process failed, with the end of what it wrote.
    """

    def __init__(self, module: str, arguments: Sequence[Sequence[str]], folder: Path, network: Namespaces | None):
        self._lines = [[sys.executable, "-m", module, *map(str, own)] for own in arguments]
        self._folder, self._network = Path(folder), network
        self.processes: list[subprocess.Popen] = []

    def __enter__(self):
        try:
            for k, line in enumerate(self._lines):
                interface = "lo" if self._network is None else self._network.interface(k)
                line = line if self._network is None else self._network.command(k, line)
                environment = os.environ | _ONE_THREAD | {"GLOO_SOCKET_IFNAME": interface}
                with open(self._folder / f"stderr-{k}", "wb") as errors:
                    process = subprocess.Popen(
                        line, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=errors,
                        start_new_session=True,  # Ctrl-C is for the launcher, which then ends them
                    )  # fmt: skip
                self.processes.append(process)
        except BaseException:
            self.end()
            raise
        return self

    def __exit__(self, *_):
        self.end()

    def end(self) -> None:
        """Kill what still runs, and reap it."""
        for process in self.processes:
            if process.poll() is None:
                process.kill()
        for process in self.processes:
            process.wait()

    def wait(self, watch: Callable[[], None] = lambda: None, timeout: float | None = None) -> None:
        """Wait until all have ended well.

        Args:
            watch: called about ten times a second.
            timeout: s; None for no limit.

        Raises:
            PSLError: one failed (the others are killed), or the time is over.
        """
        end = None if timeout is None else time.monotonic() + timeout
        while True:
            codes = [process.poll() for process in self.processes]
            watch()
            failed = [k for k, code in enumerate(codes) if code not in (None, 0)]
            if failed:
                time.sleep(0.2)  # the first to fail takes others with it: let it finish its message
                self.end()
                raise PSLError(f"process {failed[0]} failed: {self._last_words(failed[0])}")
            if all(code == 0 for code in codes):
                return
            if end is not None and time.monotonic() > end:
                self.end()
                running = ", ".join(str(k) for k, code in enumerate(codes) if code is None)
                raise PSLError(f"after {timeout:g} s process {running} still ran: raise timeout=, or see why it waits")
            time.sleep(0.02)

    def _last_words(self, k: int) -> str:
        text = (self._folder / f"stderr-{k}").read_text(errors="replace").strip()
        return text[-2000:] or f"exit code {self.processes[k].returncode}, it wrote nothing"


def die_with_parent() -> None:
    """Let the kernel kill this process when its parent dies, however that happens (Linux)."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
