"""Decibels. The library computes in SI units; these functions convert what is given in dB or dBm."""

from typing import Any, overload

import numpy as np
from numpy.typing import ArrayLike


@overload
def db_to_linear(db: float) -> float: ...
@overload
def db_to_linear(db: ArrayLike) -> np.ndarray: ...
def db_to_linear(db: ArrayLike) -> Any:
    """Return the power ratio of `db` decibels, 10^(db/10)."""
    return 10.0 ** (np.asarray(db, dtype=float) / 10.0)


@overload
def linear_to_db(ratio: float) -> float: ...
@overload
def linear_to_db(ratio: ArrayLike) -> np.ndarray: ...
def linear_to_db(ratio: ArrayLike) -> Any:
    """Return a power ratio in decibels, 10 log10(ratio)."""
    return 10.0 * np.log10(ratio)


@overload
def dbm_to_watt(dbm: float) -> float: ...
@overload
def dbm_to_watt(dbm: ArrayLike) -> np.ndarray: ...
def dbm_to_watt(dbm: ArrayLike) -> Any:
    """Return a power of `dbm` dBm in watts; a density in dBm/Hz becomes W/Hz."""
    return db_to_linear(np.asarray(dbm, dtype=float) - 30.0)


@overload
def watt_to_dbm(watt: float) -> float: ...
@overload
def watt_to_dbm(watt: ArrayLike) -> np.ndarray: ...
def watt_to_dbm(watt: ArrayLike) -> Any:
    """Return a power in watts as dBm."""
    return linear_to_db(watt) + 30.0
