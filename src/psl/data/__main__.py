"""``python -m psl.data fetch NAME --root FOLDER`` downloads a data set."""

import argparse
import sys
from collections.abc import Sequence

from psl.data import NAMES, fetch
from psl.errors import DataError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line, by default this process's, and return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m psl.data", description="Fetch data sets.")
    verbs = parser.add_subparsers(dest="verb", required=True)
    verb = verbs.add_parser("fetch", help="download a data set")
    verb.add_argument("name", choices=NAMES)
    verb.add_argument("--root", default=None, help="folder (default: $PSL_DATA, else data)")
    chosen = parser.parse_args(arguments)
    try:
        print(fetch(chosen.name, chosen.root))
    except DataError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
