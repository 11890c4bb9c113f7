"""A small record of each shape of log that is known, by name: what was asked, and the reply's tokens."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

ASKED = "Which river runs through Lyon?"
REPLY = "The Rhone and the Saone."  # 24 bytes: 6 tokens where nobody counts
CHAT = [{"role": "user", "content": ASKED}]
ANSWER = {"role": "assistant", "content": REPLY}


class Known(NamedTuple):
    """A record, the text of its last message, and the length it tells [tokens]."""

    record: dict[str, Any]
    length: float
    asked: str = ASKED
    system: str = ""


def _otel(attributes: dict[str, Any], **span: Any) -> dict[str, Any]:
    kinds = {str: "stringValue", int: "intValue", float: "doubleValue"}
    listed = [
        {"key": name, "value": {kinds[type(value)]: str(value) if type(value) is int else value}}
        for name, value in attributes.items()
    ]
    spans = [{"traceId": "5b8e", "spanId": "ee", "name": "chat m", "attributes": listed, **span}]
    return {"resourceSpans": [{"resource": {}, "scopeSpans": [{"scope": {}, "spans": spans}]}]}


_PARTS = json.dumps([{"role": "user", "parts": [{"type": "text", "content": ASKED}]}])
_GIVEN = json.dumps(
    [{"role": "assistant", "parts": [{"type": "text", "content": REPLY}], "finish_reason": "stop"}]
)
_GEMINI = {
    "request": {
        "contents": [{"role": "user", "parts": [{"text": ASKED}]}],
        "systemInstruction": {"parts": [{"text": "Be brief."}]},
        "generationConfig": {"maxOutputTokens": 64, "temperature": 0.2},
    },
    "response": {
        "candidates": [{"content": {"role": "model", "parts": [{"text": REPLY}]}, "finishReason": "STOP"}],
        "usageMetadata": {"promptTokenCount": 9, "candidatesTokenCount": 5, "thoughtsTokenCount": 90},
    },
}
_CHUNKS = [
    {"object": "chat.completion.chunk", "choices": [{"index": 0, "delta": {"content": piece}}]}
    for piece in (REPLY[:10], REPLY[10:])
]
_EVENTS = [
    {"type": "message_start", "message": {"model": "c", "usage": {"input_tokens": 9, "output_tokens": 1}}},
    {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": REPLY}},
    {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 31}},
]


def _sse(chunks: list[dict[str, Any]]) -> str:
    return "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks) + "data: [DONE]\n\n"


KNOWN: dict[str, Known] = {
    "numbers as text": Known({"prompt": ASKED, "output_tokens": "1,200"}, 1200),
    "openai n": Known(
        {
            "request": {"messages": CHAT, "n": 3},
            "response": {"choices": [{"message": ANSWER}] * 3, "usage": {"completion_tokens": 33}},
        },
        11,
    ),
    "openai, usage of 0": Known(
        {"messages": CHAT, "response": {"choices": [{"message": ANSWER}], "usage": {"completion_tokens": 0}}},
        6,
    ),
    "openai, no usage": Known(
        {"messages": CHAT, "response": {"choices": [{"message": ANSWER}], "usage": None}}, 6
    ),
    "openai, thoughts as text": Known(
        {"messages": CHAT, "choices": [{"message": {"content": "4", "reasoning_content": "x" * 399}}]}, 100
    ),
    "openai, thoughts within": Known(
        {
            "messages": CHAT,
            "usage": {"completion_tokens": 300, "completion_tokens_details": {"reasoning_tokens": 256}},
        },
        300,
    ),
    "xai, thoughts beside": Known(
        {
            "messages": CHAT,
            "usage": {
                "prompt_tokens": 9,
                "completion_tokens": 40,
                "total_tokens": 305,
                "completion_tokens_details": {"reasoning_tokens": 256},
            },
        },
        296,
    ),
    "openai, a call of a tool": Known(
        {
            "messages": CHAT,
            "choices": [
                {
                    "message": {
                        "content": None,
                        "tool_calls": [{"function": {"name": "find", "arguments": '{"q": 1}'}}],
                    }
                }
            ],
        },
        3,
    ),
    "openai, streamed, counted": Known(
        {
            "request": {"messages": CHAT},
            "response": [*_CHUNKS, {"choices": [], "usage": {"completion_tokens": 8}}],
        },
        8,
    ),
    "openai, streamed, not counted": Known({"request": {"messages": CHAT}, "response": _CHUNKS}, 6),
    "openai, streamed, as text": Known({"request": {"messages": CHAT}, "response": _sse(_CHUNKS)}, 6),
    "openai, parts": Known(
        {
            "messages": [
                {
                    "role": "user",
                    "content": [
                        {"type": "text", "text": ASKED},
                        {"type": "image_url", "image_url": {"url": "x"}},
                    ],
                }
            ],
            "usage": {"completion_tokens": 7},
        },
        7,
    ),
    "openai responses, an agent": Known(
        {
            "request": {
                "instructions": "Be brief.",
                "input": [
                    {"role": "user", "content": "Look it up"},
                    {"type": "reasoning", "summary": []},
                    {"type": "function_call", "call_id": "c", "name": "find", "arguments": "{}"},
                    {"type": "function_call_output", "call_id": "c", "output": ASKED},
                ],
            },
            "response": {"status": "completed", "error": None, "usage": {"output_tokens": 40}},
        },
        40,
        system="Be brief.",
    ),
    "anthropic": Known(
        {
            "request": {
                "system": "Be brief.",
                "max_tokens": 64,
                "messages": [
                    {
                        "role": "user",
                        "content": [{"type": "tool_result", "content": [{"type": "text", "text": ASKED}]}],
                    }
                ],
            },
            "response": {
                "type": "message",
                "content": [{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": REPLY}],
                "usage": {"input_tokens": 9, "output_tokens": 64},
            },
        },
        64,
        system="Be brief.",
    ),
    "anthropic, no usage": Known(
        {
            "request": {"messages": CHAT},
            "response": {
                "type": "message",
                "content": [{"type": "thinking", "thinking": "x" * 75}, {"text": REPLY}],
            },
        },
        25,
    ),
    "anthropic, streamed": Known({"request": {"messages": CHAT}, "response": _EVENTS}, 31),
    "anthropic, a batch": Known(
        {
            "custom_id": "a",
            "params": {"messages": CHAT},
            "result": {
                "type": "succeeded",
                "message": {"content": [{"text": REPLY}], "usage": {"output_tokens": 7}},
            },
        },
        7,
    ),
    "langfuse, thoughts": Known(
        {
            "traceId": "t",
            "type": "GENERATION",
            "input": CHAT,
            "output": ANSWER,
            "usageDetails": {"input": 20, "output": 44, "output_reasoning_tokens": 960, "total": 1024},
        },
        1004,
    ),
    "langfuse, characters": Known(
        {"input": CHAT, "output": REPLY, "usage": {"input": 30, "output": 24, "unit": "CHARACTERS"}}, 6
    ),
    "helicone": Known(
        {
            "request_id": "q",
            "request_body": {"messages": CHAT, "max_tokens": 5},
            "response_body": {"choices": [{"message": ANSWER}], "usage": {"completion_tokens": 7}},
            "response_status": 200,
        },
        7,
    ),
    "langsmith": Known(
        {
            "id": "r",
            "run_type": "llm",
            "inputs": {
                "messages": [
                    [
                        {
                            "lc": 1,
                            "id": ["langchain", "schema", "HumanMessage"],
                            "kwargs": {"content": ASKED, "type": "human"},
                        }
                    ]
                ]
            },
            "outputs": {"generations": [[{"text": REPLY}]]},
            "completion_tokens": 7,
            "session_id": "a project",
        },
        7,
    ),
    "bedrock": Known(
        {
            "schemaType": "ModelInvocationLog",
            "requestId": "x",
            "modelId": "m",
            "input": {
                "inputTokenCount": 9,
                "inputBodyJson": {"messages": [{"role": "user", "content": [{"text": ASKED}]}]},
            },
            "output": {
                "outputTokenCount": 37,
                "outputBodyJson": {"output": {"message": {"content": [{"text": REPLY}]}}},
            },
        },
        37,
    ),
    "gemini": Known(_GEMINI, 95, system="Be brief."),
    "gemini, no usage": Known(
        {"request": _GEMINI["request"], "response": {"candidates": _GEMINI["response"]["candidates"]}},
        6,
        system="Be brief.",
    ),
    "ollama chat": Known(
        {
            "request": {"model": "m", "messages": CHAT, "options": {"num_predict": 50}},
            "response": {
                "message": ANSWER,
                "done": True,
                "done_reason": "stop",
                "eval_count": 29,
                "prompt_eval_count": 9,
            },
        },
        29,
    ),
    "ollama generate": Known(
        {"model": "m", "prompt": ASKED, "response": REPLY, "done": True, "eval_count": 29}, 29
    ),
    "ollama, streamed": Known(
        {
            "request": {"messages": CHAT},
            "response": [
                {"message": {"content": REPLY[:9]}, "done": False},
                {"message": {"content": REPLY[9:]}, "done": False},
                {"message": {"content": ""}, "done": True, "done_reason": "stop", "eval_count": 29},
            ],
        },
        29,
    ),
    "tgi": Known(
        {
            "inputs": ASKED,
            "parameters": {"max_new_tokens": 20},
            "response": [
                {"generated_text": REPLY, "details": {"finish_reason": "length", "generated_tokens": 20}}
            ],
        },
        20,
    ),
    "sglang": Known(
        {
            "event": "request.finished",
            "rid": "r",
            "obj": {"text": ASKED, "sampling_params": {"max_new_tokens": 320}},
            "out": {"text": REPLY, "meta_info": {"prompt_tokens": 9, "completion_tokens": 220}},
        },
        220,
    ),
    "otel": Known(
        _otel(
            {
                "gen_ai.operation.name": "chat",
                "gen_ai.input.messages": _PARTS,
                "gen_ai.usage.output_tokens": 8,
            }
        ),
        8,
    ),
    "otel, no usage": Known(_otel({"gen_ai.input.messages": _PARTS, "gen_ai.output.messages": _GIVEN}), 6),
    "otel, one span": Known(
        {
            "span_id": "e",
            "name": "chat m",
            "attributes": {
                "gen_ai.prompt.0.role": "user",
                "gen_ai.prompt.0.content": ASKED,
                "gen_ai.usage.completion_tokens": 8,
            },
        },
        8,
    ),
    "openinference": Known(
        {
            "context": {"span_id": "e"},
            "attributes": {
                "openinference.span.kind": "LLM",
                "llm.input_messages.0.message.role": "user",
                "llm.input_messages.0.message.content": ASKED,
                "llm.token_count.completion": 8,
            },
        },
        8,
    ),
    "alpaca": Known(
        {"instruction": "Answer.", "input": ASKED, "output": REPLY}, 6, asked=f"Answer.\n\n{ASKED}"
    ),
    "dolly": Known({"instruction": ASKED, "context": "", "response": REPLY, "category": "qa"}, 6),
    "trl, text": Known({"prompt": ASKED, "completion": REPLY}, 6),
    "trl, messages": Known({"prompt": CHAT, "completion": [ANSWER]}, 6),
    "sharegpt, other names": Known(
        {"items": [{"from": "human", "text": ASKED}, {"from": "bard", "text": REPLY}]}, 6
    ),
    "sharegpt, a role nobody knows": Known(
        {"conversations": [{"from": "user", "value": ASKED}, {"from": "mixtral-8x7b", "value": REPLY}]}, 6
    ),
    "ultrachat": Known({"id": "0", "data": [ASKED, REPLY]}, 6),
    "oasst, a tree": Known(
        {
            "message_tree_id": "m",
            "prompt": {
                "text": ASKED,
                "role": "prompter",
                "replies": [{"text": REPLY, "role": "assistant", "replies": []}],
            },
        },
        6,
    ),
    "mooncake, texts": Known({"timestamp": 0, "text_input": ASKED, "output_length": 10}, 10),
    "openai, streamed, lines of text": Known(
        {"request": {"messages": CHAT}, "response": _sse(_CHUNKS).split("\n\n")}, 6
    ),
    "ollama, streamed, as text": Known(
        {
            "request": {"messages": CHAT},
            "response": '{"message": {"content": "x"}, "done": false}\n{"done": true, "eval_count": 29}',
        },
        29,
    ),
    "anthropic, a cached prompt": Known(
        {
            "request": {"messages": CHAT},
            "response": {
                "content": [{"text": REPLY}],
                "usage": {"cache_read_input_tokens": 9, "output_tokens": 7},
            },
        },
        7,
    ),
    "question and answer": Known({"question": ASKED, "answer": REPLY}, 6),
    "query and response": Known({"query": ASKED, "response": REPLY}, 6),
    "pairs": Known({"conversation": [{"human": ASKED, "assistant": REPLY}]}, 6),
    "numbers in lakhs": Known({"prompt": ASKED, "output_tokens": "1,20,000"}, 120000),
    "zipkin": Known(
        {
            "traceId": "t",
            "id": "e",
            "tags": {"gen_ai.input.messages": _PARTS, "gen_ai.usage.output_tokens": "8"},
        },
        8,
    ),
    "jaeger": Known(
        {
            "traceID": "t",
            "spans": [
                {
                    "spanID": "e",
                    "tags": [
                        {"key": "gen_ai.input.messages", "type": "string", "value": _PARTS},
                        {"key": "gen_ai.usage.output_tokens", "type": "int64", "value": 8},
                    ],
                }
            ],
        },
        8,
    ),
    "openinference, a table": Known(
        {
            "context.span_id": "e",
            "attributes.llm.input_messages": [{"message.role": "user", "message.content": ASKED}],
            "attributes.llm.token_count.completion": 8,
        },
        8,
    ),
    "ids of the reply": Known({"prompt": ASKED, "output_token_ids": [1, 2, 3, 4]}, 4),
    "a quantity": Known({"prompt": ASKED, "output_tokens": {"value": 9, "unit": "tokens"}}, 9),
    "openai, streamed, with comments before": Known(
        {"request": {"messages": CHAT}, "response": ": waiting\n\nretry: 3\n\n" + _sse(_CHUNKS)}, 6
    ),
    "openai, streamed, other line ends": Known(
        {"request": {"messages": CHAT}, "response": "\ufeff" + _sse(_CHUNKS).replace("\n", "\r\n")}, 6
    ),
    "anthropic, streamed, left before its end": Known(
        {"request": {"messages": CHAT}, "response": _EVENTS[:2]}, 6
    ),
    "openrouter, thoughts as parts": Known(
        {
            "messages": CHAT,
            "choices": [
                {"message": {"content": "4", "reasoning_details": [{"type": "x.text", "text": "x" * 399}]}}
            ],
        },
        100,
    ),
    "openrouter, thoughts twice": Known(
        {
            "messages": CHAT,
            "choices": [
                {
                    "message": {
                        "content": "4",
                        "reasoning": "x" * 399,
                        "reasoning_details": [{"text": "x" * 399}],
                    }
                }
            ],
        },
        100,
    ),
    "cohere": Known(
        {
            "request": {"messages": CHAT},
            "response": {
                "message": {"role": "assistant", "content": [{"type": "text", "text": REPLY}]},
                "usage": {"billed_units": {"output_tokens": 29}, "tokens": {"output_tokens": 31}},
            },
        },
        31,
    ),
    "cohere, older": Known(
        {
            "request": {"messages": CHAT},
            "response": {"text": REPLY, "meta": {"billed_units": {"output_tokens": 29}}},
        },
        29,
    ),
    "llama.cpp, timings": Known(
        {
            "request": {"messages": CHAT},
            "response": {"choices": [{"message": ANSWER}], "timings": {"predicted_n": 55}},
        },
        55,
    ),
    "triton": Known({"request": {"text_input": ASKED}, "response": {"text_output": REPLY}}, 6),
    "weave": Known(
        {
            "op_name": "openai.chat.completions.create",
            "inputs": {"messages": CHAT},
            "output": {"choices": [{"message": ANSWER}], "usage": {"completion_tokens": 19}},
        },
        19,
    ),
    "the reply behind what was asked, counted": Known(
        {"messages": [*CHAT, ANSWER], "usage": {"completion_tokens": 9}}, 9
    ),
    "otel, attributes without ids": Known(
        {
            "attributes": {
                "gen_ai.prompt.0.role": "user",
                "gen_ai.prompt.0.content": ASKED,
                "gen_ai.completion.0.role": "assistant",
                "gen_ai.completion.0.content": REPLY,
                "gen_ai.usage.completion_tokens": 21,
            }
        },
        21,
    ),
    "otel, names nested": Known(
        {
            "attributes": {
                "gen_ai": {
                    "input": {"messages": _PARTS},
                    "usage": {"output_tokens": 21},
                    "request": {"model": "m"},
                }
            }
        },
        21,
    ),
    "otel, a flat record": Known({"gen_ai.input.messages": _PARTS, "gen_ai.usage.output_tokens": "21"}, 21),
    "otel, thoughts in the reply": Known(
        {
            "attributes": {
                "gen_ai.input.messages": _PARTS,
                "gen_ai.output.messages": [
                    {
                        "role": "assistant",
                        "parts": [
                            {"type": "reasoning", "content": "x" * 75},
                            {"type": "text", "content": REPLY},
                        ],
                    }
                ],
            }
        },
        25,
    ),
    "openinference, nested": Known(
        {
            "attributes": {
                "openinference": {"span": {"kind": "LLM"}},
                "llm": {
                    "input_messages": [{"message": {"role": "user", "content": ASKED}}],
                    "token_count": {"completion": 21},
                },
            }
        },
        21,
    ),
    "vercel": Known(
        {
            "name": "ai.generateText.doGenerate",
            "attributes": {
                "ai.prompt.messages": json.dumps(CHAT),
                "ai.response.text": REPLY,
                "gen_ai.usage.output_tokens": 21,
            },
        },
        21,
    ),
}
