"""all-MiniLM-L6-v2 as an ONNX graph whose weights stay where they are, in model.safetensors.

The graph is 20 kB that are written in a millisecond, so no second copy of the weights is made and nothing is
converted. Fields by number: onnx.proto3 of ONNX 1.17; the operators of com.microsoft are onnxruntime's own
(ContribOperators.md). What a safetensors file begins with: huggingface.co/docs/safetensors, "Format".
"""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

LAYERS = 6
HEADS = 12
DIM = 384

EPSILON = 1e-12
"""Of its layer norms: config.json of the model."""

OPSET = 17
IR_VERSION = 8
MICROSOFT = "com.microsoft"

FLOAT, INT32, INT64 = 1, 6, 7
"""TensorProto.DataType."""


def graph(weights: Path) -> bytes:
    """A ModelProto: `ids` and `mask`, both int64 `[texts, tokens]`, to `hidden`, float32 `[texts, tokens, DIM]`."""
    nodes = _embeddings()
    for layer in range(LAYERS):
        nodes += _layer(layer)
    body = b"".join(_bytes(1, node) for node in nodes)
    body += _text(2, "minilm")
    body += b"".join(_bytes(5, tensor) for tensor in _weights(weights))
    body += b"".join(_bytes(5, _int64s(name, [value])) for name, value in (("zero", 0), ("one", 1)))
    body += _bytes(11, _port("ids", INT64, ["texts", "tokens"]))
    body += _bytes(11, _port("mask", INT64, ["texts", "tokens"]))
    body += _bytes(12, _port("hidden", FLOAT, ["texts", "tokens", DIM]))
    opsets = _bytes(8, _int(2, OPSET)) + _bytes(8, _text(1, MICROSOFT) + _int(2, 1))
    return _int(1, IR_VERSION) + _bytes(7, body) + opsets


def _embeddings() -> list[bytes]:
    words, places, types, norm = (
        f"embeddings.{name}"
        for name in (
            "word_embeddings.weight",
            "position_embeddings.weight",
            "token_type_embeddings.weight",
            "LayerNorm",
        )
    )
    return [
        _node("Cast", ["mask"], "mask32", to=INT32),
        _node("Gather", [words, "ids"], "word"),
        _node("Shape", ["ids"], "length", start=1, end=2),
        _node("Slice", [places, "zero", "length", "zero"], "place"),
        _node("Slice", [types, "zero", "one", "zero"], "type"),
        _node("Add", ["place", "type"], "where"),
        _node("Add", ["word", "where"], "token"),
        _node(
            "LayerNormalization",
            ["token", f"{norm}.weight", f"{norm}.bias"],
            _hidden(0),
            axis=-1,
            epsilon=EPSILON,
        ),
    ]


def _layer(layer: int) -> list[bytes]:
    """Attention, then two dense layers, each added to what came in and normed: BERT's encoder."""

    def weight(name: str) -> str:
        return f"encoder.layer.{layer}.{name}"

    def own(name: str) -> str:
        return f"{name}_{layer}"

    parts = [weight(f"attention.self.{part}") for part in ("query", "key", "value")]
    dense = {
        "out": weight("attention.output.dense"),
        "up": weight("intermediate.dense"),
        "down": weight("output.dense"),
    }
    nodes = [
        # Weights lie as torch has them, [out, in]; onnxruntime folds these into constants when it loads.
        _node("Concat", [f"{part}.weight" for part in parts], own("qkv"), axis=0),
        _node("Transpose", [own("qkv")], own("qkvT"), perm=[1, 0]),
        _node("Concat", [f"{part}.bias" for part in parts], own("qkv_bias"), axis=0),
        *(_node("Transpose", [f"{dense[n]}.weight"], own(n), perm=[1, 0]) for n in dense),
    ]

    def norm(added: str, to: str, name: str, bias: str, out: str) -> bytes:
        inputs = [added, to, weight(f"{name}.weight"), weight(f"{name}.bias"), bias]
        return _node("SkipLayerNormalization", inputs, out, MICROSOFT, epsilon=EPSILON)

    attention = [_hidden(layer), own("qkvT"), own("qkv_bias"), "mask32"]
    return nodes + [
        _node("Attention", attention, own("attended"), MICROSOFT, num_heads=HEADS),
        _node("MatMul", [own("attended"), own("out")], own("mixed")),
        norm(
            own("mixed"),
            _hidden(layer),
            "attention.output.LayerNorm",
            f"{dense['out']}.bias",
            own("seen"),
        ),
        _node("MatMul", [own("seen"), own("up")], own("wide")),
        _node("BiasGelu", [own("wide"), f"{dense['up']}.bias"], own("bent"), MICROSOFT),
        _node("MatMul", [own("bent"), own("down")], own("narrow")),
        norm(own("narrow"), own("seen"), "output.LayerNorm", f"{dense['down']}.bias", _hidden(layer + 1)),
    ]


def _hidden(layer: int) -> str:
    return "hidden" if layer == LAYERS else f"hidden_{layer}"


def _weights(path: Path) -> list[bytes]:
    """A TensorProto with external data for each tensor of the file that the graph uses."""
    with path.open("rb") as file:
        (size,) = struct.unpack("<Q", file.read(8))
        header: dict[str, Any] = json.loads(file.read(size))
    tensors = []
    for name, tensor in header.items():
        if name.startswith(("embeddings.", "encoder.")) and tensor["dtype"] == "F32":
            start, end = tensor["data_offsets"]
            place = {"location": path.name, "offset": 8 + size + start, "length": end - start}
            tensors.append(
                b"".join(_int(1, n) for n in tensor["shape"])
                + _int(2, FLOAT)
                + _text(8, name)
                + b"".join(_bytes(13, _text(1, key) + _text(2, str(value))) for key, value in place.items())
                + _int(14, 1)  # EXTERNAL
            )
    return tensors


# --- protobuf: protobuf.dev/programming-guides/encoding ------------------------------------------------


def _varint(n: int) -> bytes:
    n &= 2**64 - 1  # a negative number is its two's complement
    out = bytearray()
    while n > 0x7F:
        out.append(n & 0x7F | 0x80)
        n >>= 7
    out.append(n)
    return bytes(out)


def _int(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _bytes(field: int, value: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(value)) + value


def _text(field: int, value: str) -> bytes:
    return _bytes(field, value.encode())


def _node(
    operator: str,
    inputs: Sequence[str],
    output: str,
    domain: str = "",
    **attributes: float | list[int],
) -> bytes:
    return (
        b"".join(_text(1, name) for name in inputs)
        + _text(2, output)
        + _text(4, operator)
        + b"".join(_bytes(5, _attribute(name, value)) for name, value in attributes.items())
        + _text(7, domain)
    )


def _attribute(name: str, value: float | list[int]) -> bytes:
    """AttributeProto; field 20 is the type of its value."""
    match value:
        case float():
            return _text(1, name) + _varint(2 << 3 | 5) + struct.pack("<f", value) + _int(20, 1)
        case int():
            return _text(1, name) + _int(3, value) + _int(20, 2)
        case list():
            return _text(1, name) + b"".join(_int(8, each) for each in value) + _int(20, 7)


def _int64s(name: str, values: Sequence[int]) -> bytes:
    raw = struct.pack(f"<{len(values)}q", *values)
    return _int(1, len(values)) + _int(2, INT64) + _text(8, name) + _bytes(9, raw)


def _port(name: str, type: int, dimensions: Sequence[str | int]) -> bytes:
    """ValueInfoProto: a dimension is a number, or the name of any number."""
    shape = b"".join(_bytes(1, _text(2, d) if isinstance(d, str) else _int(1, d)) for d in dimensions)
    return _text(1, name) + _bytes(2, _bytes(1, _int(1, type) + _bytes(2, shape)))
