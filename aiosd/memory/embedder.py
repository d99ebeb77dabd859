"""Texts to vectors with all-MiniLM-L6-v2, by onnxruntime. The only home of onnxruntime, tokenizers and numpy.

It runs in the worker process, and what it needs is imported there when the first text comes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aiosd.memory.graph import graph
from aiosd.memory.weights import check

if TYPE_CHECKING:
    import numpy as np
    from tokenizers import Tokenizer

TOKENS = 256
"""The most that the model was trained to see at once (sentence-transformers' max_seq_length), two of them marks."""

OVERLAP = 32
"""Tokens that two parts of a long text share, so that a sentence is whole in one of them."""

BATCH_TOKENS = 512
"""Tokens of one run, padding included. What a run makes on its way is 20 kB each, which then stays in the cache of a core:
4,096 took 1.4 times as long a token, 128 as much longer as calls of the library cost."""

Vector = list[float]


class MiniLM:
    """The model, loaded. Any thread may embed."""

    def __init__(self, folder: Path) -> None:
        """Takes half a second. Raises WrongWeights."""
        check(folder)
        import onnxruntime  # takes 0.2 s
        from tokenizers import Tokenizer  # goes with it

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1  # on a busy machine faster than more, whose threads wait by spinning
        options.log_severity_level = 3
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder))
        self._session = onnxruntime.InferenceSession(
            graph(folder / "model.safetensors"), options, providers=["CPUExecutionProvider"]
        )
        self._tokenizer: Tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokenizer.no_truncation()  # the file says 128, which is not the model's limit
        self._tokenizer.no_padding()
        self._first, self._last = self._tokenizer.encode("").ids

    def embed_query(self, text: str) -> Vector:
        """The vector of what the model can see of the text, of unit length."""
        return self._vectors([next(self._parts(self._tokenizer.encode(text).ids))])[0]

    def embed(self, texts: Sequence[str]) -> list[list[Vector]]:
        """For each text the vectors of its parts, one where it is short; of unit length."""
        parts = [list(self._parts(each.ids)) for each in self._tokenizer.encode_batch(list(texts))]
        vectors = iter(self._vectors([part for of_one in parts for part in of_one]))
        return [[next(vectors) for _ in of_one] for of_one in parts]

    def _parts(self, ids: list[int]) -> Iterator[list[int]]:
        words, room = ids[1:-1], TOKENS - 2
        yield [self._first, *words[:room], self._last]
        for start in range(room - OVERLAP, len(words) - OVERLAP, room - OVERLAP):
            yield [self._first, *words[start : start + room], self._last]

    def _vectors(self, parts: Sequence[list[int]]) -> list[Vector]:
        vectors: list[Vector] = [[]] * len(parts)
        for batch in _batches(sorted(range(len(parts)), key=lambda i: len(parts[i])), parts):
            for i, vector in zip(batch, self._run([parts[i] for i in batch]).tolist(), strict=True):
                vectors[i] = vector
        return vectors

    def _run(self, parts: Sequence[list[int]]) -> np.ndarray[Any, np.dtype[np.float32]]:
        """The mean of a part's tokens, made one long: 1_Pooling and 2_Normalize of the model."""
        import numpy as np  # takes 0.1 s

        shape = len(parts), max(map(len, parts))
        ids, mask = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
        for row, part in enumerate(parts):
            ids[row, : len(part)] = part
            mask[row, : len(part)] = 1
        (hidden,) = self._session.run(["hidden"], {"ids": ids, "mask": mask})
        sums = np.einsum("ptd,pt->pd", hidden, mask.astype(np.float32))
        vectors: np.ndarray[Any, np.dtype[np.float32]] = sums / np.linalg.norm(sums, axis=1, keepdims=True)
        return vectors


def _batches(order: Sequence[int], parts: Sequence[list[int]]) -> Iterator[list[int]]:
    """The numbers in this order, the shortest part first, by as many as fill BATCH_TOKENS."""
    batch: list[int] = []
    for i in order:
        if batch and (len(batch) + 1) * len(parts[i]) > BATCH_TOKENS:
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch
