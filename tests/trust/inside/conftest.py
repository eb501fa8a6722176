"""ComfyUI in the test process, as in tests/comfyui/inside."""

from hypernoise.tests.comfyui.conftest import models
from hypernoise.tests.comfyui.inside.conftest import (
    comfy,
    fresh,
    inference_mode,
    loaded,
    passes,
    stand_in,
)

__all__ = ["comfy", "fresh", "inference_mode", "loaded", "models", "passes", "stand_in"]
