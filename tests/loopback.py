"""What a server answers that takes given steps, in the form of each protocol."""

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from xlmr_core.served import Pipeline, Steps

Answer = Callable[[str, Any], tuple[int, bytes]]  # of a path and a body: a status and the content


def serving(pipeline: Pipeline, steps: Steps) -> Answer:
    """Answers in the form of each protocol, with the numbers of the pipeline as float32."""

    def numbers(inputs: list[tuple[str, ...]]) -> list[list[float]]:
        return pipeline.run(inputs, steps).float().tolist()

    def answer(path: str, body: Any) -> tuple[int, bytes]:
        if path == "/rerank":
            pairs = [(body["query"], text) for text in body.get("texts") or body["documents"]]
            scores = [row[0] for row in numbers(pairs)]
            ranked = sorted(enumerate(scores), key=lambda item: item[1])  # servers sort: the index is what counts
            if "texts" in body:
                return 200, json.dumps([{"index": i, "score": score} for i, score in ranked]).encode()
            results = [{"index": i, "relevance_score": score} for i, score in ranked]
            return 200, json.dumps({"results": results}).encode()
        if path == "/tokenize":  # cuts nothing
            row = pipeline.row((body.get("inputs") or body["content"],), replace(steps, max_tokens=2**30))
            return 200, json.dumps([[{"id": id} for id in row]] if "inputs" in body else {"tokens": row}).encode()
        texts = [(text,) for text in body.get("input") or body.get("inputs") or body["content"]]
        rows = numbers(texts)
        forms: dict[str, Any] = {
            "/v1/embeddings": {"data": [{"index": i, "embedding": row} for i, row in enumerate(rows)]},
            "/embed": rows,
            "/embedding": [{"index": i, "embedding": [row]} for i, row in enumerate(rows)],
            "/api/embed": {"embeddings": rows},
        }
        return 200, json.dumps(forms[path]).encode()

    return answer
