"""Runs that are killed, stopped or starved, and gone on with: each process forked from one that has imported everything.

    python checkpoint_runs.py FOLDER < cases.json        one line of JSON a case, as it is done

A case is {"name", "variant", "processes", "event", "arguments"}; the uninterrupted run of each variant comes first. Events:

    {"kind": "kill", "operation": K, "half", "rank"}    before the K-th operation on the disk of the save at step 4, or in it
    {"kind": "kill", "operation": K, "name": NAME, …}   before the K-th of that name
    {"kind": "kill_after", "share": S}                  after this share of the time that an uninterrupted run takes
    {"kind": "sigterm", "step": N, "rank", "group"}     while step N + 1 runs
    {"kind": "full_disk", "bytes": B}                   no file may grow above so many bytes from step 3 on
    {"kind": "full_tmpfs"}                              the run's folder is a disk of its own, filled up at step 3
    {"kind": "flip", "file": NAME}                      one bit of a file of the last checkpoint but one
    {"kind": "count"}                                   nothing: says which operations and files there are
"""

import hashlib
import json
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
import traceback
from contextlib import suppress
from functools import partial
from pathlib import Path

import datasets
import peft
import safetensors.torch
import torch
import transformers.modeling_utils
from transformers import TrainerCallback, TrainerState, set_seed

import hf_ext.training.checkpoints.split_optimizer
import hf_ext.training.weight_average
from hf_ext.data import pack_documents
from hf_ext.models import HfxDecoderConfig, HfxDecoderForCausalLM, HfxEncoderConfig, HfxEncoderForMaskedLM
from hf_ext.objectives import CausalCollator, MaskedCollator
from hf_ext.tasks.run_folder import find_checkpoint, is_complete
from hf_ext.training.arguments import HfxTrainingArguments
from hf_ext.training.distributed import split_model
from hf_ext.training.trainer import HfxTrainer


with suppress(ImportError):
    import deepspeed  # noqa: F401  accelerate would import it in every process

STEPS, SAVE_STEPS = 6, 2
KILLED_SAVE = 4  # the step whose save is killed: one checkpoint is before it, one after
SIZES = {"vocab_size": 97, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
SIZES |= {"max_position_embeddings": 64, "hidden_dropout": 0.1}
# seconds until what doesn't end by itself counts as hung
HUNG = 120


def documents(count=40):
    """Token lists of 4 to 19, always the same."""
    draw = torch.Generator().manual_seed(7)
    return [torch.randint(3, 97, (4 + 7 * i % 16,), generator=draw).tolist() for i in range(count)]


def decoder():
    return HfxDecoderForCausalLM(HfxDecoderConfig(**SIZES, tie_word_embeddings=True))


def untied_decoder():
    """Its 97 words don't divide, which tied ones must."""
    return HfxDecoderForCausalLM(HfxDecoderConfig(**SIZES, tie_word_embeddings=False))


def encoder():
    return HfxEncoderForMaskedLM(HfxEncoderConfig(**SIZES, pad_token_id=0))


def with_adapter():
    config = peft.LoraConfig(task_type="CAUSAL_LM", r=2, init_lora_weights=False, lora_dropout=0.1)
    return peft.get_peft_model(decoder(), config)


def rows():
    return [{"input_ids": document} for document in documents()]


def few_rows():
    """Of one length: accelerate's stream for several processes takes no others."""
    return [{"input_ids": document[:4] + [i + 3] * 4} for i, document in enumerate(documents(12))]


def stream(make_rows=few_rows):
    """Three batches of four rows, then it begins again."""
    return datasets.IterableDataset.from_generator(make_rows).shuffle(seed=3, buffer_size=8)


def packed():
    return list(pack_documents(documents(160), row_length=32, eos_token_id=1, pad_token_id=0))


causal = partial(CausalCollator, vocab_size=97, pad_token_id=0)
masked = partial(MaskedCollator, vocab_size=97, pad_token_id=0, mask_token_id=2, special_token_ids=(0, 1, 2))
ZERO = {
    "bf16": {"enabled": "auto"},
    "gradient_accumulation_steps": "auto",
    "train_batch_size": "auto",
    "train_micro_batch_size_per_gpu": "auto",
    "zero_allow_untested_optimizer": True,
}


def zero(stage):
    optimization = {"stage": stage, "stage3_gather_16bit_weights_on_model_save": True}
    return {"deepspeed": {**ZERO, "zero_optimization": {**optimization, "stage3_param_persistence_threshold": 0}}}


# variant -> (model, rows, collator, arguments); with dropout, and within the second epoch at the end
VARIANTS = {
    "rows": (decoder, rows, causal, {"gradient_accumulation_steps": 2, "ema_decay": 0.9}),
    "workers": (encoder, rows, masked, {"dataloader_num_workers": 2}),
    "stream": (encoder, stream, masked, {}),
    "stream_workers": (encoder, stream, masked, {"dataloader_num_workers": 1}),
    "packed": (decoder, packed, causal, {"matrix_optimizer": "muon"}),
    "lora": (with_adapter, rows, causal, {"learning_rate": 0.05}),
    "tokens": (decoder, rows, causal, {"tokens_per_batch": 96, "length_pool_size": 20, "ema_decay": 0.9}),
    "token_stream": (decoder, partial(stream, rows), causal, {"tokens_per_batch": 96, "length_pool_size": 20}),
    "zero2": (decoder, rows, causal, zero(2)),
    "zero3": (decoder, rows, causal, zero(3)),
    "fsdp2": (untied_decoder, rows, causal, {"fsdp_size": 2}),
    "tp": (untied_decoder, rows, causal, {"tp_size": 2}),
    "tp_fsdp2": (untied_decoder, rows, causal, {"tp_size": 2, "fsdp_size": 2}),
}


class DiskOperations:
    """Counts the calls by which a save changes the disk, and kills the process before one of them or in its midst."""

    WRITERS = ("torch.save", "save_file", "save_to_json")

    def __init__(self, kill_at=None, half=False, name=None):
        self.kill_at, self.half, self.name, self.is_active, self.names = kill_at, half, name, False, []
        for name in ("mkdir", "fsync", "replace", "rename", "unlink", "rmdir"):
            self._watch(os, name, name)
        self._watch(torch, "save", "torch.save")
        self._watch(TrainerState, "save_to_json", "save_to_json")
        self._watch(transformers.modeling_utils, "safe_save_file", "save_file")
        self._watch(peft.peft_model, "safe_save_file", "save_file")
        self._watch(hf_ext.training.weight_average, "save_file", "save_file")
        self._watch(hf_ext.training.checkpoints.split_optimizer, "save_file", "save_file")

    def _watch(self, owner, attribute, name):
        function = getattr(owner, attribute)

        def call(*args, **kwargs):
            if self.is_active:
                self.names.append(name)
                is_counted = self.name in (None, name)
                if is_counted and self.kill_at == sum(self.name in (None, other) for other in self.names):
                    if self.half and name in self.WRITERS:
                        self.is_active = False
                        function(*args, **kwargs)
                        os.truncate(args[1], os.path.getsize(args[1]) // 2)
                    os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **kwargs)

        setattr(owner, attribute, call)


class EventTrainer(HfxTrainer):
    operations: DiskOperations | None = None

    def _save_checkpoint(self, model, trial):
        if self.operations is not None:
            self.operations.is_active = self.state.global_step == KILLED_SAVE
        super()._save_checkpoint(model, trial)
        if self.operations is not None:
            self.operations.is_active = False


class AtStep(TrainerCallback):
    """Calls a function when the step after `step` begins."""

    def __init__(self, step, function):
        self.step, self.function = step, function

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            self.function()


def make_trainer(variant, folder, arguments):
    make_model, make_rows, collator, given = VARIANTS[variant]
    defaults = {"max_steps": STEPS, "save_steps": SAVE_STEPS, "learning_rate": 1e-2}
    if "tokens_per_batch" not in given:
        defaults["per_device_train_batch_size"] = 4
    args = HfxTrainingArguments(
        output_dir=str(folder),
        use_cpu=True,
        disable_tqdm=True,
        report_to="none",
        ddp_backend="gloo" if "RANK" in os.environ else None,
        logging_steps=100,
        **{**defaults, **given, **arguments},
    )
    set_seed(11)
    return EventTrainer(
        model=split_model(make_model(), args), args=args, data_collator=collator(), train_dataset=make_rows()
    )


def fill_up(folder):
    """Until nothing goes in any more, as another program would."""
    with suppress(OSError), open(folder / "filler", "wb", buffering=0) as file:
        while True:
            file.write(b"x" * 4096)


def prepare(trainer, folder, event, rank):
    """Have what is to happen to this process happen."""
    kind = event.get("kind")
    if kind == "kill" and event.get("rank", 0) == rank:
        trainer.operations = DiskOperations(event["operation"], event.get("half", False), event.get("name"))
    elif kind == "count" and rank == 0:
        trainer.operations = DiskOperations()
    elif kind == "sigterm" and event.get("rank", 0) == rank:
        send = partial(os.killpg, 0) if event.get("group") else partial(os.kill, os.getpid())
        trainer.add_callback(AtStep(event["step"], lambda: send(signal.SIGTERM)))
    elif kind == "full_disk" and rank == 0:
        limit = (event["bytes"], resource.RLIM_INFINITY)
        trainer.add_callback(AtStep(3, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limit)))
    elif kind == "full_tmpfs" and rank == 0:
        trainer.add_callback(AtStep(3, lambda: fill_up(folder)))


def train(variant, folder, arguments, event, rank):
    trainer = make_trainer(variant, folder, arguments)
    checkpoint = find_checkpoint(trainer.args, "auto")
    prepare(trainer, folder, event, rank)
    (folder / f"began{rank}").touch()
    if is_complete(checkpoint, trainer.args):  # as a recipe does: the stock Trainer would train one step more
        trainer.load_finished(checkpoint)
    else:
        trainer.train(checkpoint)
    trainer.save_model(str(folder / "final"))
    if event.get("kind") == "count" and rank == 0:
        (folder / "operations.json").write_text(json.dumps(trainer.operations.names))


def fork(variant, folder, arguments, event, rank, processes, port):
    """A process that trains; its number."""
    number = os.fork()
    if number:
        return number
    os.setpgid(0, 0)
    log = os.open(folder / f"log{rank}", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    if processes > 1:
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes)}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    code = 1
    try:
        train(variant, folder, arguments, event, rank)
        code = 0
    except SystemExit as stop:
        code = stop.code
    except (ValueError, OSError) as error:
        print(f"error: {error}")
        code = 2
    except BaseException:  # a process of a test ends here, whatever happened
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def run(variant, folder, *, processes=1, arguments=None, event=None, kill_after=None):
    """Exit codes of the processes; negative: the signal. Those that go on when one was killed are killed too."""
    folder.mkdir(exist_ok=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    for rank in range(processes):
        (folder / f"began{rank}").unlink(missing_ok=True)
        (folder / f"log{rank}").unlink(missing_ok=True)
    numbers = [fork(variant, folder, arguments or {}, event or {}, rank, processes, port) for rank in range(processes)]
    codes, began = {}, time.monotonic()
    kill_at = None
    while len(codes) < processes:
        for number in numbers:
            if number not in codes:
                ended, status = os.waitpid(number, os.WNOHANG)
                if ended:
                    codes[number] = os.waitstatus_to_exitcode(status)
        if (
            kill_after is not None
            and kill_at is None
            and all((folder / f"began{r}").exists() for r in range(processes))
        ):
            kill_at = time.monotonic() + kill_after
        is_late = time.monotonic() > began + HUNG or (kill_at is not None and time.monotonic() > kill_at)
        if is_late or any(code == -signal.SIGKILL for code in codes.values()):
            for number in numbers:
                with suppress(ProcessLookupError):
                    os.killpg(number, signal.SIGKILL)
        time.sleep(0.005)
    return [codes[number] for number in numbers]


def final_weights(folder):
    """Digest of every tensor of the final model; None if there is none."""
    files = sorted((folder / "final").glob("*.safetensors"))
    digest = hashlib.sha256()
    for path in files:
        for name, tensor in sorted(safetensors.torch.load_file(path).items()):
            digest.update(name.encode() + tensor.contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest() if files else None


def flip_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


def listing(folder):
    return sorted(path.name for path in folder.iterdir() if "checkpoint" in path.name)


def logs(folder):
    return "\n".join(path.read_text(errors="replace")[-3000:] for path in sorted(folder.glob("log*")))


def uninterrupted(root, variant, processes, arguments):
    """The folder of the run that nothing happens to, made once, and how long it took after it began."""
    name = f"whole-{variant}-{processes}-{hashlib.sha256(json.dumps(arguments).encode()).hexdigest()[:6]}"
    folder = root / name
    if not folder.exists():
        codes = run(variant, folder, processes=processes, arguments=arguments, event={"kind": "count"})
        assert not any(codes), logs(folder)
    ended = max(path.stat().st_mtime for path in (folder / "final").iterdir())
    return folder, ended - (folder / "began0").stat().st_mtime


def do_case(root, case):
    """What happened: codes and folders after the event, codes and equality after going on."""
    variant, processes, event = case["variant"], case.get("processes", 1), case["event"]
    arguments = case.get("arguments", {})
    whole, seconds = uninterrupted(root, variant, processes, arguments)
    folder = root / "case"
    if event["kind"] == "full_tmpfs":
        folder.mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", "size=16m", "none", str(folder)]
        if subprocess.run(mount, capture_output=True, check=False).returncode:
            shutil.rmtree(folder)
            return {"skipped": "a file system can't be mounted here"}
    try:
        if event["kind"] == "flip":
            shutil.copytree(whole, folder)
            shutil.rmtree(folder / "checkpoint-6")
            shutil.rmtree(folder / "final")
            flip_bit(folder / "checkpoint-4" / event["file"])
            codes = None
        else:
            after = seconds * event["share"] if event["kind"] == "kill_after" else None
            codes = run(variant, folder, processes=processes, arguments=arguments, event=event, kill_after=after)
        found = {"codes": codes, "folders": listing(folder), "log": logs(folder)}
        (folder / "filler").unlink(missing_ok=True)
        if codes != [0] * processes:
            found["resumed_codes"] = run(variant, folder, processes=processes, arguments=arguments)
        found |= {"resumed_folders": listing(folder), "resumed_log": logs(folder)}
        found["equal"] = final_weights(folder) is not None and final_weights(folder) == final_weights(whole)
        return found
    finally:
        if event["kind"] == "full_tmpfs":
            subprocess.run(["umount", str(folder)], check=False)
        shutil.rmtree(folder, ignore_errors=True)


def main():
    root = Path(sys.argv[1])
    for case in json.load(sys.stdin):
        if case["event"]["kind"] == "count":
            whole, _ = uninterrupted(root, case["variant"], case.get("processes", 1), case.get("arguments", {}))
            names = json.loads((whole / "operations.json").read_text())
            files = json.loads((whole / "checkpoint-6" / "manifest.json").read_text())["files"]
            found = {"operations": names, "files": sorted(files), "folders": listing(whole)}
            found["weights"] = final_weights(whole)
        else:
            found = do_case(root, case)
        print(json.dumps({**case, **found}), flush=True)


if __name__ == "__main__":
    main()
