"""The site: `make book` builds it with Sphinx, from what `make student` writes and the pages beside this file.

Sphinx with MyST-NB, because one build holds the notebooks as they are committed, the Markdown of docs/ and a reference
made from docstrings; Jupyter Book 2 has no such reference, Jupyter Book 1 wraps these same packages.
"""

import os
import re
import subprocess
from pathlib import Path

import jupyter_server_mathjax
from sphinx import addnodes

import psl

ROOT = Path(__file__).resolve().parent.parent


def repository() -> str:
    """Return the repository's address, from `make book REPOSITORY=...` or the remote `origin`; "" if there is none."""
    address = os.environ.get("REPOSITORY", "")
    if not address:
        command = ["git", "-C", str(ROOT), "remote", "get-url", "origin"]
        address = subprocess.run(command, capture_output=True, text=True).stdout.strip()
    found = re.fullmatch(r"(?:https://|git@)((?:github|gitlab)\.com)[:/](.+?)(?:\.git)?/?", address)
    return f"https://{found[1]}/{found[2]}" if found else ""


project, author, copyright = "psl", "The psl authors", "The psl authors"
release = psl.__version__
extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.mathjax",
    "sphinx_copybutton",
]
parts = ["figures/[0-9]*_results.md", "figures/*/[0-9]*_results.md"]
exclude_patterns = ["README.md", "src", *parts]  # parts of other pages

# Notebooks keep the outputs that are committed.
nb_execution_mode = "off"
nb_merge_streams = True
myst_enable_extensions = ["dollarmath", "amsmath"]
myst_dmath_double_inline = True  # $$...$$ within a paragraph is a formula of its own, as in Jupyter
myst_heading_anchors = 3

# Docstrings: Google's sections, `names` in backquotes as code, members in the order of the source.
default_role = "literal"
napoleon_use_rtype, napoleon_use_ivar = False, True
autodoc_default_options = {"members": True, "member-order": "bysource"}
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
add_module_names = False

html_theme = "sphinx_book_theme"
html_title = f"psl {release}"
html_theme_options = {"show_toc_level": 2, "home_page_in_toc": True, "navbar_persistent": []}
if repository():  # buttons that open a page's notebook elsewhere
    html_theme_options |= {
        "repository_url": repository(),
        "repository_branch": os.environ.get("BRANCH", "main"),
        "use_repository_button": True,
        "launch_buttons": {
            "notebook_interface": "jupyterlab",
            "binderhub_url": "https://mybinder.org",
            "colab_url": "https://colab.research.google.com",
        },
    }

# MathJax comes with a package, so formulas need no network. It is version 2, whose settings stand in `mathjax2_config`.
html_static_path = ["static", str(Path(jupyter_server_mathjax.__file__).parent / "static")]
html_css_files = ["psl.css"]
mathjax_path = "MathJax.js"
mathjax2_config = {
    "config": ["TeX-AMS-MML_HTMLorMML-full.js"],
    "HTML-CSS": {"availableFonts": [], "webFont": "STIX-Web", "imageFont": None},
    "tex2jax": {"inlineMath": [["\\(", "\\)"]], "ignoreClass": "document", "processClass": "math|output_area"},
}
myst_update_mathjax = False

linkcheck_timeout, linkcheck_retries = 20, 2


def front_page(app, docname: str, source: list[str]) -> None:
    """Let links to the README lead to the front page, which includes it."""
    source[0] = source[0].replace("](../README.md)", "](../index.md)")


def folders(app, doctree) -> None:
    """Let a link to a folder lead to its README, or to its first page."""
    for link in doctree.findall(addnodes.pending_xref):
        folder = Path(app.env.docname).parent / link["reftarget"]
        if link["reftype"] == "myst" and (app.srcdir / folder).is_dir():
            name = os.path.normpath(folder)
            pages = sorted(page for page in app.env.found_docs if page.startswith(f"{name}/"))
            if pages:
                link["refdomain"], link["refexplicit"], link["reftargetid"] = "doc", True, None
                link["reftarget"] = f"{name}/README" if f"{name}/README" in pages else pages[0]


def no_way_to_solutions(app, pagename: str, templatename: str, context: dict, doctree) -> None:
    """Take the buttons to Binder and Colab from exercises: there the notebooks have their solutions."""
    if pagename.startswith("notebooks/solutions/"):
        buttons = context["header_buttons"]
        buttons[:] = [button for button in buttons if button.get("label") != "launch-buttons"]


def setup(app) -> None:
    """Sphinx calls this."""
    app.connect("source-read", front_page)
    app.connect("doctree-read", folders)
    app.connect("html-page-context", no_way_to_solutions, priority=900)  # after the theme
