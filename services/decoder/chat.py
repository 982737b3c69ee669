"""A conversation to a prompt, by the checkpoint's own chat template.

Templates are Jinja programs that come with a model, so they run in Jinja's sandbox, with what transformers gives them:
messages, tools and documents (both None), add_generation_prompt, bos_token, eos_token, raise_exception, strftime_now,
loop controls, and `{% generation %}`, which marks what training learns from and is transparent here.
"""

import json
from collections.abc import Sequence
from datetime import datetime
from typing import Any, NoReturn

from jinja2 import TemplateError, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from services.common.errors import InvalidRequest, TaskNotSupported

ROLES = frozenset({"system", "developer", "user", "assistant"})
# Stands for the rest of a final message that goes on. The space tells whether the template strips what it writes.
_REST = "janus-goes-on-here "


class _Generation(Extension):
    tags = {"generation"}  # noqa: RUF012  (declared by jinja, as a set)

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class ChatTemplate:
    """Raises: InvalidRequest for a conversation that the template refuses, TaskNotSupported where there is none."""

    def __init__(self, source: str | None, *, bos_token: str | None, eos_token: str | None) -> None:
        """Raises: ValueError for a source that is no template."""
        self._tokens = {"bos_token": bos_token or "", "eos_token": eos_token or ""}
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _Generation]
        )
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _refuse
        environment.globals["strftime_now"] = lambda layout: datetime.now().astimezone().strftime(layout)
        try:
            self._template = None if source is None else environment.from_string(source)
        except TemplateError as error:
            raise ValueError(f"its chat template can't be read: {error}") from error

    @property
    def exists(self) -> bool:
        return self._template is not None

    def render(
        self,
        messages: Sequence[tuple[str, str]],
        *,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
    ) -> str:
        """The prompt that asks for the next answer (or only what was said so far), from (role, content) pairs.

        With `continue_final_message` it ends where the final message does, so that an answer goes on with it.
        """
        if self._template is None:
            raise TaskNotSupported("This model has no chat template; use completions.", param="model")
        if not messages:
            raise InvalidRequest("'messages' needs at least one message.", param="messages")
        said = []
        for index, (role, content) in enumerate(messages):
            if role not in ROLES:
                known = ", ".join(sorted(ROLES))
                param = f"messages[{index}].role"
                raise InvalidRequest(f"'{param}' must be one of {known}.", param=param)
            said.append({"role": "system" if role == "developer" else role, "content": content})
        if continue_final_message and add_generation_prompt:
            what = "'add_generation_prompt' opens a new message; with 'continue_final_message' it must be false."
            raise InvalidRequest(what, param="add_generation_prompt")
        if continue_final_message:
            if not messages[-1][1].strip():
                raise InvalidRequest("The final message has no text to go on with.", param="messages")
            said[-1]["content"] += _REST
        try:
            prompt = self._template.render(
                messages=said,
                tools=None,
                documents=None,
                add_generation_prompt=add_generation_prompt,
                **self._tokens,
            )
            return _cut_before_rest(prompt) if continue_final_message else prompt
        except SecurityError:
            raise InvalidRequest("The chat template does what a template may not.", param="messages") from None
        except TemplateError as error:
            raise InvalidRequest(f"The chat template refuses the conversation: {error}", param="messages") from error
        except (TypeError, ValueError, LookupError, ArithmeticError) as error:  # their texts may hold the conversation
            raise InvalidRequest("The chat template can't lay out the conversation.", param="messages") from error


def _cut_before_rest(prompt: str) -> str:
    """Raises: InvalidRequest where the final message is not there as it was said."""
    before, rest, after = prompt.rpartition(_REST.rstrip())
    if not rest:
        what = "The chat template does not write the final message as it is, so it can't be continued."
        raise InvalidRequest(what, param="messages")
    return before if after.startswith(" ") else before.rstrip()


def _refuse(message: str) -> NoReturn:
    raise TemplateError(message)


def _to_json(value: Any, indent: int | None = None, ensure_ascii: bool = False, **options: Any) -> str:
    """Jinja's own filter escapes HTML, which a prompt must not have."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **options)
