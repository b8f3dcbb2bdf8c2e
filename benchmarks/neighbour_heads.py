"""Which attention head brings which neighbour to a masked token: activation patching on a folder of texts.

    python benchmarks/neighbour_heads.py FOLDER    # LANGUAGE.txt, a sentence a line, such as NTREX-128; a minute
    python benchmarks/neighbour_heads.py FOLDER --distances -2 2 --texts 10

For each sentence and each distance d, one token is masked, and the token d places away is replaced by one of another
sentence: that is the corrupted text. The score is the log-probability of the masked token. One head at a time gets its
values of the clean text back. Its share is the part of the lost log-probability that comes back: the mean gain over all
sentences, divided by the mean loss. Deviations are over seeds, each with other sentences, masks and replacements.

Two more columns: the attention of the head from the mask to that place, and as a control the share with the values of
another clean sentence.
"""

import argparse
import random
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from xlmr_core import XLMRobertaForMaskedLM, XLMRobertaTokenizer
from xlmr_core.interpret import activation_patching, head_parts

LANGUAGES = ("ar", "bg", "de", "el", "en", "es", "fa", "fr", "hi", "it", "nl", "pl", "pt", "tr", "uk", "zh-Hans")
TOKENS = 24  # of a row: of a sentence its first 22
CONTEXTS = "layers.*.attention.context"


def rows_of(lines: list[str], tokenizer: XLMRobertaTokenizer, texts: int, chance: random.Random) -> list[list[int]]:
    """The ids of `texts` random sentences that fill a row."""
    rows: list[list[int]] = []
    while len(rows) < texts:
        ids = [token.id for token in tokenizer.tokenize(chance.choice(lines))][: TOKENS - 2]
        if len(ids) == TOKENS - 2:
            rows.append([tokenizer.bos_token_id, *ids, tokenizer.eos_token_id])
    return rows


def measure(
    model: XLMRobertaForMaskedLM, rows: Tensor, mask_id: int, distance: int, chance: random.Random
) -> tuple[float, Tensor, Tensor, Tensor]:
    """Nats lost; for each head, (L, N): its share, its share with another sentence, its attention."""
    each = torch.arange(len(rows))
    places = torch.tensor([chance.randrange(4, TOKENS - 4) for _ in each])
    others = torch.tensor([chance.randrange(1, TOKENS - 1) for _ in each])
    clean = rows.clone()
    clean[each, places] = mask_id
    corrupted = clean.clone()
    corrupted[each, places + distance] = rows.roll(1, dims=0)[each, others]

    def score(output: Any) -> Tensor:  # (B,)
        logits = model.lm_head(output.last_hidden_state[each, places])
        return logits.log_softmax(dim=-1)[each, rows[each, places]]

    def patched(source: Tensor) -> Tensor:  # (L, N)
        batches = {"input_ids": source}, {"input_ids": corrupted}
        return activation_patching(encoder, *batches, score, CONTEXTS, head_parts(model.config)).mean(dim=2)

    encoder = model.encoder
    with torch.no_grad(), encoder.capture("layers.*.attention.probs") as acts:
        before = score(encoder(clean))
    with torch.no_grad():
        lost = (before - score(encoder(corrupted))).mean()
    looks = torch.stack([probs[each, :, places, places + distance].mean(dim=0) for probs in acts.values()])
    return lost.item(), patched(clean) / lost, patched(clean.roll(1, dims=0)) / lost, looks


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="with LANGUAGE.txt, a sentence a line")
    parser.add_argument("--model", default="xlmr-tiny")
    parser.add_argument("--languages", nargs="+", default=LANGUAGES)
    parser.add_argument("--distances", nargs="+", type=int, default=(-1, 1), help="of the token, in places")
    parser.add_argument("--texts", type=int, default=3, help="sentences of each language, for each seed")
    parser.add_argument("--seeds", type=int, default=5)
    arguments = parser.parse_args()
    tokenizer = XLMRobertaTokenizer.from_pretrained(arguments.model)
    model = XLMRobertaForMaskedLM.from_pretrained(arguments.model)
    files = [arguments.folder / f"{language}.txt" for language in arguments.languages]
    lines = [path.read_text(encoding="utf-8").splitlines() for path in files]

    print("| token at | nats lost | head | comes back | attention | with another sentence |")
    print("|---:|---:|---|---:|---:|---:|")
    for distance in arguments.distances:
        found: list[tuple[float, Tensor, Tensor, Tensor]] = []
        for seed in range(arguments.seeds):
            chance = random.Random(seed)
            rows = [row for own in lines for row in rows_of(own, tokenizer, arguments.texts, chance)]
            chance.shuffle(rows)
            found.append(measure(model, torch.tensor(rows), tokenizer.mask_token_id, distance, chance))
        lost = torch.tensor([one[0] for one in found])
        shares, controls, looks = (
            torch.stack([one[i] for one in found]).flatten(1) for i in (1, 2, 3)
        )  # (seeds, L * N)
        for number in shares.mean(dim=0).topk(2).indices.tolist():
            layer, head = divmod(number, model.config.num_attention_heads)
            share, control = (f"{x[:, number].mean():.0%} ± {x[:, number].std():.0%}" for x in (shares, controls))
            cells = (f"{distance:+d}", f"{lost.mean():.2f} ± {lost.std():.2f}", f"layer {layer}, head {head}", share)
            print(f"| {' | '.join(cells)} | {looks[:, number].mean():.2f} | {control} |", flush=True)


if __name__ == "__main__":
    main()
