"""Scenarios: what the devices, links and servers can do. Plain arrays; knows nothing of torch."""

from psl.networks.network import EdgeNetwork
from psl.networks.wireless import WirelessCell

__all__ = ["EdgeNetwork", "WirelessCell"]
