"""`hypernoise download`: download reward weights from the Hugging Face hub."""

from ...hypernoise_core.rewards import WeightStore, get_reward, paper_weights
from ..writable import check_folder
from .settings import DownloadConfig


def run(config: DownloadConfig) -> None:
    """Downloads the weights that are missing, verifies all of them and prints their paths.

    Raises:
        ValueError: something other than rewards is asked for, or there is no such reward.
    """
    kind, *names = config.what
    if kind != "rewards":
        raise ValueError(f"cannot download {kind!r}, only rewards: hypernoise download rewards")
    if config.folder is not None:
        check_folder(config.folder, "--folder")
    store = WeightStore(config.folder)
    chosen = [get_reward(name) for name in names or paper_weights()]
    for file in dict.fromkeys(file for cls in chosen for file in cls.files):
        print(store.fetch(file))
