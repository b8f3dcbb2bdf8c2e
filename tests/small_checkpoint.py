"""A small checkpoint in the key layout hf: random weights large enough to matter."""

from pathlib import Path

import torch

from xlmr_core import XLMRobertaConfig, XLMRobertaForMaskedLM, XLMRobertaTokenizer


def write_checkpoint(folder: Path, tokenizer: XLMRobertaTokenizer, *, seed: int, **config: float) -> Path:
    """Writes an encoder with an LM head and its tokenizer to a folder, and returns the folder."""
    torch.manual_seed(seed)
    sizes = {
        "hidden_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 40,
        "max_position_embeddings": tokenizer.max_tokens + 2,
    }
    model = XLMRobertaForMaskedLM(XLMRobertaConfig(vocab_size=tokenizer.vocab_size, **(sizes | config)))
    model.initialize()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
