"""What killed processes leave is removed by the next one of the same machine and container only."""

import os
import subprocess
import tempfile

import pytest

from psl.distributed import leftovers
from psl.distributed.leftovers import orphans, owner, run_folder


@pytest.fixture
def gone():
    """The owner's name of a process that has ended."""
    ended = subprocess.Popen(["true"])
    ended.wait()
    return f"{ended.pid}-1-{owner().split('-')[-1]}"


@pytest.mark.parametrize("what", ["boot", "namespace"])
def test_a_machine_or_container_that_shares_the_folder_is_let_alone(tmp_path, monkeypatch, gone, what):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    here, kept = owner(), [f"psl-run-{owner()}-abc", "psl-run-notes", "other"]
    assert not gone.startswith(here)
    for name in (f"psl-run-{gone}-abc", *kept):
        (tmp_path / name).mkdir()
    with monkeypatch.context() as elsewhere:
        if what == "boot":
            elsewhere.setattr(leftovers, "machine", lambda: "another")
        else:
            elsewhere.setattr(os, "readlink", lambda path: "pid:[1]")
        assert owner() != here and orphans(tmp_path, "psl-run") == []
        with run_folder() as folder:
            assert folder.name.startswith(f"psl-run-{owner()}-")
        assert (tmp_path / f"psl-run-{gone}-abc").exists()
    assert orphans(tmp_path, "psl-run") == [f"psl-run-{gone}-abc"]
    with run_folder():
        pass
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(kept)


def test_a_link_is_judged_by_who_made_it_and_what_it_leads_to_stays(tmp_path, monkeypatch, gone):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis").write_text("")
    (tmp_path / f"psl-run-{gone}-abc").symlink_to(tmp_path / "mine")
    with run_folder():
        pass
    assert (tmp_path / "mine" / "thesis").exists()
