"""Published checkpoints give their published answers through the tasks, from text to answer.

They download weights (1 to 2.3 GB each), where the hub answers:

    pytest -m hub tests/tasks/test_published_tasks.py

Each number carries its source. Where none was published with enough digits (question answering, e5), the library that
the checkpoint was published for answers the same question beside ours. Rerankers and BGE-M3 were published as computed
in float16 on a GPU: 1 % of the largest number is left to that precision, as in tests/model/test_published_heads.py.
"""

import pytest
import torch

from xlmr_core import M3, Answer, Classify, Embed, Rerank, Tag
from xlmr_core.tasks import m3_scores

pytestmark = [
    pytest.mark.hub,
    pytest.mark.filterwarnings("ignore"),  # of the download client: proxies, symlinks, unauthenticated requests
]

# Model card of cardiffnlp/twitter-xlm-roberta-base-sentiment
SENTIMENT = {"T'estimo!": {"positive": 0.6600581407546997}, "Good night 😊": {"positive": 0.7673, "neutral": 0.2015}}

# guillaume-be/rust-bert @6db859e, tests/roberta.rs: word, label, probability of its last piece at four digits
GERMAN_ENTITIES = {
    "Mein Name ist Amélie. Ich lebe in Москва.": [("Amélie", "PER", 0.9983), ("Москва", "LOC", 0.9999)],
    "Chongqing ist eine Stadt in China.": [("Chongqing", "LOC", 0.9997), ("China", "LOC", 0.9999)],
}

# huggingface/candle, candle-examples/examples/xlm-roberta/README.md: scores of BAAI/bge-reranker-base
PANDA = (
    "The giant panda (Ailuropoda melanoleuca), sometimes called a panda bear or simply panda, is a bear species "
    "endemic to China."
)
PANDA_SCORES = {
    "South Korea is a country in East Asia.": 0.0001,
    "There are forests in the mountains.": 0.0000,
    "Pandas look like bears.": 0.7314,
    "There are some animals with black and white fur.": 0.6948,
    PANDA: 0.9990,
}

# FlagOpen/FlagEmbedding @7ed43d6, Tutorials/1_Embedding/1.2.4_BGE-M3.ipynb
QUERIES = ["What is BGE M3?", "Defination of BM25"]
PASSAGES = [
    "BGE M3 is an embedding model supporting dense retrieval, lexical matching and multi-vector interaction.",
    "BM25 is a bag-of-words retrieval function that ranks a set of documents based on the query terms appearing in "
    "each document",
]
DENSE = [[0.6259035, 0.34749585], [0.349868, 0.6782462]]
SPARSE = [[0.19554901, 0.00880432], [0.0, 0.18036556]]
COLBERT = [0.7796662449836731, 0.4621177911758423]  # of the first query with both passages

QUESTION = "Wer schrieb den Brief?"
CONTEXT = "Im Frühling schrieb Anna den Brief, den Oleksandr erst im Herbst las."


def test_sentiment() -> None:
    classify = Classify.from_pretrained("cardiffnlp/twitter-xlm-roberta-base-sentiment")
    for (text, expected), found in zip(SENTIMENT.items(), classify.batch(list(SENTIMENT)), strict=True):
        scores = {result.label.lower(): result.score for result in found}
        assert {label: scores[label] for label in expected} == pytest.approx(expected, abs=1e-4), text


def test_named_entities() -> None:
    tag = Tag.from_pretrained("FacebookAI/xlm-roberta-large-finetuned-conll03-german")
    for (text, expected), found in zip(
        GERMAN_ENTITIES.items(), tag.batch(list(GERMAN_ENTITIES), aggregation="first"), strict=True
    ):
        assert [(entity.word.rstrip("."), entity.label) for entity in found] == [entity[:2] for entity in expected]
        assert [entity.score for entity in found] == pytest.approx([entity[2] for entity in expected], abs=5e-3), text


def test_ranking() -> None:
    ranking = Rerank.from_pretrained("BAAI/bge-reranker-base")("what is panda?", list(PANDA_SCORES))
    assert {result.text: result.score for result in ranking} == pytest.approx(PANDA_SCORES, abs=0.01)
    assert ranking[0].text == PANDA


def test_three_representations() -> None:
    m3 = M3.from_pretrained("BAAI/bge-m3")
    queries, passages = m3.batch(QUERIES), m3.batch(PASSAGES)
    scores = [[m3_scores(query, passage) for passage in passages] for query in queries]
    for found, expected in zip(scores, DENSE, strict=True):
        assert [score.dense for score in found] == pytest.approx(expected, abs=0.01)
    for found, expected in zip(scores, SPARSE, strict=True):
        assert [score.sparse for score in found] == pytest.approx(expected, abs=0.002)
    assert [score.colbert for score in scores[0]] == pytest.approx(COLBERT, abs=0.01)


def test_answers_are_those_of_transformers() -> None:
    transformers = pytest.importorskip("transformers")
    name = "deepset/xlm-roberta-base-squad2"
    tokenizer = transformers.AutoTokenizer.from_pretrained(name)
    model = transformers.AutoModelForQuestionAnswering.from_pretrained(name).eval()
    batch = tokenizer(QUESTION, CONTEXT, return_tensors="pt", return_offsets_mapping=True)
    offsets = batch.pop("offset_mapping")[0].tolist()
    of_context = torch.tensor([part == 1 for part in batch.sequence_ids(0)])
    with torch.inference_mode():
        output = model(**batch)
    first = int(output.start_logits[0].masked_fill(~of_context, float("-inf")).argmax())
    last = int(output.end_logits[0].masked_fill(~of_context, float("-inf")).argmax())
    [span] = Answer.from_pretrained(name)(QUESTION, CONTEXT)
    assert span.answer == CONTEXT[offsets[first][0] : offsets[last][1]].strip() == "Anna"


def test_vectors_are_those_of_sentence_transformers() -> None:
    sentence_transformers = pytest.importorskip("sentence_transformers")
    name = "intfloat/multilingual-e5-base"
    texts = ["query: how much protein should a female eat", "query: 南瓜的家常做法", "passage: " + PANDA]
    expected = sentence_transformers.SentenceTransformer(name, device="cpu").encode(texts, convert_to_tensor=True)
    torch.testing.assert_close(Embed.from_pretrained(name).batch(texts), expected.float(), atol=1e-5, rtol=0)
