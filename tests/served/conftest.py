"""A small checkpoint with an embedding pipeline, one with a score, and a server on this machine that serves them."""

import json
import shutil
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from loopback import Answer

from xlmr_core import XLMRobertaConfig, XLMRobertaForSequenceClassification, XLMRobertaModel
from xlmr_core.served import Pipeline

VOCABULARY = Path(__file__).parents[2] / "weights" / "xlmr-tiny"


def small_checkpoint(folder: Path, kind: type[Any], **config: Any) -> Path:
    torch.manual_seed(0)
    small = XLMRobertaConfig(
        vocab_size=12002,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=48,
        max_position_embeddings=130,
        initializer_range=0.2,
        **config,
    )
    model = kind(small)
    model.initialize()
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):  # fresh ones are 0, and a fault that loses them would not show
            torch.nn.init.normal_(parameter, std=0.2)
        elif name.endswith("norm.weight"):
            torch.nn.init.normal_(parameter, mean=1, std=0.2)
    folder.mkdir()
    model.save_pretrained(folder)
    for name in ("sentencepiece.bpe.model", "tokenizer_config.json"):
        shutil.copy(VOCABULARY / name, folder)
    return folder


@pytest.fixture(scope="session")
def embedder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Mean pooling, length 1, at most 100 tokens, and two prompts of which none is used by default."""
    folder = small_checkpoint(tmp_path_factory.mktemp("served") / "embedder", XLMRobertaModel)
    modules = [("Transformer", ""), ("Pooling", "1_Pooling"), ("Normalize", "2_Normalize")]
    files = {
        "modules.json": [{"path": path, "type": f"sentence_transformers.models.{name}"} for name, path in modules],
        "1_Pooling/config.json": {"pooling_mode_mean_tokens": True},
        "sentence_bert_config.json": {"max_seq_length": 100},
        "config_sentence_transformers.json": {"prompts": {"query": "Find: ", "document": ""}},
    }
    (folder / "1_Pooling").mkdir()
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content), encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def reranker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("served") / "reranker"
    return small_checkpoint(folder, XLMRobertaForSequenceClassification, labels=("LABEL_0",))


@pytest.fixture(scope="session")
def vectors_of(embedder: Path) -> Pipeline:
    return Pipeline.from_pretrained(embedder)


@pytest.fixture(scope="session")
def scores_of(reranker: Path) -> Pipeline:
    return Pipeline.from_pretrained(reranker, kind="score")


@pytest.fixture
def serve() -> Iterator[Callable[[Answer], str]]:
    """Starts a server that answers each POST with what a function of path and body gives, and returns its address."""
    servers: list[ThreadingHTTPServer] = []

    def start(answer: Answer) -> str:
        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                status, content = answer(self.path, body)
                self.send_response(status)
                if status == 302:
                    self.send_header("Location", "http://example.invalid/elsewhere")
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_: Any) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        servers.append(server)
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        return f"http://127.0.0.1:{server.server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()
