"""Makes a model that llama.cpp loads: random weights, except that it calls a tool where it is given some.

`python -m tests.make_gguf FILE [--dim N] [--layers N] [--endless]`. The weights are drawn anew from a seed, nothing is
downloaded. What it writes is noise, of words and printable characters, which ends soon; what shapes it is a tool's or
an answer's schema. A tool is called once: what follows a tool's answer is text, so that an agent's loop ends.

How: the first few numbers of a token's vector are not random but say something of it (Mark). One of them is the same
for every token, so that its column in the output layer is a bias for each token. One attention head reads two others:
from wherever it stands it looks for `<tools>`, and more strongly for a call or an answer, and says which it found.
"""

from __future__ import annotations

import argparse
import math
import re
from enum import IntEnum
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray

Weights = NDArray[np.float32]

END, START, STOP = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
CALL, CALLED = "<tool_call>", "</tool_call>"
ANSWER, ANSWERED = "<tool_response>", "</tool_response>"
TOOLS, TOOLS_END = "<tools>", "</tools>"
CONTROL = (END, START, STOP)
MARKERS = (CALL, CALLED, ANSWER, ANSWERED, TOOLS, TOOLS_END)

WORDS = re.findall(
    "[a-z]+",
    """
    a the file system service network disk memory process log user command status error config kernel port server time
    is was are has can should check list show read write start stop find open with from to for and not all new old
    first last local remote free used running failed ready done
    """,
)

TEMPLATE = """\
{%- if messages[0].role == 'system' or tools -%}
<|im_start|>system
{% if messages[0].role == 'system' %}{{ messages[0].content }}{% endif %}
{%- if tools %}
You may call functions. Their signatures are within <tools></tools>:
<tools>
{%- for tool in tools %}
{{ tool | tojson }}
{%- endfor %}
</tools>
Call one by a json object {"name": function-name, "arguments": args-json-object} within XML tags.
{%- endif %}<|im_end|>
{% endif -%}
{%- for message in messages %}
{%- if message.role == 'user' %}
{{- '<|im_start|>user\\n' + message.content + '<|im_end|>\\n' }}
{%- elif message.role == 'tool' %}
{{- '<|im_start|>user\\n<tool_response>\\n' + message.content + '\\n</tool_response><|im_end|>\\n' }}
{%- elif message.role == 'assistant' %}
{{- '<|im_start|>assistant\\n' + (message.content or '') }}
{%- for call in message.tool_calls or [] %}
{{- '\\n<tool_call>\\n' + ({'name': call.function.name, 'arguments': call.function.arguments} | tojson) }}
{{- '\\n</tool_call>' }}
{%- endfor %}
{{- '<|im_end|>\\n' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""


class Mark(IntEnum):
    """The numbers of a token's vector that are not random."""

    BIAS = 0
    SOUGHT = 1
    """`<tools>`, and what shows that a tool was called: what the head looks for."""
    WANTED = 2
    """Written by the head: there are tools, and none was called yet."""
    USED = 3
    """`<tool_call>` and `<tool_response>`, which outweigh `<tools>`."""
    CLOSED = 4
    """`</tool_call>`, after which the reply stops."""
    OPENED = 5
    """`<tool_call>`, after which a line ends. That line end belongs to the mark for llama.cpp."""


CONTEXT = 4096
"""Tokens that the model says it was trained for."""
RESERVED = len(Mark)
HEAD = 32
"""Numbers of one attention head."""


def vocabulary() -> tuple[list[str], list[int], list[str]]:
    """Tokens, their types and the merges: bytes, two merges to have any, words, and marks."""
    tokens = [_printable()[i] for i in range(256)]
    space = tokens[ord(" ")]
    merges = ["t h", "th e"]
    tokens += ["th", "the"]
    # Without merges for them, no text is read as these: they are only written.
    tokens += [space + word for word in WORDS]
    types = [int(gguf.TokenType.NORMAL)] * len(tokens)
    types += [int(gguf.TokenType.CONTROL)] * len(CONTROL)
    types += [int(gguf.TokenType.USER_DEFINED)] * len(MARKERS)
    return [*tokens, *CONTROL, *MARKERS], types, merges


def _printable() -> dict[int, str]:
    """GPT-2's letters for bytes: each prints. https://github.com/openai/gpt-2/blob/master/src/encoder.py"""
    same = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = iter(range(256, 512))
    return {byte: chr(byte if byte in same else next(others)) for byte in range(256)}


def write(path: Path, *, dim: int = 64, layers: int = 2, endless: bool = False, aborts: bool = False) -> Path:
    """The file, 0.5 MB as it is. `endless` never stops by itself. With `aborts`, one token stands there twice, at which
    llama.cpp aborts its process."""
    tokens, types, merges = vocabulary()
    weights = _weights(tokens, dim, layers)
    if endless:
        weights["output.weight"][tokens.index(STOP), Mark.BIAS] = -9
    if aborts:
        tokens[tokens.index("the")] = "th"
    writer: Any = gguf.GGUFWriter(path, "llama")
    writer.add_name(path.stem)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(dim)
    writer.add_block_count(layers)
    writer.add_feed_forward_length(2 * dim)
    writer.add_head_count(dim // HEAD)
    writer.add_head_count_kv(dim // HEAD)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(HEAD)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges(merges)
    writer.add_bos_token_id(tokens.index(END))
    writer.add_eos_token_id(tokens.index(STOP))
    writer.add_pad_token_id(tokens.index(END))
    writer.add_add_bos_token(False)
    writer.add_chat_template(TEMPLATE)
    for name, tensor in weights.items():
        writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _weights(tokens: list[str], dim: int, layers: int) -> dict[str, Weights]:
    rng = np.random.default_rng(0)
    id_of = {token: i for i, token in enumerate(tokens)}

    def noise(*shape: int, scale: float) -> Weights:
        return (rng.standard_normal(shape) * scale).astype(np.float32)

    embedding = noise(len(tokens), dim, scale=0.3)
    embedding[:, :RESERVED] = 0
    embedding[:, Mark.BIAS] = 4
    embedding[[id_of[TOOLS], id_of[CALL], id_of[ANSWER]], Mark.SOUGHT] = 4
    embedding[[id_of[CALL], id_of[ANSWER]], Mark.USED] = 4
    embedding[id_of[CALLED], Mark.CLOSED] = 6
    embedding[id_of[CALL], Mark.OPENED] = 6

    # The last norm divides by a vector's size, which is about this.
    size = math.sqrt(float((embedding[0] ** 2).mean()))
    output = noise(len(tokens), dim, scale=1 / math.sqrt(dim))
    output[:, :RESERVED] = 0
    output[:, Mark.BIAS] = [_bias(i, token) * size / 4 for i, token in enumerate(tokens)]
    output[id_of[CALL], Mark.WANTED] = 5
    output[id_of[CALL], Mark.OPENED] = -6
    output[ord("\n"), Mark.OPENED] = 6
    output[id_of[STOP], Mark.CLOSED] = 4

    weights = {
        "token_embd.weight": embedding,
        "output_norm.weight": np.ones(dim, np.float32),
        "output.weight": output,
    }
    for layer in range(layers):
        q, k, v, o = (noise(dim, dim, scale=0.6 / math.sqrt(dim)) for _ in range(4))
        o[:RESERVED] = 0
        if layer == 0:
            q[:HEAD], k[:HEAD], v[:HEAD], o[:, :HEAD] = 0, 0, 0, 0
            turns_least = (
                HEAD - 2
            )  # of the pairs that the position turns: what is looked for is found far away too
            q[turns_least, Mark.BIAS] = 2
            k[turns_least, [Mark.SOUGHT, Mark.USED]] = 2
            v[0, Mark.SOUGHT], v[0, Mark.USED] = 1, -1
            o[Mark.WANTED, 0] = 0.8
        down = noise(dim, 2 * dim, scale=0.6 / math.sqrt(dim))
        down[:RESERVED] = 0
        weights |= {
            f"blk.{layer}.attn_norm.weight": np.ones(dim, np.float32),
            f"blk.{layer}.attn_q.weight": q,
            f"blk.{layer}.attn_k.weight": k,
            f"blk.{layer}.attn_v.weight": v,
            f"blk.{layer}.attn_output.weight": o,
            f"blk.{layer}.ffn_norm.weight": np.ones(dim, np.float32),
            f"blk.{layer}.ffn_gate.weight": noise(2 * dim, dim, scale=0.6 / math.sqrt(dim)),
            f"blk.{layer}.ffn_up.weight": noise(2 * dim, dim, scale=0.6 / math.sqrt(dim)),
            f"blk.{layer}.ffn_down.weight": down,
        }
    return weights


def _bias(i: int, token: str) -> float:
    """How much a token is written, as a logit: words above all, ends of strings and of the reply often enough, bytes
    that do not print never."""
    if i >= 256:
        return {STOP: 4.5, CALLED: -3.5}.get(token, -9.0 if token in CONTROL + MARKERS else 3.2)
    match chr(i):
        case '"' | "}" | "]":
            return 4.5
        case ",":  # another item, and another
            return -9.0
        case c if c.isascii() and c.isprintable() and c != "<":
            return 0.0
        case _:
            return -9.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path)
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--endless", action="store_true")
    given = parser.parse_args()
    write(given.file, dim=given.dim, layers=given.layers, endless=given.endless)


if __name__ == "__main__":
    main()
