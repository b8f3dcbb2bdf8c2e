"""The checkpoints and the texts of the study."""

from pathlib import Path

import torch

from xlmr_core import XLMRobertaConfig, XLMRobertaModel
from xlmr_core.paths import package_data

TEXTS = [  # three scripts, 26, 35 and 11 tokens
    "Το βιβλίο που μου έδωσε ο πατέρας μου είναι στο τραπέζι.",
    "The old bridge was closed in 1987, and nobody knows when it will be opened again, or who should pay for it.",
    "यह किताब बहुत अच्छी है।",
]
OTHER_TEXTS = [  # of the controls
    *TEXTS,
    "Bonjour",
    "Der Zug nach Wien fährt heute von Gleis sieben, nicht von Gleis neun.",
    "Река была холодной, но дети купались в ней до вечера.",
    "هذا الكتاب جيد جدا",
    "これは本です。",
    "La reunión empieza a las 10:30; lleva el informe, por favor.",
    "Ngày mai trời sẽ mưa.",
    "Habari za asubuhi, rafiki yangu?",
    "2 + 2 = 4",
    "Kış geldi, ama kar yağmadı.",
]


def control_texts(number: int) -> list[str]:
    """The batch of a control: three texts, no two batches the same."""
    return [OTHER_TEXTS[(number * step + step) % len(OTHER_TEXTS)] for step in (1, 2, 5)] + ["Hello"] * (number // 13)


def tiny() -> Path:
    return package_data("xlmr-tiny")


def random_model(folder: Path) -> Path:
    """A post-norm model of 6 layers with random weights, biases and norms, for the vocabulary of xlmr-tiny."""
    if not (folder / "config.json").exists():
        sizes = {"vocab_size": 12002, "hidden_size": 256, "num_hidden_layers": 6, "num_attention_heads": 4}
        config = XLMRobertaConfig(**sizes, intermediate_size=1024, max_position_embeddings=130)
        model = XLMRobertaModel(config)
        random = torch.Generator().manual_seed(6)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                noise = torch.randn(parameter.shape, generator=random)
                parameter.copy_(1 + 0.1 * noise if name.endswith("norm.weight") else 0.05 * noise)
        model.save_pretrained(folder)
    return folder
