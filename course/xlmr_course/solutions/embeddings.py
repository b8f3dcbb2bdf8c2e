"""Three tables and a norm: a solution."""

ARRAYS = "torch"


def norm(x, weight, bias, eps: float):
    centred = x - x.mean(dim=-1, keepdim=True)
    variance = centred.square().mean(dim=-1, keepdim=True)
    return centred / (variance + eps).sqrt() * weight + bias


def embed(input_ids, positions, word, position, token_type, weight, bias, eps: float):
    return norm(word[input_ids] + token_type[0] + position[positions], weight, bias, eps)
