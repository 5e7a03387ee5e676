"""One thread: the networks of the tests are small, and test processes run side by side."""

import torch

torch.set_num_threads(1)
