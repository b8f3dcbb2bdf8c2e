"""How the model hub is asked for a checkpoint: the keyword arguments that everything that takes a hub id shares."""

from collections.abc import Mapping
from os import PathLike

from typing_extensions import TypedDict


class HubOptions(TypedDict, total=False):
    """Keyword arguments of `from_pretrained` and of the checkpoint functions. They matter for a hub id only."""

    revision: str | None  # branch, tag or commit; None: main
    cache_dir: str | PathLike[str] | None  # where downloads are kept; None: huggingface_hub's default
    local_files_only: bool  # never ask the hub
    token: str | bool | None  # for gated repositories, as in huggingface_hub


def check_hub_options(options: Mapping[str, object]) -> None:
    """Raises TypeError for a keyword that is not one of `HubOptions`, also where the hub is not asked."""
    for name in options:
        if name not in HubOptions.__annotations__:
            raise TypeError(
                f"unexpected keyword argument {name!r}; of the hub, {', '.join(HubOptions.__annotations__)}"
            )
