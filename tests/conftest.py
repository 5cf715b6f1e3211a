"""What all tests share."""

import torch

# Tensors are small here: more threads only wait for each other, up to twenty times slower on a busy machine.
torch.set_num_threads(1)
