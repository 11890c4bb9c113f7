"""An encoder small enough to fine-tune in a second, and prompts whose reply lengths it can learn."""

from __future__ import annotations

from pathlib import Path

import numpy as np

WORDS = ("essay", "list", "word", "story", "name", "table", "hello", "code", "poem", "sum")
TALK = {word: 20.0 * 1.5**i for i, word in enumerate(WORDS)}

RECIPE: dict[str, object] = {
    "max_pieces": 32,
    "hidden": 16,
    "frozen_layers": -1,
    "learning_rate": 3e-3,
    "head_learning_rate": 1e-2,
    "dropout": 0.0,
    "cycles": 1,
    "epochs": 8,
    "batch": 16,
}


def build(folder: Path) -> Path:
    """Write a BERT of two layers and 32 hidden units, weights random, and a tokenizer of a few words."""
    import torch
    import transformers
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    letters = [chr(97 + i) for i in range(26)]
    vocabulary = [*special, *WORDS, *letters, *(f"##{letter}" for letter in letters), "please", "write", "?"]
    tokenizer = Tokenizer(models.WordPiece({w: i for i, w in enumerate(vocabulary)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    ).save_pretrained(folder)
    config = transformers.BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        transformers.BertModel(config).save_pretrained(folder)
    return folder


def rows(n: int, seed: int = 0) -> tuple[list[str], np.ndarray]:
    """Prompts whose one telling word sets the length, with some noise."""
    rng = np.random.default_rng(seed)
    told = rng.choice(WORDS, n)
    fill = rng.choice(["please", "write", "a", "the", "q"], (n, 4))
    prompts = [" ".join([*row[:2], word, *row[2:]]) for word, row in zip(told, fill, strict=True)]
    return prompts, np.array([TALK[word] for word in told]) * rng.uniform(0.9, 1.1, n)
