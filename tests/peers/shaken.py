"""Models of other libraries on which a mistake in a small parameter can be seen."""

import torch


def shaken(model):
    """Norm weights and biases away from 1 and 0, so that a forgotten or exchanged one shows."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            if p.dim() == 1:
                p.add_(0.2 * torch.randn(p.shape, generator=generator))
    return model
