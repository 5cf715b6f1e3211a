"""Build the site: the notebooks as committed, exercises without solutions, docs/, figures/ and the reference.

Usage: python tools/book.py [FOLDER [BUILDER]]

FOLDER is build/book, BUILDER is Sphinx's html; linkcheck asks every address on the internet whether it still exists.
Sphinx reads what students get (tools/student.py): solutions stay out, and places on the site are those in the
repository.
"""

import shutil
import sys
from pathlib import Path

from sphinx.cmd.build import main as sphinx_build

import student

ROOT = Path(__file__).resolve().parent.parent


def build(folder: Path, builder: str = "html") -> int:
    """Return 0 if the site was built without a warning; a warning is an error."""
    sources = folder.with_name(f"{folder.name}-source")
    student.write(sources)
    shutil.copytree(ROOT / "book" / "pages", sources, dirs_exist_ok=True)
    settings = ["-b", builder, "-c", str(ROOT / "book"), "-j", "auto", "-q", "-W", "--keep-going"]
    return sphinx_build([*settings, str(sources), str(folder)])


if __name__ == "__main__":
    where = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "build" / "book"
    code = build(where, *sys.argv[2:3])
    if not code:
        print(f"{where}: open {where / 'index.html'}" if len(sys.argv) < 3 else f"{where}: see output.txt")
    sys.exit(code)
