"""A tiny random-weight Llama and `vllm serve` of it, for tests marked `engine`. Nothing is downloaded."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

LIMITS = ("--enforce-eager", "--dtype", "float32", "--load-format", "dummy", "--max-model-len", "1024")
"""Arguments of every server. Chunked prefill stays off: with seeded sampling it ends the CPU engine."""

ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
}

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
def serve(model: Path, *arguments: str, name: str = "tiny", patience: float = 420.0) -> Iterator[str]:
    """Run `vllm serve` of `model` on a free port and yield its address; the server is ended afterwards.

    A server that does not come up fails the test with the end of its log.
    """
    port = _free_port()
    vllm = str(Path(sys.executable).with_name("vllm"))
    command = [
        vllm,
        "serve",
        str(model),
        "--served-model-name",
        name,
        "--port",
        str(port),
        *LIMITS,
        *arguments,
    ]
    if "--enable-chunked-prefill" not in arguments:
        command += ["--no-enable-chunked-prefill", "--max-num-batched-tokens", "2048"]
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            command,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=os.environ | ENVIRONMENT,
            start_new_session=True,
        )
        try:
            _wait(process, port, patience, log)
            yield f"http://127.0.0.1:{port}"
        finally:
            _end(process)


def _wait(process: subprocess.Popen[bytes], port: int, patience: float, log: object) -> None:
    deadline = time.monotonic() + patience
    while process.poll() is None and time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(1)
    log.seek(0)  # type: ignore[attr-defined]
    tail = log.read()[-4000:].decode(errors="replace")  # type: ignore[attr-defined]
    raise AssertionError(f"vllm serve did not come up (exit status {process.poll()}):\n{tail}")


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the server and the processes it started, which share its process group."""
    for sign, patience in ((signal.SIGTERM, 20), (signal.SIGKILL, 20)):
        try:
            os.killpg(process.pid, sign)
        except ProcessLookupError:
            break
        try:
            process.wait(patience)
        except subprocess.TimeoutExpired:
            continue
    process.wait()


def _free_port() -> int:
    for port in range(8200, 8300):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise AssertionError("no port is free between 8200 and 8299")
