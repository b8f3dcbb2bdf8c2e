"""The bundled sentence embedder is small, answers without a network, and finds sentences that share names and words."""

import json

import pytest
import torch
from click.testing import CliRunner

from xlmr_core import Embed
from xlmr_core.checkpoint import bundled
from xlmr_core.cli import main
from xlmr_core.paths import BUNDLED_EMBEDDER
from xlmr_core.tasks import search

PASSAGES = [
    "The parliament in Berlin votes on the new law on Thursday.",
    "My brother plays football in the garden every evening.",
    "Der Zug nach Hamburg hat heute zwanzig Minuten Verspätung.",
    "La música de Mozart es muy hermosa.",
]
QUERIES = ["a new law of the parliament", "football in the garden", "Zug nach Hamburg", "la música de Mozart"]


@pytest.fixture(scope="module")
def embed() -> Embed:
    return Embed.from_pretrained(BUNDLED_EMBEDDER)


def test_it_is_smaller_than_2_megabytes() -> None:
    assert sum(path.stat().st_size for path in bundled(BUNDLED_EMBEDDER).rglob("*") if path.is_file()) < 2_000_000


def test_its_vectors_are_those_of_its_release(embed: Embed) -> None:
    vector = embed("Guten Morgen, wie geht es Ihnen?")
    assert vector.shape == (112,)
    assert vector.norm().item() == pytest.approx(1, abs=1e-5)
    assert vector[:6].tolist() == pytest.approx([-0.0087, -0.0754, -0.0324, 0.0859, 0.0904, 0.1029], abs=1e-3)


def test_a_part_of_a_sentence_finds_it(embed: Embed) -> None:
    hits = search(embed.batch(QUERIES), embed.batch(PASSAGES), top_k=1)
    assert [hit.index for [hit] in hits] == [0, 1, 2, 3]


def test_the_command_uses_it_without_a_model(embed: Embed) -> None:
    result = CliRunner().invoke(main, ["embed", *QUERIES, "--json"])
    vectors = [json.loads(line)["embedding"] for line in result.stdout.splitlines()]
    assert torch.allclose(torch.tensor(vectors), embed.batch(QUERIES), atol=1e-6)
    assert "the bundled xlmr-embed" in result.stderr


def test_sentence_transformers_makes_the_same_vectors(embed: Embed) -> None:
    library = pytest.importorskip(
        "sentence_transformers", reason="sentence-transformers is not installed: pip install sentence-transformers"
    )
    theirs = library.SentenceTransformer(str(bundled(BUNDLED_EMBEDDER)), device="cpu").float().encode(PASSAGES)
    assert torch.allclose(embed.batch(PASSAGES), torch.tensor(theirs), atol=1e-5)
