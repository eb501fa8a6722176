"""`hypernoise --version`: what a bug report should say about the machine."""

import platform
from importlib.metadata import PackageNotFoundError, version
from types import ModuleType

_PACKAGES = ("diffusers", "transformers", "accelerate", "peft")


def describe_versions() -> list[str]:
    """One line each for hypernoise, Python and the system, every package, and the device."""
    torch, device = _torch()
    return [
        f"hypernoise {_version('hypernoise')}",
        f"Python {platform.python_version()} on {platform.platform()}",
        f"torch {torch}",
        *(f"{package} {_version(package)}" for package in _PACKAGES),
        f"device {device}",
    ]


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _torch() -> tuple[str, str]:
    """The version of torch and the device it uses."""
    try:
        import torch
    except (ImportError, OSError) as error:  # OSError: one of its libraries is missing
        return _version("torch"), f"unknown: torch cannot be imported ({error})"
    return torch.__version__, _device(torch)


def _device(torch: ModuleType) -> str:
    if torch.cuda.is_available():
        names = (torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
        library = f"HIP {torch.version.hip}" if torch.version.hip else f"CUDA {torch.version.cuda}"
        return f"{', '.join(names)}, {library}"
    if torch.backends.mps.is_available():
        return "MPS"
    if torch.xpu.is_available():
        return f"XPU, {torch.xpu.get_device_name()}"
    return f"CPU, {torch.get_num_threads()} threads"
