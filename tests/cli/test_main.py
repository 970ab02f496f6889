"""`hf-ext`: its help, versions, and what a wrong line is told."""

import resource
import subprocess
import sys

import pytest
from cli.command_line import hf_ext_command
from typer.testing import CliRunner

from hf_ext.cli.main import app, main
from hf_ext.cli.starting import is_command_line


COMMANDS = [
    "train",
    "evaluate",
    "generate",
    "chat",
    "export",
    "quantize",
    "push",
    "pull",
    "plan",
    "card",
    "doctor",
    "run",
]
# CPU seconds of the interpreter, Typer and our own files; torch alone takes several times as much
MOST_SECONDS = 0.5


def run_and_see_imports(words: list[str]) -> tuple[subprocess.CompletedProcess, set[str]]:
    """A command line in a process of its own, and the modules that it imported."""
    command = [sys.executable, "-X", "importtime", "-m", "hf_ext", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done, {
        line.rsplit("|", 1)[1].strip() for line in done.stderr.splitlines() if line.startswith("import time:")
    }


def test_help_lists_every_command_and_the_exit_codes(capsys):
    done = hf_ext_command(capsys, "--help")
    assert done.code == 0
    listed = [line.split()[0] for line in done.out.split("Commands:")[1].splitlines() if line.startswith("  ")]
    assert [name for name in listed if name in COMMANDS] == COMMANDS
    for code in ("2 a mistake", "3 a loss", "75 stopped", "130 interrupted"):
        assert code in " ".join(done.out.split())
    assert hf_ext_command(capsys).out == done.out


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_each_shows_an_example(command):
    done = CliRunner().invoke(app, [command, "--help"])
    assert done.exit_code == 0
    assert f"hf-ext {command}" in done.output.split("Example:")[1]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("export model out", "needs the model, what to write, and --to TARGET"),
        ("quantize", "needs the model's folder and the folder to write"),
        ("card run --results scores.json", "--results, --dataset: give both"),
        ("push nothere me/it", "nothere: no such folder"),
        ("train nothere.yaml", "nothere.yaml: no such recipe"),
        ("generate model text --temperature 0 --top_p 0.5", "--top_p: has no effect with --temperature 0"),
    ],
)
def test_what_the_words_alone_tell_is_told_without_torch(words, said):
    done, imported = run_and_see_imports(words.split())
    assert done.returncode == 2
    (told,) = [line for line in done.stderr.splitlines() if not line.startswith("import time:")]
    assert told.startswith("error: ")
    assert said in told
    assert not imported & {"torch", "transformers"}


def test_help_and_version_start_without_torch():
    for words in (["--help"], ["--version"], ["generate", "--help"], ["train", "--help"]):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done, imported = run_and_see_imports(words)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert done.returncode == 0
        assert "hf_ext.cli.main" in imported
        assert not imported & {"torch", "transformers", "numpy", "yaml", "huggingface_hub"}
        seconds = sum(getattr(after, name) - getattr(before, name) for name in ("ru_utime", "ru_stime"))
        assert seconds < MOST_SECONDS, words


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["trian"], "error: hf-ext: No such command 'trian'. Did you mean 'train'?"),
        (
            ["export", "--model", "x"],
            "error: hf-ext export: --model is no option: it is given by its place, without a name; see hf-ext export --help",
        ),
        (["--versoin"], "error: hf-ext: No such option: --versoin; did you mean --version?"),
        (
            ["generate", "m", "--temprature", "1"],
            "error: hf-ext generate: No such option: --temprature; did you mean --temperature?",
        ),
        (["generate"], "error: hf-ext generate: Missing argument 'MODEL'; see hf-ext generate --help"),
        (["pull", "me/x"], "error: hf-ext pull: Missing argument 'folder'; see hf-ext pull --help"),
        (
            ["plan", "--bugdet", "1e20"],
            "error: command line: unrecognized arguments: --bugdet; did you mean '--budget'?",
        ),
        (
            ["train", "tranlsation", "x.yaml"],
            "error: train: 'tranlsation' is neither a task nor a recipe (.yaml); did you mean 'translation'?",
        ),
    ],
)
def test_a_wrong_line_is_told_in_one_with_what_was_meant(words, line, capsys):
    done = hf_ext_command(capsys, *words)
    assert done.code == 2
    assert done.err == line + "\n"


def test_numbers_out_of_range_are_refused(capsys):
    done = hf_ext_command(capsys, "generate", "m", "--max_new_tokens", "0")
    assert done.code == 2
    assert "max_new_tokens" in done.line


def test_hyphens_are_underscores(capsys):
    done = hf_ext_command(capsys, "generate", "no/such/folder", "x", "--max-new-tokens", "3")
    assert "no such folder" in done.line  # the option was taken


def test_without_a_traceback_unless_it_is_asked_for(capsys, monkeypatch):
    done = hf_ext_command(capsys, "evaluate", "no/such/folder", "x.csv")
    assert (done.code, done.err) == (2, "error: no/such/folder: no such folder; train or pull a model first\n")
    monkeypatch.setenv("HF_EXT_TRACEBACK", "1")
    with pytest.raises(ValueError, match="no such folder"):
        main(["evaluate", "no/such/folder", "x.csv"])


def test_a_package_that_is_missing_is_named_with_its_extra(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    from hf_ext.cli.working import work

    def do() -> None:
        import peft  # noqa: F401

    with pytest.raises(SystemExit) as ended:
        work(do)
    assert ended.value.code == 2
    assert capsys.readouterr().err == "error: peft is not installed; pip install 'hf-ext[peft]'\n"


@pytest.mark.parametrize(
    ("words", "is_ours"),
    [
        (["/usr/bin/python3", "/usr/bin/hf-ext", "--help"], True),
        (["python", "-m", "hf_ext", "train"], True),
        (["python", "-X", "importtime", "-W", "error", "-u", "-m", "hf_ext"], True),
        (["python", "-mhf_ext"], True),
        (["python.exe", "C:/Scripts/hf-ext.exe"], True),
        (["python", "-m", "hf_ext.tasks.reload_check", "x"], False),
        (["python", "script.py", "-m", "hf_ext"], False),
        (["python", "-c", "import hf_ext", "-m", "hf_ext"], False),
        (["python", "-W", "hf-ext", "script.py"], False),
        (["python"], False),
        # a process of multiprocessing, whose sys.argv is its parent's
        (
            ["python", "-c", "from multiprocessing.spawn import spawn_main; spawn_main()", "--multiprocessing-fork"],
            False,
        ),
    ],
)
def test_who_waits_for_a_subcommand(words, is_ours):
    assert is_command_line(words) is is_ours


def test_a_name_is_there_before_a_subcommand_asked():
    """In the command line's own process, whatever imports a class first gets everything registered."""
    code = (
        "import sys; sys.orig_argv = ['python', '/usr/bin/hf-ext']; import hf_ext; assert 'torch' not in sys.modules;"
        "assert hf_ext.HfxDecoderConfig.model_type == 'hfx_decoder' and hf_ext.__version__;"
        "from transformers import CONFIG_MAPPING; assert 'hfx_encoder' in CONFIG_MAPPING;"
        "assert not hasattr(hf_ext, 'HfxDecoder')"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
