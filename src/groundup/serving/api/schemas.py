"""The bodies of requests: OpenAI's names and meanings, and a few more that vLLM made common.

A key that is not known is refused, with the nearest one that is: an option that is misspelt, or that does nothing
here, would otherwise be missed in silence. What OpenAI's clients send and what changes no answer is taken and let go.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator

from groundup.serving.api.errors import bad
from groundup.serving.api.multipart import Form

Text = Annotated[str, Field(min_length=1)]


def _of_this_world(path: str) -> str:
    if any(len(part.encode()) > LONGEST_PART for part in path.split("/")):
        raise ValueError(f"a part of the path is longer than {LONGEST_PART} bytes, which no file's name is")
    return path


ServerPath = Annotated[str, Field(min_length=1, max_length=1024), AfterValidator(_of_this_world)]
"""A path on the server; one that no file can have is refused before the system is asked for it."""
LONGEST_PART = 255
MOST_CHOICES = 16
MOST_STOPS = 16
LONGEST_STOP = 256
MOST_BIASES = 1024
MOST_MESSAGES = 2048
MOST_TOOLS = 128
MOST_RECOMMENDED = 100
LONGEST_HISTORY = 10_000


class Body(BaseModel):
    """A body of a request: unknown keys refused, nothing converted (a string is no number)."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
        protected_namespaces=(),
        populate_by_name=True,
    )


class StreamOptions(Body):
    """What a stream tells beside its pieces."""

    include_usage: bool = False
    """Send the numbers of tokens in a last piece of their own."""
    include_obfuscation: bool = False
    """Taken and let go."""


class SchemaFormat(Body):
    """A JSON schema that the answer is held to."""

    name: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")] = "answer"
    schema_: Annotated[dict[str, Any] | bool, Field(alias="schema")] = True
    description: str | None = None
    strict: bool | None = None
    """Taken and let go: an answer is always held to its schema."""


class ResponseFormat(Body):
    """What the answer has to look like."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: SchemaFormat | None = None


class Sampled(Body):
    """What chats and completions have in common: how the answer is chosen, and what is told of it."""

    model: Text
    """A model's name, or an adapter's."""
    stream: bool | None = False
    """Send the answer piece by piece, as server-sent events."""
    stream_options: StreamOptions | None = None
    n: Annotated[int, Field(ge=1, le=MOST_CHOICES)] | None = 1
    """How many answers."""
    temperature: Annotated[float, Field(ge=0, le=100)] | None = 1.0
    """0 is always the most likely token."""
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    """Keep the most likely tokens that reach this sum; 0 keeps the first alone."""
    top_k: Annotated[int, Field(ge=-1)] | None = None
    """Keep the k most likely tokens; 0 and -1 keep all."""
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    """Drop tokens below this share of the most likely one."""
    repetition_penalty: Annotated[float, Field(ge=0.01, le=100)] | None = 1.0
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = 0.0
    """Taken off the logits of tokens that the answer already has."""
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = 0.0
    """The same, as many times as it has them."""
    logit_bias: Annotated[dict[str, float], Field(max_length=MOST_BIASES)] | None = None
    """Added to the logits, by token id: -100 to 100."""
    seed: Annotated[int, Field(ge=-(1 << 63), lt=1 << 63)] | None = None
    """The same seed, model and prompt give the same answer."""
    stop: str | list[str] | None = None
    """Texts before which the answer ends."""
    min_tokens: Annotated[int, Field(ge=0)] | None = 0
    """Tokens before which it does not end by itself."""
    ignore_eos: bool | None = False
    """Go on where the model would end: for measurements."""
    timeout: Annotated[float, Field(gt=0)] | None = None
    """Seconds after which the answer ends where it is."""
    priority: Annotated[int, Field(ge=0, le=100)] | None = 0
    """Larger comes later: for work that nobody waits for."""
    response_format: ResponseFormat | None = None
    guided_json: dict[str, Any] | bool | None = None
    """A JSON schema that the answer is held to."""
    guided_regex: str | None = None
    """A regular expression that the answer is held to."""
    guided_grammar: str | None = None
    """A grammar in Lark's form that the answer is held to."""
    guided_choice: Annotated[list[Text], Field(min_length=1, max_length=1024)] | None = None
    """The answer is one of these texts."""
    user: str | None = None
    """Taken and let go, as are the next."""
    metadata: dict[str, Any] | None = None
    store: Literal[False] | None = None
    service_tier: Literal["auto", "default"] | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None

    @field_validator("stop")
    @classmethod
    def _few_short_stops(cls, value: str | list[str] | None) -> str | list[str] | None:
        stops = [value] if isinstance(value, str) else value or []
        if len(stops) > MOST_STOPS:
            raise ValueError(f"{len(stops)} stop strings; {MOST_STOPS} at most")
        if any(len(stop) > LONGEST_STOP for stop in stops):
            raise ValueError(f"a stop string is longer than {LONGEST_STOP} characters")
        if "" in stops:
            raise ValueError("a stop string cannot be empty: it would stop before the first character")
        return value

    @property
    def stops(self) -> tuple[str, ...]:
        """The stop strings, each once."""
        return tuple(dict.fromkeys([self.stop] if isinstance(self.stop, str) else self.stop or ()))

    @property
    def wants_usage(self) -> bool:
        """Whether a stream ends with the numbers of tokens."""
        return self.stream_options is not None and self.stream_options.include_usage


class Function(Body):
    """A function that the model may call."""

    name: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_.-]{1,64}$")]
    description: str | None = None
    parameters: dict[str, Any] | None = None
    """A JSON schema of its arguments."""
    strict: bool | None = None


class Tool(Body):
    """A tool; functions are the only kind."""

    type: Literal["function"]
    function: Function


class NamedFunction(Body):
    """The name of a function."""

    name: Text


class ToolChoice(Body):
    """The one function that is to be called."""

    type: Literal["function"]
    function: NamedFunction


class ChatRequest(Sampled):
    """A chat that is to be answered."""

    messages: Annotated[list[dict[str, Any]], Field(min_length=1, max_length=MOST_MESSAGES)]
    """What was said: role, content, and what goes with a role."""
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    """The most tokens of the answer."""
    logprobs: bool | None = False
    """Tell the log-probability of each token."""
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    """And of so many most likely ones."""
    tools: Annotated[list[Tool], Field(max_length=MOST_TOOLS)] | None = None
    tool_choice: Literal["none", "auto", "required"] | ToolChoice | None = None
    parallel_tool_calls: bool | None = True
    """Whether several functions may be called at once."""
    chat_template_kwargs: dict[str, str | int | float | bool] | None = None
    """Variables for the model's chat template, such as enable_thinking."""
    modalities: list[Literal["text"]] | None = None


class CompletionRequest(Sampled):
    """A text that is to be continued."""

    prompt: str | list[str] | list[int] | list[list[int]] = ""
    """One text or several, as texts or as token ids."""
    max_tokens: Annotated[int, Field(ge=0)] | None = 16
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    """Tell the log-probability of each token, and of so many most likely ones."""
    echo: bool | None = False
    """Begin the answer with the prompt."""
    best_of: int | None = None
    """1, or n: choosing among more answers is left to the caller."""
    suffix: Literal[""] | None = None
    """Texts are continued at their end only."""


class EmbeddingRequest(Body):
    """Texts whose vectors are wanted."""

    model: Text
    input: str | list[str]
    """One text, or several."""
    encoding_format: Literal["float", "base64"] | None = "float"
    """base64: little-endian float32."""
    dimensions: Annotated[int, Field(ge=1)] | None = None
    """The model's own number, or nothing: vectors are not cut."""
    timeout: Annotated[float, Field(gt=0)] | None = None
    user: str | None = None


class RerankRequest(Body):
    """Documents to be put in order of how near they are to a query."""

    model: Text
    query: str
    documents: Annotated[list[str], Field(min_length=1)]
    top_n: Annotated[int, Field(ge=1)] | None = None
    return_documents: bool | None = False
    timeout: Annotated[float, Field(gt=0)] | None = None


Row = str | dict[str, Any]
"""A text, or the columns that the model's task reads."""


class RowsRequest(Body):
    """Rows that a labelled task answers."""

    model: Text
    input: Row | list[Row]
    """One row or several: a text, or a mapping with the columns that the model was trained on. Images and recordings
    are base64, or data: URIs."""
    timeout: Annotated[float, Field(gt=0)] | None = None

    @classmethod
    def of_form(cls, form: Form) -> dict[str, Any]:
        """The body that a form stands for: each of its files is a row. Raises ApiError for one without files."""
        if not form.files:
            raise bad("the form has no file", "file", fix="send each image or recording as a part named file")
        data: dict[str, Any] = dict(form.fields)
        if "timeout" in data:
            try:
                data["timeout"] = float(data["timeout"])
            except ValueError as error:
                raise bad("timeout is a number of seconds", "timeout") from error
        return data | {"input": [{name: content} for name, content in form.files]}


Item = str | Annotated[int, Field(ge=-(1 << 63), lt=1 << 63)]
"""An item by its name; names that are numbers may be written as such."""
History = Annotated[list[Item], Field(min_length=1, max_length=LONGEST_HISTORY)]


class RecommendRequest(Body):
    """Histories of users, to be gone on with."""

    model: Text
    items: History | None = None
    """What one user chose, oldest first."""
    input: list[History | dict[str, Any]] | None = None
    """Several histories, as lists, or as mappings with the columns that the model was trained on."""
    k: Annotated[int, Field(ge=1, le=MOST_RECOMMENDED)] = 10
    """How many items are told for each."""
    exclude: Annotated[list[Item], Field(max_length=MOST_RECOMMENDED)] = []
    """Items that are not to be told; those of the history are left out as the model was trained to."""
    timeout: Annotated[float, Field(gt=0)] | None = None


class QuestionRequest(Body):
    """A question about a passage; several by `input`."""

    model: Text
    question: str | None = None
    context: str | None = None
    """The passage that holds the answer."""
    input: list[dict[str, Any]] | None = None
    """Several, as mappings with the columns that the model was trained on."""
    timeout: Annotated[float, Field(gt=0)] | None = None


class ScoreRequest(Body):
    """A text whose log-probability is wanted, all of it or what follows a prompt."""

    model: Text
    prompt: str = ""
    """What is read first and not scored."""
    text: str | list[str]
    """What is scored, as a continuation of the prompt: one, or several."""
    timeout: Annotated[float, Field(gt=0)] | None = None


class LoadRequest(Body):
    """A model to be served."""

    name: Annotated[str, Field(pattern=r"^[\w.:/@-]{1,128}$")]
    path: ServerPath
    """On the server: runs/RECIPE/STAGE, an artefact or a Hugging Face directory."""
    options: dict[str, Any] = {}
    """As on the command line of `groundup serve`, for this model alone."""


class AdapterRequest(Body):
    """An adapter to be served, in vLLM's words."""

    lora_name: Annotated[str, Field(pattern=r"^[\w.:/@-]{1,128}$")]
    lora_path: ServerPath
    model: str | None = None
    """The model that it changes; needed where several generate."""


class AdapterName(Body):
    """An adapter to be let go, in vLLM's words."""

    lora_name: Text


class BatchRequest(Body):
    """A job over a file of requests."""

    input_file_id: Text
    endpoint: Text
    """The route that every line names: /v1/chat/completions, …"""
    completion_window: Literal["24h"] = "24h"
    """Taken and let go: a job runs until it is done."""
    metadata: Annotated[dict[str, str], Field(max_length=16)] | None = None
