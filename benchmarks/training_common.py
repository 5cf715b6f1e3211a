"""What the training benchmarks share: ResNet-18 on random 32 × 32 images, interleaved timing, tables."""

import functools
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torchvision.models import resnet18

from psl.training.config import TrainingConfig
from psl.training.frameworks import Framework, build_framework
from psl.training.model_preparation import image_layout, prepare_model

RESULTS = Path(__file__).parent / "results"


def build(name: str, n_clients: int, batch_size: int, cut: str = "layer1", phi: float = 0.0) -> Framework:
    """Return a framework with ResNet-18 and plain SGD, and equal clients."""
    torch.manual_seed(0)
    device = torch.device("cpu")
    model = resnet18(num_classes=10)
    layout = image_layout(model, device)
    model = prepare_model(model, device, layout)
    config = TrainingConfig(
        framework=name,
        n_clients=n_clients,
        batch_size=batch_size,
        optimizer=functools.partial(torch.optim.SGD, lr=0.01),
        cut=cut,
        phi=phi,
        example=torch.zeros(2, 3, 32, 32).contiguous(memory_format=layout),
    )
    return build_framework(model, config)


def batches(name: str, n_clients: int, batch_size: int):
    """Return a function draw(client, step) that hands out one fixed batch per client, or the pooled one."""
    torch.manual_seed(1)
    images = torch.randn(n_clients * batch_size, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    labels = torch.randint(0, 10, (n_clients * batch_size,))
    if name == "centralised":
        return lambda client, step: (images, labels)
    parts = list(zip(images.split(batch_size), labels.split(batch_size), strict=True))
    return lambda client, step: parts[client]


def server_inputs(n_clients: int, batch_size: int, cut: str):
    """Return a PSL framework, what its server receives in a step (smashed data, labels), equal weights, a generator."""
    training, draw = build("psl", n_clients, batch_size, cut), batches("psl", n_clients, batch_size)
    with torch.no_grad():
        smashed = [client(draw(i, 0)[0]) for i, client in enumerate(training.clients)]
    labels = [draw(i, 0)[1] for i in range(n_clients)]
    return training, smashed, labels, np.full(n_clients, 1 / n_clients), np.random.default_rng(0)


def seconds(work) -> tuple[float, float]:
    """Wall and CPU seconds of one call; CPU time (of all threads) hardly minds a busy machine."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - cpu


def interleaved(works: dict, repeats: int) -> dict:
    """Call each work in turn, `repeats` times after a warm-up; return (repeats, 2) wall and CPU seconds of each."""
    for work in works.values():
        work()
    times = {name: [] for name in works}
    for repeat in range(repeats):
        order = list(works) if repeat % 2 == 0 else list(works)[::-1]
        for name in order:
            times[name].append(seconds(works[name]))
    return {name: np.array(values) for name, values in times.items()}


def write(frame: pd.DataFrame, name: str) -> None:
    """Print a table and write it to benchmarks/results/."""
    print(frame.to_string(index=False, float_format=lambda x: f"{x:.4g}"))
    RESULTS.mkdir(exist_ok=True)
    frame.to_csv(RESULTS / f"{name}.csv", index=False, float_format="%.6g")
