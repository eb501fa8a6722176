"""Noise hypernetworks, shared by the nodes and the training: torch and safetensors only.

from hypernoise.hypernoise_core.adapter import load_adapter
from hypernoise.hypernoise_core.generate import generate
"""
