"""`hf-ext run`: other tools know our architectures, in the processes that they start too."""

import os
import signal
import subprocess
import sys
import time

import pytest


KNOWS = "import transformers, sys; print('hfx_decoder' in transformers.CONFIG_MAPPING, sys.argv[1:])"


def run(*words, **options):
    command = [sys.executable, "-m", "hf_ext", "run", "--", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)


@pytest.mark.heavy
def test_a_script_and_the_processes_that_it_starts_know_our_models(tmp_path):
    (tmp_path / "inner.py").write_text(KNOWS)
    (tmp_path / "outer.py").write_text(
        "import subprocess, sys\n"
        "assert 'transformers' not in sys.modules and 'torch' not in sys.modules\n"
        f"{KNOWS}\n"
        "subprocess.run([sys.executable, 'inner.py', 'child'], check=True)\n"
        "sys.exit(7)\n"
    )
    done = run("outer.py", "--flag", "-x", cwd=tmp_path)
    assert done.stdout.splitlines() == ["True ['--flag', '-x']", "True ['child']"]
    assert done.returncode == 7


def test_what_needs_no_transformers_starts_without(tmp_path):
    done = run("python", "-c", "import sys; print('hf_ext' in sys.modules, 'torch' in sys.modules)")
    assert done.stdout == "False False\n"


def test_an_installations_own_sitecustomize_still_runs(tmp_path):
    (tmp_path / "sitecustomize.py").write_text("import builtins; builtins.own = 'mine'")
    paths = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    done = run("python", "-c", "print(own)", env={**os.environ, "PYTHONPATH": paths})
    assert done.stdout == "mine\n"


def test_a_console_script_beside_the_interpreter_is_found():
    done = run("pytest", "--version", env={**os.environ, "PATH": "/usr/bin:/bin"})
    assert done.stdout == f"pytest {pytest.__version__}\n"


def test_no_such_command():
    done = run("no-such-tool")
    assert done.returncode == 127
    assert done.stderr == "error: hf-ext run: no-such-tool: no such command here; install it, or give its path\n"
    bare = subprocess.run([sys.executable, "-m", "hf_ext", "run"], capture_output=True, text=True, check=False)
    assert bare.returncode == 2
    assert "names no command" in bare.stderr


def test_signals_reach_the_command(tmp_path):
    code = (
        "import signal, time; signal.signal(signal.SIGTERM, lambda *_: exit(75)); print('ready', flush=True);"
        "time.sleep(60)"
    )
    process = subprocess.Popen(
        [sys.executable, "-m", "hf_ext", "run", "--", "python", "-c", code], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    begun = time.monotonic()
    assert process.wait(timeout=30) == 75
    assert time.monotonic() - begun < 30
