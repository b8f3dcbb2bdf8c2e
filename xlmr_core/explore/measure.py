"""What the page shows, measured with `capture` and `intervene`."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from xlmr_core.explore.page import HeadOff, Likeliest, Page, TextMeasures
from xlmr_core.heads import XLMRobertaForMaskedLM
from xlmr_core.pretrained import PretrainedModel
from xlmr_core.progress import Tick, no_tick
from xlmr_core.tokenizer import Token, XLMRobertaTokenizer

LENS_PIECES = 3  # shown at each depth
PREDICTIONS = 5  # shown for the whole model
MOST_TEXTS = 2  # side by side
MOST_TOKENS = 192  # of a text: the page grows with the square of it


def explore(
    model: PretrainedModel,
    tokenizer: XLMRobertaTokenizer,
    texts: Sequence[str],
    *,
    name: str = "",
    specials_in_text: bool = True,
    tick: Tick = no_tick,
) -> Page:
    """Runs the model on each text and keeps what the page shows.

    Args:
        model: Any class, in eval mode, with eager attention. Predictions need a masked language model.
        tokenizer: Of the same checkpoint.
        texts: One text, or two that are shown side by side.
        name: Of the model, for the heading.
        specials_in_text: Whether `<mask>` and the like in a text are special tokens.
        tick: Is called with 1 after each run of the model; `runs` says how many there are.

    Returns:
        The page.

    Raises:
        ValueError: No text or more than two, one that is too long, or a model with fused attention.
        FloatingPointError: The model computes NaN or infinity.
    """
    if not 1 <= len(texts) <= MOST_TEXTS:
        raise ValueError(f"a page shows one text or two, not {len(texts)}")
    rows = [(text, tokenizer.explain(text, specials_in_text=specials_in_text).tokens) for text in texts]
    limit = min(MOST_TOKENS, model.config.max_tokens)
    for text, tokens in rows:
        if len(tokens) > limit:
            raise ValueError(f"{text[:40]!r}... has {len(tokens)} tokens; a page shows at most {limit}: shorten it")
    measured = tuple(_measured(model, tokenizer, text, tokens, tick) for text, tokens in rows)
    config = model.config
    return Page(name, config.num_hidden_layers, config.num_attention_heads, measured, _names(measured, tokenizer))


def runs(model: PretrainedModel, texts: int) -> int:
    """How many times `explore` runs the model."""
    heads = model.config.num_hidden_layers * model.config.num_attention_heads
    return texts * (1 + (heads if isinstance(model, XLMRobertaForMaskedLM) else 0))


@torch.inference_mode()
def _measured(
    model: PretrainedModel, tokenizer: XLMRobertaTokenizer, text: str, tokens: Sequence[Token], tick: Tick
) -> TextMeasures:
    layers = model.config.num_hidden_layers
    ids = torch.tensor([[token.id for token in tokens]], device=next(model.parameters()).device)
    head = ["lm_head.logits"] if isinstance(model, XLMRobertaForMaskedLM) else []
    with model.capture("embeddings.output", "layers.*.output", "layers.*.attention.probs", *head) as seen:
        model(ids)
    tick(1)
    for tap, tensor in seen.items():
        if not tensor.isfinite().all():
            raise FloatingPointError(
                f"{tap} holds NaN or infinity for the text {text[:40]!r}: `xlmr inspect MODEL --values` shows whether "
                "the weights do"
            )
    hidden = [seen["embeddings.output"], *(seen[f"layers.{i}.output"] for i in range(layers))]
    attention = torch.stack([seen[f"layers.{i}.attention.probs"][0] for i in range(layers)]).float()
    norms = torch.cat(hidden).float().norm(dim=-1)
    lens = heads_off = None
    if isinstance(model, XLMRobertaForMaskedLM):
        at_depths = [_likeliest(_logits(model, vectors)[0], LENS_PIECES) for vectors in hidden[:-1]]
        logits = seen["lm_head.logits"][0].float()  # (S, V)
        at_depths.append(_likeliest(logits, PREDICTIONS))
        lens = _stacked(at_depths)
        masks = tuple(i for i, token in enumerate(tokens) if token.id == tokenizer.mask_token_id)
        heads_off = _heads_off(model, ids, logits, masks or tuple(range(1, len(tokens) - 1)), tick)
    return TextMeasures(text, tuple(tokens), attention.cpu(), _rollout(attention).cpu(), norms.cpu(), lens, heads_off)


def _rollout(attention: Tensor) -> Tensor:  # (L, N, S, S) -> (L, S, S)
    """Attention and the residual connection count half each (Abnar and Zuidema 2020, section 3)."""
    identity = torch.eye(attention.shape[-1], device=attention.device)
    reached, found = identity, list[Tensor]()
    for heads in attention:
        reached = (0.5 * heads.mean(dim=0) + 0.5 * identity) @ reached
        found.append(reached)
    return torch.stack(found)


def _logits(model: XLMRobertaForMaskedLM, hidden: Tensor) -> Tensor:  # (B, S, H) -> (B, S, V)
    """The LM head on the vectors between two layers. In XL and XXL the final norm comes first."""
    final_norm: nn.Module = model.encoder.final_norm
    return model.lm_head(final_norm(hidden)).float()


def _likeliest(logits: Tensor, count: int) -> Likeliest:  # (S, V)
    best = logits.topk(min(count, logits.shape[-1]), dim=-1)
    logsumexp = logits.logsumexp(dim=-1, keepdim=True)
    return Likeliest(best.indices.cpu(), (best.values - logsumexp).exp().cpu())


def _stacked(all_of: Sequence[Likeliest]) -> Likeliest:
    """One more axis in front. Where one has more pieces than another, the others get -1 with probability 0."""
    width = max(one.ids.shape[-1] for one in all_of)
    pad = [nn.functional.pad(one.ids, (0, width - one.ids.shape[-1]), value=-1) for one in all_of]
    probabilities = [nn.functional.pad(one.probabilities, (0, width - one.ids.shape[-1])) for one in all_of]
    return Likeliest(torch.stack(pad), torch.stack(probabilities))


def _heads_off(
    model: XLMRobertaForMaskedLM, ids: Tensor, logits: Tensor, positions: tuple[int, ...], tick: Tick
) -> HeadOff:
    """One run of the model for each head, whose part of `attention.context` is 0."""
    layers, heads = model.config.num_hidden_layers, model.config.num_attention_heads
    wanted = torch.zeros_like(ids, dtype=torch.bool)
    wanted[0, list(positions)] = True
    before = logits[list(positions)].log_softmax(dim=-1)
    best = before.argmax(dim=-1, keepdim=True)
    changes: list[Tensor] = []
    likeliest: list[Likeliest] = []
    for layer in range(layers):
        for head in range(heads):
            with model.intervene({f"layers.{layer}.attention.context": _without(head, model.config.head_dim)}):
                after = model(ids, positions=wanted).logits.float()
            tick(1)
            change = after.log_softmax(dim=-1).gather(-1, best) - before.gather(-1, best)
            changes.append(change[:, 0].cpu())
            likeliest.append(_likeliest(after, LENS_PIECES))
    found = _stacked(likeliest)
    shape = (layers, heads)
    return HeadOff(
        positions,
        torch.stack(changes).unflatten(0, shape),
        Likeliest(found.ids.unflatten(0, shape), found.probabilities.unflatten(0, shape)),
    )


def _without(head: int, head_dim: int) -> Callable[[Tensor], Tensor]:
    columns = slice(head * head_dim, (head + 1) * head_dim)

    def change(context: Tensor) -> Tensor:  # (B, S, H)
        context = context.clone()
        context[..., columns] = 0
        return context

    return change


def _names(texts: Sequence[TextMeasures], tokenizer: XLMRobertaTokenizer) -> dict[int, str]:
    """The piece of every id that the page shows."""
    shown: set[int] = set()
    for text in texts:
        for likeliest in (text.lens, text.heads_off.likeliest if text.heads_off else None):
            if likeliest is not None:
                shown.update(likeliest.ids.unique().tolist())
    known = range(tokenizer.vocab_size)  # the model's table may have more rows
    return {number: tokenizer.id_to_token(number) if number in known else f"row {number}" for number in shown - {-1}}
