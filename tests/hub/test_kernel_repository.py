"""The kernel repository: what `kernels` demands of one, and our twins' numbers from what is loaded by its path."""

import ast
import json
import subprocess
import sys

import pytest
import torch
from torch.nn import functional as F


pytest.importorskip("kernels", reason="kernels is not installed")
pytest.importorskip("triton", reason="triton is not installed")
from kernels import get_local_kernel
from kernels._rust import Backend, Build, Digest, DigestAlgorithm, Metadata

from hf_ext.hub.kernel_repository import main, write_kernel_repository
from hf_ext.ops.cross_entropy import cross_entropy
from hf_ext.ops.grouped_matmul import grouped_matmul
from hf_ext.ops.rotary import apply_rotary, rotary_cos_sin


DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# sums of a few dozen fp32 numbers in another order
FP32 = {"atol": 2e-5, "rtol": 2e-5}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_kernel_repository(tmp_path_factory.mktemp("kernels") / "made", "someone/flash-kernels")


@pytest.fixture(scope="module")
def kernel(folder):
    return get_local_kernel(folder)


def variant_of(folder):
    return folder / "build" / "torch-universal"


def test_the_library_reads_it(folder):
    assert Build.open(folder).general.backends == [Backend.CUDA]
    metadata = Metadata.read_from_file(variant_of(folder) / "metadata.json")
    assert str(metadata.license) == "Apache-2.0"
    assert (metadata.version, metadata.python_depends, metadata.id.isidentifier()) == (1, [], True)
    assert 'repo-id = "someone/flash-kernels"' in (folder / "build.toml").read_text()


def test_digest_is_the_librarys(tmp_path):
    """Of a folder that nothing was imported from: bytecode lies beside the sources afterwards."""
    variant = variant_of(write_kernel_repository(tmp_path / "made"))
    digest = Metadata.read_from_file(variant / "metadata.json").digest
    digest.validate(Digest.hash_variant(DigestAlgorithm.SHA256, variant))


def test_sources_are_self_contained(folder):
    """Relative imports, torch, triton and the standard library; Python 3.10, from which `kernels` is on."""
    modules = list(variant_of(folder).glob("*.py"))
    assert {path.name for path in modules} == {
        path.name for path in (folder / "torch-ext" / "flash_kernels").glob("*.py")
    }
    allowed = {*sys.stdlib_module_names, "torch", "triton"}
    for path in modules:
        for node in ast.walk(ast.parse(path.read_text(), feature_version=(3, 10))):
            if isinstance(node, ast.ImportFrom) and node.level:
                assert node.level == 1
                assert node.module is None or (path.parent / f"{node.module}.py").is_file(), (path, node.module)
            elif isinstance(node, ast.Import | ast.ImportFrom):
                names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module]
                assert {name.split(".")[0] for name in names} <= allowed, path


def test_same_sources_same_bytes(folder, tmp_path):
    again = write_kernel_repository(tmp_path / "again", "someone/flash-kernels")
    write_kernel_repository(again, "someone/flash-kernels")  # over itself
    texts = [
        {path.relative_to(made).as_posix(): path.read_bytes() for path in made.rglob("*.*") if path.suffix != ".pyc"}
        for made in (folder, again)
    ]
    assert texts[0].keys() == texts[1].keys()
    assert texts[0] == texts[1]


def test_loads_without_us(folder):
    """In a process that has no hf_ext, and by the entrance of older versions of the library."""
    old = variant_of(folder) / "flash_kernels" / "__init__.py"
    script = f"""
import sys
sys.modules["hf_ext"] = None  # an import of it raises
import importlib.util
from pathlib import Path
from kernels import get_local_kernel
kernel = get_local_kernel(Path({str(folder)!r}))
spec = importlib.util.spec_from_file_location("flash_kernels", {str(old)!r})
older = importlib.util.module_from_spec(spec)
spec.loader.exec_module(older)
assert older.__all__ == kernel.__all__ and older.layers.HfxRMSNorm
"""
    subprocess.run([sys.executable, "-c", script], check=True)


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed + sum(shape))).to(DEVICE).requires_grad_()


def compare(got, expected, inputs):
    """Values and gradients of two results of the same inputs."""
    got, expected = ((x,) if isinstance(x, torch.Tensor) else tuple(x) for x in (got, expected))
    squares = ([(x * x).sum() for x in results] for results in (got, expected))
    grads = [torch.autograd.grad(each, inputs, retain_graph=True) for each in squares]
    for a, b in zip((*got, *grads[0]), (*expected, *grads[1]), strict=True):
        torch.testing.assert_close(a, b, **FP32)


def test_norms(kernel):
    x, weight, bias = random(5, 37), random(37), random(37, seed=1)
    compare(kernel.rms_norm(x, weight, eps=1e-5), F.rms_norm(x, (37,), weight, 1e-5), (x, weight))
    compare(kernel.layer_norm(x, weight, bias, eps=1e-5), F.layer_norm(x, (37,), weight, bias, 1e-5), (x, weight, bias))


def test_gated_activation(kernel):
    gate, up = random(5, 37), random(5, 37, seed=1)
    compare(kernel.gated_activation("silu", gate, up), F.silu(gate) * up, (gate, up))


def test_rotary(kernel):
    query, key = random(2, 4, 7, 12), random(2, 2, 7, 12)
    cos, sin = rotary_cos_sin(torch.arange(7, device=DEVICE)[None], 1.0 / 10 ** torch.arange(4, device=DEVICE))
    compare(kernel.rotary(query, key, cos, sin), apply_rotary(query, key, cos, sin), (query, key))


def test_linear_cross_entropy(kernel):
    states, weight, labels = random(9, 12), random(37, 12), torch.arange(9, device=DEVICE)
    options = {"label_smoothing": 0.1, "z_loss_weight": 1e-3, "softcap": 4.0}
    expected = cross_entropy(F.linear(states, weight), labels, **options)
    compare(kernel.linear_cross_entropy(states, weight, labels, **options), expected, (states, weight))


def test_grouped_matmul(kernel):
    x, weight, stops = random(9, 20), random(3, 12, 20), torch.tensor([4, 4, 9], device=DEVICE)
    compare(kernel.grouped_matmul(x, weight, stops), grouped_matmul(x, weight, stops), (x, weight))


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("window", [(-1, -1), (3, 1)], ids=str)
def test_flash_attention(kernel, causal, window):
    """More keys than queries, as after a cache: the last ones belong together."""
    q, k, v = random(2, 5, 4, 16), random(2, 9, 2, 16), random(2, 9, 2, 16, seed=1)
    distance = torch.arange(9, device=DEVICE) - (torch.arange(5, device=DEVICE)[:, None] + 4)
    mask = torch.ones_like(distance, dtype=torch.bool)
    if causal:
        mask &= distance <= 0
    if window[0] >= 0:
        mask &= (distance >= -window[0]) & (distance <= window[1])
    by_head = [x.transpose(1, 2) for x in (q, k, v)]
    expected = F.scaled_dot_product_attention(*by_head, attn_mask=mask, enable_gqa=True).transpose(1, 2)
    compare(kernel.flash_attn_func(q, k, v, causal=causal, window_size=window), expected, (q, k, v))
    packed = [x.flatten(0, 1) for x in (q, k, v)]
    starts = [torch.tensor([0, n, 2 * n], device=DEVICE, dtype=torch.int32) for n in (5, 9)]
    got = kernel.flash_attn_varlen_func(*packed, *starts, 5, 9, causal=causal, window_size=window)
    compare(got.view_as(q), expected, (q, k, v))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--repo_id", "no_slash"], "must be ORG/NAME"),
        (["--repo_id", "me/Upper_Case"], "must be ORG/NAME"),
        ([], "holds something else than a kernel repository"),
    ],
    ids=str,
)
def test_what_can_not_be_written(arguments, message, tmp_path, capsys):
    (tmp_path / "mine.txt").write_text("not to be lost")
    with pytest.raises(SystemExit):
        main([str(tmp_path), *arguments])
    assert message in capsys.readouterr().err
    assert (tmp_path / "mine.txt").read_text() == "not to be lost"


def test_the_card_says_what_there_is(folder, kernel):
    card = (folder / "README.md").read_text()
    assert "library_name: kernels" in card
    assert all(f"`{name}`" in card for name in kernel.__all__ if name != "layers")
    assert json.loads((variant_of(folder) / "metadata.json").read_text())["name"] == "flash-kernels"
