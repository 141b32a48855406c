"""The generator of retrieval-augmented generation: a question and passages in, an answer out."""

import bisect
import re
from dataclasses import replace

from harness.data.examples import Example
from harness.data.prompts import QA_CONTEXT_INSTRUCTION, QA_INSTRUCTION, render, with_instruction
from harness.evaluation import prompting
from harness.models import adapters, engines, generation, loading, properties

NOT_FOUND = "not in the documents"
CITING = (
    "Use the numbered texts to answer the question in a few words, and give the number of the text you used, as in [1]."
)


def join(texts):
    """The context of a prompt: passages, the best of which comes first here and last there."""
    return "\n\n".join(reversed(texts))


class Reader:
    """The model of --gen_model and its prompts. args: rag_eval.py's; task: whose instruction and template are used."""

    def __init__(self, args, device, task):
        self.args, self.task = args, task
        self.demonstrations = ()  # Examples that every prompt shows before its question
        self.fewer = set()  # ids of questions whose prompts show fewer of them, so that more passages fit
        self.tokenizer = loading.load_tokenizer(args.gen_model, args.trust_remote_code, args.thinking, args.adapter)
        self.chat = loading.uses_chat(args.prompt_format, self.tokenizer)
        model = engines.load(
            args,
            args.gen_model,
            device,
            args.adapter,
            precision=args.precision,
            trust_remote_code=args.trust_remote_code,
            attention=args.attn_implementation,
        )
        self.model, self.merged = adapters.merge_adapter(model)  # merged: a remark for the row, or None
        self.new_tokens, limit = prompting.answer_length(args, task), properties.context_length(self.model)
        # tokens of a prompt, None for no limit; a decoder's answer takes from the same context
        self.room = limit and limit - (0 if self.model.config.is_encoder_decoder else self.new_tokens)
        self.options = {
            "stop": prompting.task_stop(self.model, self.tokenizer, task, self.chat),
            "add_special_tokens": not self.chat,
        }

    def prompt(self, question, hits):
        """(prompt, hits left out): with as many of the hits, best first, as fit into the model and --context_tokens.
        question: a text, or an Example, whose options are shown.

        The best passage is the last one, next to the question: models use the middle of a long context least (Liu et
        al. 2024, "Lost in the middle").
        """
        asked = question if isinstance(question, Example) else Example("question", question)
        texts = [hit.chunk.full for hit in hits]
        if self.args.citations:
            texts = [f"[{n}] {text}" for n, text in enumerate(texts, start=1)]
        with_passages = CITING if self.args.citations else QA_CONTEXT_INSTRUCTION
        shown = list(self.demonstrations)

        def with_first(n):  # (context, prompt)
            context = join(texts[:n])
            example = replace(asked, context=context or None)
            task = with_instruction(self.task, with_passages if n else QA_INSTRUCTION)
            return context, render(task, example, shown, self.tokenizer if self.chat else None)[0]

        def too_long(n):
            context, prompt = with_first(n)
            if self.args.context_tokens and self._count(context) > self.args.context_tokens:
                return True
            return self.room is not None and self._count(prompt) > self.room

        def most():
            return bisect.bisect_left(range(1, len(texts) + 1), True, key=too_long)

        n = most()
        if n < len(texts) and shown:  # demonstrations go before passages
            everything, shown[:] = list(shown), []
            n = most()
            for first in range(len(everything) + 1):
                shown[:] = everything[first:]
                if most() == n:
                    break
            if first:
                self.fewer.add(asked.id)
        return with_first(n)[1], len(texts) - n

    def _count(self, text):
        return len(self.tokenizer(text, verbose=False).input_ids)

    def answer(self, questions, passages, required, batch_size="auto", progress=None):
        """([Q] texts, generation.Answers of those that were generated or None, [Q] numbers of hits left out).

        questions: [Q] as of `prompt`; passages: [Q] lists of hits. required: a question without hits is answered with
        NOT_FOUND, without the model.
        """
        prompts = [self.prompt(question, hits) for question, hits in zip(questions, passages)]
        asked = [i for i, hits in enumerate(passages) if hits or not required]
        texts, answers = [NOT_FOUND] * len(questions), None
        if asked:
            answers = generation.generate(
                self.model,
                self.tokenizer,
                [prompts[i][0] for i in asked],
                self.new_tokens,
                batch_size,
                progress=progress,
                **self.options,
            )
            for i, text in zip(asked, answers.answers):
                texts[i] = text
        return texts, answers, [left_out for _, left_out in prompts]

    def time(self, question, retrieve):
        """A generation.Timed of this question alone, text in to answer out. retrieve: () -> hits, timed as well."""
        return generation.time_request(
            self.model, self.tokenizer, lambda: self.prompt(question, retrieve())[0], self.new_tokens, **self.options
        )


def without_citations(answer):
    """(the answer without its [n] marks, the numbers in them)."""
    marks = [int(n) for n in re.findall(r"\[(\d+)\]", answer)]
    return " ".join(re.sub(r"\s*\[\d+\]", "", answer).split()), marks
