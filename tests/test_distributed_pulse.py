"""Signs of life through a store that hangs, and what NCCL is told about the network."""

import os
import signal
import subprocess
import sys
import time

import pytest
import torch
import torch.distributed
from torch.distributed import HashStore

from psl.distributed.wire.groups import two_member_group
from psl.distributed.wire.messages import ChannelError
from psl.distributed.wire.pulse import Pulse
from psl.distributed.wire.transport import open_store
from psl.errors import PSLError

SERVE = """
import sys
from datetime import timedelta
from torch.distributed import TCPStore
store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=120))
print(store.port, flush=True)
sys.stdin.read()
"""


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGSTOP, signal.SIGKILL])
def test_who_serves_the_store_and_is_stopped_is_noticed_within_the_timeout(number):
    failures = []
    command = [sys.executable, "-c", SERVE]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        try:
            store = open_store("127.0.0.1", int(server.stdout.readline()), 120.0)
            with Pulse(store.clone(), 1, ["stage 0", "stage 1"], 1.0, failures.append):
                time.sleep(1.5)
                assert failures == []  # nobody has begun but we
                server.send_signal(number)
                begin = time.monotonic()
                while not failures and time.monotonic() < begin + 20:
                    time.sleep(0.05)
                waited = time.monotonic() - begin
            assert time.monotonic() - begin < 10
        finally:
            server.kill()
    (failure,) = failures
    assert isinstance(failure, ChannelError) and waited < 5
    assert str(failure).startswith("store: expected an answer within 1 s, got ")
    assert "see whether stage 0, or who else serves it, was stopped or has ended" in str(failure)


def test_nccl_listens_where_gloo_would(monkeypatch):
    told = []

    class Group:
        Options = type("Options", (), {})

        def __init__(self, *_):
            told.append(os.environ["NCCL_SOCKET_IFNAME"])

    monkeypatch.setattr(torch.distributed, "ProcessGroupNCCL", Group, raising=False)
    for name in ("NCCL_SOCKET_IFNAME", "TORCH_NCCL_BLOCKING_WAIT", "TORCH_NCCL_ASYNC_ERROR_HANDLING"):
        monkeypatch.setenv(name, "anything")
    for address in ("127.0.0.1", "lo"):
        two_member_group("nccl", HashStore(), 0, address, 1.0)
    assert told == ["=lo", "=lo"]
    with pytest.raises(PSLError, match="--bind: expected an interface or an address of one"):
        two_member_group("nccl", HashStore(), 0, "192.0.2.7", 1.0)
