"""The chat template of Hugging Face's libraries: conversations as the ids of `chat.render`, or an error.

A template yields text, in which a typed `<|assistant_end|>` would become the special token. What it cannot render as we
do it refuses: such texts, roles that do not alternate, two text parts in a row. The parts of a user's message are
joined, as the server does. `{% generation %}` marks what our loss mask covers: nothing of a message with `weight` 0 or
`train` false. Knows Jinja's syntax, not the library.
"""

from nanochat.tokenizer.bpe import SPECIAL_TOKENS

_TEMPLATE = r"""
{%- macro plain(text) -%}
  {%- if text is not string -%}{{ raise_exception("content is text, or parts with a type and a text") }}{%- endif -%}
  {%- for token in SPECIAL -%}
    {%- if token in text -%}
      {{ raise_exception("a message holds " ~ token ~ ", which would not stay text") }}
    {%- endif -%}
  {%- endfor -%}
  {{- text -}}
{%- endmacro -%}
{%- set state = namespace(system="", turns=0, text="") -%}
{{- "<|bos|>" -}}
{%- for message in messages -%}
  {%- if message.role == "system" -%}
    {%- if not loop.first or message.content is not string -%}
      {{ raise_exception("a system message stands first and is text") }}
    {%- endif -%}
    {%- set state.system = message.content -%}
  {%- else -%}
    {%- if message.role != ("user" if state.turns % 2 == 0 else "assistant") or message.tool_calls -%}
      {{ raise_exception("roles alternate, user first; tool calls and their results are parts of a message") }}
    {%- endif -%}
    {%- set state.turns = state.turns + 1 -%}
    {%- set parts = [{"type": "text", "text": message.content}] if message.content is string else message.content -%}
    {%- if message.role == "user" -%}
      {%- set state.text = (state.system ~ "\n\n") if state.turns == 1 and state.system else "" -%}
      {%- for part in parts -%}
        {%- if part.type != "text" -%}{{ raise_exception("a user message has text parts only") }}{%- endif -%}
        {%- set state.text = state.text ~ part.text -%}
      {%- endfor -%}
      {{- "<|user_start|>" ~ plain(state.text) ~ "<|user_end|>" -}}
    {%- else -%}
      {%- set learnt = message.weight != 0 and message.train is not false -%}
      {{- "<|assistant_start|>" -}}
      {%- for part in parts -%}
        {%- if part.type == "text" -%}
          {%- if not loop.first and loop.previtem.type == "text" -%}
            {{ raise_exception("two text parts in a row: join them") }}
          {%- endif -%}
          {%- set state.text = plain(part.text) -%}
          {%- if learnt -%}
            {%- generation -%}{{- state.text -}}{%- endgeneration -%}
          {%- else -%}
            {{- state.text -}}
          {%- endif -%}
        {%- elif part.type == "python" -%}
          {%- set state.text = "<|python_start|>" ~ plain(part.text) ~ "<|python_end|>" -%}
          {%- if learnt -%}
            {%- generation -%}{{- state.text -}}{%- endgeneration -%}
          {%- else -%}
            {{- state.text -}}
          {%- endif -%}
        {%- elif part.type == "python_output" -%}
          {{- "<|output_start|>" ~ plain(part.text) ~ "<|output_end|>" -}}
        {%- else -%}
          {{ raise_exception("parts are text, python or python_output") }}
        {%- endif -%}
      {%- endfor -%}
      {%- if learnt -%}
        {%- generation -%}{{- "<|assistant_end|>" -}}{%- endgeneration -%}
      {%- else -%}
        {{- "<|assistant_end|>" -}}
      {%- endif -%}
    {%- endif -%}
  {%- endif -%}
{%- endfor -%}
{%- if state.turns == 0 -%}{{ raise_exception("a conversation needs a user message") }}{%- endif -%}
{%- if add_generation_prompt -%}{{- "<|assistant_start|>" -}}{%- endif -%}
"""


def build_chat_template() -> str:
    """The template, for `chat_template` in tokenizer_config.json."""
    return _TEMPLATE.strip().replace("SPECIAL", str(list(SPECIAL_TOKENS)).replace("'", '"'))
