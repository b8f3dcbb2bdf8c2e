# %% [markdown]
# # One sentence, from text to the filled mask
#
# The bundled model on one sentence: every tensor on the way, with its shape and a few of its numbers. Change the
# sentence and run all cells again.

# %%
import torch

from xlmr_core import XLMRobertaForMaskedLM, XLMRobertaTokenizer

TEXT = "The house <mask> very big."

tokenizer = XLMRobertaTokenizer.from_pretrained("xlmr-tiny")
model = XLMRobertaForMaskedLM.from_pretrained("xlmr-tiny")

# %% [markdown]
# ## Text to ids
#
# SentencePiece cuts the text into pieces; `▁` is a space. A piece's id in the model is one higher than in SentencePiece's
# file. `<s>` comes in front, `</s>` at the end.

# %%
print(tokenizer.explain(TEXT))
batch = tokenizer(TEXT)
pieces = [tokenizer.id_to_token(number) for number in batch.input_ids[0].tolist()]
place = batch.input_ids[0].tolist().index(tokenizer.mask_token_id)
print(f"\n<mask> is token {place} of {len(pieces)}")

# %% [markdown]
# ## Ids to logits
#
# Every tensor inside the model has a name, its tap. `capture` keeps those that match.

# %%
with torch.no_grad(), model.capture("**") as taps:
    logits = model(**batch).logits


def at_mask(tensor):
    """The vector of <mask>; of scores and probs its row in the first head."""
    return tensor[0, 0, place] if tensor.ndim == 4 else tensor[0, place]


for tap in model.taps():
    numbers = ", ".join(f"{number:.3g}" for number in at_mask(taps[tap.name])[:4].tolist())
    print(f"{tap.name:32} {tap.shape:14} {tuple(taps[tap.name].shape)!s:18} {numbers}, ...  {tap.meaning}")

# %% [markdown]
# ## Attention
#
# Row: the token that looks. Column: what it looks at. Each row adds up to 1.

# %%
probs = taps["layers.0.attention.probs"][0, 0]  # layer 0, head 0
print(" " * 8 + "".join(f"{piece:>8}" for piece in pieces))
for piece, row in zip(pieces, probs.tolist(), strict=True):
    print(f"{piece:>8}" + "".join(f"{weight:8.2f}" for weight in row))

# %% [markdown]
# ## What the model would answer after each layer
#
# The LM head on the vector of `<mask>` of each layer: the logit lens.

# %%
for layer in range(model.config.num_hidden_layers):
    with torch.no_grad():
        lens = model.lm_head(taps[f"layers.{layer}.output"][0, place])
    print(f"after layer {layer}: {tokenizer.id_to_token(int(lens.argmax()))}")

# %% [markdown]
# ## Logits to words

# %%
best = logits[0, place].softmax(dim=-1).topk(5)
for probability, number in zip(best.values.tolist(), best.indices.tolist(), strict=True):
    filled = batch.input_ids[0].clone()
    filled[place] = number
    print(f"{probability:6.1%}  {tokenizer.decode(filled[1:-1])}")
