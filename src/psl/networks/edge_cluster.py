"""An edge cluster: heterogeneous devices that share one band and one server."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from psl.errors import check_array, check_count, check_number, expected
from psl.networks.boards import BOARDS, EFFICIENCY, check_efficiency, find_board
from psl.networks.overheads import FIELDS, without_zeros
from psl.networks.validation import check_profiles, check_range
from psl.profiles import Profile
from psl.records import Record

_ROUNDING = 1e-9  # relative; a block that is wider than what is left of the band by no more still fits


@dataclass(frozen=True, repr=False, eq=False)
class EdgeCluster(Record):
    """N devices share a band of W Hz, continuously or in whole resource blocks, and one server in equal parts.

    Args:
        device_speed: (N,) device speeds s_i, FLOP/s; for a model whose profile is measured, relative to its reference
            device (1.0 is that device).
        device_memory: (N,) memory for training, bytes; a scalar serves all, infinity is no limit.
        spectral_efficiency: (N,) e_i, bit/s/Hz; a scalar serves all. Both directions share the device's bandwidth.
        bandwidth: W, Hz.
        server_speed: server speed s_srv, in the unit of `device_speed`.
        round_overhead: t_0, s that every round takes whatever it carries; 0 as in the paper's formula.
        message_overhead: t_m, s that every message of a device takes besides its bits.
        call_overhead: t_c, s that every forward and backward pass of the server takes besides its FLOP.
            `psl.networks.overheads` has typical values of all three [R].
        resource_block: width of a block, Hz, of which every device gets a whole number, at least one; None for
            bandwidth that is divisible at will.
        device_names: N names, for tables and messages; optional.
        profiles: N measured profiles (unit "s") of the model that is planned, one per device, or None for devices
            known by their speed; optional. A device's own profile gives its forward and backward seconds in place of
            its speed; bits, memory, and the server's costs stay those of the profile that is planned with.

    Raises:
        ScenarioError: wrong shapes, NaN, non-positive speeds, memory, efficiencies or bandwidth, or a device's profile
            that is not measured.

    Source: EdgeSplit (arXiv 2403.15815): heterogeneous devices that share bandwidth [P]; its model [R];
    `resource_block`, `profiles` and overheads [B].
    """

    device_speed: np.ndarray
    device_memory: np.ndarray
    spectral_efficiency: np.ndarray
    bandwidth: float
    server_speed: float
    round_overhead: float = 0.0
    message_overhead: float = field(default=0.0, kw_only=True)
    call_overhead: float = field(default=0.0, kw_only=True)
    resource_block: float | None = field(default=None, kw_only=True)
    device_names: tuple[str, ...] | None = field(default=None, kw_only=True)
    profiles: tuple[Profile | None, ...] | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        positive: dict[str, Any] = {"minimum": 0, "strict": True}
        speed = check_array("EdgeCluster.device_speed", self.device_speed, shape=(None,), **positive)
        n = len(speed)
        if n < 1:
            raise expected("EdgeCluster.device_speed", "at least one device", "none", "give one speed per device")
        name, fix = "EdgeCluster.device_memory", "give bytes, one entry per device; infinity for no limit"
        memory = check_array(name, self.device_memory, shape=(n,), allow_inf=True, **positive, fix=fix)
        name, fix = "EdgeCluster.spectral_efficiency", "give bit/s/Hz, one entry per device"
        efficiency = check_array(name, self.spectral_efficiency, shape=(n,), **positive, fix=fix)
        self._set(device_speed=speed, device_memory=memory, spectral_efficiency=efficiency)
        self._set(
            bandwidth=check_number("EdgeCluster.bandwidth", self.bandwidth, **positive),
            server_speed=check_number("EdgeCluster.server_speed", self.server_speed, **positive),
        )
        for name in FIELDS:
            self._set(**{name: check_number(f"EdgeCluster.{name}", getattr(self, name), minimum=0)})
        if self.resource_block is not None:
            name, fix = "EdgeCluster.resource_block", "give the width of a block in Hz, or None"
            self._set(resource_block=check_number(name, self.resource_block, **positive, fix=fix))
        if self.device_names is not None:
            self._set(device_names=_check_names(self.device_names, n))
        if self.profiles is not None:
            self._set(profiles=check_profiles("EdgeCluster.profiles", self.profiles, n, "device"))

    def _values(self) -> dict[str, Any]:
        return without_zeros(super()._values())

    @property
    def n_devices(self) -> int:
        """N, the number of devices."""
        return len(self.device_speed)

    @property
    def n_blocks(self) -> int:
        """Whole resource blocks in the band; 0 where bandwidth is divisible at will."""
        return int(np.floor(self.bandwidth / self.resource_block * (1 + _ROUNDING))) if self.resource_block else 0

    @property
    def labels(self) -> tuple[str, ...]:
        """One name per device: its own, with its number where two devices have the same; "device i" without names."""
        names = self.device_names or tuple(f"device {i}" for i in range(self.n_devices))
        repeated = len(set(names)) < len(names)
        return tuple(f"{name} ({i})" if repeated else name for i, name in enumerate(names))

    def describe(self, device: int) -> str:
        """Return the number of a device and its name, as messages show it."""
        return f"{device} ({self.device_names[device]!r})" if self.device_names else f"{device}"

    @classmethod
    def sample(
        cls,
        n_devices: int = 10,
        seed: int = 0,
        *,
        boards: Sequence[str] | None = None,
        efficiency: float = EFFICIENCY,
        heterogeneity: float = 1.0,
        spectral_efficiency_range: tuple[float, float] = (1.0, 5.5),
        bandwidth: float = 100e6,
        server_speed: float = 10e12,
        resource_block: float | None = None,
        memory_limits: bool = True,
        round_overhead: float = 0.0,
        message_overhead: float = 0.0,
        call_overhead: float = 0.0,
    ) -> "EdgeCluster":
        """Draw the default scenario: real boards, uniform spectral efficiencies, 100 MHz, a server of 10 TFLOP/s.

        Args:
            n_devices: N.
            seed: the same seed gives the same cluster.
            boards: names of `psl.networks.BOARDS` to draw from, uniformly with replacement; default all. A name given
                twice is drawn twice as often.
            efficiency: share of a board's peak FP32 speed that training reaches [R].
            heterogeneity: exponent h of the speeds' ratios to their geometric mean: 0 makes all devices equally fast,
                1 leaves the boards as they are, 2 squares their ratios.
            spectral_efficiency_range: lowest and highest, bit/s/Hz; the default ends at 3GPP TS 36.213's highest CQI.
            bandwidth, server_speed, resource_block: as in `EdgeCluster`.
            round_overhead, message_overhead, call_overhead: as in `EdgeCluster`.
            memory_limits: False gives every device memory without limit.

        Raises:
            ScenarioError: an argument is out of range, or a board is unknown.

        Source: EdgeSplit (arXiv 2403.15815); default scenario [R].
        """
        n_devices = check_count("n_devices", n_devices)
        rng = np.random.default_rng(check_count("seed", seed, minimum=0))
        if isinstance(boards, str) or (boards is not None and len(boards) == 0):
            raise expected("boards", "a list of names", repr(boards), "see psl.networks.boards_frame()")
        choice = BOARDS if boards is None else [find_board(name) for name in boards]
        efficiency = check_efficiency(efficiency)
        check_number("heterogeneity", heterogeneity, minimum=0)
        least, most = check_range("spectral_efficiency_range", spectral_efficiency_range, "bit/s/Hz")
        drawn = [choice[k] for k in rng.integers(len(choice), size=n_devices)]
        speed = efficiency * np.array([board.peak_flops for board in drawn])
        mean = np.exp(np.log(speed).mean())
        return cls(
            device_speed=mean * (speed / mean) ** heterogeneity,
            device_memory=np.array([board.memory if memory_limits else np.inf for board in drawn]),
            spectral_efficiency=rng.uniform(least, most, n_devices),
            bandwidth=bandwidth,
            server_speed=server_speed,
            round_overhead=round_overhead,
            message_overhead=message_overhead,
            call_overhead=call_overhead,
            resource_block=resource_block,
            device_names=tuple(board.name for board in drawn),
        )

    def to_frame(self) -> pd.DataFrame:
        """Return one row per device: name, speed, memory, spectral efficiency, whether its profile is measured."""
        columns = {
            "speed": self.device_speed,
            "memory_bytes": self.device_memory,
            "spectral_efficiency": self.spectral_efficiency,
            "measured": [own is not None for own in self.profiles or (None,) * self.n_devices],
        }
        frame = pd.DataFrame(columns).rename_axis("device")
        if self.device_names is not None:
            frame.insert(0, "name", self.device_names)
        return frame

    def __repr__(self) -> str:
        blocks = f" in blocks of {self.resource_block / 1e3:.4g} kHz" if self.resource_block else ""
        return (
            f"EdgeCluster({self.n_devices} devices, {self.bandwidth / 1e6:.4g} MHz{blocks}, "
            f"server {self.server_speed / 1e12:.4g} TFLOP/s)"
        )


def _check_names(names: Sequence[str], n_devices: int) -> tuple[str, ...]:
    fix = "give one name per device, or None"
    if isinstance(names, str) or len(names) != n_devices:
        got = repr(names) if isinstance(names, str) else f"{len(names)} names"
        raise expected("EdgeCluster.device_names", f"{n_devices} names", got, fix)
    return tuple(map(str, names))
