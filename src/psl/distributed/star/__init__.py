"""A server and its clients: their processes, and the rounds of each framework."""
