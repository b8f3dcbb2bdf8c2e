"""The ports: what is installed for each, which script runs it, and what a reader needs beside the verdict."""

from dataclasses import dataclass

TORCH = "torch==2.13.0"
KIT = "xlmr-core"  # this checkout: scripts that run a model of torch watch its modules with the kit
TRANSFORMERS = (TORCH, "transformers", "sentencepiece", "protobuf")  # the last two to read a SentencePiece model

TRANSFORMERS_4 = (TORCH, "transformers<5", "sentencepiece", "protobuf")

# The packages of each environment. A script with_NAME runs in the environment NAME unless the
# port names another script; .mjs is run by node.
PACKAGES = {
    "export": (*TRANSFORMERS, "onnx", "onnxscript"),  # writes tokenizer.json and the ONNX file
    "transformers": (*TRANSFORMERS, KIT),
    "sentence_transformers": (*TRANSFORMERS, "sentence-transformers", KIT),
    "tokenizers": ("tokenizers", "numpy"),
    "curated_transformers": (TORCH, "numpy", "requests", "huggingface_hub<1", "safetensors", "curated-transformers"),
    "onnxruntime": ("onnxruntime", "onnx"),
    "openvino": ("openvino",),
    "ctranslate2": (*TRANSFORMERS_4, "ctranslate2"),  # its converter reads a field of the config that 5 has not
    "keras_hub": (TORCH, "keras-hub", "jax", "safetensors"),
    "fastembed": ("fastembed",),
    "transformers_4": (*TRANSFORMERS_4, KIT),
    "flax": (*TRANSFORMERS_4, "flax", "jax"),  # transformers 5 has no Flax and no TensorFlow
    "tensorflow": (*TRANSFORMERS_4, "tensorflow", "tf-keras"),
    "mlx": (TORCH, "mlx[cpu]", "mlx-embeddings", "sentencepiece"),
    "adapters": (TORCH, "adapters", "sentencepiece", "protobuf", KIT),
    "flair": (TORCH, "flair"),
    "flagembedding": (TORCH, "FlagEmbedding", "transformers<5"),
    "transformers_js": ("@huggingface/transformers",),
    "node_llama_cpp": ("node-llama-cpp",),
    "gguf": (*TRANSFORMERS, "gguf"),  # writes the GGUF file
}


@dataclass(frozen=True)
class Port:
    """One implementation, in one way of running it.

    environment: a key of PACKAGES. shown: the packages whose versions the page lists. option: is passed to the script.
    dtype: what it computes in, if not float32. note: what the verdict does not say. script: else
    with_ENVIRONMENT.
    """

    name: str
    environment: str
    shown: tuple[str, ...]
    option: str = ""
    dtype: str | None = None
    note: str = ""
    script: str = ""


PORTS = (
    Port("transformers, eager", "transformers", ("transformers",), "eager"),
    Port("transformers, sdpa", "transformers", ("transformers",), "sdpa"),
    Port("sentence-transformers", "sentence_transformers", ("sentence-transformers", "transformers")),
    Port(
        "tokenizers",
        "tokenizers",
        ("tokenizers",),
        note="it does not compose a Bengali vowel that one line has as two characters ([composition]"
        "(tokenizer-differences.md)). What takes its ids differs in the same line",
    ),
    Port("curated-transformers", "curated_transformers", ("curated-transformers",)),
    Port("onnxruntime", "onnxruntime", ("onnxruntime",), "float32"),
    Port(
        "onnxruntime, int8",
        "onnxruntime",
        ("onnxruntime",),
        "int8",
        "int8",
        "`quantize_dynamic` as it comes also rounds the tables of embeddings, which the kit's int8 leaves as they are",
    ),
    Port(
        "onnxruntime, int8 products",
        "onnxruntime",
        ("onnxruntime",),
        "int8 products",
        "int8",
        "only the products of matrices are quantised",
    ),
    Port("OpenVINO, float32", "openvino", ("openvino",), "f32"),
    Port(
        "OpenVINO",
        "openvino",
        ("openvino",),
        "default",
        "bfloat16",
        "without a setting it computes in bfloat16 on a processor that has it",
    ),
    Port(
        "CTranslate2",
        "ctranslate2",
        ("ctranslate2",),
        "float32",
        note="its converter needs transformers 4: it reads `position_embedding_type`, which configs of 5 lack",
    ),
    Port("CTranslate2, int8", "ctranslate2", ("ctranslate2",), "int8", "int8-per-channel"),
    Port("keras-hub, torch", "keras_hub", ("keras-hub", "keras"), "torch"),
    Port("keras-hub, jax", "keras_hub", ("keras-hub", "keras", "jax"), "jax"),
    Port("fastembed", "fastembed", ("fastembed", "onnxruntime")),
    Port("transformers 4, eager", "transformers_4", ("transformers",), "eager", script="with_transformers.py"),
    Port("transformers 4, Flax", "flax", ("transformers", "flax", "jax")),
    Port("transformers 4, TensorFlow", "tensorflow", ("transformers", "tensorflow")),
    Port("adapters", "adapters", ("adapters", "transformers"), "eager"),
    Port(
        "mlx-embeddings",
        "mlx",
        ("mlx-embeddings", "mlx"),
        note="at base size it was stopped after 8 minutes without a result, on the CPU of a busy machine",
    ),
    Port(
        "flair",
        "flair",
        ("flair", "transformers"),
        note="it does not read `modules.json`, so it brings no vector to length 1",
    ),
    Port(
        "FlagEmbedding",
        "flagembedding",
        ("FlagEmbedding", "transformers"),
        note="needs transformers 4: it imports `modeling_attn_mask_utils`, which 5 lacks",
    ),
    Port(
        "transformers.js",
        "transformers_js",
        ("@huggingface/transformers", "onnxruntime-node"),
        note="it reads special tokens from `tokenizer_config.json` only; without them a padded batch is an error. It "
        "normalises by Unicode's NFKC, which differs for joiners, and its texts that are cut lose `</s>`. At base "
        "size its vectors were not judged: the search would have taken more than ten minutes",
    ),
    Port(
        "llama.cpp",
        "node_llama_cpp",
        ("node-llama-cpp",),
        note="where `tokenizer_config.json` does not name `unk_token`, its file has no `<unk>`, and unknown pieces get "
        "the id of `</s>` (`unk_is_end`). Texts are cut and vectors brought to length 1 by our script. At base "
        "size its vectors were not judged: the search would have taken more than ten minutes",
    ),
)

NOT_RUN = {
    "fairseq": "PyPI has builds for Python 3.6 to 3.8; a slow test of this project compares with its source",
    "torchtext": "its last version needs torch 2.3",
    "EmbedAnything": "asks the hub for every model, also for the path of a folder",
    "spacy-curated-transformers": "only spaCy 2.0 was found to fit it, and its build fails",
    "optimum-onnx, optimum-intel": "export with the exporter of torch, and run with onnxruntime and OpenVINO",
    "text-embeddings-inference": "is not in a package registry",
}
