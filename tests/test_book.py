"""The site, built and opened in a browser: pages, pictures, formulas, links, the reference of public names."""

import html
import importlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

pytest.importorskip("jupyter_server_mathjax", reason="make book installs what builds the site")
pytest.importorskip("sphinx_book_theme", reason="make book installs what builds the site")

ROOT = Path(__file__).parent.parent
HERE = "https://github.com/someone/psl"
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
BROWSER = next(filter(None, map(shutil.which, NAMES)), None)
MODULES = ("networks", "schedulers.epsl", "schedulers.edgesplit", "schedulers.pipeline", "models", "simulation")
MODULES += ("training", "privacy", "distributed", "data", "plotting")
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("book")]
# Runs in the page: how wide every picture is, how many formulas were set, how many of them with an error.
PROBE = """<script>window.addEventListener("load", () => {
  const report = (formulas) => { document.body.dataset.probe = JSON.stringify({
    pictures: [...document.querySelectorAll("article img")].map((img) => img.naturalWidth), formulas,
    errors: document.querySelectorAll(".merror, .MathJax_Error, noscript .merror").length }); };
  window.MathJax ? MathJax.Hub.Queue(() => report(MathJax.Hub.getAllJax().length)) : report(0);
});</script></body>"""


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The site, built anew; a warning of Sphinx is an error."""
    folder = tmp_path_factory.mktemp("site") / "book"
    command = [sys.executable, ROOT / "tools" / "book.py", folder]
    done = subprocess.run(command, env=os.environ | {"REPOSITORY": HERE}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def pages(site):
    """Every page's parsed HTML."""
    soup = pytest.importorskip("bs4").BeautifulSoup
    paths = (path for path in sorted(site.rglob("*.html")) if "_static" not in path.parts)
    return {path: soup(path.read_text(), "html.parser") for path in paths}


def opened(path, profile):
    """Return a page as the browser has it after its scripts ran, and what the probe found there."""
    if BROWSER is None:
        pytest.skip("no Chromium or Chrome here")
    probed = path.with_name(f"probed-{path.name}")
    probed.write_text(path.read_text().replace("</body>", PROBE))
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files"]
    command += [f"--user-data-dir={profile}", "--virtual-time-budget=60000", "--dump-dom", probed.as_uri()]
    try:
        dom = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    finally:
        probed.unlink()
    return dom, json.loads(html.unescape(re.search(r'data-probe="([^"]*)"', dom)[1]))


def test_the_front_page_opens_with_its_picture(site, tmp_path):
    dom, probe = opened(site / "index.html", tmp_path)
    assert "<h1>psl: parallel split learning" in dom
    assert probe["pictures"]
    assert min(probe["pictures"]) > 0
    assert dom.count('href="notebooks/') >= 9


def test_a_notebook_opens_with_figures_and_formulas(site, tmp_path):
    dom, probe = opened(site / "notebooks" / "02_wireless_cell.html", tmp_path)
    assert "<h1>02 · " in dom
    assert len(probe["pictures"]) >= 3
    assert min(probe["pictures"]) > 300
    assert probe["formulas"] > 20
    assert probe["errors"] == 0


def test_the_page_of_symbols_has_its_formulas(site, tmp_path):
    _, probe = opened(site / "docs" / "notation.html", tmp_path)
    assert probe["formulas"] > 50
    assert probe["errors"] == 0


def test_the_reference_opens(site, tmp_path):
    dom, _ = opened(site / "api" / "networks.html", tmp_path)
    assert 'id="psl.networks.EdgeCluster.sample"' in dom


def test_every_public_class_and_function_is_in_the_reference(site):
    from sphinx.util.inventory import InventoryFile

    with (site / "objects.inv").open("rb") as file:
        known = InventoryFile.load(file, "", lambda base, place: place)
    known = {name for kind, names in known.items() if kind.startswith("py:") for name in names}
    for module in MODULES:
        public = importlib.import_module(f"psl.{module}")
        names = [name for name in public.__all__ if callable(getattr(public, name))]
        assert not [f"psl.{module}.{n}" for n in names if f"psl.{module}.{n}" not in known]


def test_every_link_within_the_site_leads_somewhere(pages):
    broken, count = [], 0
    ids = {path: {tag["id"] for tag in page.find_all(id=True)} for path, page in pages.items()}
    for path, page in pages.items():
        if path.name in ("search.html", "genindex.html"):
            continue
        for tag in page.find_all(["a", "img", "script", "link"]):
            link = urlsplit(tag.get("href") or tag.get("src") or "")
            if link.scheme or link.netloc or not (link.path or link.fragment):
                continue
            count += 1
            target = (path.parent / unquote(link.path)).resolve() if link.path else path
            if not target.exists() or (link.fragment and target in ids and unquote(link.fragment) not in ids[target]):
                broken.append(f"{path.name}: {tag.get('href') or tag.get('src')}")
    assert count > 500
    assert not broken


def test_no_formula_stays_raw(pages):
    raw = []
    for path, page in pages.items():
        for article in page.find_all("article"):
            found = article.find_all(string=re.compile(r"\$"))
            found = [text for text in found if not text.find_parent(["code", "pre", "script"])]
            raw += [f"{path.name}: {text.strip()}" for text in found if not text.find_parent(class_="math")]
    assert not raw


def test_exercises_are_shown_without_solutions(pages):
    exercises = {path.name: page for path, page in pages.items() if path.parent.name == "solutions"}
    assert len(exercises) == len(list((ROOT / "notebooks" / "solutions").glob("[0-9]*.ipynb")))
    for name, page in exercises.items():
        assert "raise NotImplementedError" in page.text, name
        assert "SOLUTION" not in page.text, name


def test_notebooks_open_in_binder_and_colab_and_exercises_do_not_open_with_solutions(pages):
    for path, page in pages.items():
        targets = [tag["href"] for tag in page.find_all("a", href=re.compile("mybinder|colab"))]
        assert bool(targets) == (path.parent.name == "notebooks"), path.name
        for target in targets:
            notebook = re.search(r"/(notebooks/.*\.ipynb)$", target)[1]
            assert (ROOT / notebook).exists()
            assert Path(notebook).stem == path.stem
            assert HERE.removeprefix("https://github.com") in target
