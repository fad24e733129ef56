"""The row of the specification's vectors for edits of attention: two heads, seven keys."""

from __future__ import annotations

import torch

SCORES = torch.tensor([[2, 0.5, 1, -1, 0, 0.5, 1.5], [1, -0.5, -2, 0.4, 1.2, 2, 0]])[None, :, None]
SYSTEM = torch.tensor([[True, True, False, False, False, False, False]])
IMAGE = torch.tensor([[False, False, True, True, True, False, False]])
TEXT = torch.tensor([[False, False, False, False, False, True, True]])
