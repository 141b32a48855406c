"""Batches of a number of rows, or of a budget of tokens that shrinks when memory runs out."""

from collections import defaultdict

import torch
from tqdm.auto import tqdm

import utils

# tokens of one pass, by device: of padded rows with the tokens to generate, which bounds the key-value cache; of packed
# rows, enough to keep the matrix products busy
PADDED_TOKENS = defaultdict(lambda: 65_536, cpu=16_384)
PACK_TOKENS = defaultdict(lambda: 4096, cpu=1024)


def in_batches(lengths, batch_size, tokens, work, description=None, alike=False):
    """Call `work(indices)` for every batch. Returns the most rows of one batch.

    lengths: tokens of each row; tokens: of a batch with its padding, if batch_size is "auto"; alike: only rows of one
    length together, so no padding. The longest rows come first: memory runs out in the first batches or not at all, and
    the rows of a batch have about one length.
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
    """A progress bar over n rows; a silent one for short work and without a description."""
    return tqdm(total=n, desc=description, disable=description is None or n < 64, leave=False)


def pad_rows(rows, pad_id, device, left=False):
    """Lists of token ids -> ids [B, T] and attention mask [B, T], padded on the right, or on the left."""
    width = max(map(len, rows))
    ids = torch.full((len(rows), width), pad_id, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for i, row in enumerate(rows):
        place = slice(width - len(row), width) if left else slice(0, len(row))
        ids[i, place], mask[i, place] = torch.tensor(row), 1
    return ids.to(device), mask.to(device)


class Budget:
    """How much one pass may take: at most `size` rows, or for "auto" as many as `tokens` allow.

    largest: the most rows of a pass that succeeded.
    """

    def __init__(self, size, tokens):
        self.auto = size == "auto"
        self.rows = float("inf") if self.auto else size
        self.tokens, self.largest = tokens, 0

    def run(self, work, tokens, rows):
        """Do one pass, `work()`. Returns False and halves the budget if memory runs out and the size is "auto"."""
        try:
            work()
        except (RuntimeError, MemoryError, OSError) as error:
            if not (self.auto and rows > 1 and utils.is_out_of_memory(error)):
                raise
            self.tokens = min(self.tokens, tokens) // 2
        else:
            self.largest = max(self.largest, rows)
            return True
        utils.free_gpu_cache()  # after the handler, which holds the tensors of the failed pass
        return False
