"""A tiny random-weight Llama and `vllm serve` of it, for tests marked `engine`. Nothing is downloaded."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sooner.demo import engine

_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|> {{ message['content'] }} <|end|> {% endfor %}"
    "{% if add_generation_prompt %}<|assistant|> {% endif %}"
)


def write_tiny_model(folder: Path) -> Path:
    """Write configuration, tokenizer and chat template of a Llama with 2 small layers; no weights."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.WordLevel(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = ["<unk>", "<s>", "</s>", "<|user|>", "<|assistant|>", "<|system|>", "<|end|>"]
    words = [f"word{index}" for index in range(512 - len(special))]
    tokenizer.train_from_iterator([" ".join(words)], trainers.WordLevelTrainer(special_tokens=special))
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    write = {
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "unk_token": "<unk>",
            "bos_token": "<s>",
            "eos_token": "</s>",
            "chat_template": _TEMPLATE,
            "model_max_length": 1024,
        },
        "config.json": {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "num_hidden_layers": 2,
            "vocab_size": tokenizer.get_vocab_size(),
            "max_position_embeddings": 1024,
            "rms_norm_eps": 1e-5,
            "torch_dtype": "float32",
            "bos_token_id": 1,
            "eos_token_id": 2,
        },
    }
    for name, content in write.items():
        (folder / name).write_text(json.dumps(content), encoding="utf-8")
    return folder


@contextmanager
def serve(
    model: Path,
    *arguments: str,
    settings: Mapping[str, Any] | None = None,
    max_num_seqs: int = 4,
    log: Path | None = None,
) -> Iterator[str]:
    """Run `vllm serve` of `model`, named `tiny`, and yield its address; the server is ended afterwards.

    With `settings`, the plugin's, our scheduler orders its requests. `log` is kept. Raises EngineError with
    the end of the log when it does not come up.
    """
    with tempfile.TemporaryDirectory() as folder:
        options = ("--load-format", "dummy", "--max-model-len", "1024", *arguments)
        with engine.serve(
            model,
            name="tiny",
            log=Path(folder) / "log" if log is None else log,
            settings=settings,
            max_num_seqs=max_num_seqs,
            options=options,
        ) as url:
            yield url
