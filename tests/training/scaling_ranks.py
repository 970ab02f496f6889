"""A training step of one configuration on each of several ranks: bytes that a rank holds, and that it sends, as JSON.

    torchrun --nproc-per-node 2 scaling_ranks.py '{"model_type": …}' ROWS LENGTH

Engines: DDP, DDP with its optimizer's states divided (ZeRO 1), FSDP2 (ZeRO 3). What is sent is what the collectives are
given, times the share that a ring sends of it.
"""

import json
import sys

import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.nn.parallel import DistributedDataParallel
from transformers import AutoConfig, AutoModelForCausalLM

import hf_ext  # noqa: F401
from hf_ext.training.scaling.communication import ring_share
from hf_ext.training.scaling.fake_model import fake_batch


class Sent:
    """Bytes that the collectives of FSDP2 and of the optimizer are given, by wrapping torch's functions."""

    def __init__(self):
        self.bytes = 0
        share = ring_share(dist.get_world_size())
        # the whole is what comes out of a gathering and what goes into a scattering; torch 2.13 has new names for both
        for names in (
            ("all_gather_single", "reduce_scatter_single"),
            ("all_gather_into_tensor", "reduce_scatter_tensor"),
        ):
            for place, name in enumerate(names):
                if hasattr(dist, name):
                    setattr(dist, name, self._counted(getattr(dist, name), place, share))

    def _counted(self, function, place: int, share: float):
        keywords = (("output", "output_tensor"), ("input", "input_tensor"))[place]

        def counted(*args, **kwargs):
            given = args[place] if len(args) > place else next(kwargs[k] for k in keywords if k in kwargs)
            self.bytes += share * given.numel() * given.element_size()
            return function(*args, **kwargs)

        return counted


def measure(engine: str, config, rows: int, length: int, sent: Sent) -> dict:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).train()
    share = ring_share(dist.get_world_size())
    sent.bytes = 0
    if engine == "fsdp2":
        # what is left to the whole model stays gathered until the backward pass; of so small a one that would be a third
        for part in (model.model.embed_tokens, *model.model.layers, model.lm_head):
            fully_shard(part, reshard_after_forward=True)
        fully_shard(model)
        wrapped = model
    else:
        wrapped = DistributedDataParallel(model)

        def all_reduced(state, bucket):
            sent.bytes += 2 * share * bucket.buffer().numel() * bucket.buffer().element_size()
            return dist.all_reduce(bucket.buffer(), async_op=True).get_future().then(lambda f: f.value()[0])

        wrapped.register_comm_hook(None, all_reduced)
    parameters = [p for p in model.parameters() if p.requires_grad]
    if engine == "zero1":
        optimizer = ZeroRedundancyOptimizer(parameters, torch.optim.AdamW, lr=1e-3)
    else:
        optimizer = torch.optim.AdamW(parameters, lr=1e-3)
    batch = fake_batch(model, "causal", rows, length, labels=True)
    batch = {k: torch.randint_like(v, 5, 50) if torch.is_tensor(v) else v for k, v in batch.items()}
    wrapped(**batch).loss.backward()
    optimizer.step()
    inner = optimizer.optim if engine == "zero1" else optimizer
    states = [t for state in inner.state.values() for t in state.values() if torch.is_tensor(t)]
    return {
        "weights": local_bytes([*model.parameters(), *model.buffers()]),
        "gradients": local_bytes([p.grad for p in model.parameters() if p.grad is not None]),
        "optimizer": local_bytes(states),
        "sent": round(sent.bytes),
    }


def local_bytes(tensors) -> int:
    """Of what lies on this rank."""
    own = [t.to_local() if hasattr(t, "to_local") else t for t in tensors]
    return sum(t.numel() * t.element_size() for t in own)


if __name__ == "__main__":
    fields, (rows, length) = json.loads(sys.argv[1]), map(int, sys.argv[2:])
    dist.init_process_group("gloo")
    config, sent = AutoConfig.for_model(fields.pop("model_type"), **fields), Sent()
    found = {engine: measure(engine, config, rows, length, sent) for engine in ("ddp", "zero1", "fsdp2")}
    ranks = [None] * dist.get_world_size()
    dist.all_gather_object(ranks, found)
    if dist.get_rank() == 0:
        print(json.dumps(ranks))
    dist.destroy_process_group()
