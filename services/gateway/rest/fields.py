"""What the fields of every body share: null is absent, types are strict, an unknown name is refused with its name.

OpenAI has more fields than any server serves. `ignored` are those that change nothing here; `neutral` are those that
would change the answer, with the values that ask for no change.
"""

from collections.abc import Callable, Mapping
from typing import Annotated, Any, ClassVar, TypeVar

from pydantic import BaseModel, ConfigDict, Field, PlainValidator, ValidationError, WithJsonSchema, model_validator

from services.common.errors import InvalidRequest
from services.gateway.rest.errors import of_validation
from services.gateway.validation import RANGES

INT32_MAX = 2**31 - 1
INT64_MAX = 2**63 - 1

Neutral = Mapping[str, tuple[Any, ...]]
Int32 = Annotated[int, Field(ge=-INT32_MAX - 1, le=INT32_MAX)]
Int64 = Annotated[int, Field(ge=-INT64_MAX - 1, le=INT64_MAX)]
ModelId = Annotated[str, Field(min_length=1, description="A model of GET /v1/models; absent: the default of the task.")]
Truncate = Annotated[bool, Field(description="Cut an input that is too long, instead of refusing it.")]

TEXT: Mapping[str, Any] = {"type": "string"}
TEXTS: Mapping[str, Any] = {"type": "array", "items": TEXT, "minItems": 1}


def ranged(name: str, description: str) -> Any:
    """An optional number whose range is shown here and checked, for both transports, by `validation`."""
    return Field(default=None, description=description, json_schema_extra=dict(RANGES[name].json_schema))


def checked(check: Callable[[Any], Any], json_schema: Mapping[str, Any]) -> tuple[PlainValidator, WithJsonSchema]:
    """A field of several shapes, checked by hand: one clear refusal instead of one for each shape."""
    return PlainValidator(check), WithJsonSchema(dict(json_schema))


def _describe_other_fields(schema: dict[str, Any], body: type["Body"]) -> None:
    properties = schema.setdefault("properties", {})
    for name in sorted(body.ignored):
        properties[name] = {"title": name, "description": "Accepted and ignored: it changes nothing here."}
    for name, values in sorted(body.neutral.items()):
        properties[name] = {"title": name, "enum": list(values), "description": "Only the value that changes nothing."}


class Body(BaseModel):
    """A JSON object of a request."""

    model_config = ConfigDict(
        strict=True, extra="forbid", allow_inf_nan=False, json_schema_extra=_describe_other_fields
    )
    ignored: ClassVar[frozenset[str]] = frozenset()
    neutral: ClassVar[Neutral] = {}

    @model_validator(mode="before")
    @classmethod
    def _leave_out_what_changes_nothing(cls, body: Any) -> Any:
        if not isinstance(body, dict):
            return body
        kept = {}
        for name, value in body.items():
            if value is None or name in cls.ignored:
                continue
            if name not in cls.neutral:
                kept[name] = value
            elif not any(_is_same(value, neutral) for neutral in cls.neutral[name]):
                raise InvalidRequest(f"'{name}' is not supported with this value.", param=name)
        return kept


_Body = TypeVar("_Body", bound=Body)


def parsed(body: type[_Body], value: Any, *where: str | int) -> _Body:
    """`value` as a body of its own that stands at `where` in the request's.

    Raises InvalidRequest with the field's whole name.
    """
    try:
        return body.model_validate(value)
    except ValidationError as error:
        failures = error.errors(include_url=False, include_context=False, include_input=False)
        raise of_validation([{**each, "loc": ("body", *where, *each["loc"])} for each in failures]) from None


def text_or_texts(name: str) -> Callable[[Any], list[str]]:
    """Checks a field that takes one text or a list of them."""

    def check(value: Any) -> list[str]:
        if isinstance(value, str):
            return [value]
        if is_texts(value):
            return list(value)
        raise InvalidRequest(f"'{name}' must be a string or a list of strings.", param=name)

    return check


def _is_same(value: Any, neutral: Any) -> bool:
    # 0 is 0.0, but True is not 1.
    return bool(value == neutral) and isinstance(value, bool) == isinstance(neutral, bool)


def is_token_ids(value: Any) -> bool:
    """Whether `value` is a list of what could be token ids."""
    return isinstance(value, list) and all(type(each) is int and 0 <= each <= INT32_MAX for each in value)


def is_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(each, str) for each in value)
