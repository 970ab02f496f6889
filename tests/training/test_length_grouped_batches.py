"""Batches by tokens: within the budget, every row once an epoch, counted, resumed and accumulated exactly."""

from functools import partial

import datasets
import numpy as np
import pytest
import torch
from models.decoder_grid import make_model, tokens
from torch.utils.data import IterableDataset

from hf_ext.objectives import CausalCollator
from hf_ext.training.arguments import HfxTrainingArguments
from hf_ext.training.length_grouped_batches import (
    TokenBatchSampler,
    TokenBatchStream,
    batch_costs,
    cut_batches,
    dataset_lengths,
    length_columns,
    row_lengths,
)
from hf_ext.training.trainer import HfxTrainer


# fp32: sums in another order
FP32 = {"atol": 1e-6, "rtol": 1e-4}


def draw_lengths(count, sides, seed=0):
    """Of sentences, 2 to 60 tokens; the sides of a pair are alike."""
    draw = np.random.default_rng(seed)
    first = draw.gamma(4, 4, size=count)
    other = first * draw.normal(1, 0.2, size=count)
    return np.clip(np.stack([first, other], axis=1)[:, :sides].astype(np.int64), 2, 60)


def cost_of(lengths, cost):
    """By hand."""
    if cost == "real":
        return sum(sum(row) for row in lengths.tolist())
    return sum(len(lengths) * max(side) for side in lengths.T.tolist())


@pytest.mark.parametrize("sides", [1, 2])
@pytest.mark.parametrize("cost", ["padded", "real"])
def test_batches_are_cut_where_the_budget_is_full(cost, sides):
    lengths = draw_lengths(500, sides)
    batches = cut_batches(lengths, 256, cost)
    assert sorted(row for batch in batches for row in batch.tolist()) == list(range(500))
    for batch, after in zip(batches, [*batches[1:], None], strict=True):
        assert cost_of(lengths[batch], cost) <= 256
        if after is not None:  # one more wouldn't fit
            assert cost_of(lengths[[*batch, after[0]]], cost) > 256
            assert lengths[batch].max() <= lengths[after].max()
    assert batch_costs(lengths[:7], cost).tolist() == [cost_of(lengths[: n + 1], cost) for n in range(7)]


@pytest.mark.parametrize("num_processes", [1, 3])
@pytest.mark.parametrize("cost", ["padded", "real"])
def test_every_row_once_an_epoch_and_as_many_batches_in_each(cost, num_processes):
    lengths = draw_lengths(1000, 2)
    options = {"tokens_per_batch": 400, "cost": cost, "pool_size": 300, "seed": 5, "num_processes": num_processes}
    samplers = [TokenBatchSampler(lengths, **options, process_index=i) for i in range(num_processes)]
    orders = []
    for epoch in range(12):
        shares = []
        for sampler in samplers:
            sampler.set_epoch(epoch)
            shares.append(list(sampler))
            assert len(shares[-1]) == len(sampler) == len(samplers[0])
        whole = [batch for step in zip(*shares, strict=True) for batch in step]
        assert sorted(row for batch in whole for row in batch) == list(range(1000))
        assert all(cost_of(lengths[batch], cost) <= 400 for batch in whole)
        # alike: a batch is nearly full, but for the last of a pool and those that were halved
        assert np.median([cost_of(lengths[batch], cost) for batch in whole]) > 0.9 * 400
        orders.append(whole)
    assert len({str(order) for order in orders}) == 12
    composition = [{frozenset(batch) for batch in order} for order in orders]
    assert len(composition[0] & composition[1]) < 0.2 * len(
        composition[0]
    )  # other rows together, not only in another order
    again = TokenBatchSampler(lengths, **options)
    again.set_epoch(7)
    assert list(again) == orders[7][::num_processes]


def test_padding_is_little():
    lengths = draw_lengths(20_000, 2)
    real, padded = lengths.sum(), 0
    for batch in TokenBatchSampler(lengths, tokens_per_batch=4096).epoch_batches(0):
        padded += cost_of(lengths[batch], "padded")
    assert padded < 1.1 * real
    rows = np.random.default_rng(0).permutation(20_000).reshape(-1, 100)
    assert sum(cost_of(lengths[batch], "padded") for batch in rows) > 2 * real


def test_fewer_rows_than_processes_are_repeated():
    samplers = [TokenBatchSampler([5, 6], tokens_per_batch=6, num_processes=4, process_index=i) for i in range(4)]
    assert sorted(row for sampler in samplers for batch in sampler for row in batch) == [0, 0, 1, 1]


class Rows(IterableDataset):
    """A stream that knows which pass it is in."""

    def __init__(self, rows):
        self.rows, self.passes = rows, []

    def set_epoch(self, epoch):
        self.passes.append(epoch)

    def __iter__(self):
        return iter(self.rows)


def test_a_stream_is_read_again_and_again_in_pools():
    lengths = draw_lengths(90, 1)[:, 0].tolist()
    data = Rows([{"input_ids": list(range(n)), "number": i} for i, n in enumerate(lengths)])
    of = partial(row_lengths, columns=("input_ids",))
    shares = []
    for index in range(2):
        stream = TokenBatchStream(
            data, of, tokens_per_batch=120, pool_size=40, seed=1, num_processes=2, process_index=index
        )
        share, seen = [], 0
        for batch in stream:
            share.append([row["number"] for row in batch])
            assert len(batch) * max(len(row["input_ids"]) for row in batch) <= 120
            seen += len(batch)
            if seen > 120:
                break
        shares.append(share)
    together = [row for step in zip(*shares, strict=False) for batch in step for row in batch]
    assert sorted(together[:40]) == list(range(40))  # the first pool, whole, before the second
    assert sorted(together[:90]) == list(range(90))
    assert data.passes[:2] == [0, 1]
    assert together[:40] != together[90:130]
    with pytest.raises(ValueError, match="the stream has no rows"):
        next(iter(TokenBatchStream(Rows([]), of, tokens_per_batch=120)))
    data.rows = [{"input_ids": [1] * (200 if i == 57 else 3)} for i in range(90)]
    stream = TokenBatchStream(data, of, tokens_per_batch=20, pool_size=50)
    with pytest.raises(ValueError, match="tokens_per_batch=20: row 57 alone has 200 tokens"):
        list(zip(range(90), stream, strict=False))


def test_lengths_of_data_sets():
    rows = [{"input_ids": [1] * n, "labels": [2] * (n + 1), "n": n} for n in (3, 1, 7)]
    table = datasets.Dataset.from_list(rows)
    pair = length_columns(table.column_names, length_column="length", is_pair=True)
    for data in (rows, table, table.shuffle(seed=1).sort("n").select([1, 0, 2])):
        assert dataset_lengths(data, pair).tolist() == [[3, 4], [1, 2], [7, 8]]
    single = length_columns(table.column_names, length_column="length", is_pair=False)
    assert dataset_lengths(table, single).tolist() == [[3], [1], [7]]
    assert dataset_lengths(table, length_columns(table.column_names, length_column="n", is_pair=True)).tolist() == [
        [3],
        [1],
        [7],
    ]
    with pytest.raises(
        ValueError, match="tokens_per_batch: rows have no 'input_ids' to count \\(text\\); tokenise them"
    ):
        length_columns(["text"], length_column="length", is_pair=False)


def rows_of_tokens(count=40, seed=3):
    ids = tokens(B=count, T=12, seed=seed)
    return [{"input_ids": ids[i, : 3 + (5 * i) % 9]} for i in range(count)]


def make_trainer(folder, data=None, **arguments):
    given = {"tokens_per_batch": 48, "length_pool_size": 20, "max_steps": 12, "learning_rate": 1e-2, **arguments}
    return HfxTrainer(
        model=make_model(tie_word_embeddings=True),
        args=HfxTrainingArguments(
            output_dir=str(folder),
            use_cpu=True,
            disable_tqdm=True,
            report_to="none",
            **{"save_strategy": "no", **given},
        ),
        data_collator=CausalCollator(vocab_size=97, pad_token_id=0),
        train_dataset=rows_of_tokens() if data is None else data,
    )


def trained(trainer, **options):
    trainer.train(**options)
    return {name: p.detach().clone() for name, p in trainer.model.named_parameters()}


@pytest.mark.parametrize("kind", ["rows", "dataset", "stream"])
def test_resumed_is_uninterrupted_to_the_last_bit(tmp_path, kind):
    data = rows_of_tokens()
    if kind == "dataset":
        data = datasets.Dataset.from_list([{"input_ids": row["input_ids"].tolist()} for row in data])
    elif kind == "stream":
        data = Rows(data)
    options = {"data": data, "save_strategy": "steps", "save_steps": 1, "gradient_accumulation_steps": 2}
    whole = make_trainer(tmp_path / "whole", **options)
    expected = trained(whole)
    steps = 1 if kind == "stream" else -(-len(whole.get_train_dataloader()) // 2)
    assert kind == "stream" or 2 * steps < 12  # into the third epoch
    for step in {2, steps, steps + 2}:  # within the first epoch, at its end, within the second
        resumed = make_trainer(tmp_path / f"resumed{step}", **{**options, "save_strategy": "no"})
        found = trained(resumed, resume_from_checkpoint=str(tmp_path / "whole" / f"checkpoint-{step}"))
        for name in expected:
            assert torch.equal(found[name], expected[name]), (step, name)


def test_epochs_and_steps_are_counted_right(tmp_path):
    trainer = make_trainer(tmp_path, max_steps=-1, num_train_epochs=3, gradient_accumulation_steps=2)
    seen = []
    collate = trainer.data_collator
    trainer.data_collator = lambda rows: (seen.extend(tuple(row["input_ids"].tolist()) for row in rows), collate(rows))[
        1
    ]
    trainer.train()
    every = sorted(tuple(row["input_ids"].tolist()) for row in rows_of_tokens())
    assert [sorted(seen[i * 40 : (i + 1) * 40]) for i in range(3)] == [every] * 3
    assert seen[:40] != seen[40:80]
    batches = len(trainer._token_sampler)
    assert trainer.state.global_step == 3 * -(-batches // 2)
    assert trainer.state.epoch == 3
    assert trainer.get_total_train_batch_size(trainer.args) == round(40 / batches * 2)


def test_accumulated_is_whole(tmp_path):
    """One step over everything: the loss is per token, however unevenly the rows are spread over batches."""
    options = {"optim": "sgd", "max_steps": 1}
    pieces = make_trainer(tmp_path, gradient_accumulation_steps=100, **options)
    whole = make_trainer(tmp_path, tokens_per_batch=10_000, length_pool_size=40, **options)
    start = {name: p.detach().clone() for name, p in whole.model.named_parameters()}
    found, expected = trained(pieces), trained(whole)
    assert (len(pieces._token_sampler) > 5, len(whole._token_sampler)) == (True, 1)
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], **FP32)
        assert not torch.equal(expected[name], start[name])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"tokens_per_batch": None, "length_pool_size": 5},
            "length_pool_size=5: has no effect without tokens_per_batch",
        ),
        ({"tokens_per_batch": None, "tokens_per_batch_cost": "real"}, "tokens_per_batch_cost='real': has no effect"),
        ({"tokens_per_batch": 0}, "tokens_per_batch=0: must be at least 1"),
        ({"tokens_per_batch_cost": "all"}, "tokens_per_batch_cost='all': must be padded or real"),
        ({"per_device_train_batch_size": 4}, "per_device_train_batch_size=4: has no effect with tokens_per_batch"),
        ({"auto_find_batch_size": True}, "auto_find_batch_size=True: has no effect with tokens_per_batch"),
        ({"train_sampling_strategy": "sequential"}, "train_sampling_strategy='sequential': has no effect with"),
    ],
)
def test_nonsense_is_refused(tmp_path, options, message):
    given = {"length_pool_size": 8192, **options}
    with pytest.raises(ValueError, match=message) as caught:
        make_trainer(tmp_path, **given)
    assert "\n" not in str(caught.value)


def test_a_row_that_no_batch_holds_is_named(tmp_path):
    with pytest.raises(ValueError, match="tokens_per_batch=10: row 7 alone has 11 tokens; raise it, or cut the rows"):
        make_trainer(tmp_path, tokens_per_batch=10).get_train_dataloader()
    with pytest.raises(ValueError, match="rows have no 'input_ids' to count"):
        make_trainer(tmp_path, data=[{"text": "a"}]).get_train_dataloader()
