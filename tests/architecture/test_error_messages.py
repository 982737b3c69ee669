"""Every refusal reads alike, whoever raises it: a whole sentence, from a capital or a quoted field to a full stop."""

import ast
from collections.abc import Iterator
from pathlib import Path

from services.common.errors import JanusError

SERVICES = Path(__file__).parents[2] / "services"


def error_names(root: type[JanusError] = JanusError) -> set[str]:
    return {root.__name__}.union(*(error_names(child) for child in root.__subclasses__()))


def messages() -> Iterator[tuple[str, list[ast.expr]]]:
    """Where each message is written, and its parts."""
    names = error_names()
    for path in sorted(SERVICES.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in names and node.args:
                message = node.args[0]
                where = f"{path.relative_to(SERVICES)}:{node.lineno}"
                if isinstance(message, ast.JoinedStr):
                    yield where, message.values
                elif isinstance(message, ast.Constant):
                    yield where, [message]


def is_sentence(parts: list[ast.expr]) -> bool:
    """Parts that are filled in are taken to be fine."""
    first, last = parts[0], parts[-1]
    begins = not isinstance(first, ast.Constant) or str(first.value)[0] == "'" or str(first.value)[0].isupper()
    return begins and (not isinstance(last, ast.Constant) or str(last.value).endswith("."))


def test_messages_are_sentences() -> None:
    found = list(messages())
    assert len(found) > 50
    assert [where for where, parts in found if not is_sentence(parts)] == []
