"""Plans for tests of training: all that `psl.plans.Plan` asks for, without a scheduler."""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from psl.models import cuts
from psl.profiles import Profile


class StandInPlan:
    """A plan that decides given arguments.

    Args:
        scheduler: its name.
        names: of the cuts of the model it is for, the input's first.
        seconds: ``seconds(framework, local_steps)`` is the time of a round.
        arguments: of `psl.train` that the plan decides.
    """

    def __init__(
        self, scheduler: str, names: Iterable[str], seconds: Callable[[str, int], float], **arguments: Any
    ) -> None:
        names = tuple(names)
        zeros = np.zeros(len(names))
        self.scheduler, self.arguments, self.seconds = scheduler, arguments, seconds
        self.profile = Profile(names, zeros, zeros, zeros, zeros, zeros, zeros)
        self.batch_size, self.n_clients = arguments.get("batch_size", 8), arguments.get("n_clients", 3)
        self.round_time = self.lower_bound = 1.0
        self.gap, self.exact = 0.0, True

    def training_arguments(self) -> dict[str, Any]:
        return dict(self.arguments)

    def framework_round_time(self, framework: str, local_steps: int = 1) -> float:
        return self.seconds(framework, local_steps)


class StandInPlanOfDevices(StandInPlan):
    """A plan that also knows the time of every device.

    Args:
        method: what made the plan.
        device_times: (C,) s.
    """

    def __init__(self, *arguments: Any, method: str, device_times: Iterable[float], **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.method, self.device_times = method, np.array(device_times)


def cut_names(model) -> list[str]:
    """Return the names of a model's cuts, for images of 1 × 8 × 8."""
    return [cut.name for cut in cuts(model, (1, 8, 8))]
