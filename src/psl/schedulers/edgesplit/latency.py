"""How long a round of EdgeSplit takes on every device, in named terms."""

import numpy as np
import pandas as pd

from psl.networks.edge_cluster import EdgeCluster
from psl.profiles import Profile
from psl.schedulers.checks import seconds
from psl.schedulers.edgesplit.problem import EdgeSplitProblem


def latency(
    profile: Profile,
    cluster: EdgeCluster,
    *,
    cuts,
    bandwidth,
    batch_size: int = 32,
    local_steps: int = 1,
) -> pd.DataFrame:
    """Return one row per device: cut, bandwidth, the terms of its time in seconds, and the bits it sends and gets.

    ===================  ==================================================================
    device_compute       H b (ρ_j + ϖ_j) / s_i, or H b times the device's own measured seconds
    server_compute       H b ((ρ_L − ρ_j) + (ϖ_L − ϖ_j)) / (s_srv / N)
    activation_exchange  H b (ψ_j + χ_j) / (e_i w_i); nothing at j = L
    model_exchange       2 δ_j / (e_i w_i)
    total                T_i, their sum; the round takes the largest
    ===================  ==================================================================

    Args:
        profile: costs of the model's cuts.
        cluster: the devices, their band and server.
        cuts: (N,) numbers 1..L or names of cuts; one for all is enough. Memory is not checked.
        bandwidth: (N,) Hz, together at most the band; whole blocks where the cluster has them.
        batch_size: b, samples per device and mini-batch.
        local_steps: H, mini-batches between two averages.

    Raises:
        ScenarioError: an argument is out of range or of the wrong shape.

    Source: EdgeSplit (arXiv 2403.15815): computing and communication of a round [P]; its terms [R].
    """
    problem = EdgeSplitProblem(profile, cluster, batch_size, local_steps, memory=False)
    return terms(problem, problem.check_cuts(cuts), problem.check_bandwidth(bandwidth))


def terms(problem: EdgeSplitProblem, cuts: np.ndarray, bandwidth: np.ndarray) -> pd.DataFrame:
    """Return the table of `latency` for checked cuts and bandwidths."""
    rate = problem.efficiency * bandwidth
    model = problem.model_bits[cuts]
    columns = {
        "cut": cuts,
        "cut_name": np.array(problem.profile.names, dtype=object)[cuts],
        "bandwidth_hz": bandwidth,
        "rate_bit_s": rate,
        "device_compute": problem.device_seconds(cuts),
        "server_compute": problem.server_seconds[cuts],
        "activation_exchange": seconds((problem.up_bits + problem.down_bits)[cuts], rate),
        "model_exchange": seconds(2 * model, rate),
        "total": problem.times(cuts, bandwidth),
        "uplink_bits": problem.up_bits[cuts] + model,
        "downlink_bits": problem.down_bits[cuts] + model,
    }
    frame = pd.DataFrame(columns).rename_axis("device")
    if problem.cluster.device_names is not None:
        frame.insert(0, "name", problem.cluster.device_names)
    return frame
