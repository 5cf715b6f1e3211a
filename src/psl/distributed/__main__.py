"""The command line: run a plan with processes of this machine, be one process of a run on several hosts, make keys.

``python -m psl.distributed FRAMEWORK --rounds R …`` starts all processes here. With ``--rank K`` it is one of them;
rank 0 is the server, or a pipeline's first stage. ``python -m psl.distributed keys FOLDER --ranks P`` makes keys.
"""

import argparse
import os
import sys
from pathlib import Path

from psl.distributed.job import STAR, Job
from psl.distributed.launch import emulation_of, run
from psl.distributed.leftovers import run_folder
from psl.distributed.place import Place, Terminal
from psl.distributed.wire.keys import Bundle, write_keys
from psl.distributed.worker import work
from psl.errors import PSLError, expected
from psl.records import Record
from psl.training.config import ROW_RULES
from psl.training.defences import Defence, Noise, NoPeek, Quantise
from psl.training.history import History

_PLAIN = (
    "--insecure: nothing is encrypted. Whoever reaches the port, or is on the way, can read labels and activations, "
    "change them, and pose as the server or a client."
)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        if arguments[:1] == ["keys"]:
            _make_keys(arguments[1:])
            return 0
        asked = vars(_parser().parse_args(arguments))
        for name in ("out", "checkpoint"):
            _check_folder(name, asked[name])
        one = {name: asked.pop(name) for name in ("rank", "listen", "server", "keys", "insecure")}
        if one["rank"] is None:
            for name, value in one.items():
                if value:
                    raise expected(
                        f"--{name}", "nothing without --rank", repr(value), "say --rank too, or leave it out"
                    )
            _all_here(asked)
        else:
            _one_of_many(asked, **one)
    except PSLError as failure:
        print(f"{type(failure).__name__}: {failure}", file=sys.stderr, flush=True)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def _make_keys(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m psl.distributed keys", description="Make the keys of a run.")
    parser.add_argument("folder", help="a new folder; it gets one folder per rank, to be copied to the rank's host")
    parser.add_argument("--ranks", type=int, required=True, help="processes of the run: server and clients, or stages")
    parser.add_argument("--days", type=float, default=30.0, help="how long they hold; default 30")
    asked = parser.parse_args(arguments)
    for place in write_keys(asked.folder, asked.ranks, asked.days):
        print(place)


def _check_folder(name: str, path: str | None) -> None:
    """Raise now rather than at the end if there can be no folder of that name."""
    if path is None:
        return
    place = Path(path).absolute()
    found = next(p for p in (place, *place.parents) if p.exists())
    if not (found.is_dir() and os.access(found, os.W_OK)):
        got = f"{path!r}, where {found} is " + ("not writable" if found.is_dir() else "a file")
        raise expected(f"--{name}", "a folder, or a place for one", got, "name another")


def _all_here(asked: dict) -> None:
    """Launch the processes from here."""
    framework, emulate = asked.pop("framework"), asked.pop("emulate")
    out, restarts = asked.pop("out"), asked.pop("restarts")
    plan = _plan(asked.pop("plan"), emulate)
    found = run(framework, plan=plan, emulate=emulate, restarts=restarts, **_given(asked))
    print(*found.faults, found, sep="\n")
    if out is not None:
        Path(out).mkdir(parents=True, exist_ok=True)
        found.history.save(Path(out) / "history.json")
        found.events.to_csv(Path(out) / "events.csv")


def _one_of_many(asked: dict, rank: int, listen: str | None, server: str | None, keys: str | None, insecure: bool):
    """Be one process of a run that somebody started on each host."""
    framework, emulate, out = asked.pop("framework"), asked.pop("emulate"), asked.pop("out")
    if asked.pop("restarts"):
        raise expected(
            "--restarts", "nothing with --rank", "a number", "leave it out: whoever starts it starts it again"
        )
    if emulate == "kernel":
        fix = "leave --rank out: then all are started here, in namespaces of their own"
        raise expected("--emulate", "'pacing' or 'none' with --rank", "'kernel'", fix)
    plan, checkpoint = _plan(asked.pop("plan"), emulate), asked.pop("checkpoint")
    emulation, options = emulation_of("pacing" if emulate == "auto" else emulate, plan), _given(asked)
    has_data = rank == 0 if framework == "pipeline" else rank > 0
    job = Job.of(
        framework,
        options.pop("model"),
        options.pop("dataset"),
        plan=plan,
        emulation=emulation,
        has_data=has_data,
        **options,
    )
    if not 0 <= rank < job.n_processes:
        raise expected("--rank", f"0..{job.n_processes - 1}, as the run has {job.names}", rank, "count from 0")
    listens = rank == 0 if framework != "pipeline" else rank < job.n_processes - 1
    for name, value, wanted in (("listen", listen, listens), ("server", server, rank > 0)):
        if wanted != (value is not None) or (value is not None and not _is_address(value)):
            want = "ADDRESS:PORT" if wanted else f"nothing for {job.names[rank]}"
            raise expected(
                f"--{name}", want, repr(value), f"as in --{name} 10.0.0.1:29500" if wanted else "leave it out"
            )
    if (keys is None) != insecure:
        got, fix = "both" if insecure else "neither", "make keys with python -m psl.distributed keys FOLDER --ranks P"
        raise expected("--keys", "a folder with this rank's keys, or --insecure", got, fix)
    if insecure:
        print(_PLAIN, file=sys.stderr, flush=True)
    with run_folder() as own:
        host = Terminal([] if server is None else [server])
        folder, place = own if out is None else Path(out), None if checkpoint is None else Path(checkpoint)
        bundle = None if keys is None else Bundle.load(keys)
        work(Place(job, rank, host, folder, place, [] if listen is None else [listen], bundle))
        if rank == 0:
            print(History.load(folder / "history.json"), flush=True)
        if out is None:
            print("trained layers were not kept; --out FOLDER keeps those of this process", flush=True)


def _is_address(text: str) -> bool:
    address, _, port = text.rpartition(":")
    return bool(address) and port.isdecimal() and 0 <= int(port) <= 65535


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
        description="Train with a server and clients, or with stages, as real processes: all on this machine, or with "
        "--rank one of them. python -m psl.distributed keys makes the keys of a run.",
    )
    add = parser.add_argument
    add("framework", choices=[*STAR, "pipeline"])
    add("--model", default="psl.models:cnn", help="module:function, called in every process")
    add("--model-option", dest="model_options", action="append", type=_option, metavar="NAME=VALUE")
    add("--dataset", default="digits", help="name, or module:function that returns (train, test)")
    add("--rounds", type=int, required=True)
    add("--clients", dest="n_clients", type=int, help="N")
    add("--batch-size", type=int)
    add("--local-steps", type=int)
    add("--cut", type=_number_or_name, nargs="+", help="number or name; several: one per client or stage boundary")
    add("--tensors", type=int, help="how many tensors may cross at a cut; default 1, or what the plan has")
    add("--phi", type=float)
    add("--linearise")
    add("--rows", choices=ROW_RULES, help="of epsl with --linearise sampled")
    add("--server-steps", type=int, help="of psl, on resampled activations")
    add("--defence", type=_defence, help="what clients do to their smashed data: noise=σ, quantise=BITS or nopeek=α")
    add("--micro-batch", type=int, help="samples at a time; of psl, epsl, edgesplit and pipeline")
    add("--schedule", help="of a pipeline: eager, gpipe or 1f1b")
    add("--partition", type=_number_or_name, help="iid or a Dirichlet α")
    add("--optimizer", help="sgd, adam or module:function")
    add("--lr", type=float)
    add("--seed", type=int)
    add("--model-seed", type=int)
    add("--eval-every", type=int)
    add("--timeout", type=float, help="s without a sign of life after which a process counts as gone")
    add("--device", help="cpu or cuda: the processes of a machine take its GPUs in turn")
    add("--plan", help="file written by plan.save(); gives defaults, and what --emulate imitates")
    add("--emulate", choices=["auto", "kernel", "pacing", "none"], help="impose the plan's devices and links")
    add("--checkpoint", help="folder to save to and continue from")
    add("--save-every", type=float, help="s between two checkpoints")
    add("--restarts", type=int, default=0, help="how often each client may be started again; not with --rank")
    add("--out", help="folder for history and events; with --rank also for the layers of this process")
    add("--rank", type=int, help="be this process: 0 is the server, c + 1 client c; or a pipeline's, along its path")
    add("--listen", metavar="ADDRESS:PORT", help="with --rank: where others connect to this process")
    add("--server", metavar="ADDRESS:PORT", help="with --rank: the server, or in a pipeline the process before")
    add("--keys", metavar="FOLDER", help="with --rank: this rank's folder of those that keys made")
    add("--insecure", action="store_true", help="with --rank: plain text, which anybody on the way reads and changes")
    return parser


def _defence(text: str) -> Defence:
    name, value = _option(text)
    found = {kind.__name__.lower(): kind for kind in (Noise, Quantise, NoPeek)}.get(name.lower())
    if found is None:
        raise argparse.ArgumentTypeError(f"expected noise=σ, quantise=BITS or nopeek=α, got {text!r}")
    return found(float(value) if found is not Quantise else value)  # type: ignore[arg-type]


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
