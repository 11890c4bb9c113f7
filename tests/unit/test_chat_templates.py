"""The trainer's text is the scheduler's text: messages and rendered prompts, template by template."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sooner import chat
from sooner.chat import templates
from sooner.core import DataError

Messages = Sequence[Mapping[str, str]]


def chatml(messages: Messages, default: str = "") -> str:
    if default and messages[0]["role"] != "system":
        messages = [{"role": "system", "content": default}, *messages]
    body = "".join(f"<|im_start|>{m['role']}\n{m['content']}<|im_end|>\n" for m in messages)
    return body + "<|im_start|>assistant\n"


def smollm2(messages: Messages) -> str:
    return chatml(messages, "You are a helpful AI assistant named SmolLM, trained by Hugging Face")


def qwen2(messages: Messages) -> str:
    return chatml(messages, "You are Qwen, created by Alibaba Cloud. You are a helpful assistant.")


def qwen3_no_thinking(messages: Messages) -> str:
    return chatml(messages) + "<think>\n\n</think>\n\n"


def chatml_without_special_tokens(messages: Messages) -> str:
    return smollm2(messages).replace("<|im_start|>", "").replace("<|im_end|>", "")


def phi4(messages: Messages) -> str:
    body = "".join(f"<|im_start|>{m['role']}<|im_sep|>{m['content']}<|im_end|>" for m in messages)
    return body + "<|im_start|>assistant<|im_sep|>"


def llama3(messages: Messages) -> str:
    dates = "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n"
    system = messages[0]["content"] if messages[0]["role"] == "system" else ""
    rest = messages[1:] if system else messages
    head = f"<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\n{dates}{system}<|eot_id|>"
    body = "".join(
        f"<|start_header_id|>{m['role']}<|end_header_id|>\n\n{m['content']}<|eot_id|>" for m in rest
    )
    return head + body + "<|start_header_id|>assistant<|end_header_id|>\n\n"


def llama4(messages: Messages) -> str:
    body = "".join(f"<|header_start|>{m['role']}<|header_end|>\n\n{m['content']}<|eot|>" for m in messages)
    return "<|begin_of_text|>" + body + "<|header_start|>assistant<|header_end|>\n\n"


def llama2(messages: Messages) -> str:
    system = messages[0]["content"] if messages[0]["role"] == "system" else ""
    out = ""
    for i, m in enumerate(messages[1:] if system else messages):
        if m["role"] == "user":
            content = f"<<SYS>>\n{system}\n<</SYS>>\n\n{m['content']}" if system and i == 0 else m["content"]
            out += f"<s>[INST] {content.strip()} [/INST]"
        else:
            out += f" {m['content'].strip()} </s>"
    return out


def mistral(messages: Messages) -> str:
    system = messages[0]["content"] if messages[0]["role"] == "system" else ""
    out = f"<s>[SYSTEM_PROMPT]{system}[/SYSTEM_PROMPT]" if system else "<s>"
    for m in messages[1:] if system else messages:
        out += f"[INST]{m['content']}[/INST]" if m["role"] == "user" else f"{m['content']}</s>"
    return out


def phi3(messages: Messages) -> str:
    return "".join(f"<|{m['role']}|>\n{m['content']}<|end|>\n" for m in messages) + "<|assistant|>\n"


def zephyr(messages: Messages) -> str:
    return "".join(f"<|{m['role']}|>\n{m['content']}</s>\n" for m in messages) + "<|assistant|>\n"


def granite(messages: Messages) -> str:
    body = "".join(
        f"<|start_of_role|>{m['role']}<|end_of_role|>{m['content']}<|end_of_text|>\n" for m in messages
    )
    return body + "<|start_of_role|>assistant<|end_of_role|>"


def gpt_oss(messages: Messages) -> str:
    out = (
        "<|start|>system<|message|>You are ChatGPT, a large language model trained by OpenAI.\n"
        "Knowledge cutoff: 2024-06\n\nReasoning: medium<|end|>"
    )
    for m in messages:
        if m["role"] == "system":
            out += f"<|start|>developer<|message|># Instructions\n\n{m['content']}\n\n<|end|>"
        elif m["role"] == "assistant":
            out += f"<|start|>assistant<|channel|>final<|message|>{m['content']}<|end|>"
        else:
            out += f"<|start|>user<|message|>{m['content']}<|end|>"
    return out + "<|start|>assistant"


def command_r(messages: Messages) -> str:
    roles = {"system": "SYSTEM", "user": "USER", "assistant": "CHATBOT"}
    body = "".join(
        f"<|START_OF_TURN_TOKEN|><|{roles[m['role']]}_TOKEN|>{m['content']}<|END_OF_TURN_TOKEN|>"
        for m in messages
    )
    return "<BOS_TOKEN>" + body + "<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>"


def deepseek(messages: Messages) -> str:  # its bars are full-width
    out = "<\uff5cbegin▁of▁sentence\uff5c>"
    for m in messages:
        if m["role"] == "system":
            out += m["content"]
        elif m["role"] == "user":
            out += f"<\uff5cUser\uff5c>{m['content']}"
        else:
            out += f"<\uff5cAssistant\uff5c>{m['content']}<\uff5cend▁of▁sentence\uff5c>"
    return out + "<\uff5cAssistant\uff5c>"


def vicuna(messages: Messages) -> str:
    default = (
        "A chat between a curious user and an artificial intelligence assistant. "
        "The assistant gives helpful, detailed, and polite answers to the user's questions."
    )
    system = messages[0]["content"] if messages[0]["role"] == "system" else default
    out = system + " "
    for m in messages[1:] if messages[0]["role"] == "system" else messages:
        out += f"USER: {m['content']} " if m["role"] == "user" else f"ASSISTANT: {m['content']}</s>"
    return out + "ASSISTANT:"


def gemma(messages: Messages) -> str:
    roles = {"user": "user", "assistant": "model"}
    body = "".join(
        f"<start_of_turn>{roles[m['role']]}\n{m['content'].strip()}<end_of_turn>\n" for m in messages
    )
    return "<bos>" + body + "<start_of_turn>model\n"


TEMPLATES: list[Callable[[Messages], str]] = [
    chatml,
    smollm2,
    qwen2,
    qwen3_no_thinking,
    chatml_without_special_tokens,
    phi4,
    llama3,
    llama4,
    llama2,
    mistral,
    phi3,
    zephyr,
    granite,
    gpt_oss,
    command_r,
    deepseek,
    vicuna,
    gemma,
]
WITH_SYSTEM = [template for template in TEMPLATES if template is not gemma]

FIRST = [{"role": "user", "content": "Write 3 bullet points about <b>tea</b>.\n\n- one\n"}]
LATER = [
    {"role": "user", "content": "What is 2 + 2?"},
    {"role": "assistant", "content": "It is 4, since two and two make four."},
    {"role": "user", "content": "  Größer, bitte: 22 + 22?  "},
]
SYSTEM = [{"role": "system", "content": "Answer like a pirate, in one line."}]


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("messages", [FIRST, LATER], ids=["first", "later"])
def test_a_rendered_prompt_reads_like_its_messages(
    template: Callable[[Messages], str], messages: Messages
) -> None:
    assert chat.clean(template(messages)) == chat.from_messages(messages)
    assert chat.read(template(messages)) == chat.read_messages(messages)


@pytest.mark.parametrize("template", WITH_SYSTEM)
@pytest.mark.parametrize("messages", [FIRST, LATER], ids=["first", "later"])
def test_a_system_prompt_becomes_context(template: Callable[[Messages], str], messages: Messages) -> None:
    conversation = chat.read(template([*SYSTEM, *messages]))
    assert conversation == chat.read_messages([*SYSTEM, *messages])
    assert conversation.prompt == chat.from_messages(messages)
    assert conversation.context.system == SYSTEM[0]["content"]


def test_gemma_keeps_an_unmarked_system_prompt_in_the_text() -> None:
    merged = [{"role": "user", "content": f"{SYSTEM[0]['content']}\n\n{FIRST[0]['content']}"}]
    assert chat.clean(gemma(merged)) == chat.from_messages(merged)


_LETTERS = st.characters(codec="utf-8", exclude_characters="<>[]|\uff5c\r\x85\u2028\u2029")
_WORDS = st.text(_LETTERS, max_size=80).filter(
    lambda s: not {"USER:", "ASSISTANT:", "user", "assistant", "system"} & set(s.split())
)


@given(
    words=st.lists(_WORDS.filter(str.strip), min_size=1, max_size=5), at=st.integers(0, len(TEMPLATES) - 1)
)
def test_any_words_read_alike(words: list[str], at: int) -> None:
    if len(words) % 2 == 0:
        words = words[:-1]
    messages = [{"role": ("user", "assistant")[i % 2], "content": word} for i, word in enumerate(words)]
    assert chat.read(TEMPLATES[at](messages)) == chat.read_messages(messages)


@given(st.text(max_size=200))
def test_plain_text_stays_itself(plain: str) -> None:
    if any(sign in plain for template in templates._TEMPLATES for sign in template.signs):
        return
    unix = plain.replace("\r\n", "\n").replace("\r", "\n").encode("utf-8", "replace").decode()
    assert chat.clean(plain) in (unix.strip(), templates._strip_stream_ends(unix).strip())


def test_parts_tools_and_odd_messages() -> None:
    messages = [
        {
            "role": "user",
            "content": [{"type": "text", "text": "look"}, {"type": "image_url", "image_url": {}}],
        },
        {"role": "assistant", "content": None, "tool_calls": []},
        {"role": "tool", "content": "42"},
    ]
    assert chat.read_messages(messages).prompt == "42"
    assert chat.from_messages([{"from": "human", "value": "hi"}]) == "hi"
    assert chat.from_messages([]) == ""
    for wrong in ("text", [3], [{"content": "x"}], [{"role": "user", "content": 3}]):
        with pytest.raises(DataError):
            chat.from_messages(wrong)  # type: ignore[arg-type]


def test_lone_surrogates_and_a_megabyte_are_read() -> None:
    assert chat.clean("a\ud800b") == "a?b"
    assert len(chat.clean(chatml([{"role": "user", "content": "x" * 1_000_000}]))) == 1_000_000
