"""psl beside what others offer for the same questions. Run with `python -m benchmarks.peers`."""
