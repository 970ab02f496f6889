"""What `hf-ext doctor` finds out: packages, processors, attention, kernels; and what of it is a problem."""

import os
import platform
import sys
from contextlib import nullcontext
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

import torch
from packaging.requirements import Requirement
from packaging.version import Version

import hf_ext
from hf_ext.models.attention_report import attention_report
from hf_ext.ops.backends import BACKENDS
from hf_ext.ops.hub_kernels import PINNED
from hf_ext.ops.kernel_choice import CHOICES, kernels, triton_missing


# What a package must have come to for a hole to be closed that a file from elsewhere could use. Beyond these the
# installation's own floors are compared.
MENDED = {
    "torch": ("2.10", "CVE-2026-24747, CVE-2025-32434: checkpoints of others, even with weights_only=True"),
    "transformers": ("5.3", "CVE-2026-4372: a config.json could name code on the Hub"),
    "Jinja2": ("3.1.6", "CVE-2025-27516: chat templates could leave their sandbox"),
    "PyYAML": ("5.4", "CVE-2020-14343: loaders that aren't safe"),
    "pyarrow": ("14.0.1", "CVE-2023-47248: parquet and arrow files could run code"),
}
VARIABLES = (
    "HF_EXT_KERNELS",
    "HF_EXT_CONFIG_LIMITS",
    "HF_HUB_OFFLINE",
    "HF_ENDPOINT",
    "OMP_NUM_THREADS",
    "TRITON_INTERPRET",
)


def examine() -> dict:
    """All findings, of plain types. `problems` is a list of lines, empty where all is well; `notes` are no problems."""
    packages, problems = _packages()
    notes = []
    for name, (floor, why) in MENDED.items():
        found = packages.get(name) or _version(name)
        if found is not None and Version(Version(found).base_version) < Version(floor):
            notes.append(f"{name} {found}: {floor} or newer is safer ({why})")
    unusable = _unusable_kernels()
    with kernels("torch") if unusable else nullcontext():
        attention, broken = _attention()
    return {
        "hf_ext": {"version": version("hf-ext"), "folder": str(Path(hf_ext.__file__).parent)},
        "python": {"version": platform.python_version(), "executable": sys.executable},
        "system": platform.platform(),
        "packages": packages,
        "processors": _processors(),
        "variables": {name: os.environ[name] for name in VARIABLES if name in os.environ},
        "attention": attention,
        "kernels": _kernels(),
        "notes": notes,
        "problems": problems + unusable + broken,
    }


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _packages() -> tuple[dict[str, str | None], list[str]]:
    """Every package that hf_ext or an extra of it asks for, with its version; those of the base that don't do."""
    found, problems = {}, []
    for line in sorted(requires("hf-ext") or [], key=str.lower):
        requirement = Requirement(line)
        is_base = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
        if requirement.name == "hf-ext" or (
            not is_base and not any(requirement.marker.evaluate({"extra": extra}) for extra in _extras(requirement))
        ):
            continue
        there = _version(requirement.name)
        found[requirement.name] = there
        if there is None and is_base:
            problems.append(f"{requirement.name}: is missing; pip install '{requirement.name}{requirement.specifier}'")
        elif there is not None and not requirement.specifier.contains(there, prereleases=True):
            problems.append(f"{requirement.name} {there}: hf_ext needs {requirement.specifier}; install that")
    return found, problems


def _extras(requirement: Requirement) -> list[str]:
    """Extras that its marker may name."""
    return [word.strip("\"'") for word in str(requirement.marker).split() if word.startswith(('"', "'"))]


def _processors() -> dict:
    found = {
        "cpu": f"{os.cpu_count()} cores, {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}",
    }
    memory = _memory()
    if memory is not None:
        found["memory"] = f"{memory / 1e9:.1f} GB"
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        facts = torch.cuda.get_device_properties(index)
        found[f"cuda:{index}"] = f"{facts.name}, {facts.total_memory / 1e9:.1f} GB, compute {facts.major}.{facts.minor}"
    if torch.backends.mps.is_available():
        found["mps"] = "available"
    if len(found) <= 2:
        found["accelerator"] = "none: everything runs on the CPU"
    return found


def _memory() -> int | None:
    """Bytes of main memory; None where the system doesn't tell."""
    if not hasattr(os, "sysconf") or "SC_PHYS_PAGES" not in os.sysconf_names:
        return None
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _attention() -> tuple[dict, list[str]]:
    """What a small decoder's attention is, as it is asked for by nobody; and whether each way to compute it agrees."""
    config = hf_ext.HfxDecoderConfig(vocab_size=64, hidden_size=32, num_hidden_layers=1, num_attention_heads=2)
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
    torch.manual_seed(0)
    model = hf_ext.HfxDecoderForCausalLM(config).to(device).eval()
    with torch.no_grad():
        report = attention_report(model)
        ids = torch.arange(1, 18, device=device)[None]
        expected = model(ids).logits
        problems = []
        for name in ("eager", "sdpa", "hfx_tiled"):
            model.set_attn_implementation(name)
            difference = (model(ids).logits - expected).abs().max().item()
            if not difference < 1e-3:  # NaN too; what is well differs by rounding, 1e-6
                problems.append(f"attention {name} differs by {difference:.2g} from what is taken; reinstall torch")
    layer = report.layers[0]
    return {
        "default": layer.implementation,
        "runs": layer.runs,
        "why": layer.why,
        "others": {name: reason or "could be taken" for name, reason in report.others.items()},
    }, problems


def _unusable_kernels() -> list[str]:
    """What is wrong with HF_EXT_KERNELS, under which no model of ours would compute then."""
    choice = os.environ.get("HF_EXT_KERNELS", "torch")
    if choice not in CHOICES:
        return [f"HF_EXT_KERNELS={choice!r}: must be one of {', '.join(CHOICES)}"]
    missing = triton_missing() if choice == "triton" else None
    return [] if missing is None else [f"HF_EXT_KERNELS={choice!r}: {missing}; choose torch"]


def _kernels() -> dict:
    return {
        "norms, rotary, gates, experts, loss": f"{os.environ.get('HF_EXT_KERNELS', 'torch')} (HF_EXT_KERNELS)",
        "triton": triton_missing() or "could be taken",
        **{name: backend.missing() or "could be taken" for name, backend in BACKENDS.items()},
        "use_liger_kernel": _of_package("liger-kernel") or triton_missing() or "could be taken",
        "use_kernels": _of_package("kernels")
        or ("could be taken" if torch.cuda.is_available() else "no CUDA device here, so nothing changes"),
        **{f"pinned: {name}": f"{kernel.repo_id}, version {kernel.version}" for name, kernel in PINNED.items()},
    }


def _of_package(name: str) -> str | None:
    """What is wrong with it, None where it is there."""
    return None if _version(name) else f"{name} is not installed"


def in_words(found: dict) -> str:
    """The findings as a page."""
    lines = [
        f"hf_ext {found['hf_ext']['version']} in {found['hf_ext']['folder']}",
        f"Python {found['python']['version']} ({found['python']['executable']}), {found['system']}",
    ]
    missing = [name for name, there in found["packages"].items() if there is None]
    there = [f"{name} {number}" for name, number in found["packages"].items() if number is not None]
    lines += ["", "Packages: " + ", ".join(there)]
    if missing:
        lines.append("Not installed (of extras): " + ", ".join(missing))
    for title, part in (("Processors", "processors"), ("Variables", "variables")):
        if found[part]:
            lines += ["", title, *_table(found[part])]
    attention = found["attention"]
    lines += ["", f"Attention: {attention['default']}, which runs {attention['runs']}; {attention['why']}"]
    lines += [*_table(attention["others"]), "", "Kernels", *_table(found["kernels"])]
    lines += [""] + [f"note: {note}" for note in found["notes"]]
    lines += [f"problem: {problem}" for problem in found["problems"]] or ["no problem found"]
    return "\n".join(lines)


def _table(rows: dict[str, str]) -> list[str]:
    width = max(map(len, rows))
    return [f"  {name.ljust(width)}  {said}" for name, said in rows.items()]
