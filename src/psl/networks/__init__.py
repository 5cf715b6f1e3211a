"""Scenarios: what the devices, links and servers can do. Plain arrays; knows nothing of torch."""

from psl.networks.boards import BOARDS, EFFICIENCY, Board, boards_frame
from psl.networks.cluster import EdgeCluster
from psl.networks.network import EdgeNetwork
from psl.networks.wireless import WirelessCell

__all__ = ["BOARDS", "EFFICIENCY", "Board", "EdgeCluster", "EdgeNetwork", "WirelessCell", "boards_frame"]
