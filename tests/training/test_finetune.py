"""Fine-tuning: its steps are those of transformers, a killed run ends with the same bits, and the model learns."""

import errno
import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F
from training.labelled_rows import (
    Rows,
    answer_rows,
    classify_rows,
    embed_rows,
    group_rows,
    rerank_rows,
    tag_rows,
)

from xlmr_core import Answer, Classify, Embed, Rerank, Tag, XLMRobertaModel
from xlmr_core.tokenizer import XLMRobertaTokenizer
from xlmr_core.training import FinetuneSettings, distributed, finetune, finetuning
from xlmr_core.training.batches import Order
from xlmr_core.training.examples import Encoder
from xlmr_core.training.objective import Choices
from xlmr_core.training.objectives import objective_of
from xlmr_core.training.optimization import parameter_groups
from xlmr_core.training.preparation import encoded, load_model
from xlmr_core.training.records import records_in

CLASSIFY = FinetuneSettings("classify", epochs=2, batch_tokens=60, learning_rate=1e-3, warmup_share=0.2, seed=3)
EPSILON = 1e-9  # float64: two steps of AdamW divide rounding errors of 1e-16 by its eps of 1e-8


# ---- two steps, beside transformers ---------------------------------------------------------------------------------


def multi_rows(count: int) -> Rows:
    return [
        {"text": row["text"], "labels": [name for name in ("cat", "dog", "sees") if name in row["text"]]}
        for row in classify_rows(count)
    ]


def number_rows(count: int) -> Rows:
    return [{"text": row["text"], "label": len(row["text"]) / 10} for row in classify_rows(count)]


Model = Any
Theirs = Callable[[Model, Any, Rows], Tensor]  # the loss of transformers' model on all rows


def of_texts(model: Model, tokenizer: Any, *texts: Any, **more: Any) -> Any:
    return model(**tokenizer(*texts, padding=True, return_tensors="pt"), **more)


def classify_loss(model: Model, tokenizer: Any, rows: Rows) -> Tensor:
    labels = torch.tensor([model.config.label2id[row["label"]] for row in rows])
    return of_texts(model, tokenizer, [row["text"] for row in rows], labels=labels).loss


def multi_loss(model: Model, tokenizer: Any, rows: Rows) -> Tensor:
    names = model.config.label2id
    labels = torch.tensor([[float(name in row["labels"]) for name in names] for row in rows]).double()
    return of_texts(model, tokenizer, [row["text"] for row in rows], labels=labels).loss


def number_loss(model: Model, tokenizer: Any, rows: Rows) -> Tensor:
    labels = torch.tensor([row["label"] for row in rows]).double()
    return of_texts(model, tokenizer, [row["text"] for row in rows], labels=labels).loss


def tag_loss(model: Model, tokenizer: Any, rows: Rows) -> Tensor:
    batch = tokenizer([row["words"] for row in rows], is_split_into_words=True, padding=True, return_tensors="pt")
    labels = torch.full_like(batch["input_ids"], -100)
    for number, row in enumerate(rows):
        seen: set[int] = set()
        for place, word in enumerate(batch.word_ids(number)):
            if word is not None and word not in seen:
                labels[number, place] = model.config.label2id[row["labels"][word]]
                seen.add(word)
    return model(**batch, labels=labels).loss


def answer_loss(model: Model, tokenizer: Any, rows: Rows) -> Tensor:
    batch = tokenizer(
        [row["question"] for row in rows], [row["context"] for row in rows], padding=True, return_tensors="pt"
    )
    first: list[int] = []
    last: list[int] = []
    for number, row in enumerate(rows):
        if not row["answer"]:
            first.append(0)
            last.append(0)
            continue
        end = row["start"] + len(row["answer"]) - 1
        first.append(batch.char_to_token(number, row["start"], 1))
        last.append(batch.char_to_token(number, end, 1))
    output = model(**batch)
    hidden = batch["attention_mask"] == 0  # transformers' own loss has the padding among the places of the answer
    starts, ends = (logits.masked_fill(hidden, -torch.inf) for logits in (output.start_logits, output.end_logits))
    return (F.cross_entropy(starts, torch.tensor(first)) + F.cross_entropy(ends, torch.tensor(last))) / 2


def embed_loss(model: Model, tokenizer: Any, rows: Rows) -> Tensor:
    def vectors(texts: list[str]) -> Tensor:
        batch = tokenizer(texts, padding=True, return_tensors="pt")
        mask = batch["attention_mask"][..., None]
        return (model(**batch).last_hidden_state * mask).sum(dim=1) / mask.sum(dim=1)

    anchors = vectors([row["anchor"] for row in rows])
    passages = vectors([row["positive"] for row in rows] + [row["negative"][0] for row in rows])
    scores = F.cosine_similarity(anchors[:, None], passages[None], dim=-1) / 0.05
    right = {(row["anchor"], row["positive"]) for row in rows}
    texts = [row["positive"] for row in rows] + [row["negative"][0] for row in rows]
    for i, row in enumerate(rows):  # a translation of the same sentence in another row is no negative
        for j, text in enumerate(texts):
            if i != j and (row["anchor"], text) in right:
                scores = scores.index_put((torch.tensor(i), torch.tensor(j)), torch.tensor(-torch.inf).double())
    return F.cross_entropy(scores, torch.arange(len(rows)))


def rerank_loss(model: Model, tokenizer: Any, rows: Rows) -> Tensor:
    logits = of_texts(model, tokenizer, [row["query"] for row in rows], [row["passage"] for row in rows]).logits
    return F.binary_cross_entropy_with_logits(
        logits[:, 0], torch.tensor([float(row["label"]) for row in rows]).double()
    )


def group_loss(model: Model, tokenizer: Any, rows: Rows) -> Tensor:
    losses: list[Tensor] = []
    for row in rows:
        passages = [row["positive"], *row["negative"]]
        logits = of_texts(model, tokenizer, [row["query"]] * len(passages), passages).logits[:, 0]
        losses.append(-logits.log_softmax(dim=0)[0])
    return torch.stack(losses).mean()


CASES: dict[str, tuple[FinetuneSettings, Rows, Any, Theirs]] = {
    "classify": (CLASSIFY, classify_rows(12), transformers.AutoModelForSequenceClassification, classify_loss),
    "multi-label": (
        replace(CLASSIFY, problem_type="multi_label_classification"),
        multi_rows(12),
        transformers.AutoModelForSequenceClassification,
        multi_loss,
    ),
    "regression": (
        replace(CLASSIFY, problem_type="regression"),
        number_rows(12),
        transformers.AutoModelForSequenceClassification,
        number_loss,
    ),
    "tag": (replace(CLASSIFY, task="tag"), tag_rows(6), transformers.AutoModelForTokenClassification, tag_loss),
    "answer": (
        replace(CLASSIFY, task="answer"),
        answer_rows(8),
        transformers.AutoModelForQuestionAnswering,
        answer_loss,
    ),
    "embed": (replace(CLASSIFY, task="embed"), [*embed_rows(6), embed_rows(2)[0]], transformers.AutoModel, embed_loss),
    "rerank": (
        replace(CLASSIFY, task="rerank"),
        rerank_rows(4),
        transformers.AutoModelForSequenceClassification,
        rerank_loss,
    ),
    "rerank groups": (
        replace(CLASSIFY, task="rerank"),
        group_rows(30),
        transformers.AutoModelForSequenceClassification,
        group_loss,
    ),
}


def prepared(settings: FinetuneSettings, rows: Rows, checkpoint: Path) -> tuple[Any, Any]:
    kind = objective_of(settings.task, settings.problem_type)
    counts = kind.class_counts(records_in(rows))
    model = load_model(kind, checkpoint, list(counts), dropout=0.0)
    tokenizer = XLMRobertaTokenizer.from_pretrained(checkpoint)
    labels = {label: number for number, label in enumerate(model.config.labels if counts else ())}
    return model, kind(Encoder(tokenizer, 48, labels=labels, overlap=8), Choices())


@pytest.mark.parametrize("batches_per_step", [1, 3])
@pytest.mark.parametrize("case", CASES)
def test_two_steps_are_those_of_transformers(
    case: str, batches_per_step: int, checkpoint: Path, tmp_path: Path
) -> None:
    """All rows in a step: in one batch, or in up to three whose gradients add up."""
    settings, rows, their_class, their_loss = CASES[case]
    if case == "embed" and batches_per_step > 1:
        pytest.skip("the other texts of a batch are its negatives: three batches are not one")
    ours, objective = prepared(settings, rows, checkpoint)
    examples = encoded(objective, records_in(rows))
    total = sum(map(examples.tokens, range(len(examples))))
    longest = max(map(examples.tokens, range(len(examples))))
    budget = total if batches_per_step == 1 else total // 2 + longest
    order = Order(examples, batch_tokens=budget, batches_per_step=batches_per_step, epochs=2)
    assert order.steps == 2
    assert (len(order.at(0)) > 1) == (batches_per_step > 1)
    ours.save_pretrained(tmp_path)
    objective.encoder.tokenizer.save_pretrained(tmp_path)

    theirs = their_class.from_pretrained(tmp_path, **({"add_pooling_layer": False} if case == "embed" else {}))
    their_tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    ours.double()
    theirs.double().train()
    optimizer = torch.optim.AdamW(parameter_groups(ours, settings.weight_decay))
    decays = [p for name, p in theirs.named_parameters() if "bias" not in name and "LayerNorm" not in name]
    others = [p for name, p in theirs.named_parameters() if "bias" in name or "LayerNorm" in name]
    their_groups = [{"params": decays, "weight_decay": settings.weight_decay}, {"params": others, "weight_decay": 0.0}]
    their_optimizer = torch.optim.AdamW(their_groups, lr=settings.learning_rate)
    schedule = transformers.get_linear_schedule_with_warmup(their_optimizer, 0, 2)
    for step in range(2):
        loss, _ = finetuning.train_step(ours, optimizer, objective, order, replace(settings, warmup_share=0.0), step)
        their_optimizer.zero_grad()
        wanted = their_loss(theirs, their_tokenizer, rows)
        wanted.backward()
        nn.utils.clip_grad_norm_(theirs.parameters(), settings.max_norm)
        their_optimizer.step()
        schedule.step()
        assert loss == pytest.approx(wanted.item(), abs=EPSILON)

    ours.save_pretrained(tmp_path / "ours")
    trained = load_file(tmp_path / "ours" / "model.safetensors")
    wanted_weights = theirs.state_dict()
    start = load_file(tmp_path / "model.safetensors")
    assert set(trained) <= set(wanted_weights)
    assert any((trained[key] - start[key]).abs().max() > settings.learning_rate / 2 for key in trained)
    for key, tensor in trained.items():
        assert (tensor - wanted_weights[key]).abs().max() < EPSILON, key


# ---- the settings of a step -----------------------------------------------------------------------------------------


def test_lower_layers_learn_more_slowly(checkpoint: Path) -> None:
    model, _ = prepared(CLASSIFY, classify_rows(4), checkpoint)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    scales = {
        names[id(parameter)]: group["scale"]
        for group in parameter_groups(model, 0.1, layer_decay=0.5)
        for parameter in group["params"]
    }
    assert scales["classifier.dense.weight"] == 1.0
    assert scales["encoder.layers.1.attention.q_proj.weight"] == scales["encoder.layers.1.attention_norm.bias"] == 0.5
    assert scales["encoder.layers.0.feed_forward.up_proj.bias"] == 0.25
    assert scales["encoder.embeddings.word_embeddings.weight"] == scales["encoder.embeddings.norm.bias"] == 0.125
    assert len(scales) == len(names)


def test_frozen_weights_stay(checkpoint: Path, tmp_path: Path) -> None:
    finetune(classify_rows(12), tmp_path, replace(CLASSIFY, freeze=1), model=checkpoint, device="cpu")
    before, after = load_file(checkpoint / "model.safetensors"), load_file(tmp_path / "model.safetensors")
    for key in before.keys() & after.keys():
        is_frozen = "embeddings" in key or "layer.0." in key
        assert torch.equal(before[key], after[key]) == is_frozen, key


def test_class_weights_are_those_of_the_mean_of_torch(checkpoint: Path) -> None:
    """The mean weighted by class, as transformers' examples and torch have it."""
    rows = classify_rows(6)
    _, objective = prepared(CLASSIFY, rows, checkpoint)
    weighted = type(objective)(objective.encoder, Choices(class_weights=[1.0, 4.0]))
    batch = encoded(weighted, records_in(rows)).batch(range(5))
    logits = torch.randn(5, 2)
    expected = F.cross_entropy(logits, batch.targets.long(), torch.tensor([1.0, 4.0]))
    assert weighted.loss(logits, batch) / weighted.weight(batch) == pytest.approx(expected.item(), abs=1e-6)


# ---- a whole run ----------------------------------------------------------------------------------------------------


def test_it_beats_the_baseline_and_every_reader_loads_it(checkpoint: Path, tmp_path: Path) -> None:
    """The baseline, the most frequent class, is right for half of the rows."""
    rows, held_out = classify_rows(120), classify_rows(40, seed=2)
    settings = replace(CLASSIFY, batch_tokens=120, learning_rate=3e-3)
    evaluation = finetune(rows, tmp_path, settings, held_out=held_out, model=checkpoint, device="cpu")
    assert evaluation is not None
    assert evaluation.scores["accuracy"] > 0.9 > 0.5
    assert evaluation.languages.keys() == {"en", "uk"}
    assert evaluation.classes["uk"]["count"] == 20
    assert json.loads((tmp_path / "evaluation.json").read_text())["scores"] == evaluation.scores

    text = held_out[1]["text"]
    best = Classify.from_pretrained(tmp_path)(text)[0]
    assert best.label == "uk"
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert theirs.config.id2label == {0: "en", 1: "uk"}
    assert theirs.config.problem_type == "single_label_classification"
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    logits = theirs(**tokenizer(text, return_tensors="pt")).logits
    assert logits.softmax(dim=1)[0, 1].item() == pytest.approx(best.score, abs=1e-6)


@pytest.mark.gpu
def test_it_learns_on_a_gpu(checkpoint: Path, tmp_path: Path) -> None:
    settings = replace(CLASSIFY, batch_tokens=120, learning_rate=3e-3, precision="bfloat16")
    held_out = classify_rows(40, seed=2)
    evaluation = finetune(classify_rows(120), tmp_path, settings, held_out=held_out, model=checkpoint, device="cuda")
    assert evaluation is not None
    assert evaluation.scores["accuracy"] > 0.9


WRITTEN = {
    "tag": (Tag, transformers.AutoModelForTokenClassification, tag_rows(12)),
    "answer": (Answer, transformers.AutoModelForQuestionAnswering, answer_rows(12)),
    "embed": (Embed, transformers.AutoModel, embed_rows(12)),
    "rerank": (Rerank, transformers.AutoModelForSequenceClassification, rerank_rows(6)),
}


@pytest.mark.parametrize("task", WRITTEN)
def test_every_task_and_transformers_load_what_was_written(task: Any, checkpoint: Path, tmp_path: Path) -> None:
    reader, theirs, rows = WRITTEN[task]
    evaluation = finetune(
        rows, tmp_path, replace(CLASSIFY, task=task, epochs=1), held_out=rows, model=checkpoint, device="cpu"
    )
    assert evaluation is not None
    assert all(0 <= value < 10 or name == "queries" for name, value in evaluation.scores.items())
    assert reader.from_pretrained(tmp_path).model.config == reader.model_class.from_pretrained(tmp_path).config
    theirs.from_pretrained(tmp_path)


def test_an_embedding_folder_has_the_files_of_sentence_transformers(checkpoint: Path, tmp_path: Path) -> None:
    settings = replace(CLASSIFY, task="embed", epochs=1, pooling="cls", max_tokens=20)
    finetune(embed_rows(8), tmp_path, settings, model=checkpoint, device="cpu")
    config = Embed.from_pretrained(tmp_path).config
    assert (config.pooling, config.normalize, config.max_tokens) == (("cls",), True, 20)
    modules = json.loads((tmp_path / "modules.json").read_text())
    assert [module["path"] for module in modules] == ["", "1_Pooling", "2_Normalize"]


def test_sentence_transformers_makes_the_same_vectors(checkpoint: Path, tmp_path: Path) -> None:
    library = pytest.importorskip(
        "sentence_transformers", reason="sentence-transformers is not installed: pip install sentence-transformers"
    )
    rows = embed_rows(8)
    finetune(rows, tmp_path, replace(CLASSIFY, task="embed", epochs=1), model=checkpoint, device="cpu")
    texts = [row["anchor"] for row in rows]
    theirs = torch.tensor(library.SentenceTransformer(str(tmp_path), device="cpu").encode(texts))
    assert (Embed.from_pretrained(tmp_path).batch(texts) - theirs).abs().max() < 1e-6


def test_a_head_with_the_same_classes_is_trained_further(checkpoint: Path, tmp_path: Path) -> None:
    finetune(classify_rows(8), tmp_path / "first", CLASSIFY, model=checkpoint, device="cpu")
    still = replace(CLASSIFY, learning_rate=1e-30)
    finetune(classify_rows(8), tmp_path / "second", still, model=tmp_path / "first", device="cpu")
    other = [{"text": "cat", "label": 1}, {"text": "dog", "label": 2}]
    finetune(other, tmp_path / "third", still, model=tmp_path / "first", device="cpu")
    first, second, third = (load_file(tmp_path / name / "model.safetensors") for name in ("first", "second", "third"))
    assert torch.equal(first["classifier.out_proj.weight"], second["classifier.out_proj.weight"])
    assert not torch.equal(first["classifier.out_proj.weight"], third["classifier.out_proj.weight"])
    assert torch.equal(
        first["roberta.embeddings.word_embeddings.weight"], third["roberta.embeddings.word_embeddings.weight"]
    )


# ---- a killed run ---------------------------------------------------------------------------------------------------


STATE = "training_state.pt"


def files_of(folder: Path) -> dict[str, bytes]:
    """The files, without the state: how a pickle is written depends on which objects are one in memory."""
    return {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != STATE}


def assert_same_run(one: Path, other: Path) -> None:
    assert files_of(one) == files_of(other)
    first, second = (torch.load(folder / STATE, weights_only=True) for folder in (one, other))
    assert first["step"] == second["step"]
    assert all(torch.equal(tensor, second["model"][name]) for name, tensor in first["model"].items())


KILLED_IN = [
    *[("train_step", call) for call in (1, 3, 6)],
    *[("evaluate", call) for call in (1, 2, 4)],
    *[("_write_weights", call) for call in (1, 2)],
    *[("save_state", call) for call in (1, 2, 3)],
    *[(name, 1) for name in ("encoded", "_read_weights", "write_json")],
]


@pytest.fixture(scope="module")
def whole(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    run_with_evaluations(folder, checkpoint)
    return folder


def run_with_evaluations(folder: Path, checkpoint: Path) -> None:
    settings = replace(CLASSIFY, evaluate_every=3, metric="loss", layer_decay=0.9, dropout=0.1)
    rows, held_out = classify_rows(24), classify_rows(8, seed=2)
    finetune(rows, folder, settings, held_out=held_out, model=checkpoint, device="cpu", save_every=2)


@pytest.mark.parametrize(
    ("name", "call", "after"),
    [
        *[(name, call, False) for name, call in KILLED_IN],
        *[(name, call, True) for name, call in KILLED_IN if call == 1],
        *[pytest.param(name, call, True, marks=pytest.mark.slow) for name, call in KILLED_IN if call > 1],
    ],
)
def test_a_killed_run_ends_with_the_same_bits(
    name: str, call: int, after: bool, whole: Path, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed before or after one of the functions that take time or write, at its first or a later call."""
    calls = 0
    module = distributed if name == "save_state" else finetuning
    function = getattr(module, name)

    def die(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call and not after:
            raise KeyboardInterrupt
        result = function(*arguments, **options)
        if calls == call:
            raise KeyboardInterrupt
        return result

    with monkeypatch.context() as patch:
        patch.setattr(module, name, die)
        with pytest.raises(KeyboardInterrupt):
            run_with_evaluations(tmp_path / "out", checkpoint)
    run_with_evaluations(tmp_path / "out", checkpoint)
    assert_same_run(tmp_path / "out", whole)


@pytest.mark.slow
def test_a_run_killed_by_the_system_at_any_moment_ends_with_the_same_bits(checkpoint: Path, tmp_path: Path) -> None:
    for name, rows in (("train", classify_rows(200)), ("eval", classify_rows(40, seed=2))):
        lines = [json.dumps(row, ensure_ascii=False) for row in rows]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    command = [sys.executable, "-m", "xlmr_core", "finetune", "--task", "classify", "--model", str(checkpoint)]
    command += ["--train", str(tmp_path / "train.jsonl"), "--eval", str(tmp_path / "eval.jsonl"), "--device", "cpu"]
    command += ["--batch-tokens", "60", "--evaluate-every", "5", "--save-every", "2"]
    subprocess.run([*command, "-o", str(tmp_path / "whole")], check=True, capture_output=True)
    kills = 0
    for wait in [2.0 + 0.35 * number for number in range(12)] + [120.0]:
        with subprocess.Popen([*command, "-o", str(tmp_path / "killed")], stderr=subprocess.DEVNULL) as process:
            deadline = time.monotonic() + wait
            while process.poll() is None and time.monotonic() < deadline:
                time.sleep(0.01)
            if process.poll() is None:
                process.send_signal(signal.SIGKILL)
                kills += 1
    assert kills > 1
    assert_same_run(tmp_path / "killed", tmp_path / "whole")


def test_a_finished_run_is_only_written_again(whole: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = files_of(whole)
    monkeypatch.setattr(finetuning, "train_step", None)
    run_with_evaluations(whole, checkpoint)
    assert files_of(whole) == before


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_pooler_is_carried_along_and_a_run_of_embeddings_resumes(
    precision: Any, tokenizer: XLMRobertaTokenizer, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Published encoders have a pooler, which gets no gradient."""
    config = XLMRobertaModel.from_pretrained(checkpoint).config
    model = XLMRobertaModel(config, add_pooling_layer=True)
    model.save_pretrained(tmp_path / "start")
    tokenizer.save_pretrained(tmp_path / "start")
    settings = replace(CLASSIFY, task="embed", precision=precision, dropout=0.2)

    def run(folder: Path) -> None:
        finetune(embed_rows(12), folder, settings, model=tmp_path / "start", device="cpu", save_every=2)

    run(tmp_path / "whole")
    take_step = finetuning.train_step

    def die_at_step_3(*arguments: Any) -> Any:
        if arguments[-1] == 3:
            raise KeyboardInterrupt
        return take_step(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(finetuning, "train_step", die_at_step_3)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "killed")
    run(tmp_path / "killed")
    assert_same_run(tmp_path / "killed", tmp_path / "whole")
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("start", "whole"))
    assert torch.equal(before["pooler.dense.weight"], after["pooler.dense.weight"])
    assert not torch.equal(before["embeddings.word_embeddings.weight"], after["embeddings.word_embeddings.weight"])


def test_a_full_disk_is_an_error_after_which_the_run_continues(
    whole: Path, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fill(tensors: Any, path: Path) -> None:
        path.write_bytes(bytes(100))
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(finetuning, "write_safetensors", fill)
        with pytest.raises(OSError, match=r"best\.safetensors cannot be written \(.*No space left.*\)\. Make room"):
            run_with_evaluations(tmp_path / "out", checkpoint)
    assert sorted(files_of(tmp_path / "out")) == ["history.jsonl", "run.json"]
    run_with_evaluations(tmp_path / "out", checkpoint)
    assert_same_run(tmp_path / "out", whole)


def test_a_folder_that_cannot_be_made_is_an_error_before_the_first_step(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("a file")
    with pytest.raises(OSError, match="file"):
        run_with_evaluations(tmp_path / "file" / "out", checkpoint)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("best.safetensors", b"", r"best\.safetensors does not hold the best weights of this run"),
        ("history.jsonl", b"{}", r"history\.jsonl is not the history of a run"),
        ("training_state.pt", b"", r"training_state\.pt is not a state that this run can continue from"),
    ],
)
def test_a_damaged_file_of_a_run_is_an_error(
    name: str, content: bytes, message: str, whole: Path, checkpoint: Path, tmp_path: Path
) -> None:
    shutil.copytree(whole, tmp_path / "out")
    (tmp_path / "out" / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        run_with_evaluations(tmp_path / "out", checkpoint)


def test_too_few_rows_for_a_score_are_an_error(checkpoint: Path, tmp_path: Path) -> None:
    settings = replace(CLASSIFY, problem_type="regression", metric="r2", epochs=1)
    with pytest.raises(ValueError, match="the held-out rows are too few for the score 'r2'"):
        finetune(number_rows(4), tmp_path, settings, held_out=number_rows(4)[:1], model=checkpoint, device="cpu")


def test_another_run_in_the_folder_is_refused(whole: Path, checkpoint: Path) -> None:
    before = files_of(whole)
    with pytest.raises(ValueError, match="holds a run with other task, "):
        finetune(embed_rows(4), whole, replace(CLASSIFY, task="embed"), model=checkpoint, device="cpu")
    settings = replace(CLASSIFY, evaluate_every=3, metric="loss", layer_decay=0.9, dropout=0.1)
    rows = classify_rows(24)
    with pytest.raises(ValueError, match="other corpus files, by name or content"):
        finetune(rows, whole, settings, held_out=rows, model=checkpoint, device="cpu")
    assert files_of(whole) == before


# ---- early stopping -------------------------------------------------------------------------------------------------


def test_a_run_without_a_better_score_ends_early_and_keeps_the_best_weights(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = iter([3.0, 1.0, 2.0, 2.5, 0.5])  # the last one is never seen
    snapshots: list[dict[str, Tensor]] = []
    true_evaluate = finetuning.evaluate

    def evaluate(objective: Any, model: Any, held_out: Any) -> Any:
        found = true_evaluate(objective, model, held_out)
        if model.training:  # during the run
            snapshots.append({name: tensor.clone() for name, tensor in model.state_dict().items()})
            found.scores["loss"] = next(losses)
        return found

    monkeypatch.setattr(finetuning, "evaluate", evaluate)
    settings = replace(CLASSIFY, epochs=10, metric="loss", patience=2)
    finetune(classify_rows(12), tmp_path, settings, held_out=classify_rows(4), model=checkpoint, device="cpu")
    history = [json.loads(line) for line in (tmp_path / "history.jsonl").read_text().splitlines()]
    assert [row["scores"]["loss"] for row in history] == [3.0, 1.0, 2.0, 2.5]
    written = Classify.from_pretrained(tmp_path).model.state_dict()
    assert all(torch.equal(tensor, snapshots[1][name]) for name, tensor in written.items())
    assert not all(torch.equal(tensor, snapshots[3][name]) for name, tensor in written.items())
