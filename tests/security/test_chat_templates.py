"""A chat template is a program that came with a model: it gets the conversation, a sandbox, little time and memory."""

import sys
import time

import pytest
from cli.saved_models import tiny_tokenizer

from hf_ext.cli import chat_template
from hf_ext.cli.chat_template import bounded, prompt_of


TURNS = [{"role": "user", "content": "hello"}]
# what Jinja's sandbox keeps from a template; before 3.1.6 the third got through: CVE-2025-27516
ESCAPES = {
    "classes": "{{ messages.__class__.__mro__ }}",
    "globals": "{{ raise_exception.__globals__['__builtins__']['open']('ran', 'w') }}",
    "attr": "{{ ('{0.__class__.__init__.__globals__}' | attr('format'))(messages) }}",
    "format": "{{ '{0.__class__.__mro__}'.format(messages) }}",
    "cycler": "{{ cycler.__init__.__globals__.os.popen('touch ran').read() }}",
    "lipsum": "{{ lipsum.__globals__['os'].popen('touch ran').read() }}",
    "change": "{% set _ = messages.append('x') %}{{ messages }}",
}


@pytest.fixture
def tokenizer():
    return tiny_tokenizer()


def told(tokenizer) -> str:
    """The prompt, or the line that refuses it."""
    try:
        return tokenizer.decode(prompt_of(tokenizer, TURNS)["input_ids"][0])
    except ValueError as error:
        return str(error)


@pytest.mark.parametrize("name", ESCAPES)
def test_no_template_leaves_the_sandbox(name, tokenizer, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tokenizer.chat_template = ESCAPES[name]
    said = told(tokenizer)
    assert said.startswith("chat_template: ") or "class" not in said
    assert "\n" not in said
    assert not (tmp_path / "ran").exists()
    assert TURNS == [{"role": "user", "content": "hello"}]


@pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals")
@pytest.mark.parametrize(
    "template",
    [
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(60) }}",
    ],
)
def test_loops_without_end_are_ended(template, tokenizer, monkeypatch):
    monkeypatch.setattr(chat_template, "SECONDS", 0.3)
    tokenizer.chat_template = template
    begun = time.process_time()
    with pytest.raises(ValueError, match=r"took more than 0\.3 s"):
        prompt_of(tokenizer, TURNS)
    assert time.process_time() - begun < 5


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's limit of the address space")
@pytest.mark.parametrize(
    "template", ["{{ 'a' * 10 ** 11 }}", "{{ 'a'.ljust(10 ** 11) }}", "{{ '%099999999999d' % 1 }}"]
)
def test_texts_without_bounds_are_refused(template, tokenizer):
    tokenizer.chat_template = template
    with pytest.raises(ValueError, match=r"chat_template: (took more than|can't make a prompt)"):
        prompt_of(tokenizer, TURNS)
    assert len(bytearray(2**22)) == 2**22  # the limit is lifted again


def test_recursion_without_end_is_told(tokenizer):
    tokenizer.chat_template = "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}"
    with pytest.raises(ValueError, match="chat_template: can't make a prompt"):
        prompt_of(tokenizer, TURNS)


def test_a_template_may_refuse_a_conversation(tokenizer):
    tokenizer.chat_template = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(ValueError, match=r"can't make a prompt of this conversation \(roles must alternate\)"):
        prompt_of(tokenizer, TURNS)


def test_limits_are_put_back():
    import resource
    import signal

    before = resource.getrlimit(resource.RLIMIT_AS), signal.getsignal(signal.SIGALRM)
    with pytest.raises(TimeoutError), bounded(0.05, 2**30):
        time.sleep(5)
    assert (resource.getrlimit(resource.RLIMIT_AS), signal.getsignal(signal.SIGALRM)) == before
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
