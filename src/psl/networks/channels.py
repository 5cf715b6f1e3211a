"""Channel models: linear power gain of every client on every subchannel."""

import numpy as np


def log_distance(positions, n_subchannels, subchannel_bandwidth, carrier_frequency, seed):
    """Path loss 32.4 + 21 log10 d + 20 log10 f_GHz dB (TR 38.901 UMi line of sight), no fading.

    Returns ((C, M) linear gain, (C,) ones: everybody has line of sight).
    """
    height = 10.0 - 1.5
    distance = np.sqrt(np.sum(np.square(positions), axis=1) + height**2)
    loss_db = 32.4 + 21.0 * np.log10(distance) + 20.0 * np.log10(carrier_frequency / 1e9)
    gain = 10.0 ** (-loss_db / 10.0)
    return np.repeat(gain[:, None], n_subchannels, axis=1), np.ones(len(gain))


#: channel= values of WirelessCell.sample
MODELS = {"log-distance": log_distance}
