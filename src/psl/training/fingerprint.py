"""What a checkpoint must agree with before a run continues from it."""

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from psl.training.frameworks import Framework
from psl.training.messages import tensors_of
from psl.training.sampling import Samples
from psl.training.scores import accuracy, metric_name, name_of


def settings_of(run: Framework) -> dict[str, Any]:
    """Return what the run was started with, as far as it bears on this framework; becomes `History.settings`."""
    config = run.config
    settings = {
        "framework": run.name,
        "n_clients": config.n_clients,
        "batch_size": config.batch_size,
        "seed": config.seed,
        "partition": "explicit" if isinstance(config.partition, tuple) else config.partition,
        "optimizer": _describe_optimizers(run.optimizers.values()),
        "loss": name_of(config.loss),
    }
    if config.metric is not accuracy:
        settings["metric"] = metric_name(config.metric)
    if config.defence is not None:
        settings["defence"] = str(config.defence)
    settings |= run.settings()
    if config.participation is not None:
        settings |= config.participation.settings()
    return settings


def _describe_optimizers(optimizers: Iterable[torch.optim.Optimizer | None]) -> str:
    """Return class and settings of the first optimizer; all are made alike."""
    for optimizer in filter(None, optimizers):
        return f"{type(optimizer).__name__}({_numbers(optimizer.defaults)})"
    return "none"


def _numbers(settings: Mapping[str, Any]) -> str:
    """The numbers among an optimizer's settings."""
    values = {k: v for k, v in settings.items() if isinstance(v, int | float | tuple) and v is not False}
    return ", ".join(f"{name}={value}" for name, value in values.items())


def fingerprint(run: Framework, samples: Samples, test_samples: Samples, shares: list[np.ndarray]) -> dict[str, Any]:
    """Return plain values that differ where the model, the data, its division, the optimizers or the loss differ.

    A checkpoint holds the settings of the history as well, which say some of the same in readable form.

    Args:
        run: the framework before its first round.
        samples, test_samples: the data.
        shares: N index arrays, the samples of each client.
    """
    shape = tuple(tensors_of(samples.fetch([0])[0])[0].shape[1:])
    return program_of(run.model, run.optimizers, run.config.loss) | {
        "data": f"{len(samples)} training and {len(test_samples)} test samples of shape {shape}",
        "hash of the data": f"{samples.digest()} training, {test_samples.digest()} test",
        "hash of the clients' samples": _hash(*(share.astype(np.int64).tobytes() for share in shares)),
    }


def program_of(
    model: nn.Module, optimizers: Mapping[str, torch.optim.Optimizer | None], loss: Callable[..., torch.Tensor]
) -> dict[str, list[str] | str]:
    """Return plain values that differ where the model, the optimizers, by name, or the loss differ."""
    return {
        "model": _tensors(model),
        "layers of the model": _text(model).splitlines(),
        "optimizer groups": [f"{name}: {group}" for name, o in optimizers.items() for group in _groups(o)],
        "loss function": f"{getattr(loss, '__module__', '')}: {_text(loss)}{_code(loss)}",
    }


def outline(model: nn.Module, optimizer: torch.optim.Optimizer | None) -> dict[str, str]:
    """Return short texts that differ where files of two hosts define other layers or another optimizer.

    They say less than `program_of`: nothing that differs between processes with the same files, such as an object's
    number, or the order of a set in a module's own text.
    """
    lines = _tensors(model)
    for name, module in model.named_modules():
        torchs = type(module).__module__.startswith("torch.nn.")  # whose texts are the same everywhere
        lines.append(f"{name}: {type(module).__name__} {module.extra_repr() if torchs else ''}")
    count, text = sum(p.numel() for p in model.parameters()), "; ".join(lines)
    groups = () if optimizer is None else optimizer.param_groups
    sets = [f"{_numbers(group)} of {len(group['params'])} tensors" for group in groups]
    return {
        "model's layers": f"those of {count:,} parameters with hash {_hash(text.encode())}",
        "optimizer's settings": f"{type(optimizer).__name__}({'; '.join(sets)})",
    }


def _tensors(model: nn.Module) -> list[str]:
    state = model.state_dict(keep_vars=True).items()
    return [_tensor(name, t) for name, t in state if isinstance(t, torch.Tensor)]


def _tensor(name: str, tensor: torch.Tensor) -> str:
    frozen = " frozen" if isinstance(tensor, nn.Parameter) and not tensor.requires_grad else ""
    return f"{name} {tuple(tensor.shape)} {tensor.dtype}{frozen}"


def _groups(optimizer: torch.optim.Optimizer | None) -> Iterator[str]:
    """Class, settings and number of tensors of every parameter group."""
    for group in () if optimizer is None else optimizer.param_groups:
        values = ", ".join(f"{key}={_text(value)}" for key, value in group.items() if key != "params")
        yield f"{type(optimizer).__name__}({values}) of {len(group['params'])} tensors"


def _text(thing: object) -> str:
    """`repr` without addresses in memory, which change from process to process."""
    return re.sub(r" at 0x[0-9a-fA-F]+", "", repr(thing))


def _code(function: object) -> str:
    """Hash of a function's byte code and numbers: all lambdas have one name."""
    code = getattr(function, "__code__", None)
    if code is None:
        return ""
    constants = [c for c in code.co_consts if isinstance(c, int | float | str)]
    return " " + _hash(code.co_code, repr((code.co_names, constants)).encode())


def _hash(*parts: bytes) -> str:
    return hashlib.sha256(b";".join(parts)).hexdigest()[:16]
