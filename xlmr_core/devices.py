"""Which devices torch can use here."""

import re

import torch


def check_device(device: torch.device | str, *, computes: bool = True) -> torch.device:
    """The device to compute on.

    Args:
        device: A torch device or its name.
        computes: False also admits "meta", where tensors have shapes and no numbers.

    Returns:
        `device` as a `torch.device`.

    Raises:
        ValueError: this torch cannot use the device on this machine. The message lists the devices it can use.
    """
    try:
        chosen = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"there is no device {str(device)!r}; there is {_devices_here()}") from error
    if computes and chosen.type == "meta":
        raise ValueError(
            f"device {str(device)!r} holds shapes and no numbers: nothing can be computed; there is {_devices_here()}"
        )
    try:
        torch.empty(0, device=chosen)
    except Exception as error:  # each backend has an error of its own for not being there
        cause = re.split(r"\n|\. ", str(error))[0]  # the first sentence: some go on for pages
        raise ValueError(
            f"device {str(device)!r} is not available here ({cause}); there is {_devices_here()}"
        ) from error
    return chosen


def _devices_here() -> str:
    names = ["cpu"]
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    if accelerator is not None:
        names += [f"{accelerator.type}:{index}" for index in range(torch.accelerator.device_count())]
    return ", ".join(names)
