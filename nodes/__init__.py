"""ComfyUI side of HyperNoise: the list of nodes.

Importing this package needs a running ComfyUI; the package above imports it only when ComfyUI asks
for `comfy_entrypoint`.
"""

from comfy_api.latest import ComfyExtension, io

from . import model_folders
from .hypernetwork import ApplyHypernetwork, LoadHypernetwork
from .noise import ModulateNoise, NoiseToLatent, PreviewDelta, Seeds
from .reno import ReNO
from .rewards import LoadReward
from .sana_sprint.loader import EmptySanaLatent, LoadSanaSprint
from .sana_sprint.sigmas import SanaSprintSigmas
from .scoring import BestOfN, CompareImages, ScoreImages

NODES: list[type[io.ComfyNode]] = [
    LoadSanaSprint,
    EmptySanaLatent,
    SanaSprintSigmas,
    LoadHypernetwork,
    ApplyHypernetwork,
    ModulateNoise,
    NoiseToLatent,
    PreviewDelta,
    LoadReward,
    ScoreImages,
    BestOfN,
    CompareImages,
    Seeds,
    ReNO,
]

# At import, so that the folders are known before ComfyUI asks any node for its widgets.
model_folders.register()


class HyperNoiseExtension(ComfyExtension):
    """What ComfyUI receives from `comfy_entrypoint`."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        """The node classes, in the order of the menu."""
        return NODES


async def comfy_entrypoint() -> ComfyExtension:
    """Called by ComfyUI once, when it loads the extension."""
    return HyperNoiseExtension()
