"""The arguments of a training run: defaults from the plan, and the checks."""

from dataclasses import dataclass

from psl.errors import check_choice, check_count, check_number
from psl.training.config import check_plan, choose_cut, default
from psl.training.frameworks import FRAMEWORKS, Framework
from psl.training.gradient_aggregation import RULES


@dataclass(frozen=True)
class Arguments:
    """Checked arguments of `psl.train` that a plan may supply; `round_time` in s is the plan's, NaN without one."""

    kind: type[Framework]
    rounds: int
    n_clients: int
    batch_size: int
    local_steps: int
    cut: int | str | list[int | str] | None
    phi: float
    linearise: str
    micro_batch: int | None
    round_time: float


def resolve(
    framework: str,
    *,
    rounds,
    n_clients=None,
    batch_size=None,
    local_steps=None,
    cut=None,
    phi=None,
    linearise=None,
    micro_batch=None,
    plan=None,
) -> Arguments:
    """Return arguments as `psl.train` understands them: each as given, else the plan's, else the library's default.

    Raises:
        ScenarioError: one is out of range, unknown, or contradicts the plan.
        CutError: the cut is missing.
    """
    kind = FRAMEWORKS[check_choice("framework", framework, FRAMEWORKS)]
    rounds = check_count("rounds", rounds)
    local_steps = check_count("local_steps", default(local_steps, plan, "local_steps", 1))
    n_clients = check_count("n_clients", default(n_clients, plan, "n_clients", 5))
    batch_size = check_count("batch_size", default(batch_size, plan, "batch_size", 64))
    phi = check_number("phi", default(phi, plan, "phi", 0.5), minimum=0, maximum=1, fix="pass a share in [0, 1]")
    linearise = check_choice("linearise", "representative" if linearise is None else linearise, RULES)
    micro_batch = default(micro_batch, plan, "micro_batch", None)
    if micro_batch is not None:
        micro_batch = check_count("micro_batch", micro_batch)
    round_time = check_plan(plan, framework, local_steps if kind.averages else 1)
    cut = choose_cut(kind, cut, plan, n_clients)
    return Arguments(
        kind, rounds, n_clients, batch_size, local_steps, cut, phi, linearise, micro_batch, round_time
    )  # fmt: skip
