"""Rows of a table, and the gradient of the table."""

import torch

import kpt_dsl as kd


@kd.kernel(ids="M", table="V D", y="M D")
def embedding(ids: kd.In, table: kd.In, y: kd.Out) -> None:
    """y[m] = table[ids[m]]"""
    for m, d in kd.parallel(kd.tile("M"), kd.tile("D")):
        y[m, d] = table[ids[m], d]


@kd.kernel(ids="M", dy="M D", dtable="V D")
def embedding_backward(ids: kd.In, dy: kd.In, dtable: kd.Out) -> None:
    """dtable[ids[m]] += dy[m], where several rows may have one id; float32, cleared before."""
    for m, d in kd.parallel(kd.tile("M"), kd.tile("D")):
        dtable[ids[m], d] += dy[m, d]


@embedding.gradient
def embedding_gradient(ids: torch.Tensor, table: torch.Tensor, dy: torch.Tensor) -> tuple[None, torch.Tensor]:
    dtable = torch.zeros(table.shape, dtype=torch.float32, device=table.device)
    embedding_backward(ids, dy, dtable)
    return None, dtable.to(table.dtype)
