"""Imported once by the process that workers are forked from, so that they start at once."""

import torch

from psl.models.tracing import trace
from psl.models.zoo import cnn

torch.set_num_threads(1)
trace(cnn(), (1, 8, 8))  # the first export imports half of torch
