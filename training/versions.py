"""`hypernoise --version`: what a report of a fault has to say about the machine."""

import platform
from importlib.metadata import PackageNotFoundError, version

_PACKAGES = ("hypernoise", "torch", "diffusers", "transformers", "accelerate", "peft")


def describe_versions() -> list[str]:
    """A line each for the packages, Python with its system, and the device."""
    lines = [f"{package} {_version(package)}" for package in _PACKAGES]
    system = f"Python {platform.python_version()} on {platform.platform()}"
    return [lines[0], system, *lines[1:], f"device {_device()}"]


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "is not installed"


def _device() -> str:
    try:
        import torch
    except (ImportError, OSError) as error:  # OSError: one of its libraries is missing
        return f"unknown, for torch does not start: {error}"
    if torch.cuda.is_available():
        names = (torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
        library = f"HIP {torch.version.hip}" if torch.version.hip else f"CUDA {torch.version.cuda}"
        return f"{', '.join(names)}, {library}"
    if torch.backends.mps.is_available():
        return "MPS"
    if torch.xpu.is_available():
        return f"XPU, {torch.xpu.get_device_name()}"
    return f"CPU, {torch.get_num_threads()} threads"
