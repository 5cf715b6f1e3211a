"""What a checkpoint must agree with before a run continues from it."""

import hashlib
import re

import numpy as np
import torch
from torch import nn

from psl.training.config import describe_optimizers
from psl.training.frameworks import Framework
from psl.training.sampling import Samples


def settings_of(run: Framework, seed: int, partition, participation) -> dict:
    """Return what the run was started with, as far as it bears on this framework; becomes `History.settings`."""
    setup = run.setup
    numeric = np.isscalar(partition) and not isinstance(partition, str)
    settings = {
        "framework": run.name, "n_clients": setup.n_clients, "batch_size": setup.batch_size, "seed": seed,
        "partition": float(partition) if numeric else partition if isinstance(partition, str) else "explicit",
        "optimizer": describe_optimizers(run.optimizers.values()),
        "loss": getattr(setup.loss, "__name__", type(setup.loss).__name__),
    }  # fmt: skip
    if run.averages:
        settings["local_steps"] = setup.local_steps
    if run.splits:
        settings["cut"] = run.cut
    if run.name == "epsl":
        settings |= {"phi": setup.phi, "linearise": setup.linearise}
    if run.name == "pipeline":
        settings["micro_batch"] = run.micro_batch
    if participation is not None:
        settings |= participation.settings()
    return settings


def fingerprint(run: Framework, samples: Samples, test_samples: Samples, shares: list[np.ndarray]) -> dict:
    """Return plain values that differ where the model, the data, its division, the optimizers or the loss differ.

    The settings of the history stand beside it; where both speak of the same, they are the readable form.

    Args:
        run: the framework before its first round.
        samples, test_samples: the data.
        shares: C index arrays, the samples of each client.
    """
    model, loss = run.setup.model, run.setup.loss
    state = model.state_dict(keep_vars=True).items()
    shape = tuple(samples.fetch([0])[0].shape[1:])
    return {
        "model": [_tensor(name, t) for name, t in state if isinstance(t, torch.Tensor)],
        "layers of the model": _text(model).splitlines(),
        "data": f"{len(samples)} training and {len(test_samples)} test samples of shape {shape}",
        "hash of the data": f"{samples.digest()} training, {test_samples.digest()} test",
        "hash of the clients' samples": _hash(*(share.astype(np.int64).tobytes() for share in shares)),
        "optimizer groups": [f"{name}: {group}" for name, o in run.optimizers.items() for group in _groups(o)],
        "loss function": f"{getattr(loss, '__module__', '')}: {_text(loss)}{_code(loss)}",
    }


def _tensor(name, tensor):
    frozen = isinstance(tensor, nn.Parameter) and not tensor.requires_grad
    return f"{name} {tuple(tensor.shape)} {tensor.dtype}{' frozen' * frozen}"


def _groups(optimizer):
    """Class, settings and number of tensors of every parameter group."""
    for group in optimizer.param_groups if optimizer else ():
        values = ", ".join(f"{key}={value}" for key, value in group.items() if key != "params")
        yield f"{type(optimizer).__name__}({values}) of {len(group['params'])} tensors"


def _text(thing):
    """`repr` without addresses in memory, which change from process to process."""
    return re.sub(r" at 0x[0-9a-fA-F]+", "", repr(thing))


def _code(function):
    """Hash of a function's byte code and numbers: all lambdas have one name."""
    code = getattr(function, "__code__", None)
    if code is None:
        return ""
    constants = [c for c in code.co_consts if isinstance(c, int | float | str)]
    return " " + _hash(code.co_code, repr((code.co_names, constants)).encode())


def _hash(*parts):
    return hashlib.sha256(b";".join(parts)).hexdigest()[:16]
