"""Our model beside transformers' with the same random weights: how to build the two, and how to compare them.

Every comparison is a function of a `Pair` that raises AssertionError. The parity tests call them on healthy models,
tests/kit/test_faults.py calls the same functions on broken ones. They look at real tokens only: padding holds junk.
"""

import copy
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import oracle
import pytest
import torch
import transformers
from torch import Tensor, nn

from xlmr_core import heads
from xlmr_core.config import XLMRobertaConfig
from xlmr_core.heads import XLMRobertaForMaskedLM
from xlmr_core.kernels import AttentionKind
from xlmr_core.model import XLMRobertaModel, position_ids_from
from xlmr_core.parity.floors import FloorTable

# Sizes are pairwise distinct, so that exchanged axes are noticed, and eps is not a default of any library.
POST_NORM = XLMRobertaConfig(
    vocab_size=53,
    hidden_size=24,
    num_hidden_layers=3,
    num_attention_heads=4,
    intermediate_size=40,
    max_position_embeddings=31,
    layer_norm_eps=3e-3,
    hidden_dropout_prob=0.2,
    attention_probs_dropout_prob=0.3,
)
PRE_NORM = replace(POST_NORM, norm_first=True)
CONFIGS = {"post-norm": POST_NORM, "pre-norm": PRE_NORM}

# Float64 against exactly rounded sums. A tap is a sum of at most 40 products of size 10 or less after 20 or so such
# steps, each wrong by at most 40 * 1.1e-16 of that: about 1e-12. Measured: at most 1e-14.
ORACLE_TOLERANCE = 1e-12

# Low precision: our error against float64 may be this many times transformers' own. On the CPU the two are bit-equal,
# so 1 is met exactly. On a GPU kernels may be chosen differently, and the largest of many roundings varies a little.
ERROR_FACTOR = {"cpu": 1.0, "cuda": 1.1}

# Our name of each tensor and transformers' name, written out once more here: these tests must not lean on the
# converter that is itself under test.
EMBEDDING_KEYS = {
    "embeddings.word_embeddings.weight": "embeddings.word_embeddings.weight",
    "embeddings.token_type_embeddings.weight": "embeddings.token_type_embeddings.weight",
    "embeddings.position_embeddings.weight": "embeddings.position_embeddings.weight",
}
POST_NORM_MODULES = {
    "attention.q_proj": "attention.self.query",
    "attention.k_proj": "attention.self.key",
    "attention.v_proj": "attention.self.value",
    "attention.out_proj": "attention.output.dense",
    "attention_norm": "attention.output.LayerNorm",
    "feed_forward.up_proj": "intermediate.dense",
    "feed_forward.down_proj": "output.dense",
    "feed_forward_norm": "output.LayerNorm",
}
PRE_NORM_MODULES = POST_NORM_MODULES | {
    "attention_norm": "attention.self_attn_layer_norm",
    "feed_forward_norm": "LayerNorm",
}
LM_HEAD_KEYS = {
    "lm_head.dense.weight": "lm_head.dense.weight",
    "lm_head.dense.bias": "lm_head.dense.bias",
    "lm_head.norm.weight": "lm_head.layer_norm.weight",
    "lm_head.norm.bias": "lm_head.layer_norm.bias",
    "lm_head.decoder.weight": "lm_head.decoder.weight",
    "lm_head.decoder.bias": "lm_head.decoder.bias",
}


HEAD_KEYS = {  # by transformers' kind of class, ours the same
    "ForSequenceClassification": ("classifier.dense", "classifier.out_proj"),
    "ForTokenClassification": ("classifier",),
    "ForQuestionAnswering": ("qa_outputs",),
    "ForMultipleChoice": ("classifier",),
}


def encoder_keys(config: XLMRobertaConfig, *, pooler: bool = False) -> dict[str, str]:
    """Our state-dict key -> transformers', for the encoder."""
    modules = {} if config.norm_first else {"embeddings.norm": "embeddings.LayerNorm"}
    table = PRE_NORM_MODULES if config.norm_first else POST_NORM_MODULES
    for index in range(config.num_hidden_layers):
        modules |= {f"layers.{index}.{ours}": f"encoder.layer.{index}.{theirs}" for ours, theirs in table.items()}
    if config.norm_first:
        modules["final_norm"] = "encoder.LayerNorm"
    if pooler:
        modules["pooler.dense"] = "pooler.dense"
    expanded = {f"{ours}.{part}": f"{modules[ours]}.{part}" for ours in modules for part in ("weight", "bias")}
    return EMBEDDING_KEYS | expanded


def masked_lm_keys(config: XLMRobertaConfig) -> dict[str, str]:
    """Our state-dict key -> transformers', for the masked language model."""
    return {f"encoder.{ours}": f"roberta.{theirs}" for ours, theirs in encoder_keys(config).items()} | LM_HEAD_KEYS


def keys_of(config: XLMRobertaConfig, kind: str) -> dict[str, str]:
    """Our state-dict key -> transformers', for one of HEAD_KEYS."""
    encoder = encoder_keys(config, pooler=kind == "ForMultipleChoice")
    head = {f"{module}.{leaf}" for module in HEAD_KEYS[kind] for leaf in ("weight", "bias")}
    return {f"encoder.{ours}": f"roberta.{theirs}" for ours, theirs in encoder.items()} | {key: key for key in head}


@dataclass
class Pair:
    """The same weights in our model and in transformers', in eval mode, and a batch for both."""

    ours: Any
    theirs: Any
    config: XLMRobertaConfig
    batch: dict[str, Tensor]

    @property
    def real(self) -> Tensor:
        return self.batch["attention_mask"].bool()

    def named_parameters(self) -> list[tuple[str, nn.Parameter, nn.Parameter]]:
        """(our name, our parameter, theirs) of each pair of tensors that hold the same weights."""
        keys = masked_lm_keys(self.config)
        theirs = dict(self.theirs.named_parameters(remove_duplicate=False))
        return [(name, parameter, theirs[keys[name]]) for name, parameter in self.ours.named_parameters()]


no_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device: run `pytest -m gpu` where one is")
cuda = pytest.param("cuda", marks=[pytest.mark.gpu, no_cuda])
devices = pytest.mark.parametrize("device", ["cpu", cuda])
gpu_only = pytest.mark.parametrize("device", [cuda])


def build_pair(
    config: XLMRobertaConfig,
    attention: AttentionKind = "eager",
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
) -> Pair:
    """Two masked language models with the same random weights, and the batch of awkward rows."""
    theirs = build_reference(config, attention, "ForMaskedLM")
    randomize(theirs)
    ours = XLMRobertaForMaskedLM(config, attention=attention)
    copy_weights(theirs, ours, masked_lm_keys(config))
    batch = {name: tensor.to(device) for name, tensor in awkward_batch(config).items()}
    return Pair(ours.to(device, dtype).eval(), theirs.to(device, dtype).eval(), config, batch)


def build_encoder_pair(config: XLMRobertaConfig, attention: AttentionKind = "eager") -> Pair:
    """Two encoders with a pooler, with the same random weights."""
    theirs = build_reference(config, attention, "Model")
    randomize(theirs)
    ours = XLMRobertaModel(config, attention=attention, add_pooling_layer=True)
    copy_weights(theirs, ours, encoder_keys(config, pooler=True))
    return Pair(ours.eval(), theirs.eval(), config, awkward_batch(config))


def build_head_pair(config: XLMRobertaConfig, kind: str, attention: AttentionKind = "eager") -> Pair:
    """Two models of `kind`, one of HEAD_KEYS, with the same random weights; for multiple choice a batch of choices."""
    theirs = build_reference(config, attention, kind)
    randomize(theirs)
    ours = getattr(heads, f"XLMRoberta{kind}")(config, attention=attention)
    copy_weights(theirs, ours, keys_of(config, kind))
    batch = awkward_batch(config)
    if kind == "ForMultipleChoice":  # two questions of three choices
        batch = {name: torch.cat([tensor, tensor[:1]]).unflatten(0, (2, 3)) for name, tensor in batch.items()}
    return Pair(ours.eval(), theirs.eval(), config, batch)


HEADED = {  # by the first part of a tap above an encoder: the kind of model that has it
    "pooler": "Model",
    "classifier": "ForSequenceClassification",
    "tagger": "ForTokenClassification",
    "answer": "ForQuestionAnswering",
}


def build_pair_with(config: XLMRobertaConfig, tap: str) -> Pair:
    """Two models that have this tap: masked language models, if it is not one of another head."""
    kind = HEADED.get(tap.split(".")[0])
    if kind is None:
        return build_pair(config)
    return build_encoder_pair(config) if kind == "Model" else build_head_pair(config, kind)


def build_reference(config: XLMRobertaConfig, attention: AttentionKind, kind: str) -> Any:
    """transformers' model of `kind` ("Model", "ForMaskedLM"), with weights of its own."""
    family = "XLMRobertaXL" if config.norm_first else "XLMRoberta"
    values = {name: value for name, value in config.to_dict().items() if name != "model_type"}
    theirs_config = getattr(transformers, family + "Config")(**values, attn_implementation=attention)
    return getattr(transformers, family + kind)(theirs_config)


@torch.no_grad()
def randomize(model: nn.Module, seed: int = 1) -> None:
    """Normal weights large enough that every part moves the result, in every tensor: no zeros, no ones, no constants.

    Linear weights keep the scale of their input, so that neither depth nor width blows the values up.
    """
    random = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        is_norm = parameter.dim() == 1 and name.endswith("weight")
        scale = 0.2 if parameter.dim() == 1 else 0.7 if "embeddings" in name else 1.5 * parameter.shape[1] ** -0.5
        parameter.copy_(torch.randn(parameter.shape, generator=random) * scale + is_norm)


def copy_weights(theirs: nn.Module, ours: nn.Module, keys: dict[str, str]) -> None:
    source = theirs.state_dict()
    ours.load_state_dict({name: source[key] for name, key in keys.items()})


def awkward_batch(config: XLMRobertaConfig, length: int = 11) -> dict[str, Tensor]:
    """Five rows of uneven lengths, right-padded, left-padded, with the mask against the ids, and one of two tokens."""
    random = torch.Generator().manual_seed(2)
    pad, mask_id = config.pad_token_id, config.vocab_size - 1
    ids = torch.randint(max(pad, config.bos_token_id, config.eos_token_id) + 1, mask_id, (5, length), generator=random)
    ids[:, 0], ids[:, -1] = config.bos_token_id, config.eos_token_id
    ids[0, 3] = ids[2, 6] = mask_id
    ids[1, 7:] = pad
    ids[2, :3] = pad
    ids[3, 2:] = pad
    mask = (ids != pad).long()
    ids[4, 4] = pad  # a pad that is attended to
    mask[4, 6] = 0  # a token that is not
    return {"input_ids": ids, "attention_mask": mask}


def packed_batch(batch: dict[str, Tensor], pad: int) -> dict[str, Tensor]:
    """The real tokens of a padded batch, one sequence after the other, at the positions they have there.

    A pad that is attended to becomes an ordinary token, also in `batch`: a packed batch has no padding.
    """
    real = batch["attention_mask"].bool()
    batch["input_ids"][real & (batch["input_ids"] == pad)] = 9
    positions = position_ids_from(batch["input_ids"], pad)
    return {"input_ids": batch["input_ids"][real], "position_ids": positions[real], "lengths": real.sum(dim=1)}


# ---- comparisons ----------------------------------------------------------------------------------------------------


def gap(ours: Tensor, theirs: Tensor) -> float:
    """Largest absolute difference. A value that is not finite is infinitely far from everything but its equal."""
    difference = (ours.double() - theirs.double()).abs()
    difference = difference.masked_fill(ours == theirs, 0).nan_to_num(nan=math.inf)
    return difference.max().item()


def assert_equal(name: str, ours: Tensor, theirs: Tensor) -> None:
    assert torch.equal(ours, theirs), f"{name} differs from transformers' by up to {gap(ours, theirs):.3g}"


@contextmanager
def recording(modules: dict[str, nn.Module], *, inputs: bool = False) -> Iterator[dict[str, Tensor]]:
    """The output (or first input) of each module while the context is open."""
    seen: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, args: tuple[Any, ...], output: Any = None) -> None:
            value = args[0] if inputs else output
            seen[name] = value[0] if isinstance(value, tuple) else value

        return hook

    register = nn.Module.register_forward_pre_hook if inputs else nn.Module.register_forward_hook
    handles = [register(module, keep(name)) for name, module in modules.items()]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def hidden_modules(pair: Pair) -> tuple[dict[str, nn.Module], dict[str, nn.Module]]:
    """The modules whose outputs are the embeddings and the hidden states, ours and transformers'."""
    ours, theirs = pair.ours.encoder, pair.theirs.roberta
    our_modules: dict[str, nn.Module] = {"embeddings": ours.embeddings}
    their_modules: dict[str, nn.Module] = {"embeddings": theirs.embeddings}
    our_modules |= {f"layer {index}": layer for index, layer in enumerate(ours.layers)}
    their_modules |= {f"layer {index}": layer for index, layer in enumerate(theirs.encoder.layer)}
    if pair.config.norm_first:
        our_modules["final norm"], their_modules["final norm"] = ours.final_norm, theirs.encoder.LayerNorm
    return our_modules, their_modules


def check_outputs(pair: Pair) -> None:
    """Embeddings, every layer's hidden state and the logits, bit for bit."""
    our_modules, their_modules = hidden_modules(pair)
    with torch.no_grad(), recording(our_modules) as our_hidden, recording(their_modules) as their_hidden:
        our_logits = pair.ours(**pair.batch).logits
        their_logits = pair.theirs(**pair.batch).logits
    for name, theirs in their_hidden.items():
        assert_equal(name, our_hidden[name][pair.real], theirs[pair.real])
    assert_equal("logits", our_logits[pair.real], their_logits[pair.real])


def check_probs(pair: Pair) -> None:
    """The attention probabilities of every head of every layer, bit for bit, for real tokens as queries."""
    softmaxes = {str(index): layer.attention.softmax for index, layer in enumerate(pair.ours.encoder.layers)}
    with torch.no_grad(), recording(softmaxes) as ours:
        pair.ours(**pair.batch)
        theirs = pair.theirs(**pair.batch, output_attentions=True).attentions
    assert len(ours) == len(theirs) == pair.config.num_hidden_layers
    for index, probs in enumerate(theirs):
        assert_equal(f"probs of layer {index}", by_query(ours[str(index)])[pair.real], by_query(probs)[pair.real])


def by_query(probs: Tensor) -> Tensor:  # (B, N, S, S) -> (B, S, N, S)
    return probs.transpose(1, 2)


def check_pooler(pair: Pair) -> None:
    """For a pair of encoders: last hidden state and pooler output, bit for bit."""
    with torch.no_grad():
        ours, theirs = pair.ours(**pair.batch), pair.theirs(**pair.batch)
    assert_equal("last hidden state", ours.last_hidden_state[pair.real], theirs.last_hidden_state[pair.real])
    first_is_real = pair.real[:, 0]
    assert_equal("pooler output", ours.pooler_output[first_is_real], theirs.pooler_output[first_is_real])


def check_head(pair: Pair) -> None:
    """For a pair with a head other than the masked language model's: its logits, bit for bit."""
    with torch.no_grad():
        ours, theirs = pair.ours(**pair.batch), pair.theirs(**pair.batch)
    for name, found in vars(ours).items():
        if name.endswith("logits"):
            real = pair.real if found.shape[:2] == pair.real.shape else pair.real[:, 0]
            assert_equal(name, found[real], getattr(theirs, name)[real])


def float64_logits(pair: Pair) -> Tensor:
    """transformers' logits in float64 from the same weights: the truth that low precision is measured against."""
    with torch.no_grad():
        return copy.deepcopy(pair.theirs).double()(**pair.batch).logits


def errors(pair: Pair, truth: Tensor) -> tuple[float, float]:
    """Largest error of our logits and of transformers', over real tokens."""
    with torch.no_grad():
        ours, theirs = pair.ours(**pair.batch).logits, pair.theirs(**pair.batch).logits
    return gap(ours[pair.real], truth[pair.real]), gap(theirs[pair.real], truth[pair.real])


def check_precision(pair: Pair, truth: Tensor | None = None) -> None:
    """Our error against float64 is at most transformers' own, times the factor. `truth` spares a second float64 run."""
    ours, theirs = errors(pair, float64_logits(pair) if truth is None else truth)
    factor = ERROR_FACTOR[pair.real.device.type]
    assert theirs > 0, "transformers has no error to compare with: is it in float64 itself?"
    assert ours <= factor * theirs, f"our error is {ours:.3g}, transformers' {theirs:.3g}"


def check_training(pair: Pair) -> None:
    """The logits with dropout, both models under the same seed, bit for bit: dropout is where transformers has it.

    transformers' XL has no dropout on the feed-forward output, fairseq's and ours have: for pre-norm it is off here.
    """
    with training(pair), torch.no_grad():
        torch.manual_seed(3)
        ours = pair.ours(**pair.batch).logits
        torch.manual_seed(3)
        theirs = pair.theirs(**pair.batch).logits
    assert_equal("logits in train mode", ours[pair.real], theirs[pair.real])


def check_gradients(pair: Pair) -> None:
    """The gradient of a masked-LM loss by every parameter, with dropout, bit for bit."""
    labels = pair.batch["input_ids"].masked_fill(~pair.real, -100)  # -100: no loss at padding
    for model in (pair.ours, pair.theirs):
        model.zero_grad()
        with training(pair):
            torch.manual_seed(3)
            logits = model(**pair.batch).logits
        nn.functional.cross_entropy(logits.float().flatten(0, 1), labels.flatten()).backward()
    for name, ours, theirs in pair.named_parameters():
        assert ours.grad is not None, f"{name} has no gradient"
        assert theirs.grad is not None, f"{name} has no gradient in transformers"
        assert_equal(f"gradient of {name}", ours.grad, theirs.grad)


@contextmanager
def training(pair: Pair) -> Iterator[None]:
    """Train mode for both models, and back; without the dropout that transformers' XL does not have."""
    extra = [layer.feed_forward_dropout for layer in pair.ours.encoder.layers] if pair.config.norm_first else []
    rates = [(dropout, dropout.p) for dropout in extra]
    for dropout, _ in rates:
        dropout.p = 0.0
    pair.ours.train()
    pair.theirs.train()
    try:
        yield
    finally:
        pair.ours.eval()
        pair.theirs.eval()
        for dropout, rate in rates:
            dropout.p = rate


def tap_points(config: XLMRobertaConfig) -> dict[str, tuple[str, bool]]:
    """Tap name -> (module, whether the tap is its input), in reading order; module names as in the masked LM."""
    points = {
        "embeddings.word": ("encoder.embeddings.word_embeddings", False),
        "embeddings.token_type": ("encoder.embeddings.token_type_embeddings", False),
        "embeddings.position": ("encoder.embeddings.position_embeddings", False),
        "embeddings.sum": ("encoder.embeddings.norm", True),
        "embeddings.output": ("encoder.embeddings", False),
    }
    for index in range(config.num_hidden_layers):
        layer = {
            "attention.q": ("attention.q_proj", False),
            "attention.k": ("attention.k_proj", False),
            "attention.v": ("attention.v_proj", False),
            "attention.scores": ("attention.softmax", True),
            "attention.probs": ("attention.softmax", False),
            "attention.context": ("attention.out_proj", True),
            "attention.output": ("attention.out_proj", False),
            "attention.residual": ("feed_forward_norm" if config.norm_first else "attention_norm", True),
            "mid": ("feed_forward_norm", True) if config.norm_first else ("attention_norm", False),
            "feed_forward.pre": ("feed_forward.up_proj", False),
            "feed_forward.post": ("feed_forward.activation", False),
            "feed_forward.output": ("feed_forward.down_proj", False),
            "feed_forward.residual": ("", False) if config.norm_first else ("feed_forward_norm", True),
            "output": ("", False),
        }
        for name, (module, is_input) in layer.items():
            points[f"layers.{index}.{name}"] = (f"encoder.layers.{index}.{module}".rstrip("."), is_input)
    if config.norm_first:
        points["final_norm"] = ("encoder.final_norm", False)
    return points | {
        "lm_head.dense": ("lm_head.dense", False),
        "lm_head.norm": ("lm_head.norm", False),
        "lm_head.logits": ("lm_head.decoder", False),
    }


def tapped(pair: Pair) -> dict[str, Tensor]:
    """What our model computes at each tap, float64 on the CPU. A masked score reads -inf, as in the oracle."""
    points = tap_points(pair.config)
    modules = {name: (pair.ours.get_submodule(module), is_input) for name, (module, is_input) in points.items()}
    ends = {name: module for name, (module, is_input) in modules.items() if not is_input}
    starts = {name: module for name, (module, is_input) in modules.items() if is_input}
    with torch.no_grad(), recording(ends) as outputs, recording(starts, inputs=True) as inputs:
        pair.ours(**pair.batch)
    seen = inputs | outputs
    for name, tensor in seen.items():
        if name.endswith("attention.scores"):
            seen[name] = tensor.masked_fill(tensor == torch.finfo(tensor.dtype).min, -math.inf)
    return {name: seen[name].double().cpu() for name in points if name in seen}


def oracle_taps(pair: Pair) -> dict[str, Tensor]:
    """What the oracle computes at each tap from the same weights."""
    return oracle.run(pair.ours.state_dict(), pair.config, pair.batch["input_ids"], pair.batch["attention_mask"])


def oracle_gaps(pair: Pair, truth: dict[str, Tensor]) -> dict[str, float]:
    """Tap -> largest difference from the oracle over real tokens, in reading order; infinite where not reached."""
    seen = tapped(pair)
    real = pair.real.cpu()
    gaps: dict[str, float] = {}
    for name, expected in truth.items():
        per_token = by_query if expected.dim() == 4 else lambda tensor: tensor
        gaps[name] = gap(per_token(seen[name])[real], per_token(expected)[real]) if name in seen else math.inf
    return gaps


def right_padded(pair: Pair) -> Pair:
    """The same models with five rows of uneven lengths whose padding is at the end."""
    real = torch.arange(11) < torch.tensor([[11], [4], [9], [2], [7]])
    ids = torch.randint(4, pair.config.vocab_size, real.shape, generator=torch.Generator().manual_seed(4))
    batch = {"input_ids": ids.masked_fill(~real, pair.config.pad_token_id), "attention_mask": real.long()}
    return replace(pair, batch=batch)


def check_packed(pair: Pair, truth: dict[str, Tensor] | None = None) -> None:
    """Every tap of the batch, packed, in float64, agrees with the plain loops over the padded one.

    For a batch that is padded at the end: its positions are those that the model counts.
    """
    truth = oracle_taps(pair) if truth is None else truth
    packed = {"input_ids": pair.batch["input_ids"][pair.real], "lengths": pair.real.sum(dim=1)}
    visible = [tap.name for tap in pair.ours.taps() if not is_hidden(pair, tap.name)]
    with torch.no_grad(), pair.ours.capture(*visible) as acts:
        pair.ours(**packed)
    for name, expected in truth.items():
        if is_hidden(pair, name):
            continue
        assert name in acts, f"{name} is not reached"
        ours = acts[name]
        if name.endswith("attention.scores"):
            ours = ours.masked_fill(ours == torch.finfo(ours.dtype).min, -math.inf)
        if expected.dim() == 4 and expected.shape[1:2] == ours.shape[1:2]:  # scores and probs: still rows
            ours, expected = by_query(ours)[pair.real], by_query(expected)[pair.real]
        elif ours.shape[:1] == (len(packed["input_ids"]),):
            expected = expected[pair.real]
        assert ours.shape == expected.shape, f"{name} has shape {tuple(ours.shape)}, not {tuple(expected.shape)}"
        assert gap(ours, expected) <= ORACLE_TOLERANCE, f"{name} is {gap(ours, expected):.3g} from the oracle"


def is_hidden(pair: Pair, name: str) -> bool:
    """Whether the attention of our model does not show this tap."""
    return pair.ours.encoder.layers[0].attention.fused and name.endswith(("attention.scores", "attention.probs"))


def check_oracle(pair: Pair, truth: dict[str, Tensor] | None = None) -> None:
    """Every tap in float64 agrees with the plain loops. `truth` spares the loops where they have run before."""
    for name, distance in oracle_gaps(pair, oracle_taps(pair) if truth is None else truth).items():
        assert distance <= ORACLE_TOLERANCE, f"{name} is {distance:.3g} from the oracle: the first to differ"


def outlier_ratio(table: FloorTable) -> float:
    """How far a right run may lie above a floor that was measured without it: the most over all taps.

    At each tap and dtype, the largest error divided by the next smaller one. Runs with the same error count as one.
    """
    ratios = [1.0]
    for dtype in {measurement.dtype for measurement in table.measurements}:
        runs = [measurement.errors for measurement in table.measurements if measurement.dtype == dtype]
        for tap in runs[0]:
            found = sorted({run[tap] for run in runs if run.get(tap)})
            ratios += [found[-1] / found[-2]] if len(found) > 1 else []
    return max(ratios)
