"""Put psl beside all peers that are installed.

    python -m benchmarks.peers                    # all questions, two at a time, within 20 minutes on two cores
    python -m benchmarks.peers --effort 0.05      # a trial run: few instances, short limits
    python -m benchmarks.peers simulation flops   # some questions
    python -m benchmarks.peers --jobs 1           # one after the other

What is compared with each other runs in one process, in turn, with one thread; seconds are CPU seconds.

Writes benchmarks/results/peers_*.csv and the tables of docs/peers.md. Peers that are missing are named and left out;
`pip install -r requirements-peers.txt` brings all of them.
"""

import argparse
import importlib
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

from benchmarks.peers.common import PEERS, ROOT, version

#: Each question is a file of this folder.
QUESTIONS = ("epsl", "placement", "edgesplit", "simulation", "splitting", "training", "flops")  # the longest first


def main() -> None:
    """Run the questions."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("questions", nargs="*", help=f"of {', '.join(QUESTIONS)}; all if none is named")
    parser.add_argument("--effort", type=float, default=1.0, help="share of the instances and of the solvers' time")
    parser.add_argument("--jobs", type=int, default=2, help="questions at a time")
    parser.add_argument("--part", action="store_true", help=argparse.SUPPRESS)  # of a run that writes the tables itself
    arguments = parser.parse_args()
    if unknown := set(arguments.questions) - set(QUESTIONS):
        parser.error(f"questions: expected some of {', '.join(QUESTIONS)}, got {', '.join(sorted(unknown))}")
    for peer, package in PEERS.items() if not arguments.part else ():
        found = version(peer)
        print(f"{peer:<12} {found or f'missing: pip install {package}, as in requirements-peers.txt'}")
    questions, start = arguments.questions or list(QUESTIONS), time.perf_counter()
    if len(questions) == 1:
        importlib.import_module(f"benchmarks.peers.{questions[0]}").main(arguments.effort)
    else:
        with ThreadPoolExecutor(arguments.jobs) as pool:
            list(pool.map(lambda question: _in_a_process(question, arguments.effort), questions))
        print(f"all: {time.perf_counter() - start:.0f} s")
    if arguments.part:
        return
    subprocess.run([sys.executable, str(ROOT / "tools" / "peers.py")], check=True)


def _in_a_process(question: str, effort: float) -> None:
    begin = time.perf_counter()
    command = [sys.executable, "-m", "benchmarks.peers", question, "--effort", str(effort), "--part"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    said = done.stdout if done.returncode == 0 else done.stdout + done.stderr
    print(f"\n{question}: {time.perf_counter() - begin:.0f} s\n{said}", flush=True)
    if done.returncode:
        raise SystemExit(f"{question} failed")


if __name__ == "__main__":
    main()
