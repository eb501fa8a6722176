"""HyperNoise: noise hypernetworks for few-step image generators.

This folder is two things at once: a ComfyUI custom node (cloned under custom_nodes/, with any
folder name) and the Python package `hypernoise`. Importing it imports nothing more. ComfyUI gets
the nodes when it asks for `comfy_entrypoint`, so headless use never needs ComfyUI.
"""

from collections.abc import Callable

WEB_DIRECTORY = "./web"  # help pages of the nodes, served under this folder's own name


def __getattr__(name: str) -> Callable:
    """Import the nodes on the first access to `comfy_entrypoint`.

    Raises:
        ImportError: the nodes cannot be imported, for example outside ComfyUI.
    """
    if name != "comfy_entrypoint":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        from .nodes import comfy_entrypoint
    except AttributeError as error:
        # ComfyUI probes with hasattr, which would turn this into "no comfy_entrypoint here".
        raise ImportError(f"The nodes of HyperNoise cannot be imported: {error}") from error
    return comfy_entrypoint
