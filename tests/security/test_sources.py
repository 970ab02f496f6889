"""What SECURITY.md promises of the sources: no pickle, no YAML that makes objects, no trust that the user didn't give."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest


ROOT = Path(__file__).parents[2]
SOURCES = [*sorted((ROOT / "hf_ext").rglob("*.py")), *sorted((ROOT / "recipes").rglob("*.py"))]
UNPICKLING = {"pickle", "cPickle", "_pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve", "jsonpickle"}
# make objects, or expand what a file says
REFUSED_CALLS = {
    "yaml.load",
    "yaml.load_all",
    "yaml.full_load",
    "yaml.unsafe_load",
    "yaml.unsafe_load_all",
    "os.system",
    "os.popen",
    "os.path.expandvars",
    "np.load",
    "numpy.load",
    "torch.hub.load",
    "torch.jit.load",
    "torch.package.PackageImporter",
}
BUILTINS = {"eval", "exec", "compile", "__import__"}
# what decides whether code may run, by what the user's own command said
CARRIERS = {"trust_remote_code", "self.trust_remote_code", "source.trust_remote_code"}
LOADED_BY_AUTO_CLASSES = {"AutoConfig", "AutoTokenizer", "AutoModel", "auto_class", "AutoProcessor"}


def name_of(node: ast.AST) -> str:
    """`a.b.c` of an expression; "()" for what is none."""
    if isinstance(node, ast.Attribute):
        return f"{name_of(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else "()"


def findings(source: str) -> Iterator[str]:
    """What a file does that is promised not to be done."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            yield from (f"imports {module}" for module in modules if module.split(".")[0] in UNPICKLING)
        if isinstance(node, ast.Dict):
            for key, value in zip(node.keys, node.values, strict=True):
                if isinstance(key, ast.Constant) and key.value == "trust_remote_code":
                    yield from trust(value)
        if not isinstance(node, ast.Call):
            continue
        name, options = name_of(node.func), {keyword.arg: keyword.value for keyword in node.keywords}
        if name in REFUSED_CALLS or name in BUILTINS:
            yield f"calls {name}"
        if name == "torch.load" and not is_constant(options.get("weights_only"), True):
            yield "calls torch.load without weights_only=True"
        if is_constant(options.get("shell"), True):
            yield f"calls {name} with a shell"
        if is_constant(options.get("allow_pickle"), True):
            yield f"calls {name} with allow_pickle=True"
        if "trust_remote_code" in options:
            yield from trust(options["trust_remote_code"])
        owner, _, method = name.rpartition(".")
        if method == "from_pretrained" and owner in LOADED_BY_AUTO_CLASSES:
            # None would ask at the terminal; options carry what the command said
            passed = "trust_remote_code" in options or None in options
            if not passed and "config" not in options:
                yield f"calls {name} without trust_remote_code"


def trust(value: ast.AST) -> Iterator[str]:
    if not is_constant(value, False) and name_of(value) not in CARRIERS:
        yield f"gives trust_remote_code={ast.unparse(value)}"


def is_constant(node: ast.AST | None, value: object) -> bool:
    return isinstance(node, ast.Constant) and node.value is value


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_no_source_does_what_is_promised_not_to_be_done(path):
    assert set(findings(path.read_text(encoding="utf-8"))) == set()


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import pickle", "imports pickle"),
        ("from joblib import load", "imports joblib"),
        ("import yaml\nyaml.load(x, Loader=yaml.SafeLoader)", "calls yaml.load"),
        ("torch.load(x)", "calls torch.load without weights_only=True"),
        ("torch.load(x, weights_only=False)", "calls torch.load without weights_only=True"),
        ("np.load(x, allow_pickle=True)", "calls np.load with allow_pickle=True"),
        ("eval(x)", "calls eval"),
        ("subprocess.run(x, shell=True)", "calls subprocess.run with a shell"),
        ("AutoConfig.from_pretrained(x, trust_remote_code=True)", "gives trust_remote_code=True"),
        ("AutoConfig.from_pretrained(x, trust_remote_code=config['trust'])", "gives trust_remote_code=config['trust']"),
        ("options = {'trust_remote_code': True}", "gives trust_remote_code=True"),
        ("AutoTokenizer.from_pretrained(x)", "calls AutoTokenizer.from_pretrained without trust_remote_code"),
    ],
)
def test_each_of_them_would_be_found(source, found):
    assert found in set(findings(source))


@pytest.mark.parametrize(
    "source",
    [
        "model.eval()",
        "load(x).to(device).eval()",
        "torch.compile(model)",
        "re.compile(x)",
        "torch.load(x, weights_only=True)",
        "AutoConfig.from_pretrained(x, trust_remote_code=False)",
        "AutoConfig.from_pretrained(x, **source.options)",
        "yaml.safe_load(x)",
    ],
)
def test_what_is_meant_otherwise_is_not(source):
    assert not set(findings(source))
