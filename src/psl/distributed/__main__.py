"""``torchrun --nproc-per-node P -m psl.distributed FRAMEWORK --rounds R …``: be one of the P processes of a run.

Rank 0 is the server of N = P − 1 clients; in a pipeline, of P stages and relays, it is the first stage.
Without torchrun each process of a run can also be started by hand, with ``--rank``, ``--world-size`` and ``--server``,
and a client that has died again; or, without these, all of them from here.
"""

import argparse
import os
import sys
from datetime import timedelta
from pathlib import Path

from torch.distributed import PrefixStore, Store, TCPStore

from psl.distributed.job import STAR, Job
from psl.distributed.launch import emulation_of, run
from psl.distributed.leftovers import run_folder
from psl.distributed.pipeline.torchrun import attend
from psl.distributed.star.worker import World, work
from psl.distributed.wire.groups import listen
from psl.distributed.wire.transport import LOOPBACK, START, open_store, serve_store
from psl.errors import PSLError, expected
from psl.records import Record
from psl.training.history import History


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    asked = vars(_parser().parse_args(arguments))
    try:
        for name in ("out", "checkpoint"):
            _check_folder(name, asked[name])
        if _is_one(*(asked.pop(name) for name in ("rank", "world_size", "server"))):
            _as_one(asked)
        else:
            _alone(asked)
    except PSLError as failure:
        print(f"{type(failure).__name__}: {failure}", file=sys.stderr, flush=True)
        return 1
    return 0


def _is_one(rank: int | None, count: int | None, server: str | None) -> bool:
    """Tell whether to be one process of a run, whose place torchrun's variables then hold."""
    here = {"RANK": rank, "WORLD_SIZE": count}
    if server is not None:
        address, _, port = server.rpartition(":")
        here["MASTER_ADDR"], here["MASTER_PORT"] = address, port
        if not (address and _is_port(port)):
            raise expected("--server", "ADDRESS:PORT", repr(server), "pass it as in --server 127.0.0.1:29500")
    os.environ.update({name: str(value) for name, value in here.items() if value is not None})
    if "RANK" not in os.environ and count is None and server is None:
        return False
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        value = os.environ.get(name, "")
        if not value or not (value.isdecimal() or name == "MASTER_ADDR"):
            fix = "pass all three, as in --rank 1 --world-size 4 --server 127.0.0.1:29500, or set these variables"
            raise expected(name, "a whole number" if name != "MASTER_ADDR" else "an address", repr(value), fix)
    if not _is_port(os.environ["MASTER_PORT"]):
        raise expected("MASTER_PORT", "a port, 1 to 65535", os.environ["MASTER_PORT"], "set it to one")
    if int(os.environ["RANK"]) >= int(os.environ["WORLD_SIZE"]):
        want, fix = f"less than {os.environ['WORLD_SIZE']}, the number of processes", "count from 0"
        raise expected("--rank", want, os.environ["RANK"], fix)
    return True


def _is_port(text: str) -> bool:
    return text.isdecimal() and 1 <= int(text) <= 65535


def _check_folder(name: str, path: str | None) -> None:
    """Raise now rather than at the end if there can be no folder of that name."""
    if path is None:
        return
    place = Path(path).absolute()
    found = next(p for p in (place, *place.parents) if p.exists())
    if not (found.is_dir() and os.access(found, os.W_OK)):
        got = f"{path!r}, where {found} is " + ("not writable" if found.is_dir() else "a file")
        raise expected(f"--{name}", "a folder, or a place for one", got, "name another")


def _starter() -> str:
    """Return who started this process of a run, for messages."""
    return "torchrun" if "LOCAL_WORLD_SIZE" in os.environ else "processes started by hand"


def _alone(asked: dict) -> None:
    """Launch the processes from here."""
    framework, emulate = asked.pop("framework"), asked.pop("emulate")
    out, restarts = asked.pop("out"), asked.pop("restarts")
    _refuse("processes of one machine", bind=asked.pop("bind"))
    plan = _plan(asked.pop("plan"), emulate)
    options = _given(asked)
    found = run(framework, plan=plan, emulate=emulate, restarts=restarts, **options)
    print(found)
    if out is not None:
        Path(out).mkdir(parents=True, exist_ok=True)
        found.history.save(Path(out) / "history.json")
        found.events.to_csv(Path(out) / "events.csv")


def _refuse(where: str, **options) -> None:
    """Raise for an option that would have no effect there."""
    for name, value in options.items():
        if value:
            raise expected(f"--{name}", f"nothing for {where}, which cannot", repr(value), "leave it out")


def _as_one(asked: dict) -> None:
    """Be one process of a run, which torchrun started, or somebody by hand."""
    rank, count = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    framework, emulate = asked.pop("framework"), asked.pop("emulate")
    out, bind = asked.pop("out"), asked.pop("bind")
    _refuse(_starter(), restarts=asked.pop("restarts"))
    if emulate == "kernel":
        fix = "let python -m psl.distributed start all of them, in namespaces of their own"
        raise expected("--emulate", f"'pacing' or 'none' for {_starter()}", "'kernel'", fix)
    plan = _plan(asked.pop("plan"), emulate)
    options = _given(asked)
    emulation = emulation_of("pacing" if emulate == "auto" else emulate, plan)
    if framework == "pipeline":
        history = attend(_store(rank), _address(bind), plan=plan, emulate=emulation, out=out, **options)
        if history is not None:
            _conclude(history, out)
        return
    if count < 2:
        raise expected("processes", "2 or more", count, "start the server and at least one client")
    if options.setdefault("n_clients", count - 1) != count - 1:
        fix = f"start {options['n_clients'] + 1} processes in all: the server and the clients"
        raise expected("processes", f"{options['n_clients'] + 1}", count, fix)
    checkpoint = options.pop("checkpoint", None)
    job = Job.of(framework, options.pop("model"), options.pop("dataset"), plan=plan, emulation=emulation, **options)
    with run_folder() as own:
        folder = own if out is None else Path(out)
        place = None if checkpoint is None else Path(checkpoint)
        world = World.here(folder, place, job.n_clients, _address(bind), _ranks_here(rank, count))
        if rank == 0:
            links = "none" if job.emulation is None else job.emulation.links
            print(f"{framework}: server and {job.n_clients} clients, links emulated by: {links}", flush=True)
        work(job, world, rank, _store(rank), tell=print if rank == 0 else None)
        if rank == 0:
            _conclude(History.load(folder / "history.json"), out)


def _conclude(history: History, out: str | None) -> None:
    """Say how the run went, and what of it is not kept."""
    print(history, flush=True)
    if out is None:
        print("the trained parts were not kept; --out FOLDER keeps them", flush=True)


def _store(rank: int) -> Store:
    """Return the store of torchrun's rendezvous, one for each of its restarts."""
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store: TCPStore
    if rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        store, _ = serve_store(address, port)
    else:
        store = open_store(address, port, START)
    store.set_timeout(timedelta(seconds=START))
    return PrefixStore(f"psl/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)


def _address(bind: str | None) -> str:
    """Return where to listen: loopback unless the run spans several machines, which must be said."""
    if bind is None and _several_machines():
        fix = "--bind ADDRESS or --bind INTERFACE, of a network that you trust: nothing is encrypted"
        raise expected("--bind", "this machine's address on the network of the run", "none", fix)
    listen(bind or LOOPBACK)
    return bind or LOOPBACK


def _several_machines() -> bool:
    """Whether the run spans several machines: what torchrun says, else whether the server's address is loopback."""
    here = os.environ.get("LOCAL_WORLD_SIZE")
    if here is not None:
        return here != os.environ["WORLD_SIZE"]
    return not (os.environ["MASTER_ADDR"] == "localhost" or os.environ["MASTER_ADDR"].startswith("127."))


def _ranks_here(rank: int, count: int) -> list[int]:
    """Return the ranks on this machine: this one alone if nobody says how many are on which of several."""
    if "LOCAL_WORLD_SIZE" in os.environ:
        first = rank - int(os.environ.get("LOCAL_RANK", rank))
        return list(range(first, first + int(os.environ["LOCAL_WORLD_SIZE"])))
    return [rank] if _several_machines() else list(range(count))


def _given(asked: dict) -> dict:
    """Return the options that were given, in the form of `Job`."""
    options = {name: value for name, value in asked.items() if value is not None}
    if len(options.get("cut", ())) == 1:
        (options["cut"],) = options["cut"]
    if "model_options" in options:
        options["model_options"] = dict(options["model_options"])
    return options


def _plan(path: str | None, emulate: str | None):
    if path is None:
        if emulate is not None:
            raise expected("--emulate", "a plan to emulate", "none", "pass --plan FILE, or leave it out")
        return None
    try:
        return Record.load(path)
    except (OSError, UnicodeDecodeError) as cause:
        got = f"{path!r} ({getattr(cause, 'strerror', None) or 'no text'})"
        raise expected("--plan", "a file written by plan.save()", got, "name one that can be read") from cause


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m psl.distributed",
        description="Train with a server and clients as real processes. Under torchrun, or with --rank, each process "
        "takes its rank (0 is the server, or the first stage); else all are started on this machine.",
    )
    add = parser.add_argument
    add("framework", choices=[*STAR, "pipeline"])
    add("--model", default="psl.models:cnn", help="module:function, called in every process")
    add("--model-option", dest="model_options", action="append", type=_option, metavar="NAME=VALUE")
    add("--dataset", default="digits", help="name, or module:function that returns (train, test)")
    add("--rounds", type=int, required=True)
    add("--clients", dest="n_clients", type=int, help="N; under torchrun its processes less one")
    add("--batch-size", type=int)
    add("--local-steps", type=int)
    add("--cut", type=_number_or_name, nargs="+", help="number or name; several: one per client or stage boundary")
    add("--phi", type=float)
    add("--linearise")
    add("--micro-batch", type=int, help="of a pipeline")
    add("--schedule", help="of a pipeline: eager, gpipe or 1f1b")
    add("--partition", type=_number_or_name, help="iid or a Dirichlet α")
    add("--optimizer", help="sgd, adam or module:function")
    add("--lr", type=float)
    add("--seed", type=int)
    add("--model-seed", type=int)
    add("--eval-every", type=int)
    add("--timeout", type=float, help="s without an answer after which a client is left out")
    add("--device", help="cpu or cuda: the processes of a machine take its GPUs in turn")
    add("--backend", help="gloo, nccl or auto: nccl where each process has a GPU of its own")
    add("--plan", help="file written by plan.save(); gives defaults, and what --emulate imitates")
    add("--emulate", choices=["auto", "kernel", "pacing", "none"], help="impose the plan's devices and links")
    add("--checkpoint", help="folder to save to and continue from")
    add("--save-every", type=float, help="s between two checkpoints")
    add("--restarts", type=int, default=0, help="how often each client may be started again; not under torchrun")
    add("--out", help="folder for history and events; under torchrun or by hand also progress and the trained parts")
    add("--bind", help="address or interface to listen on; default this machine only")
    add("--rank", type=int, help="be this process of a run: 0 is the server, c + 1 client c; or a pipeline's; as RANK")
    add("--world-size", type=int, help="processes of the run: N + 1, or of the pipeline; as WORLD_SIZE")
    add("--server", metavar="ADDRESS:PORT", help="where rank 0 is found; as MASTER_ADDR and MASTER_PORT")
    return parser


def _option(text: str) -> tuple[str, int | float | str]:
    name, found, value = text.partition("=")
    if not found:
        raise argparse.ArgumentTypeError(f"expected NAME=VALUE, got {text!r}")
    return name, _number_or_name(value)


def _number_or_name(text: str) -> int | float | str:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


if __name__ == "__main__":
    sys.exit(main())
