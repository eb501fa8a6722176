"""Downloads from the Hugging Face hub or a mirror, with one clear error for every failure."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

_LONGEST = 300  # characters of the client's message, which may quote a whole page


@contextmanager
def arriving(what: str) -> Iterator[None]:
    """Wraps calls of huggingface_hub or datasets that may download.

    Args:
        what: name of the download, for the message.

    Raises:
        OSError: the download failed; names it, the server, and what to do.
    """
    from huggingface_hub import constants

    try:
        yield
    except Exception as error:  # the client's, and those of whichever HTTP library it uses
        below = error
        while below.__cause__ is not None:
            below = below.__cause__
        said = ": ".join(dict.fromkeys([_in_one_line(error), _in_one_line(below)]))
        raise OSError(
            f"{what} could not be downloaded from {constants.ENDPOINT}: {said}; try again, or "
            f"check the network, the name, and HF_ENDPOINT if it names a mirror"
        ) from error


def _in_one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:_LONGEST].rstrip(".") or type(error).__name__
