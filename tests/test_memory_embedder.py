"""The model that the weights are of, and no other."""

from __future__ import annotations

import os
import shutil
from itertools import pairwise
from pathlib import Path

import pytest

from aiosd.memory.embedder import MiniLM
from aiosd.memory.weights import MODEL, SHA256, WrongWeights, check, find

HELLO = [-0.0344773, 0.0310232, 0.0067350]
"""The first numbers of "hello world" by sentence-transformers and torch."""


@pytest.fixture(scope="module")
def weights() -> Path:
    found = find(os.environ)
    if found is None:
        pytest.skip("the weights of contrib/weights.txt are not installed")
    return found


@pytest.fixture(scope="module")
def model(weights: Path) -> MiniLM:
    return MiniLM(weights)


def cosine(one: list[float], other: list[float]) -> float:
    return sum(a * b for a, b in zip(one, other, strict=True))


def test_it_embeds_as_the_original_does(model: MiniLM) -> None:
    (vector,), (also,) = model.embed(["hello world", "Hello  WORLD"])
    assert len(vector) == 384
    assert vector[:3] == pytest.approx(HELLO, abs=1e-6)
    assert cosine(vector, also) == pytest.approx(1, abs=1e-5)
    assert model.embed_query("hello world") == pytest.approx(vector, abs=1e-6)


def test_what_means_the_same_lies_near(model: MiniLM) -> None:
    texts = ["The physician prescribed antibiotics", "a doctor gave me medicine", "We painted the fence"]
    one, near, far = (parts[0] for parts in model.embed(texts))
    assert cosine(one, near) > 0.5
    assert cosine(one, far) < 0.2


def test_texts_in_one_batch_do_not_change_each_other(model: MiniLM) -> None:
    texts = ["", "x", "🙂 東京 чай", "tea " * 200, "the blue pot\x00"]
    together = model.embed(texts)
    for text, parts in zip(texts, together, strict=True):
        assert len(parts) == 1
        assert cosine(parts[0], model.embed([text])[0][0]) == pytest.approx(1, abs=1e-5)
        assert cosine(parts[0], parts[0]) == pytest.approx(1, abs=1e-5)
    assert model.embed([]) == []


def test_a_long_text_has_a_vector_for_each_part_and_is_near_by_any(model: MiniLM) -> None:
    filling = "The committee discussed the budget for the next year at length. " * 40
    (parts,) = model.embed([f"{filling} Our cat had three kittens on Monday. {filling}"])
    assert len(parts) >= 4
    asked = model.embed_query("kittens of the cat")
    nearest = sorted(cosine(part, asked) for part in parts)
    assert nearest[-1] > nearest[0] + 0.1


@pytest.mark.parametrize("words", [253, 254, 255, 476, 477, 2_000])
def test_no_word_of_a_long_text_is_left_out(model: MiniLM, words: int) -> None:
    ids = list(range(1, words + 1))
    parts = [part[1:-1] for part in model._parts([0, *ids, 0])]
    assert max(map(len, parts)) <= 254
    assert {id for part in parts for id in part} == set(ids)
    assert len(parts) == 1 or all(len(set(a) & set(b)) >= 32 for a, b in pairwise(parts))


@pytest.mark.parametrize("name", SHA256)
def test_other_weights_are_refused_and_both_hashes_named(tmp_path: Path, weights: Path, name: str) -> None:
    for file in SHA256:
        if file == name:
            shutil.copy(weights / file, tmp_path / file)
            with (tmp_path / file).open("r+b") as changed:
                changed.seek(-1, os.SEEK_END)
                changed.write(b"!")
        else:
            (tmp_path / file).symlink_to(weights / file)
    with pytest.raises(WrongWeights, match=rf"{name} has sha256 [0-9a-f]{{64}}; expected {SHA256[name]}"):
        check(tmp_path)
    with pytest.raises(WrongWeights):
        MiniLM(tmp_path)


def test_weights_are_found_in_a_hugging_face_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert find({"HOME": str(tmp_path)}) is None
    for environ, hub in (
        ({"HF_HUB_CACHE": str(tmp_path / "a")}, tmp_path / "a"),
        ({"HF_HOME": str(tmp_path / "b")}, tmp_path / "b" / "hub"),
        ({"XDG_CACHE_HOME": str(tmp_path / "c")}, tmp_path / "c" / "huggingface" / "hub"),
        ({"HOME": str(tmp_path / "d")}, tmp_path / "d" / ".cache" / "huggingface" / "hub"),
    ):
        folder = hub / f"models--sentence-transformers--{MODEL}" / "snapshots" / "1110a243"
        folder.mkdir(parents=True)
        (folder / "model.safetensors").touch()
        assert find(environ) is None
        (folder / "tokenizer.json").touch()
        assert find(environ) == folder
