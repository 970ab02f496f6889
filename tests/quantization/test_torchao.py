"""torchao's methods, where it is installed: in a process of their own, for importing it takes seconds and is loud."""

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest


SCRIPT = """
import json, sys, tempfile, warnings
warnings.simplefilter("ignore")
import torch
from models.grid import ALL_FAMILIES, asked, padded, scores
from hf_ext.quantization import METHODS, load_quantized, quantize, quantize_tensor, save_quantized, Quantization
from hf_ext.quantization.training import finish_training, prepare_training

results = {}
for method in ("torchao_int8", "torchao_int8_dynamic", "torchao_int4"):
    for name, family in ALL_FAMILIES.items():
        model = family.make("text", tie_word_embeddings=True)
        batch = padded([asked(document) for document in family.documents("text")])
        with torch.no_grad():
            before = scores(model(**batch))
            plain = {n: p.detach().clone() for n, p in model.named_parameters()}
            quantize(model, method, **({"group_size": 16} if method == "torchao_int4" else {}))
            after = scores(model(**batch))
            with tempfile.TemporaryDirectory() as place:
                save_quantized(model, place + "/kept")
                loaded = load_quantized(place + "/kept")
            same = torch.equal(scores(loaded(**batch)), after)
        layer = model.quantized_with["layers"][0]
        theirs = model.get_submodule(layer).weight.dequantize()
        ours = quantize_tensor(plain[layer + ".weight"], Quantization()).dequantize()
        results[f"{method} {name}"] = {
            "same": same,
            "error": ((after - before).std() / before.std()).item(),
            "from ours": ((theirs - ours).abs().max() / plain[layer + ".weight"].abs().max()).item(),
        }

family = ALL_FAMILIES["decoder"]
model = prepare_training(family.make("text"), "torchao_int4", group_size=16)
ids = family.documents("text")[0]["input_ids"][None]
optimizer = torch.optim.SGD(model.train().parameters(), lr=1e-2)
losses = []
for _ in range(3):
    optimizer.zero_grad()
    loss = model(ids, labels=ids).loss
    loss.backward()
    optimizer.step()
    losses.append(loss.item())
with torch.no_grad():
    trained = model.eval()(ids).logits
    kept = finish_training(model)(ids).logits
    with tempfile.TemporaryDirectory() as place:
        save_quantized(model, place + "/kept")
        same = torch.equal(load_quantized(place + "/kept")(ids).logits, kept)
results["trained"] = {"losses": losses, "from training": (kept - trained).abs().max().item(), "same": same}
print("RESULTS" + json.dumps(results))
"""


@pytest.mark.heavy
@pytest.mark.skipif(find_spec("torchao") is None, reason="torchao isn't installed: pip install 'hf-ext[torchao]'")
def test_torchaos_methods_come_back():
    tests = Path(__file__).parents[1]  # the script imports from there
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=False, cwd=tests)
    assert "RESULTS" in done.stdout, done.stderr[-2000:]
    results = json.loads(done.stdout.split("RESULTS")[1])
    trained = results.pop("trained")
    assert trained["same"]
    assert trained["losses"][-1] < trained["losses"][0]
    assert trained["from training"] < 1e-4  # what was rounded in training is what is kept
    assert len(results) == 9
    for case, found in results.items():
        assert found["same"], case
        assert 1e-4 < found["error"] < (0.7 if "int4" in case else 0.1), (case, found)
        if "int8" in case:  # the same integers but for another rounding of the scale: a step is 1/127
            assert found["from ours"] < 1.01 / 127, (case, found)
