"""Scenarios: what the devices, links and servers can do. Plain arrays; knows nothing of torch."""

from psl.networks.boards import BOARDS, EFFICIENCY, Board, boards_frame
from psl.networks.edge_cluster import EdgeCluster
from psl.networks.edge_network import EdgeNetwork
from psl.networks.wireless_cell import WirelessCell

__all__ = ["BOARDS", "EFFICIENCY", "Board", "EdgeCluster", "EdgeNetwork", "WirelessCell", "boards_frame"]
