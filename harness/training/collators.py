"""Examples -> token ids with labels, and batches of them."""

from dataclasses import dataclass

import torch
from datasets import Dataset
from transformers import DataCollatorForSeq2Seq, DataCollatorWithPadding

import utils
from harness import flags
from harness.data.prompts import answer_end, render
from harness.models import batching, prefix_cache, properties, scoring


@dataclass
class Data:
    """What a Trainer needs besides the model."""

    train: object  # datasets.Dataset of token ids and labels
    validation: object  # the same, None without validation examples
    collate: object
    note: str | None = None


def classification_data(model, tokenizer, task, args, device):
    """Token ids and labels, by their places in the head, tokenized in batches; padded to the longest row of a batch."""
    limit = scoring.classifier_length(model, tokenizer, args.max_length)
    order = properties.label_order(model, task.labels)

    def encode(examples):
        if not examples:
            return None
        data = Dataset.from_dict(
            {
                "text": [ex.text for ex in examples],
                "text_pair": [ex.text_pair for ex in examples],
                "labels": [order[ex.label] for ex in examples],
            }
        )

        def tokenize(batch):
            pairs = None if batch["text_pair"][0] is None else batch["text_pair"]
            return tokenizer(batch["text"], pairs, truncation=True, max_length=limit)

        return data.map(tokenize, batched=True, remove_columns=["text", "text_pair"])

    collate = DataCollatorWithPadding(tokenizer, pad_to_multiple_of=None if device == "cpu" else 8)
    return Data(encode(task.train), encode(task.validation), collate)


def answer_data(model, tokenizer, task, args, chat):
    """Prompts with their answers, as prompt_eval.py prompts, the loss on the answers and their ends only.

    Prompt and answer are tokenized together. What is too long loses the beginning of its prompt, and then the end of
    its answer.
    """
    if args.padding_free and not (
        properties.takes(model, "position_ids")
        and properties.takes(model, "logits_to_keep")
        and not properties.learns_prompt(model)
    ):
        raise utils.UserError("--padding_free is for causal models that take position_ids, and not for learned prompts")
    limit = min(args.max_length or 512, properties.context_length(model) or args.max_length or 512)
    seq2seq, cut = model.config.is_encoder_decoder, 0
    end = tokenizer(answer_end(tokenizer, chat), add_special_tokens=False).input_ids

    def encode(examples):
        nonlocal cut
        if not examples:
            return None
        rendered = [(*render(task, ex, (), tokenizer if chat else None), task.target(ex)) for ex in examples]
        prompts = tokenizer([prompt for prompt, _, _ in rendered], add_special_tokens=not chat, verbose=False).input_ids
        if seq2seq:
            cut += sum(len(ids) > limit for ids in prompts)
            targets = tokenizer(
                text_target=[target for _, _, target in rendered], truncation=True, max_length=limit
            ).input_ids
            return dataset([ids[-limit:] for ids in prompts], targets)
        ids, labels = [], []
        whole = tokenizer(["".join(parts) for parts in rendered], add_special_tokens=not chat, verbose=False).input_ids
        for prompt, row in zip(prompts, whole):
            row = row if row[-len(end) :] == end else row + end
            start = max(1, prefix_cache.common_prefix([prompt, row]))
            excess = min(max(len(row) - limit, 0), start - 1)
            cut += len(row) > limit
            ids.append(row[excess:][:limit])
            labels.append(([-100] * (start - excess) + row[start:])[:limit])
        return dataset(ids, labels)

    train, validation = encode(task.train), encode(task.validation)
    if seq2seq:
        collate = DataCollatorForSeq2Seq(tokenizer, model)
    else:
        collate = Responses(
            tokenizer.pad_token_id,
            args.padding_free,
            positions=properties.takes(model, "position_ids"),
            partial_head=properties.takes(model, "logits_to_keep") and not properties.learns_prompt(model),
            flash=getattr(args, "attn_implementation", None) == flags.FLASH,
        )
    return Data(
        train, validation, collate, f"{cut} training or validation examples were cut to {limit} tokens" if cut else None
    )


def dataset(ids, labels):
    return Dataset.from_dict({"input_ids": ids, "labels": labels})


@dataclass
class Responses:
    """Collates prompts with their responses so that the language-model head projects few positions but the responses'.

    Rows are padded on the left and so end together: only the last columns, as many as the longest response has, go
    through the head, whose logits are most of the memory of a small model. padding_free: the rows of a batch follow
    each other in one, position 0 begins the next (without a cache transformers keeps their attention apart), and
    exactly the responses' positions are projected. flash: flash attention is told where rows begin, which it would else
    find in every layer from the positions. positions: does the model take position_ids; partial_head: may the
    head project some positions only?
    """

    pad_id: int
    padding_free: bool = False
    positions: bool = True
    partial_head: bool = True
    flash: bool = False

    def __call__(self, rows):
        if self.padding_free:
            ids, labels = (
                torch.tensor([token for row in rows for token in row[name]]) for name in ("input_ids", "labels")
            )
            kept = (labels[1:] != -100).nonzero()[:, 0]
            lengths = torch.tensor([0, *(len(row["input_ids"]) for row in rows)], dtype=torch.int32)
            cuts, longest = lengths.cumsum(0, dtype=torch.int32), int(lengths.max())
            ends = {"cu_seq_lens_q": cuts, "cu_seq_lens_k": cuts, "max_length_q": longest, "max_length_k": longest}
            return {
                **(ends if self.flash else {}),
                "input_ids": ids[None],
                "position_ids": torch.cat([torch.arange(len(row["input_ids"])) for row in rows])[None],
                "labels": labels[None],
                "shift_labels": labels[kept + 1][None],
                "logits_to_keep": kept,
                "use_cache": False,
            }
        left = self.partial_head
        ids, mask = batching.pad_rows([row["input_ids"] for row in rows], self.pad_id, "cpu", left)
        labels, _ = batching.pad_rows([row["labels"] for row in rows], -100, "cpu", left)
        batch = {"input_ids": ids, "attention_mask": mask, "labels": labels}
        if left:
            kept = 1 + int((labels != -100).sum(1).max())  # the position before the response predicts its first token
            following = torch.cat([labels[:, 1:], torch.full((len(rows), 1), -100)], 1)
            batch.update(logits_to_keep=kept, shift_labels=following[:, -kept:].contiguous())
        if left and self.positions:
            batch["position_ids"] = (mask.cumsum(1) - 1).clamp(min=0)
        return batch
