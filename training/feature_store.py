"""Encoded prompts on disk, so that the frozen encoders need not stay in memory."""

from __future__ import annotations

import gc
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as serialise
from torch import Tensor

from ..hypernoise_core.atomic_file import remove_temporary_files, write_atomically
from ..hypernoise_core.errors import TensorFileError
from ..hypernoise_core.families import family_of_pipeline
from ..hypernoise_core.generate import join_batches
from ..hypernoise_core.rewards import Ensemble
from ..hypernoise_core.rewards.clip import ClipEncoder
from ..hypernoise_core.tensor_file import TensorRows
from . import writable
from .pipelines import TEXT_PARTS
from .progress import progress_bar

Encode = Callable[[list[str]], dict[str, Tensor]]

SHARD_BYTES = 1 << 28
SHARD_ROWS = 8192  # a file's header holds its prompts and has to stay below 100 MB
_DAY = 24 * 60 * 60.0  # in seconds; no shard takes as long to write
_PROMPTS = "prompts"  # in a shard's header
_MASK = "prompt_attention_mask"
_TEXT_FEATURES = "text_features"
_TEXT_BATCH = 128


class FeatureStore:
    """A folder of tensors by prompt, in shards that are never read as a whole.

    A shard is a .safetensors file of tensors (N, ...) with the N prompts as JSON in its header. It
    is written atomically and never changed, so processes can share the folder, and an interrupted
    run resumes where it stopped.

    Args:
        folder: belongs to one encoder with one set of options, see `features_key`.
        shard_bytes: size from which on a shard is written.

    Raises:
        TensorFileError: a shard is damaged.
    """

    def __init__(self, folder: Path, shard_bytes: int = SHARD_BYTES) -> None:
        self.folder, self.shard_bytes = folder, shard_bytes
        self._opened: set[str] = set()
        self._places: dict[str, tuple[TensorRows, int]] = {}  # a shard and the row in it
        remove_temporary_files(folder, older_than=_DAY)
        self.refresh()

    def refresh(self) -> None:
        """Takes in the shards that other processes have written.

        Raises:
            TensorFileError: a shard is damaged.
        """
        for path in sorted(self.folder.glob("*.safetensors")):
            if path.name not in self._opened:
                self._open(path)

    def missing(self, prompts: Sequence[str]) -> list[str]:
        """Those of the prompts that are not in the store, each once."""
        return [prompt for prompt in dict.fromkeys(prompts) if prompt not in self._places]

    def add(
        self,
        prompts: Sequence[str],
        encode: Encode,
        batch_size: int,
        *,
        process_index: int = 0,
        num_processes: int = 1,
        title: str = "encoding prompts",
    ) -> None:
        """Encodes what is missing, under a progress bar.

        With several processes each encodes its share. Call a barrier afterwards: then every process
        finds all of them.

        Args:
            encode: tensors by name for a batch of prompts, a row each, on any device. Dimension 1
                may differ from batch to batch.
            batch_size: prompts encoded at a time.

        Raises:
            ValueError: `encode` does not give a row for each prompt.
            OSError: the folder cannot be written.
        """
        # By length, so that a shard needs little padding. The shares are of all prompts, not of
        # the missing ones, which another process may see fewer of by now.
        ordered = sorted(dict.fromkeys(prompts), key=lambda prompt: (len(prompt), prompt))
        own = self.missing(ordered[process_index::num_processes])
        if own:
            writable.check_folder(self.folder, "--cache_dir")
        with progress_bar(
            total=len(own), desc=title, unit="prompt", disable=process_index > 0 or not own
        ) as bar:
            for batch in self._encode_in_shards(own, encode, batch_size):
                bar.update(len(batch))

    def rows(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        """Tensors (B, ...) on the CPU with a row for each of B prompts.

        Where lengths (dimension 1) differ, rows are padded with 0. Where there is a
        prompt_attention_mask, padding that no row needs is cut off.

        Raises:
            ValueError: there is no prompt, or one is not in the store.
            TensorFileError: a shard is damaged.
        """
        if not prompts:
            raise ValueError("no prompts: give at least one")
        if self.missing(prompts):
            self.refresh()
        if missing := self.missing(prompts):
            raise ValueError(
                f"{len(missing)} prompts are not encoded in {self.folder}, such as "
                f"{missing[0]!r:.200}"
            )
        single = [_read(*self._places[prompt]) for prompt in prompts]
        rows = {name: join_batches([row[name] for row in single]) for name in single[0]}
        return _cut_padding(rows) if _MASK in rows else rows

    def _encode_in_shards(
        self, prompts: list[str], encode: Encode, batch_size: int
    ) -> Iterator[list[str]]:
        """Gives each batch of prompts when it is encoded."""
        waiting: list[str] = []
        parts: list[dict[str, Tensor]] = []
        for start in range(0, len(prompts), batch_size):
            batch = prompts[start : start + batch_size]
            parts.append({name: tensor.cpu() for name, tensor in encode(batch).items()})
            _check_rows(parts[-1], batch)
            waiting += batch
            size = sum(tensor.nbytes for part in parts for tensor in part.values())
            last = start + batch_size >= len(prompts)
            if last or size >= self.shard_bytes or len(waiting) >= SHARD_ROWS:
                joined = {name: join_batches([part[name] for part in parts]) for name in parts[0]}
                self._write(waiting, joined)
                waiting, parts = [], []
            yield batch

    def _write(self, prompts: list[str], tensors: dict[str, Tensor]) -> None:
        header = json.dumps(prompts)
        # Named after the prompts: two processes that encode the same ones write the same file.
        path = self.folder / f"{hashlib.sha256(header.encode()).hexdigest()[:32]}.safetensors"
        write_atomically(path, serialise(tensors, {_PROMPTS: header}))
        self._open(path)

    def _open(self, path: Path) -> None:
        try:
            shard = TensorRows(path)
            prompts = json.loads(shard.entries[_PROMPTS])
            whole = set(shard.counts.values()) == {len(prompts)}
        except (ValueError, LookupError, TypeError, RecursionError) as error:
            raise _damaged(path, error) from error
        if not whole:
            raise _damaged(path, f"it does not hold a row for each of its {len(prompts)} prompts")
        self._opened.add(path.name)
        for row, prompt in enumerate(prompts):
            self._places.setdefault(prompt, (shard, row))


def _read(shard: TensorRows, row: int) -> dict[str, Tensor]:
    try:
        return shard.row(row)
    except TensorFileError as error:
        raise _damaged(shard.path, error) from error


def _damaged(path: Path, reason: object) -> TensorFileError:
    return TensorFileError(
        f"{path} cannot be used; delete it, and its prompts are encoded again: {reason}"
    )


def _check_rows(tensors: Mapping[str, Tensor], prompts: Sequence[str]) -> None:
    for name, tensor in tensors.items():
        if tensor.shape[:1] != (len(prompts),):
            raise ValueError(
                f"the encoder returned {name} {tuple(tensor.shape)} for {len(prompts)} prompts; "
                f"the first dimension must be their number"
            )


def _cut_padding(rows: dict[str, Tensor]) -> dict[str, Tensor]:
    """What was padding in every row, (B, L), leaves the mask and the embeddings that it is of."""
    used = int(rows[_MASK].any(0).nonzero().max()) + 1
    return rows | {name: rows[name][:, :used] for name in (_MASK, "prompt_embeds")}


def features_key(model: str, options: Mapping[str, Any]) -> str:
    """A name for what text encoders make of prompts: 32 hexadecimal digits.

    Args:
        model: the `model_identity` of the parts that encode.
        options: what else decides the result, such as dtype and max_sequence_length.
    """
    text = json.dumps([model, dict(options)], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def embed_prompts(
    pipeline: Any,
    prompts: Sequence[str],
    store: FeatureStore,
    *,
    batch_size: int,
    process_index: int = 0,
    num_processes: int = 1,
    **overrides: Any,
) -> None:
    """Add the conditioning of the prompts that the store lacks.

    Args:
        overrides: what the family's `encode` takes, such as max_sequence_length.
    """
    encode = partial(family_of_pipeline(pipeline).encode, pipeline, **overrides)
    shares = {"process_index": process_index, "num_processes": num_processes}
    store.add(prompts, encode, batch_size, **shares)


def drop_text_encoders(pipeline: Any) -> None:
    """Drop the text encoders and tokenizers of the pipeline, and free their memory."""
    names = [name for name in pipeline.components if name.startswith(TEXT_PARTS)]
    pipeline.register_modules(**dict.fromkeys(names))
    gc.collect()


def precompute_text_features(
    rewards: Ensemble,
    prompts: Sequence[str],
    folder: Path,
    *,
    process_index: int = 0,
    num_processes: int = 1,
) -> None:
    """Compute the text features of the rewards' CLIPs and drop their text towers.

    From then on these rewards accept only these prompts. With several processes call a barrier
    afterwards.

    Args:
        folder: gets a folder for each text tower.

    Raises:
        ValueError: a CLIP has no text tower any more.
    """
    for encoder in rewards.modules():
        if isinstance(encoder, ClipEncoder):
            store = FeatureStore(folder / _tower_key(encoder))
            store.add(
                prompts,
                partial(_encode_texts, encoder),
                _TEXT_BATCH,
                process_index=process_index,
                num_processes=num_processes,
                title="encoding prompts for rewards",
            )
            encoder.fix_texts(partial(_look_up, store))
    gc.collect()


def _encode_texts(encoder: ClipEncoder, prompts: list[str]) -> dict[str, Tensor]:
    return {_TEXT_FEATURES: encoder.text_features(prompts)}


def _look_up(store: FeatureStore, prompts: Sequence[str]) -> Tensor:
    return store.rows(prompts)[_TEXT_FEATURES]


def _tower_key(encoder: ClipEncoder) -> str:
    """A name for what the text tower makes of texts, from all of its weights."""
    digest = hashlib.sha256(type(encoder).__name__.encode())
    for name, tensor in encoder.text_tower().items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()[:32]
