"""How a card says to use a model: a few lines of Python by its task, that run where the model's folder is."""

import json
import re

from hf_ext.hub.saved_adapter import SavedAdapter


# task -> code; {folder}, {prompt} and {context} are filled in
USAGE = {
    "text-generation": """from transformers import pipeline

writer = pipeline("text-generation", model="{folder}")
print(writer({prompt}, max_new_tokens=50)[0]["generated_text"])""",
    "fill-mask": """from transformers import pipeline

filler = pipeline("fill-mask", model="{folder}")
print(filler({prompt}))""",
    "text-classification": """from transformers import pipeline

classifier = pipeline("text-classification", model="{folder}")
print(classifier({prompt}))""",
    "token-classification": """from transformers import pipeline

tagger = pipeline("token-classification", model="{folder}", aggregation_strategy="simple")
print(tagger({prompt}))""",
    "question-answering": """from transformers import AutoModelForQuestionAnswering, AutoTokenizer

from hf_ext.tasks.question_answering import find_answers

tokenizer = AutoTokenizer.from_pretrained("{folder}")
model = AutoModelForQuestionAnswering.from_pretrained("{folder}")
context = {context}
print(find_answers(model, tokenizer, {prompt}, context).text)""",
    "text2text-generation": """from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{folder}")
model = AutoModelForSeq2SeqLM.from_pretrained("{folder}")
output = model.generate(**tokenizer({prompt}, return_tensors="pt"), max_new_tokens=50)
print(tokenizer.decode(output[0]))""",
    "translation": """from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{folder}")
model = AutoModelForSeq2SeqLM.from_pretrained("{folder}")
output = model.generate(**tokenizer({prompt}, return_tensors="pt"))
print(tokenizer.decode(output[0], skip_special_tokens=True))""",
}
# pipeline -> the Auto class of its models
_AUTO_CLASSES = {
    "text-generation": "AutoModelForCausalLM",
    "fill-mask": "AutoModelForMaskedLM",
    "text-classification": "AutoModelForSequenceClassification",
    "token-classification": "AutoModelForTokenClassification",
}
# the lines of them that load a model
_PIPELINE = re.compile(r'^(\w+) = pipeline\("([\w-]+)", model="{folder}"(.*)\)$', re.MULTILINE)
_MODEL = re.compile(r'^model = (\w+)\.from_pretrained\("{folder}"\)$', re.MULTILINE)
_IMPORT = re.compile(r"^from transformers import (.*)$", re.MULTILINE)


def usage_code(code: str, folder_name: str, adapter: SavedAdapter | None, **values: str) -> str:
    """`code` filled in; of an adapter it loads the model beneath first.

    Args:
        code: of `USAGE`, or a task's own. values: texts for {prompt} and {context}.
    """
    if adapter is not None:
        code = _with_adapter(code, adapter)
    texts = {"folder": folder_name, **{name: json.dumps(value) for name, value in values.items()}}
    # in one go, for a text may have braces itself
    return re.sub(r"\{(folder|prompt|context)\}", lambda match: texts[match[1]], code)


def _with_adapter(code: str, adapter: SavedAdapter) -> str:
    """`code` with the base where the model was, and the adapter put into it. Sizes of a new head are in the adapter's
    configuration, and the base may have one of other sizes, which it takes the place of."""
    base, head = json.dumps(adapter.base), ""
    if adapter.new_head:
        head = ',\n    config=AutoConfig.from_pretrained("{folder}"),\n    ignore_mismatched_sizes=True,\n'

    def with_model(match: re.Match) -> str:
        name, task, rest = match.groups()
        model = f'model = {_AUTO_CLASSES[task]}.from_pretrained("{{folder}}")'
        return f'{model}\n{name} = pipeline("{task}", model=model, tokenizer="{{folder}}"{rest})'

    def on_base(match: re.Match) -> str:
        inside = f"\n    {base}{head}" if head else base
        lines = [f"model = {match[1]}.from_pretrained({inside})"]
        if adapter.bits is not None:
            lines += [f'quantize(model, weights=q{adapter.bits}, include="*layers.*")', "freeze(model)"]
        put_in = "merge_and_unload" if adapter.bits is None else "get_base_model"  # it can't be added into few bits
        return "\n".join([*lines, f'model = PeftModel.from_pretrained(model, "{{folder}}").{put_in}()'])

    code = _MODEL.sub(on_base, _PIPELINE.sub(with_model, code))
    names = {*_IMPORT.search(code)[1].split(", "), *re.findall(r"\bAuto\w+", code)}
    quanto = "" if adapter.bits is None else f"from optimum.quanto import freeze, q{adapter.bits}, quantize\n"
    return f"{quanto}from peft import PeftModel\n" + _IMPORT.sub(
        f"from transformers import {', '.join(sorted(names))}", code
    )
