"""What all tests share."""

import os
import signal

import pytest
import torch
from torch.utils.data import TensorDataset

from psl.models import cnn, thin_resnet

# Tensors are small here: more threads only wait for each other, up to twenty times slower on a busy machine.
torch.set_num_threads(1)

# A shell that starts tests in the background lets them ignore Ctrl-C, which some of them send to themselves.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist looks for groups and pytest for marks
def pytest_collection_modifyitems(items):
    """Let tests of real processes run one after another, in one worker, and the cells of a notebook in one kernel."""
    for item in items:
        if item.get_closest_marker("full") and os.environ.get("FULL") != "1":
            item.add_marker(pytest.mark.skip(reason="FULL=1 runs it; what is like it runs always"))
        if item.path.suffix == ".ipynb":
            item.add_marker(pytest.mark.xdist_group(item.path.stem))
        elif "processes" in item.fixturenames:
            item.add_marker(pytest.mark.xdist_group("processes"))
            item.add_marker(pytest.mark.slow)
        elif item.path.stem == "test_distributed_emulate":  # reads clocks
            item.add_marker(pytest.mark.xdist_group("processes"))


@pytest.fixture(scope="module")
def data():
    """Random images of four classes: 100 to train, 30 to test."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(130, 1, 8, 8, generator=generator)
    labels = torch.randint(0, 4, (130,), generator=generator)
    return TensorDataset(images[:100], labels[:100]), TensorDataset(images[100:], labels[100:])


@pytest.fixture
def plain():
    """A small CNN in double precision."""
    torch.manual_seed(2)
    return cnn(n_classes=4, width=4).double()


@pytest.fixture
def norm():
    """A small residual network with BatchNorm, in double precision."""
    torch.manual_seed(2)
    return thin_resnet(n_classes=4, width=4).double()


@pytest.fixture(scope="session")
def processes(tmp_path_factory, worker_id):
    """For tests of real processes, which run in one worker: they would disturb each other."""
    if worker_id != "master":  # pytest-xdist's workers have folders beside each other
        mark = tmp_path_factory.getbasetemp().parent / "processes"
        assert not mark.exists(), "expected tests of real processes in one worker, found them in two"
        mark.touch()
    from distributed_models import fork_server

    fork_server()  # before a test starts one that knows no more than its own model
