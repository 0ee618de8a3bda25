"""Render messages in the chat template of a model, as transformers does, in Jinja's sandbox."""

import json
import re
from datetime import datetime
from pathlib import Path
from typing import Any

from inheritune.data.text_column import Render
from inheritune.errors import DataError, first_line

# Names of ShareGPT's fields and roles, and what templates call them.
_FIELDS = {"from": "role", "value": "content"}
# Some templates write today's date (`strftime_now`). Text must be the same on any day, so all days
# are this one, which is also the default of Llama 3.1's template.
DATE = datetime(2024, 7, 26)
_TODAY = re.compile(r"""strftime_now\(\s*("[^"]*"|'[^']*')\s*\)""")
_ROLES = {"human": "user", "gpt": "assistant"}


def chat_renderer(directory: Path) -> Render:
    """Return a function that makes a text of a list of messages.

    Raises:
        DataError: The tokenizer in ``directory`` cannot be read, or has no chat template.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(
            str(directory), local_files_only=True, trust_remote_code=False
        )
    except Exception as error:  # whatever it says, it is about these files
        raise DataError(
            f"transformers cannot read the tokenizer in {directory}: {first_line(error)}.",
            "Leave data.messages out, and name a text column.",
        ) from error
    if not tokenizer.chat_template:
        raise DataError(
            f"the tokenizer in {directory} has no chat template, which data.messages needs.",
            "Choose a reference that has one, or name a text column: data.text_column.",
        )

    template = _dated(tokenizer.get_chat_template(), directory)

    def render(messages: Any) -> str:
        # A line end after the last message would stand between it and EOS.
        rendered: str = tokenizer.apply_chat_template(
            _messages(messages), tokenize=False, chat_template=template
        )
        return rendered.rstrip()

    return render


def _dated(template: str, directory: Path) -> str:
    """Write the date into a chat template, in place of its calls of `strftime_now`."""
    dated = _TODAY.sub(lambda call: json.dumps(DATE.strftime(call[1][1:-1])), template)
    if "strftime_now(" in dated:
        raise DataError(
            f"the chat template of {directory} writes today's date, in a format that is computed.",
            "Put a date into the template: the text must be the same on any day.",
        )
    return dated


def _messages(value: Any) -> list[dict[str, Any]]:
    """Return messages under the names that templates use; a dict of lists is a list of dicts."""
    if isinstance(value, dict):
        columns = zip(*value.values(), strict=True)
        value = [dict(zip(value, fields, strict=True)) for fields in columns]
    if not isinstance(value, list) or not all(isinstance(message, dict) for message in value):
        raise ValueError("it is not a list of messages")
    return [_message(message) for message in value]


def _message(message: dict[str, Any]) -> dict[str, Any]:
    named = {_FIELDS.get(k, k): v for k, v in message.items() if v is not None}
    return named | {"role": _ROLES.get(str(named.get("role")), named.get("role"))}
