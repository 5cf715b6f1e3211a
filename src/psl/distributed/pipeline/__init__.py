"""A chain of stages on torch.distributed.pipelining: their processes, schedules and messages."""
