"""Training loops as one writes them by hand: model, AdamW, backward, clip, step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from benchmarks.jobs import Job, count_targets, padded
from benchmarks.turns import Turn


def padded_to_max(job: Job, model: Any, turn: Turn) -> None:
    """Lines, each batch padded to T."""
    _train(job, model, turn, _line_batches(job, job.sizes.length))


def dynamic_padding(job: Job, model: Any, turn: Turn) -> None:
    """Lines, each batch padded to its longest."""
    _train(job, model, turn, _line_batches(job, None))


def packed(job: Job, model: Any, turn: Turn) -> None:
    """Full blocks, taken from one tensor: the loop that everything is compared with."""
    _train(job, model, turn, _block_batches(job))


def _train(job: Job, model: Any, turn: Turn, batches: Iterator[tuple[dict[str, Any], int]]) -> None:
    import torch

    model.to(job.device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=job.learning_rate, weight_decay=0.0)
    forward = model if job.compile_mode is None else torch.compile(model, mode=job.compile_mode)
    step = _stepper(job, model, forward, optimizer)
    for batch, useful in batches:
        if not turn.done(useful, step(batch)):
            return


def _stepper(job: Job, model: Any, forward: Any, optimizer: Any) -> Callable[[dict[str, Any]], Any]:
    """One optimizer step as a function, so that nothing of a batch outlives it."""
    import torch

    def step(batch: dict[str, Any]) -> Any:
        batch = {name: tensor.to(job.device, non_blocking=True) for name, tensor in batch.items()}
        optimizer.zero_grad()
        with job.autocast():
            loss = forward(**batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), job.max_grad_norm)
        optimizer.step()
        return loss.detach()

    return step


def _line_batches(job: Job, length: int | None) -> Iterator[tuple[dict[str, Any], int]]:
    import torch
    from torch.utils.data import DataLoader

    loader: DataLoader[Any] = DataLoader(
        job.workload.lines,  # type: ignore[arg-type]
        batch_size=job.sizes.batch,
        shuffle=True,
        generator=torch.Generator().manual_seed(job.seed),
        collate_fn=lambda lines: padded(lines, job.workload.pad_id, length),
    )
    while True:
        for batch in loader:
            yield batch, count_targets(batch["labels"])


def _block_batches(job: Job) -> Iterator[tuple[dict[str, Any], int]]:
    import torch

    blocks_NT = torch.from_numpy(job.workload.blocks).long()
    generator = torch.Generator().manual_seed(job.seed)
    while True:
        for rows in torch.randperm(len(blocks_NT), generator=generator).split(job.sizes.batch):
            ids_BT = blocks_NT[rows]
            yield {"input_ids": ids_BT, "labels": ids_BT}, job.targets_a_batch
