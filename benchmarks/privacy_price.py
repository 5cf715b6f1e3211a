"""What a budget of leakage costs in round time: ResNet-18 at 32×32, trained, attacked at every cut, planned in cells.

    python benchmarks/privacy_price.py

torchvision's ResNet-18 with ten classes is trained by SFL (N = 5, b = 32, 60 rounds, cut after layer1) on the digits,
resized to 32×32 and repeated in three channels, once per seed. `psl.privacy.measure` attacks the smashed data at every
cut by ridge regression from 1,000 auxiliary images. A budget R² ≤ ρ is then a floor on the cut, and its price the
shortest round known at that cut or behind it over the shortest known at all, in default cells with b = 64, for EPSL
with φ = 0.5 and for PSL. Round times are simulated. Writes benchmarks/results/privacy_price.csv.
"""

import argparse

import numpy as np
import pandas as pd
import torch
from torch.nn.functional import interpolate
from torch.utils.data import TensorDataset
from torchvision.models import resnet18

import psl
from psl.schedulers import epsl
from training_common import write

BUDGETS = (0.98, 0.95, 0.9, 0.85, 0.81, 0.68, 0.56)
TRAINED_CUT = "layer1.1"


def digits_at_32() -> tuple[TensorDataset, TensorDataset]:
    """Return the digits as images that ResNet-18 takes."""

    def larger(part: TensorDataset) -> TensorDataset:
        images, labels = part[:]
        images = interpolate(images, size=(32, 32), mode="bilinear", align_corners=False)
        return TensorDataset(images.repeat(1, 3, 1, 1), labels)

    train, test = psl.data.load("digits")
    return larger(train), larger(test)


def leakage_of(seed: int, rounds: int, data) -> psl.privacy.Leakage:
    """Train a model and return what its cuts leak."""
    torch.manual_seed(seed)
    how = {"n_clients": 5, "batch_size": 32, "rounds": rounds, "eval_every": rounds, "lr": 0.05, "seed": seed}
    history = psl.train("sfl", resnet18(num_classes=10), data, cut=TRAINED_CUT, progress=False, **how)
    print(f"seed {seed}: test accuracy {history.final_accuracy:.1%}", flush=True)
    return psl.privacy.measure(history, data, seeds=1)


def floor_of(leak: psl.privacy.Leakage, budget: float) -> int:
    """Return the number of the shallowest cut within a budget; that of the output if there is none."""
    try:
        return leak.floor(r2=budget)
    except psl.InfeasibleError:
        return max(leak.cuts)


def main() -> None:
    """Train, attack, plan."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3, help="trainings")
    parser.add_argument("--cells", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=60)
    asked = parser.parse_args()
    data = digits_at_32()
    leaks = [leakage_of(seed, asked.rounds, data) for seed in range(asked.seeds)]
    profile = psl.profile(resnet18(num_classes=10), (3, 32, 32))
    table = pd.DataFrame({seed: leak.at_or_behind("r2") for seed, leak in enumerate(leaks)}, index=leaks[0].names)
    print(table.mean(axis=1).to_frame("r2").assign(sd=table.std(axis=1)).to_string(float_format="%.3f"))
    rows = []
    for phi, method in ((0.5, "EPSL, φ = 0.5"), (0.0, "PSL")):
        cells = [psl.WirelessCell.sample(seed=number) for number in range(asked.cells)]
        best = {
            j: [epsl.solve(profile, cell, phi=phi, cut=j, bound=False).round_time for cell in cells]
            for j in range(1, profile.n_units)
        }
        times = pd.DataFrame(best)  # (cells, cuts)
        shortest = times.min(axis=1)
        for budget in BUDGETS:
            floors = [floor_of(leak, budget) for leak in leaks]
            names = ", ".join("none" if j >= profile.n_units else profile.names[j] for j in floors)
            prices = np.array([times.loc[:, j:].min(axis=1) / shortest for j in floors if j < profile.n_units])
            row = {"method": method, "r2_at_most": budget, "cut_from": names}
            if prices.size:
                row |= {"price": np.median(prices), "least": prices.min(), "most": prices.max()}
            rows.append(row)
    write(pd.DataFrame(rows), "privacy_price")


if __name__ == "__main__":
    main()
