"""Using a trained model from Python: `groundup.load("runs/quickstart/base").generate("Once upon")`.

A model is opened from `runs/RECIPE/STAGE`, from the store, or from any Hugging Face directory of a
known family. Causal models continue texts, and chat where they have a template; masked ones fill gaps.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from groundup.artifact import MANIFEST, open_artifact
from groundup.errors import ArtifactError, UserError
from groundup.evaluation import answering as labelled
from groundup.prediction import predict
from groundup.runtimes import torch as torch_runtime
from groundup.runtimes.torch import TorchRuntime
from groundup.serving.chatting import Messages, answering
from groundup.serving.decoding import Continuation, Generation
from groundup.serving.filling import Filled, fill_masks
from groundup.serving.sampler import Sampling, sampling
from groundup.serving.start import Beginning, beginning
from groundup.text.prompt import Prompt
from groundup.text.tokenizers import Tokenizer


@dataclass(frozen=True)
class Model:
    """A model ready to use, with its tokenizer if it reads tokens."""

    runtime: TorchRuntime
    found: Tokenizer | None
    path: Path

    @property
    def tokenizer(self) -> Tokenizer:
        """What cuts texts. Raises UserError for a model that reads something else."""
        if self.found is None:
            fix = "use predict, with rows that have the columns it was trained on"
            raise UserError("the model reads no texts", where=str(self.path), fix=fix)
        return self.found

    @cached_property
    def beginning(self) -> Beginning:
        """The tokens a text begins with."""
        return beginning(self.path, self.tokenizer)

    def generate(
        self,
        prompt: str = "",
        *,
        max_new_tokens: int = 256,
        temperature: float = 0.8,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        repetition_penalty: float = 1.0,
        stop: str | tuple[str, ...] = (),
        seed: int = 0,
    ) -> str:
        """The text that continues a prompt, without the prompt.

        The same prompt, settings and seed give the same text. `temperature=0` is greedy; see
        `groundup.serving.sampler.Sampling` for each setting. Raises UserError for a prompt that is no
        text or does not fit the context, and for a model that does not continue texts.
        """
        values: dict[str, Any] = {"max_new_tokens": max_new_tokens, "temperature": temperature, "top_k": top_k}
        values |= {"top_p": top_p, "min_p": min_p, "repetition_penalty": repetition_penalty, "stop": stop, "seed": seed}
        return self.complete(prompt, sampling(values)).text

    def chat(
        self,
        messages: Messages,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        max_new_tokens: int = 256,
        temperature: float = 0.8,
        top_p: float | None = None,
        stop: str | tuple[str, ...] = (),
        seed: int = 0,
    ) -> str:
        """The assistant's next turn in a chat: a list of messages, or the question that begins one.

        `model.chat("Hi")` is `model.chat([{"role": "user", "content": "Hi"}])`; `tools` are JSON schemas of
        functions that may be called. For more settings see `reply`. Raises UserError for a model without
        a chat template, for messages that its template refuses, and what `generate` raises.
        """
        values: dict[str, Any] = {"max_new_tokens": max_new_tokens, "temperature": temperature, "top_p": top_p}
        return self.reply(messages, sampling(values | {"stop": stop, "seed": seed}), tools=tools).text

    def reply(
        self, messages: Messages, settings: Sampling | None = None, *, tools: Sequence[Mapping[str, Any]] | None = None
    ) -> Generation:
        """The assistant's next turn with its tokens and the reason it ended; see `chat`."""
        return answering(self.runtime, self.prompt, messages, settings or Sampling(), tools=tools).finish()

    def stream_reply(
        self, messages: Messages, settings: Sampling | None = None, *, tools: Sequence[Mapping[str, Any]] | None = None
    ) -> Iterator[str]:
        """The assistant's next turn piece by piece as it is made, in whole characters."""
        return iter(answering(self.runtime, self.prompt, messages, settings or Sampling(), tools=tools))

    @cached_property
    def prompt(self) -> Prompt:
        """The renderer of chats. Raises UserError for a model whose tokenizer has no chat template."""
        return Prompt(self.tokenizer)

    def complete(self, prompt: str, settings: Sampling | None = None) -> Generation:
        """The continuation with its tokens, the reason it ended, and log-probabilities if asked for."""
        return self._continue(prompt, settings).finish()

    def stream(self, prompt: str, settings: Sampling | None = None) -> Iterator[str]:
        """The continuation piece by piece as it is made, in whole characters."""
        return iter(self._continue(prompt, settings))

    def predict(self, rows: Iterable[Any]) -> list[dict[str, Any]]:
        """An answer for each row, by a model of a labelled task: its label with the probability of each, its tags, …

        Probabilities are at the temperature that fitted the model's validation rows.

        A row is a text, an image or a recording (bytes, the path of a file, an array), or a mapping with the columns
        the task reads; tables of pandas and polars will do. Raises UserError for a model of another kind, and
        DataError for a row that cannot be read.
        """
        return predict(self._task, self.runtime, rows, temperature=labelled.temperature_of(self.path))

    @cached_property
    def _task(self) -> Any:
        return labelled.task_of(self.path, self.found, self.runtime)

    def fill(self, text: str, *, best: int = 5) -> list[Filled]:
        """For each mask of a text (`[MASK]`), its likeliest tokens with their probabilities.

        Raises UserError for a model that was not trained to fill masks, and for a text without one.
        """
        return fill_masks(self.runtime, self.tokenizer, text, best=best)

    def _continue(self, prompt: str, settings: Sampling | None) -> Continuation:
        start = self.beginning.before(prompt)
        return Continuation(self.runtime, self.tokenizer, prompt, settings or Sampling(), start_ids=start)


def load(path: str | Path, *, device: str = "auto", max_tokens: int | None = None) -> Model:
    """The model at a path: `runs/RECIPE/STAGE`, a directory of the store, or a Hugging Face directory.

    An artefact is verified first. Raises UserError if there is no model there, and ArtifactError if
    it was damaged or is of another kind.
    """
    folder = _folder(Path(path))
    runtime = torch_runtime.load(folder, device=device, max_tokens=max_tokens)
    return Model(runtime, Tokenizer.find(folder), folder)


def _folder(path: Path) -> Path:
    if path.is_dir() and not (path / MANIFEST).exists():
        if (path / "config.json").is_file():
            return path
        fix = "give runs/RECIPE/STAGE of a pretrain or finetune stage, or a Hugging Face model directory"
        raise UserError(f"no model at {str(path)!r}: it has no config.json", fix=fix)
    artifact = open_artifact(path)
    if artifact.kind != "model":
        raise ArtifactError(
            f"a {artifact.kind} is no model", where=str(path), fix="name the stage that trained the model, such as base"
        )
    artifact.verify()
    return artifact.path
