"""Decibels. The library itself is SI throughout; these convert at its edges."""

import numpy as np


def db_to_linear(db):
    """Return the power ratio of `db` decibels: 10^(db/10)."""
    return 10.0 ** (np.asarray(db, dtype=float) / 10.0)


def linear_to_db(ratio):
    """Return a power ratio in decibels: 10 log10(ratio)."""
    return 10.0 * np.log10(ratio)


def dbm_to_watt(dbm):
    """Return a power of `dbm` dBm in watts; for a density, dBm/Hz gives W/Hz."""
    return db_to_linear(np.asarray(dbm, dtype=float) - 30.0)


def watt_to_dbm(watt):
    """Return a power in watts as dBm."""
    return linear_to_db(watt) + 30.0
