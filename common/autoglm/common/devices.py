"""The device that a service computes on."""

import torch


def chosen_device(configured: str) -> torch.device:
    """Return the device named by a setting; when it is empty, cuda if there is one, else the CPU."""
    return torch.device(configured or ("cuda" if torch.cuda.is_available() else "cpu"))
