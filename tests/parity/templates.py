"""Ten chat formats as Jinja templates, written from the formats' documentation for these tests.

Each is what one family documents: which tokens it has, where the system prompt goes, how turns end,
what becomes of tools. The wording is ours; what matters is that together they do everything awkward
that published templates do.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Format:
    """A template with the special tokens it writes."""

    template: str
    specials: tuple[str, ...]
    """Tokens marked special."""
    plain: tuple[str, ...] = ()
    """Tokens with an entry of their own that are not marked special."""
    eos: str = ""
    bos: str | None = None
    has_system: bool = True
    has_tools: bool = False
    closes_last: bool = True
    """Whether the last turn of a chat ends with a token."""
    options: dict[str, bool] = field(default_factory=dict)
    """How the added tokens are cut out of text: `rstrip` takes the spaces after them in."""
    stops: tuple[str, ...] = ()
    """What must be among the stop tokens."""


LLAMA_3 = """\
{{- bos_token -}}
{%- if messages[0].role == 'system' -%}
  {%- set system, rest = messages[0].content | trim, messages[1:] -%}
{%- else -%}
  {%- set system, rest = '', messages -%}
{%- endif -%}
{{- '<|start_header_id|>system<|end_header_id|>\\n\\nToday Date: ' + (date_string or '26 Jul 2024') + '\\n\\n' -}}
{%- if tools is not none -%}
  {{- 'Answer with a function call where one helps.\\n' -}}
  {%- for tool in tools -%}{{- (tool | tojson(indent=4)) + '\\n\\n' -}}{%- endfor -%}
{%- endif -%}
{{- system + '<|eot_id|>' -}}
{%- for message in rest -%}
  {%- if message.tool_calls -%}
    {%- if message.tool_calls | length != 1 -%}{{- raise_exception('one call at a time') -}}{%- endif -%}
    {%- set call = message.tool_calls[0].function -%}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' -}}
    {{- '{"name": "' + call.name + '", "parameters": ' + (call.arguments | tojson) + '}<|eot_id|>' -}}
  {%- elif message.role in ('tool', 'ipython') -%}
    {{- '<|start_header_id|>ipython<|end_header_id|>\\n\\n' + (message.content | tojson) + '<|eot_id|>' -}}
  {%- else -%}
    {{- '<|start_header_id|>' + message.role + '<|end_header_id|>\\n\\n' + (message.content | trim) + '<|eot_id|>' -}}
  {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' -}}{%- endif -%}
"""

LLAMA_2 = """\
{%- if messages[0].role == 'system' -%}
  {%- set rest = messages[1:] -%}{%- set system = messages[0].content -%}
{%- else -%}
  {%- set rest = messages -%}{%- set system = false -%}
{%- endif -%}
{%- for message in rest -%}
  {%- if (message.role == 'user') != (loop.index0 % 2 == 0) -%}
    {{- raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') -}}
  {%- endif -%}
  {%- if loop.index0 == 0 and system != false -%}
    {%- set content = '<<SYS>>\\n' + system + '\\n<</SYS>>\\n\\n' + message.content -%}
  {%- else -%}
    {%- set content = message.content -%}
  {%- endif -%}
  {%- if message.role == 'user' -%}
    {{- bos_token + '[INST] ' + content.strip() + ' [/INST]' -}}
  {%- else -%}
    {{- ' ' + content.strip() + ' ' + eos_token -}}
  {%- endif -%}
{%- endfor -%}
"""

_HERMES_TOOLS = """\
{%- if tools -%}
  {{- '<|im_start|>system\\n' -}}
  {%- if messages[0].role == 'system' -%}{{- messages[0].content + '\\n\\n' -}}{%- endif -%}
  {{- '# Tools\\n\\n<tools>' -}}
  {%- for tool in tools -%}{{- '\\n' + (tool | tojson) -}}{%- endfor -%}
  {{- '\\n</tools>\\n\\nCall one between <tool_call></tool_call>.<|im_end|>\\n' -}}
{%- elif messages[0].role == 'system' -%}
  {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' -}}
"""
_HERMES_TOOL_TURN = """\
  {%- elif message.role == 'tool' -%}
    {%- if loop.first or messages[loop.index0 - 1].role != 'tool' -%}{{- '<|im_start|>user' -}}{%- endif -%}
    {{- '\\n<tool_response>\\n' + message.content + '\\n</tool_response>' -}}
    {%- if loop.last or messages[loop.index0 + 1].role != 'tool' -%}{{- '<|im_end|>\\n' -}}{%- endif -%}
"""

QWEN_2_5 = (
    _HERMES_TOOLS
    + """\
{%- else -%}
  {{- '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' -}}
{%- endif -%}
{%- for message in messages -%}
  {%- if message.role == 'user' or (message.role == 'system' and not loop.first)
         or (message.role == 'assistant' and not message.tool_calls) -%}
    {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' -}}
  {%- elif message.role == 'assistant' -%}
    {{- '<|im_start|>assistant' -}}
    {%- if message.content -%}{{- '\\n' + message.content -}}{%- endif -%}
    {%- for tool_call in message.tool_calls -%}
      {%- set call = tool_call.function if tool_call.function is defined else tool_call -%}
      {{- '\\n<tool_call>\\n{"name": "' + call.name + '", "arguments": ' + (call.arguments | tojson) -}}
      {{- '}\\n</tool_call>' -}}
    {%- endfor -%}
    {{- '<|im_end|>\\n' -}}
"""
    + _HERMES_TOOL_TURN
    + """\
  {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}
"""
)

QWEN_3 = (
    _HERMES_TOOLS
    + """\
{%- endif -%}
{%- set last = namespace(searching=true, query=messages | length - 1) -%}
{%- for message in messages[::-1] -%}
  {%- set index = (messages | length - 1) - loop.index0 -%}
  {%- if last.searching and message.role == 'user' and message.content is string
         and not (message.content.startswith('<tool_response>') and message.content.endswith('</tool_response>')) -%}
    {%- set last.searching = false -%}{%- set last.query = index -%}
  {%- endif -%}
{%- endfor -%}
{%- for message in messages -%}
  {%- set content = message.content if message.content is string else '' -%}
  {%- if message.role == 'user' or (message.role == 'system' and not loop.first) -%}
    {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>\\n' -}}
  {%- elif message.role == 'assistant' -%}
    {%- set thoughts = '' -%}
    {%- if message.reasoning_content is string -%}
      {%- set thoughts = message.reasoning_content -%}
    {%- elif '</think>' in content -%}
      {%- set thoughts = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') -%}
      {%- set content = content.split('</think>')[-1].lstrip('\\n') -%}
    {%- endif -%}
    {{- '<|im_start|>assistant\\n' -}}
    {%- if loop.index0 > last.query and (loop.last or thoughts) -%}
      {{- '<think>\\n' + thoughts.strip('\\n') + '\\n</think>\\n\\n' + content.lstrip('\\n') -}}
    {%- else -%}
      {{- content -}}
    {%- endif -%}
    {%- for tool_call in message.tool_calls or [] -%}
      {%- if (loop.first and content) or not loop.first -%}{{- '\\n' -}}{%- endif -%}
      {%- set call = tool_call.function or tool_call -%}
      {{- '<tool_call>\\n{"name": "' + call.name + '", "arguments": ' -}}
      {%- if call.arguments is string -%}{{- call.arguments -}}{%- else -%}{{- call.arguments | tojson -}}{%- endif -%}
      {{- '}\\n</tool_call>' -}}
    {%- endfor -%}
    {{- '<|im_end|>\\n' -}}
"""
    + _HERMES_TOOL_TURN
    + """\
  {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
  {{- '<|im_start|>assistant\\n' -}}
  {%- if enable_thinking is defined and enable_thinking is false -%}{{- '<think>\\n\\n</think>\\n\\n' -}}{%- endif -%}
{%- endif -%}
"""
)

MISTRAL = """\
{%- if messages[0].role == 'system' -%}
  {%- set system = messages[0].content -%}{%- set rest = messages[1:] -%}
{%- else -%}
  {%- set rest = messages -%}
{%- endif -%}
{%- set users = rest | selectattr('role', 'equalto', 'user') | list -%}
{{- bos_token -}}
{%- for message in rest -%}
  {%- if message.role == 'user' -%}
    {%- if tools is not none and message == users[-1] -%}
      {{- '[AVAILABLE_TOOLS] ' + (tools | tojson) + '[/AVAILABLE_TOOLS]' -}}
    {%- endif -%}
    {%- if loop.last and system is defined -%}
      {{- '[INST] ' + system + '\\n\\n' + message.content + '[/INST]' -}}
    {%- else -%}
      {{- '[INST] ' + message.content + '[/INST]' -}}
    {%- endif -%}
  {%- elif message.tool_calls is defined and message.tool_calls -%}
    {{- '[TOOL_CALLS] [' -}}
    {%- for call in message.tool_calls -%}
      {{- (call.function | tojson)[:-1] -}}
      {%- if call.id is not defined or call.id | length != 9 -%}
        {{- raise_exception('Tool call IDs should be alphanumeric strings with length 9!') -}}
      {%- endif -%}
      {{- ', "id": "' + call.id + '"}' -}}
      {{- ', ' if not loop.last else ']' + eos_token -}}
    {%- endfor -%}
  {%- elif message.role == 'assistant' -%}
    {{- ' ' + message.content | trim + eos_token -}}
  {%- elif message.role == 'tool' -%}
    {{- '[TOOL_RESULTS] {"content": ' + message.content + '}[/TOOL_RESULTS]' -}}
  {%- else -%}
    {{- raise_exception('Only user, assistant, tool roles are supported here!') -}}
  {%- endif -%}
{%- endfor -%}
"""

CHATML = """\
{% for message in messages %}
{% if loop.first and message['role'] != 'system' %}
{{ '<|im_start|>system\\nYou are a small and friendly assistant.<|im_end|>\\n' }}{% endif %}
{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}
{%- endfor %}
{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}
"""

GEMMA = """\
{{ bos_token }}{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}
{%- for message in messages %}
{%- if (message.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}
{%- set role = 'model' if message.role == 'assistant' else message.role %}
{{- '<start_of_turn>' + role + '\\n' + message.content | trim + '<end_of_turn>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif -%}
"""

DEEPSEEK = """\
{%- set ns = namespace(system='', is_tool=false) -%}
{%- for message in messages if message.role == 'system' -%}{%- set ns.system = message.content -%}{%- endfor -%}
{{- bos_token + ns.system -}}
{%- for message in messages -%}
  {%- if message.role == 'user' -%}
    {{- '<｜User｜>' + message.content -}}
  {%- elif message.role == 'assistant' and message.tool_calls -%}
    {{- '<｜Assistant｜>' + (message.content or '') + '<｜tool▁calls▁begin｜>' -}}
    {%- for call in message.tool_calls -%}
      {{- '<｜tool▁call▁begin｜>function<｜tool▁sep｜>' + call.function.name + '\\n```json\\n' -}}
      {{- (call.function.arguments | tojson) + '\\n```<｜tool▁call▁end｜>' -}}
    {%- endfor -%}
    {{- '<｜tool▁calls▁end｜><｜end▁of▁sentence｜>' -}}
  {%- elif message.role == 'assistant' -%}
    {%- set content = message.content.split('</think>')[-1] -%}
    {{- ('' if ns.is_tool else '<｜Assistant｜>') + content + '<｜end▁of▁sentence｜>' -}}
    {%- set ns.is_tool = false -%}
  {%- elif message.role == 'tool' -%}
    {%- set ns.is_tool = true -%}
    {{- '<｜tool▁output▁begin｜>' + message.content + '<｜tool▁output▁end｜>' -}}
  {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt and not ns.is_tool -%}{{- '<｜Assistant｜><think>\\n' -}}{%- endif -%}
"""

PHI_3 = """\
{% for message in messages %}
{%- if message.role in ('system', 'user', 'assistant') %}
{{- '<|' + message.role + '|>\\n' + message.content + '<|end|>\\n' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% else %}{{ eos_token }}{% endif %}
"""

ZEPHYR = """\
{% for message in messages %}
{% if message['role'] == 'user' %}
{{ '<|user|>\\n' + message['content'] + eos_token }}
{% elif message['role'] == 'system' %}
{{ '<|system|>\\n' + message['content'] + eos_token }}
{% elif message['role'] == 'assistant' %}
{{ '<|assistant|>\\n'  + message['content'] + eos_token }}
{% endif %}
{% if loop.last and add_generation_prompt %}
{{ '<|assistant|>' }}
{% endif %}
{% endfor %}
"""

GLM_4 = """\
{{- '[gMASK]<sop>' -}}
{%- if tools -%}
{{- '<|system|>\\n# Tools' -}}
{%- for tool in tools -%}
  {{- '\\n## ' + tool.function.name + '\\n' + (tool.function | tojson(indent=2)) -}}
{%- endfor -%}
{%- endif -%}
{%- for message in messages -%}
  {%- if message.role == 'system' -%}{{- '<|system|>\\n' + message.content -}}
  {%- elif message.role == 'user' -%}{{- '<|user|>\\n' + message.content -}}
  {%- elif message.role == 'tool' -%}{{- '<|observation|>\\n' + message.content -}}
  {%- else -%}
    {%- for call in message.tool_calls or [] -%}
      {{- '<|assistant|>' + call.function.name + '\\n' + (call.function.arguments | tojson) -}}
    {%- else -%}
      {{- '<|assistant|>\\n' + message.content -}}
    {%- endfor -%}
  {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|assistant|>' -}}{%- endif -%}
"""

_IM = ("<|im_start|>", "<|im_end|>")
_HEADERS = ("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
_DEEPSEEK_TOOLS = tuple(
    f"<｜tool▁{name}｜>"
    for name in ("calls▁begin", "calls▁end", "call▁begin", "call▁end", "sep", "output▁begin", "output▁end")
)

FORMATS = {
    "llama_3": Format(
        LLAMA_3,
        (*_HEADERS, "<|python_tag|>"),
        eos="<|end_of_text|>",
        bos="<|begin_of_text|>",
        has_tools=True,
        stops=("<|eot_id|>",),
    ),
    "llama_2": Format(LLAMA_2, ("<s>", "</s>"), eos="</s>", bos="<s>", stops=("</s>",)),
    "qwen_2_5": Format(
        QWEN_2_5,
        ("<|endoftext|>", *_IM),
        ("<tool_call>", "</tool_call>"),
        eos="<|im_end|>",
        has_tools=True,
        stops=("<|im_end|>",),
    ),
    "qwen_3": Format(
        QWEN_3,
        ("<|endoftext|>", *_IM),
        ("<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", "<think>", "</think>"),
        eos="<|im_end|>",
        has_tools=True,
        stops=("<|im_end|>",),
    ),
    "mistral": Format(
        MISTRAL,
        (
            "<s>",
            "</s>",
            "[INST]",
            "[/INST]",
            "[TOOL_CALLS]",
            "[AVAILABLE_TOOLS]",
            "[/AVAILABLE_TOOLS]",
            "[TOOL_RESULTS]",
            "[/TOOL_RESULTS]",
        ),
        eos="</s>",
        bos="<s>",
        has_tools=True,
        stops=("</s>",),
    ),
    "chatml": Format(CHATML, ("<|endoftext|>", *_IM), eos="<|im_end|>", bos="<|im_start|>", stops=("<|im_end|>",)),
    "gemma": Format(
        GEMMA,
        ("<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"),
        eos="<eos>",
        bos="<bos>",
        has_system=False,
        stops=("<end_of_turn>", "<eos>"),
    ),
    "deepseek": Format(
        DEEPSEEK,
        ("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"),
        ("<｜User｜>", "<｜Assistant｜>", "<think>", "</think>", *_DEEPSEEK_TOOLS),
        eos="<｜end▁of▁sentence｜>",
        bos="<｜begin▁of▁sentence｜>",
        has_tools=True,
        stops=("<｜end▁of▁sentence｜>",),
    ),
    "phi_3": Format(
        PHI_3,
        ("<s>", "<|endoftext|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"),
        eos="<|endoftext|>",
        bos="<s>",
        options={"rstrip": True},
        stops=("<|end|>", "<|endoftext|>"),
    ),
    "zephyr": Format(ZEPHYR, ("<s>", "</s>"), eos="</s>", bos="<s>", stops=("</s>",)),
    "glm_4": Format(
        GLM_4,
        ("<|endoftext|>", "[gMASK]", "<sop>", "<|system|>", "<|user|>", "<|assistant|>", "<|observation|>"),
        eos="<|endoftext|>",
        has_tools=True,
        closes_last=False,
        stops=("<|user|>", "<|endoftext|>"),
    ),
}
