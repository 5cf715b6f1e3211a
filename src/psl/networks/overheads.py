"""Seconds that a round and a message cost whatever they carry: typical values, and what files keep of them.

The papers' formulas have none: every term of a round of EPSL is proportional to the mini-batch, so that the smallest
one always looks best. So `WirelessCell` and `EdgeCluster` take a `round_overhead` and a `message_overhead`, both 0 by
default; and a `call_overhead`, which micro-batches pay often.
"""

from typing import Any

#: s per round [R]: the control-plane latency that 3GPP TR 38.913 asks of 5G, from idle to the start of a transfer. For
#: comparison, real processes on one machine with 2 cores take 4 ms more for a step than one process with the same
#: work, messages not counted (benchmarks/results/distributed_overhead.csv, 0.1 MB: 7.1 − 2.2 − 2 × 0.36 ms).
TYPICAL_ROUND_OVERHEAD = 10e-3
#: s per message [R]: the user-plane latency, one way, that 3GPP TR 38.913 asks for mobile broadband. For comparison, a
#: stream between processes takes 0.36 ms (the same file: half of "send and answer, mutual TLS").
TYPICAL_MESSAGE_OVERHEAD = 4e-3
#: s per call of the server [R]: what starting the kernels of one forward and backward pass costs, some 10 µs each for
#: some hundred operators, of which a part overlaps with computing.
TYPICAL_CALL_OVERHEAD = 2e-3

FIELDS = ("round_overhead", "message_overhead", "call_overhead")


def without_zeros(values: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of a record without overheads of 0: its files, and proofs made for it, stay as they were."""
    return {name: value for name, value in values.items() if name not in FIELDS or value != 0}
