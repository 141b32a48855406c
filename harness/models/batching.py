"""Batches by a number of rows or a budget of tokens that shrinks where memory runs out."""

import torch
from tqdm.auto import tqdm

import utils

PADDED_TOKENS = {
    "cpu": 16_384,
    "cuda": 65_536,
}  # of padded rows with the tokens to be generated: bounds the key-value cache


def in_batches(lengths, batch_size, tokens, work, description=None, alike=False):
    """Call `work(indices)` for every batch, longest rows first. Returns the most rows of one batch.

    tokens: of a batch with its padding, where batch_size is "auto"; alike: no padding, only rows of one length together. Out of
    memory shows in the first batches, and the rows of one batch are of about one length.
    """
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    budget, start = Budget(batch_size, tokens), 0
    with progress_bar(len(order), description) as bar:
        while start < len(order):
            width = max(lengths[order[start]], 1)
            batch = order[start : start + (max(1, budget.tokens // width) if budget.auto else batch_size)]
            batch = [i for i in batch if lengths[i] == lengths[batch[0]]] if alike else batch
            if budget.run(lambda batch=batch: work(batch), width * len(batch), len(batch)):
                start += len(batch)
                bar.update(len(batch))
    return budget.largest


def progress_bar(n, description):
    """A progress bar, for long work that has a description."""
    return tqdm(total=n, desc=description, disable=description is None or n < 64, leave=False)


def pad_rows(rows, pad_id, device, left=False):
    """Lists of token ids -> ids [B, T] and attention mask [B, T]."""
    width = max(map(len, rows))
    ids = torch.full((len(rows), width), pad_id, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for i, row in enumerate(rows):
        place = slice(width - len(row), width) if left else slice(0, len(row))
        ids[i, place], mask[i, place] = torch.tensor(row), 1
    return ids.to(device), mask.to(device)


PACK_TOKENS = {"cpu": 1024, "cuda": 4096}  # of one pass of packed rows: enough to keep the matrix products busy


class Budget:
    """How much one pass may take: at most `size` rows or, for "auto", as many as `tokens` allow.

    largest: the most rows of a pass that went through.
    """

    def __init__(self, size, tokens):
        self.auto = size == "auto"
        self.rows = float("inf") if self.auto else size
        self.tokens, self.largest = tokens, 0

    def run(self, work, tokens, rows):
        """Do one pass, `work()`. Out of memory, where the size is ours to choose, halves the budget and returns False."""
        try:
            work()
        except (RuntimeError, MemoryError, OSError) as error:
            if not (self.auto and rows > 1 and utils.is_out_of_memory(error)):
                raise
            self.tokens = min(self.tokens, tokens) // 2
        else:
            self.largest = max(self.largest, rows)
            return True
        if torch.cuda.is_available():  # outside the handler, which holds the failed pass' tensors
            torch.cuda.empty_cache()
        return False
