"""Put psl beside all peers that are installed.

    python -m benchmarks.peers                    # all questions, within 20 minutes on two cores
    python -m benchmarks.peers --effort 0.05      # a trial run: few instances, short limits
    python -m benchmarks.peers simulation flops   # some questions

Writes benchmarks/results/peers_*.csv and the tables of docs/peers.md. Peers that are missing are named and left out;
`pip install -r requirements-peers.txt` brings all of them.
"""

import argparse
import importlib
import subprocess
import sys
import time

from benchmarks.peers.common import PEERS, ROOT, version

#: Each question is a file of this folder.
QUESTIONS = ("epsl", "edgesplit", "placement", "simulation", "splitting", "training", "flops")


def main() -> None:
    """Run the questions."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("questions", nargs="*", help=f"of {', '.join(QUESTIONS)}; all if none is named")
    parser.add_argument("--effort", type=float, default=1.0, help="share of the instances and of the solvers' time")
    arguments = parser.parse_args()
    if unknown := set(arguments.questions) - set(QUESTIONS):
        parser.error(f"questions: expected some of {', '.join(QUESTIONS)}, got {', '.join(sorted(unknown))}")
    for peer, package in PEERS.items():
        found = version(peer)
        print(f"{peer:<12} {found or f'missing: pip install {package}, as in requirements-peers.txt'}")
    for question in arguments.questions or QUESTIONS:
        begin = time.perf_counter()
        print(f"\n{question}", flush=True)
        importlib.import_module(f"benchmarks.peers.{question}").main(arguments.effort)
        print(f"{question}: {time.perf_counter() - begin:.0f} s")
    subprocess.run([sys.executable, str(ROOT / "tools" / "peers.py")], check=True)


if __name__ == "__main__":
    main()
