"""Token ids of texts: encoded once, kept flat, padded batch by batch.

`encode` runs a tokenizer over a corpus; `Encoded` holds the ids of all rows end to end, in memory or mapped from an
Arrow file, so that a process pays for the rows that it touches only. `batches` groups rows of similar length.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import numpy as np
import pyarrow as pa

from backdoor_core.corpus import Corpus

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

T = TypeVar("T")
POOL_BATCHES = 50
"""Batches that are sorted by length together: large enough for little padding, small enough to mix rows."""

_SCHEMA = pa.schema(
    [pa.field("ids", pa.large_list(pa.int32())), pa.field("types", pa.large_list(pa.int8()))]
)


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """Token ids of `len(self)` rows, special tokens included.

    `ids` (int32) and `types` (int8, the segment of each token) hold all rows end to end; row i is
    `ids[offsets[i]:offsets[i + 1]]`. `uses_types` says whether the model takes segments.
    """

    ids: np.ndarray
    types: np.ndarray
    offsets: np.ndarray
    uses_types: bool
    padding_id: int

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> np.ndarray:
        """Tokens in each row, int64, shape (rows,)."""
        return np.diff(self.offsets)

    def row(self, index: int) -> np.ndarray:
        """The token ids of one row, int32, shape (tokens,)."""
        return self.ids[self.offsets[index] : self.offsets[index + 1]]

    def take(self, indices: Sequence[int] | np.ndarray) -> Encoded:
        """The rows at `indices`, copied, in that order."""
        return joined([self], [(0, int(i)) for i in indices])

    def padded(
        self, indices: np.ndarray, device: torch.device, at_least: tuple[int, int] = (0, 0)
    ) -> dict[str, torch.Tensor]:
        """Model inputs for some rows, padded on the right to the longest of them: shape (rows, tokens).

        Smaller than `at_least` they are filled up, with padding and with rows of one padding token.
        """
        import torch

        starts, stops = self.offsets[indices], self.offsets[indices + 1]
        shape = max(len(indices), at_least[0]), max(int((stops - starts).max()), at_least[1])
        ids = np.full(shape, self.padding_id, dtype=np.int64)
        mask = np.zeros(shape, dtype=np.int64)
        types = np.zeros(shape, dtype=np.int64)
        mask[len(indices) :, :1] = 1
        for place, (start, stop) in enumerate(zip(starts, stops, strict=True)):
            ids[place, : stop - start] = self.ids[start:stop]
            types[place, : stop - start] = self.types[start:stop]
            mask[place, : stop - start] = 1
        inputs = {"input_ids": ids, "attention_mask": mask}
        if self.uses_types:
            inputs["token_type_ids"] = types
        return {name: sent(torch.from_numpy(values), device) for name, values in inputs.items()}


def sent(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A tensor of the CPU on `device`: to a GPU from pinned memory, so that nobody waits until it is there.

    A copy from other memory would wait until the GPU has done all that it was given before.
    """
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor


def one_ahead(items: Iterable[T]) -> Iterator[T]:
    """The items in their order, each made before the one before it is handed out.

    So a GPU is given its next work before anybody waits for what it has done.
    """
    source = iter(items)
    for held in source:
        for item in source:
            yield held
            held = item
        yield held


def joined(sources: Sequence[Encoded], places: Sequence[tuple[int, int]]) -> Encoded:
    """Rows picked from several encodings of one tokenizer: `places` are (source, row)."""
    picked = [(sources[s], sources[s].offsets[i], sources[s].offsets[i + 1]) for s, i in places]
    lengths = [int(stop - start) for _, start, stop in picked]
    empty32, empty8 = np.zeros(0, np.int32), np.zeros(0, np.int8)
    return Encoded(
        ids=np.concatenate([empty32, *(e.ids[a:b] for e, a, b in picked)]),
        types=np.concatenate([empty8, *(e.types[a:b] for e, a, b in picked)]),
        offsets=np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]).astype(np.int64),
        uses_types=sources[0].uses_types,
        padding_id=sources[0].padding_id,
    )


def encode(tokenizer: PreTrainedTokenizerBase, corpus: Corpus, max_tokens: int) -> Encoded:
    """Token ids of a corpus, each row cut to `max_tokens` (pairs: the longer text first)."""
    lists = tokenized(tokenizer, corpus, max_tokens) if len(corpus) else {"input_ids": []}
    ids = lists["input_ids"]
    types = lists.get("token_type_ids") or [[0] * len(row) for row in ids]
    offsets = np.concatenate([[0], np.cumsum([len(row) for row in ids])]).astype(np.int64)
    return Encoded(
        ids=np.fromiter((i for row in ids for i in row), np.int32, int(offsets[-1])),
        types=np.fromiter((i for row in types for i in row), np.int8, int(offsets[-1])),
        offsets=offsets,
        uses_types="token_type_ids" in tokenizer.model_input_names,
        padding_id=int(tokenizer.pad_token_id or 0),
    )


def token_limit(tokenizer: PreTrainedTokenizerBase, max_tokens: int) -> int:
    """The most tokens that a row can have: `max_tokens`, or what the tokenizer's model has positions for."""
    return min(max_tokens, int(tokenizer.model_max_length))


def tokenized(tokenizer: PreTrainedTokenizerBase, corpus: Corpus, max_tokens: int) -> Any:
    """What the tokenizer itself says of a corpus that has rows, cut as `encode` cuts it."""
    limit = token_limit(tokenizer, max_tokens)
    seconds = [pair or "" for pair in corpus.pairs] if corpus.has_pairs else None
    return tokenizer(corpus.texts, seconds, truncation=True, max_length=limit)


def write_encoded(encoded: Encoded, path: Path) -> None:
    """Writes an encoding as an Arrow file that `read_encoded` maps."""
    offsets = pa.array(encoded.offsets, pa.int64())
    columns = [
        pa.LargeListArray.from_arrays(offsets, pa.array(encoded.ids, pa.int32())),
        pa.LargeListArray.from_arrays(offsets, pa.array(encoded.types, pa.int8())),
    ]
    facts = {b"uses_types": str(int(encoded.uses_types)), b"padding_id": str(encoded.padding_id)}
    schema = _SCHEMA.with_metadata({k.decode(): v for k, v in facts.items()})
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
        writer.write_batch(pa.record_batch(columns, schema=schema))


def read_encoded(path: Path) -> Encoded:
    """An encoding mapped from an Arrow file: pages are read when touched."""
    reader = pa.ipc.open_file(pa.memory_map(str(path), "r"))
    batch = reader.get_batch(0)
    metadata = reader.schema.metadata
    ids, types = batch.column(0), batch.column(1)
    return Encoded(
        ids=ids.values.to_numpy(),
        types=types.values.to_numpy(),
        offsets=ids.offsets.to_numpy(),
        uses_types=metadata[b"uses_types"] == b"1",
        padding_id=int(metadata[b"padding_id"]),
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class Encoder:
    """A tokenizer with its length limit, and encodings that are known already.

    `known` maps the splits of the task (same tokenizer, same limit) to their mapped encodings: rows of a corpus
    that stand there unaltered are copied, the others are tokenised now.
    """

    tokenizer: PreTrainedTokenizerBase
    max_tokens: int
    known: Mapping[str, tuple[Corpus, Encoded]] = field(default_factory=dict)

    def __call__(self, corpus: Corpus, split: str | None = None) -> Encoded:
        """The encoding of `corpus`, whose rows come from `split` of the task."""
        done = corpus.encodings.setdefault(self.tokenizer, {})
        if self.max_tokens not in done:
            done[self.max_tokens] = self._encoded(corpus, split)
        return cast(Encoded, done[self.max_tokens])

    def bare(self) -> Encoder:
        """This encoder without what is known: for those who must not see the task's splits."""
        return Encoder(tokenizer=self.tokenizer, max_tokens=self.max_tokens)

    def _encoded(self, corpus: Corpus, split: str | None) -> Encoded:
        if split is None or split not in self.known:
            return encode(self.tokenizer, corpus, self.max_tokens)
        source, encoded = self.known[split]
        places: list[tuple[int, int]] = []
        new: list[int] = []
        for i, origin in enumerate(corpus.origins.tolist()):
            same = 0 <= origin < len(source) and (
                source.texts[origin] == corpus.texts[i] and source.pairs[origin] == corpus.pairs[i]
            )
            if same:
                places.append((0, origin))
            else:
                places.append((1, len(new)))
                new.append(i)
        rest = encode(self.tokenizer, corpus.take(new), self.max_tokens)
        return joined([encoded, rest], places)


def batches(
    lengths: np.ndarray, batch_rows: int, rng: np.random.Generator | None
) -> Iterator[np.ndarray]:
    """Row indices in batches of similar length.

    With `rng` (training) rows are shuffled, sorted by length within pools of `POOL_BATCHES` batches, and the
    batches shuffled; without (inference) all rows are sorted, longest first. Every row comes once.
    """
    if rng is None:
        order = np.argsort(-lengths, kind="stable")
        for start in range(0, len(order), batch_rows):
            yield order[start : start + batch_rows]
        return
    order = rng.permutation(len(lengths))
    groups: list[np.ndarray] = []
    for start in range(0, len(order), batch_rows * POOL_BATCHES):
        pool = order[start : start + batch_rows * POOL_BATCHES]
        pool = pool[np.argsort(-lengths[pool], kind="stable")]
        groups.extend(pool[i : i + batch_rows] for i in range(0, len(pool), batch_rows))
    for index in rng.permutation(len(groups)):
        yield groups[index]
