"""Arguments that transformers takes and `forward` does not: an error that says what to do instead."""

from torch import Tensor

INSTEAD = {
    "output_attentions": 'use `with model.capture("layers.*.attention.probs") as acts: model(**batch)`',
    "output_hidden_states": 'use `with model.capture("embeddings.output", "layers.*.output") as acts: model(**batch)`',
    "return_dict": "leave it out: the output always has named fields, such as output.last_hidden_state",
    "inputs_embeds": 'use `with model.intervene({"embeddings.word": lambda _: vectors}): model(**batch)`',
    "labels": "compute the loss from the logits, for example torch.nn.functional.cross_entropy(logits, labels)",
}


def check_call(*args: object, **kwargs: object) -> None:
    """Checks the names of the arguments of `forward`, and that the first is a tensor.

    Raises:
        TypeError: an argument is in `INSTEAD`, or the first is not a tensor.
    """
    for name, instead in INSTEAD.items():
        if name in kwargs:
            raise TypeError(f"the model takes no argument {name}: {instead}")
    given = args or ((kwargs["input_ids"],) if "input_ids" in kwargs else ())
    if given and not isinstance(given[0], Tensor):
        raise TypeError(
            f"input_ids must be a tensor of token ids, not {type(given[0]).__name__}: "
            "pass the tokenizer's batch as model(**batch)"
        )
