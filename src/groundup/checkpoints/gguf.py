"""GGUF files, read: llama.cpp's format becomes a Hugging Face model directory.

A GGUF file holds a whole model: its sizes and tokenizer as named fields, and its tensors, most of them
quantized in small blocks. `convert` writes config.json, float32 weights under their published names,
the tokenizer and what goes with it. The file is mapped, not read: each tensor is dequantized, written
and dropped, so memory holds one of them at a time.

How an architecture calls its sizes and tensors stands in `gguf_layouts.py`, its tokenizers in
`gguf_tokenizer.py`. Nothing here guesses: an architecture, type, tensor or option that is not known
stops with its name.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from groundup.artifact import write_whole
from groundup.checkpoints import gguf_layouts, gguf_tokenizer, streamed
from groundup.errors import ArtifactError, UserError

if TYPE_CHECKING:
    from gguf import GGUFReader, ReaderTensor

MAGIC = b"GGUF"
TYPES = (
    "F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K",
    "IQ4_NL", "IQ4_XS",
)  # fmt: skip
"""The types of tensors that are opened, as llama.cpp names them."""
_SPLIT = "llama-gguf-split --merge joins the parts of a model into one file"


@dataclass(frozen=True)
class GgufFile:
    """A GGUF file, its fields read and its tensors mapped."""

    path: Path
    fields: Mapping[str, Any]
    tensors: Mapping[str, ReaderTensor]

    @property
    def architecture(self) -> str:
        """What llama.cpp calls the family: llama, qwen2, gpt2, …"""
        return str(self.fields.get("general.architecture", ""))

    @property
    def types(self) -> dict[str, int]:
        """How many tensors are stored as which type."""
        return dict(Counter(tensor.tensor_type.name for tensor in self.tensors.values()))

    def size(self, key: str, default: Any = None) -> Any:
        """The field `ARCHITECTURE.key`. Raises UserError if it is missing and there is no default."""
        value = self.fields.get(f"{self.architecture}.{key}", default)
        if value is None:
            fix = "the file is incomplete: convert the model again"
            raise UserError(f"the file has no {self.architecture}.{key}", where=str(self.path), fix=fix)
        return value

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor, in the order torch counts axes. Raises ArtifactError if there is none."""
        if name not in self.tensors:
            fix = "the file is incomplete: fetch or convert the model again"
            raise ArtifactError(f"the file has no tensor {name}", where=str(self.path), fix=fix)
        return tuple(int(length) for length in reversed(self.tensors[name].shape.tolist()))

    def tensor(self, name: str) -> Tensor:
        """A tensor as float32, dequantized."""
        from gguf.quants import dequantize

        tensor = self.tensors[name]
        values = dequantize(tensor.data, tensor.tensor_type)
        # A copy: what is stored as float32 is a view into the mapped file, which torch may not write to.
        return torch.from_numpy(np.array(values, dtype=np.float32)).reshape(self.shape(name))


def is_gguf(path: Path) -> bool:
    """Whether a file begins as GGUF files do."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(len(MAGIC)) == MAGIC


def open_file(path: Path) -> GgufFile:
    """A GGUF file with its fields; its tensors stay on the disk until they are asked for.

    Raises UserError for what is no GGUF file, a part of one, or holds a tensor of an unknown type, and
    ArtifactError for one that is cut short.
    """
    if not is_gguf(path):
        raise UserError("not a GGUF file: it does not begin with the letters GGUF", where=str(path), fix="name another")
    try:
        reader = _reader(path)
        fields = {name: field.contents() for name, field in reader.fields.items()}
    except (ValueError, IndexError, KeyError, OverflowError) as error:
        fix = "fetch or write the file again: it is cut short or damaged"
        raise ArtifactError(f"the GGUF file cannot be read ({error})", where=str(path), fix=fix) from error
    if int(fields.get("split.count") or 0) > 1:
        raise UserError(f"this is one of {fields['split.count']} parts of a model", where=str(path), fix=_SPLIT)
    return GgufFile(path, fields, {tensor.name: tensor for tensor in reader.tensors})


def convert(path: Path, folder: Path) -> dict[str, Any]:
    """Write the model in a GGUF file as a Hugging Face directory, and return what the file says of itself.

    The mapping has `name`, `licence` ("" where none is stated), `types` (how many tensors of which),
    and `architecture`. Raises what `open_file` raises, and UserError for an architecture, tensor,
    option or tokenizer that is not known here.
    """
    file = open_file(path)
    layout = gguf_layouts.of(file)
    config = layout.config(file)
    tokenizer = gguf_tokenizer.read(file)
    if tokenizer.size > config["vocab_size"]:
        what = f"the tokenizer has {tokenizer.size} tokens, and the model rows for {config['vocab_size']} only"
        raise UserError(what, where=str(path), fix="convert the model again with its own tokenizer")
    planned = gguf_layouts.plan(file, layout, config)
    folder.mkdir(parents=True, exist_ok=True)
    _write_json(folder / "config.json", config | tokenizer.special_ids | {"dtype": "float32", "torch_dtype": "float32"})
    _write_json(folder / "generation_config.json", tokenizer.special_ids | tokenizer.stops)
    _write_json(folder / "tokenizer_config.json", tokenizer.config | {"model_max_length": layout.context(config)})
    write_whole(folder / "tokenizer.json", tokenizer.json)
    streamed.write(folder / "model.safetensors", planned)
    described = {
        "name": str(file.fields.get("general.name") or path.stem),
        "licence": str(file.fields.get("general.license") or ""),
        "types": file.types,
        "architecture": file.architecture,
    }
    write_whole(folder / "README.md", _card(described))
    return described


def _reader(path: Path) -> GGUFReader:
    """The package's reader, stopping at a type it does not know with the name of the tensor."""
    from gguf import GGMLQuantizationType, GGUFReader

    known = {int(kind): kind.name for kind in GGMLQuantizationType}

    class Reader(GGUFReader):
        @property  # type: ignore[override]
        def data(self) -> np.ndarray[Any, Any]:
            return self.plain

        @data.setter
        def data(self, mapped: np.ndarray[Any, Any]) -> None:
            # The same bytes without numpy's class for mapped files, whose slices cost three times as much.
            self.plain = np.asarray(mapped)

        def _build_tensors(self, start_offs: int, fields: list[Any]) -> None:
            for field in fields:
                number = int(field.parts[4][0])
                if known.get(number) not in TYPES:
                    what = f"the tensor {field.name} is of the type {known.get(number, number)}, which is not known"
                    raise UserError(what, where=str(path), fix=f"types that are opened: {', '.join(TYPES)}")
            super()._build_tensors(start_offs, fields)

    return Reader(path)


def _card(described: Mapping[str, Any]) -> str:
    types = ", ".join(f"{count} tensors as {kind}" for kind, count in sorted(described["types"].items()))
    licence = described["licence"]
    return "\n".join(
        [
            "---",
            *([f"license: {licence}"] if licence else []),
            "library_name: transformers",
            "---",
            f"# {described['name']}",
            "",
            f"Read from a GGUF file ({types}) and written as float32. The weights are what the quantized file",
            "holds, not the ones that it was made from.",
            "",
        ]
    )


def _write_json(path: Path, data: Mapping[str, Any]) -> None:
    write_whole(path, json.dumps(data, indent=2, sort_keys=True, ensure_ascii=False) + "\n")
