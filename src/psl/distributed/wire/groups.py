"""Which engine carries messages, gloo or NCCL, and groups of two processes on it."""

import os
import socket
import struct
from datetime import timedelta

import torch
from torch.distributed import ProcessGroupGloo, Store

from psl.errors import check_choice, expected

BACKENDS = ("auto", "gloo", "nccl")
_SIOCGIFADDR = 0x8915
_NEVER = timedelta(days=1)  # for NCCL's own watch: whoever waits says for how long


def check_device(device: str | torch.device) -> torch.device:
    """Return a device that torch sees here, the CPU or a GPU with CUDA.

    Raises:
        ScenarioError: it is none.
    """
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError) as cause:
        raise expected("device", "'cpu', 'cuda' or 'cuda:1'", repr(device)[:80], "name a device of torch") from cause
    if found.type not in ("cpu", "cuda"):
        raise expected("device", "'cpu', 'cuda' or 'cuda:1'", repr(str(found)), "use one of them")
    if found.type == "cuda" and (found.index or 0) >= torch.cuda.device_count():
        got = f"{str(found)!r} where torch {torch.__version__} sees {torch.cuda.device_count()} GPUs"
        raise expected("device", "a device that torch sees", got, "use 'cpu', or see torch.cuda.is_available()")
    return found


def device_of(device: str | torch.device, local_rank: int) -> torch.device:
    """Return the device of a process: "cuda" means one GPU after the other, anything else itself.

    Args:
        device: as all processes know it.
        local_rank: number of the process on its machine.
    """
    found = check_device(device)
    if found.type == "cuda" and found.index is None:
        found = torch.device("cuda", local_rank % torch.cuda.device_count())
    return found


def backend_for(device: str | torch.device, n_local: int, backend: str = "auto") -> str:
    """Return the engine for processes that compute on a device: "gloo", or "nccl" where each has a GPU of its own.

    NCCL refuses two processes on one GPU; gloo then carries copies in the CPU's memory. The choice has been tested
    without a GPU only, and what NCCL does in psl has not been run by its authors.

    Args:
        device: as all processes know it; "cuda" gives each one of this machine's GPUs, see `device_of`.
        n_local: processes of the run on this machine.
        backend: "auto", or the one that must be taken.

    Raises:
        ScenarioError: NCCL is asked for and cannot be.
    """
    check_choice("backend", backend, BACKENDS)
    found = check_device(device)
    gpus = torch.cuda.device_count()
    alone = found.type == "cuda" and gpus >= n_local and (found.index is None or n_local == 1)
    possible = alone and torch.distributed.is_nccl_available()
    if backend == "nccl" and not possible:
        got = f"device {str(device)!r}, {gpus} GPUs and {n_local} processes on this machine"
        fix = "use backend='gloo', which copies through the CPU's memory"
        raise expected("backend", "device 'cuda' and a GPU for each process, for nccl", got, fix)
    return "nccl" if possible and backend != "gloo" else "gloo"


def two_member_group(backend: str, store: Store, member: int, address: str, patience: float):
    """Return a group of two processes.

    Args:
        backend: "gloo" or "nccl", the same at both.
        store: where they find each other, for this group alone.
        member: 0 or 1, this process.
        address: of the network interface to listen on, or its name; NCCL is told by NCCL_SOCKET_IFNAME.
        patience: s to wait for the other; NCCL connects when the first message is sent.

    Raises:
        RuntimeError: it did not come.
        ScenarioError: no interface has this address.
    """
    if backend == "nccl":
        from torch.distributed import ProcessGroupNCCL  # not in every torch

        # `wait` blocks and raises at its timeout, and a peer's end is not the end of this process.
        os.environ["TORCH_NCCL_BLOCKING_WAIT"], os.environ["TORCH_NCCL_ASYNC_ERROR_HANDLING"] = "1", "0"
        os.environ["NCCL_SOCKET_IFNAME"] = f"={interface_of(address)}"  # else it listens wherever it likes
        settings = ProcessGroupNCCL.Options()
        settings._timeout = _NEVER
        return ProcessGroupNCCL(store, member, 2, settings)
    settings = ProcessGroupGloo._Options()
    settings._devices = [listen(address)]
    settings._timeout = timedelta(seconds=patience)
    return ProcessGroupGloo(store, member, 2, settings)


def end_group(group) -> None:
    """Let what waits in a group fail; a gloo group also ends with its last reference."""
    if group.name() == "nccl":
        group.abort()


def listen(where: str):
    """Return gloo's device for an address of this machine or the name of one of its interfaces.

    Raises:
        ScenarioError: it is none.
    """
    interfaces = [name for _, name in socket.if_nameindex()]
    try:
        return ProcessGroupGloo.create_device(**{"interface" if where in interfaces else "hostname": where})
    except RuntimeError as cause:
        want = f"an address of this machine, or an interface: {', '.join(interfaces)}"
        raise expected("--bind", want, repr(where), "name one of them") from cause


def interface_of(address: str) -> str:
    """Return the name of the network interface with an IPv4 address, or that has this name itself.

    Raises:
        ScenarioError: there is none.
    """
    import fcntl  # not on Windows

    names = [name for _, name in socket.if_nameindex()]
    if address in names:
        return address
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        for name in names:
            try:
                answer = fcntl.ioctl(asking.fileno(), _SIOCGIFADDR, struct.pack("256s", name.encode()[:15]))
            except OSError:  # an interface without an address
                continue
            if socket.inet_ntoa(answer[20:24]) == address:
                return name
    raise expected(
        "--bind", f"an interface or an address of one: {', '.join(names)}", repr(address), "name one of them"
    )
