"""Small models saved with a tokenizer, and exported once for all tests: tracing takes seconds."""

from importlib.util import find_spec

import pytest
from hub.conftest import make_tokenizer
from models.grid import ALL_FAMILIES

from hf_ext.export import export_model


# optimum-intel wants another transformers, executorch brings torchao: `make test-intel` and `make test-executorch` run
# these in environments of their own
collect_ignore = [
    file
    for package, file in {"optimum.intel": "test_optimum_intel.py", "executorch": "test_executorch.py"}.items()
    if not find_spec(package)
]

# attention of another size a layer, fewer key/value heads, a window shorter than the texts, a softcap that sdpa hasn't
DECODER = {
    "num_key_value_heads": 2,
    "qk_norm": "head",
    "sliding_window": 4,
    "layer_types": ["sliding_attention", "full_attention"],
    "attn_logit_softcapping": 20.0,
}


def save(model, folder):
    model.save_pretrained(folder, bundle=False)
    make_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def decoder():
    return ALL_FAMILIES["decoder"].make("text", "eager", **DECODER)


@pytest.fixture(scope="session")
def saved_decoder(decoder, tmp_path_factory):
    return save(decoder, tmp_path_factory.mktemp("saved") / "decoder")


@pytest.fixture(scope="session")
def exported_decoder(saved_decoder, tmp_path_factory):
    """The folder of an ONNX export."""
    return export_model(saved_decoder, "onnx", tmp_path_factory.mktemp("exported") / "decoder").folder


@pytest.fixture(scope="session")
def translator():
    return ALL_FAMILIES["encoder-decoder"].make(
        "text", "sdpa", num_key_value_heads=2, encoder_layers=1, num_hidden_layers=1
    )


@pytest.fixture(scope="session")
def exported_translator(translator, tmp_path_factory):
    return export_model(translator, "onnx", tmp_path_factory.mktemp("exported") / "translator").folder
