"""Channel models: linear power gain of every client on every subchannel."""

import warnings
from collections.abc import Callable

import numpy as np

BASE_STATION_HEIGHT = 10.0  # m, TR 38.901 table 7.2-1, UMi
USER_HEIGHT = 1.5  # m, same table

#: Where TR 38.901 (table 7.4.1-1, UMi) defines a path loss: distances on the ground, m, and carriers, Hz.
VALID_DISTANCE = (10.0, 5000.0)
VALID_CARRIER = (0.5e9, 100e9)


def warn_outside_validity(distance: np.ndarray, carrier_frequency: float, stacklevel: int) -> None:
    """Warn where clients or the carrier are outside the range for which TR 38.901 gives a path loss.

    Args:
        distance: (N,) from the base station on the ground, m.
        carrier_frequency: Hz.
        stacklevel: as in `warnings.warn`, counted from here.
    """
    outside = []
    if not VALID_CARRIER[0] <= carrier_frequency <= VALID_CARRIER[1]:
        outside.append(f"carrier_frequency={carrier_frequency / 1e9:.4g} GHz (valid: 0.5..100 GHz)")
    far = distance[(distance < VALID_DISTANCE[0] * (1 - 1e-9)) | (distance > VALID_DISTANCE[1])]
    if far.size:
        outside.append(
            f"{far.size} of {distance.size} clients at {far.min():.4g}..{far.max():.4g} m (valid: 10..5000 m)"
        )
    if outside:
        text = f"outside the range of validity of TR 38.901 UMi: {' and '.join(outside)}; the gains are extrapolated"
        warnings.warn(text, stacklevel=stacklevel + 1)


def umi(
    positions: np.ndarray, n_subchannels: int, subchannel_bandwidth: float, carrier_frequency: float, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """3GPP TR 38.901 urban micro (street canyon), sampled with Sionna.

    Path loss, line-of-sight state, shadow fading and frequency selectivity are the standard's. The clients are outdoors
    and stand still, each end has one vertical omnidirectional antenna, and the channel is taken at the centre of each
    subchannel.

    Args:
        positions: (N, 2) of the clients around the base station, m.
        n_subchannels: K.
        subchannel_bandwidth, carrier_frequency: Hz.
        seed: of Sionna's draws.

    Returns:
        ((N, K) linear gain, (N,) 1 where there is line of sight).
    """
    import torch

    n_clients = len(positions)
    # Sionna reseeds torch's generator, when imported and by its own seed: give the caller's back.
    with torch.random.fork_rng(devices=[]):
        # Imported here: it takes seconds, and most users of the library never sample.
        from sionna.phy import config
        from sionna.phy.channel import cir_to_ofdm_channel, subcarrier_frequencies
        from sionna.phy.channel.tr38901 import PanelArray, SystemLevelChannel, UMiScenario

        config.seed = seed
        antenna = PanelArray(
            num_rows_per_panel=1,
            num_cols_per_panel=1,
            polarization="single",
            polarization_type="V",
            antenna_pattern="omni",
            carrier_frequency=carrier_frequency,
            precision="double",
            device="cpu",
        )
        # Sionna's class UMi is these two in one, but it does not tell who has line of sight.
        scenario = UMiScenario(
            carrier_frequency=carrier_frequency,
            o2i_model="low",
            ut_array=antenna,
            bs_array=antenna,
            direction="uplink",
            precision="double",
            device="cpu",
        )
        model = SystemLevelChannel(scenario, precision="double", device="cpu")
        clients = np.column_stack([positions, np.full(n_clients, USER_HEIGHT)])
        still = torch.zeros(1, n_clients, 3, dtype=torch.float64)
        model.set_topology(
            ut_loc=torch.tensor(clients[None]),
            bs_loc=torch.tensor([[[0.0, 0.0, BASE_STATION_HEIGHT]]], dtype=torch.float64),
            ut_orientations=still,
            bs_orientations=torch.zeros(1, 1, 3, dtype=torch.float64),
            ut_velocities=still,
            in_state=torch.zeros(1, n_clients, dtype=torch.bool),
        )
        line_of_sight = scenario.los[0, 0].numpy().astype(float)
        path, delay = model(num_time_samples=1, sampling_frequency=subchannel_bandwidth)[:2]
    centres = subcarrier_frequencies(n_subchannels, subchannel_bandwidth, precision="double", device="cpu")
    response = cir_to_ofdm_channel(centres, path, delay)  # (1, 1, 1, N, 1, 1, K)
    return response.abs().square().reshape(n_clients, n_subchannels).numpy(), line_of_sight


def log_distance(
    positions: np.ndarray, n_subchannels: int, subchannel_bandwidth: float, carrier_frequency: float, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Path loss 32.4 + 21 log10 d + 20 log10 f_GHz dB (TR 38.901 UMi, line of sight), no fading.

    Args: as in `umi`; the width of a subchannel and the seed change nothing.

    Returns:
        ((N, K) linear gain, (N,) ones: everybody has line of sight).
    """
    height = BASE_STATION_HEIGHT - USER_HEIGHT
    distance = np.sqrt(np.sum(np.square(positions), axis=1) + height**2)
    loss_db = 32.4 + 21.0 * np.log10(distance) + 20.0 * np.log10(carrier_frequency / 1e9)
    gain = 10.0 ** (-loss_db / 10.0)
    return np.repeat(gain[:, None], n_subchannels, axis=1), np.ones(len(gain))


#: channel= values of WirelessCell.sample
MODELS: dict[str, Callable[[np.ndarray, int, float, float, int], tuple[np.ndarray, np.ndarray]]] = {
    "umi": umi,
    "log-distance": log_distance,
}
