"""Writes the tensor names and shapes of the published checkpoints, from the original packages.

    .venv-oracle/bin/python scripts/oracle/write_published_names.py

writes tests/rewards/published/{hps,imagereward}.txt, one line per tensor. It needs about 6 GB of
memory, since the networks are built at full size.
"""

from pathlib import Path

from originals import published_hps, published_image_reward
from torch import Tensor

FOLDER = Path(__file__).resolve().parents[2] / "tests" / "rewards" / "published"


def line(name: str, tensor: Tensor) -> str:
    """`visual.proj 1280x1024`; `logit_scale scalar`."""
    return f"{name} {'x'.join(map(str, tensor.shape)) or 'scalar'}\n"


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    for name, build in (("hps", published_hps), ("imagereward", published_image_reward)):
        lines = [line(*entry) for entry in build().state_dict().items()]
        (FOLDER / f"{name}.txt").write_text("".join(lines))
        print(f"{name}: {len(lines)} tensors")


if __name__ == "__main__":
    main()
