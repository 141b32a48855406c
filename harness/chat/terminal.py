"""A conversation at a terminal: chat_eval.py --mode interactive."""

import contextlib
import json
import time
from pathlib import Path

from transformers import TextStreamer

import utils
from harness import terminal
from harness.chat import benchmarks
from harness.evaluation import prompting
from harness.models import generation, prefix_cache, properties
from harness.results import outputs

HELP = (
    "/reset forgets, /system TEXT, /adapter on|off, /retry asks the last turn again, /save [FILE], /help, /quit; "
    "Ctrl-C stops an answer"
)


class Chat:
    """One conversation with a model. Turns share a key-value cache of the prompt's common prefix."""

    def __init__(self, model, tokenizer, chat, max_new_tokens, temperature, system=None, adapter_name=None):
        """chat: True if prompts are rendered with the tokenizer's chat template; temperature: 0 is greedy."""
        self.model, self.tokenizer, self.chat = model, tokenizer, chat
        self.max_new_tokens, self.temperature, self.system = max_new_tokens, temperature, system
        self.has_adapter, self.adapter_name = hasattr(model, "peft_config"), adapter_name
        self.adapter = self.has_adapter  # True while it is on
        self.stop = prompting.answer_stop(model, tokenizer, "instruction", chat)
        self.turns, self.answers, self.prefix = [], [], prefix_cache.Prefix()
        self.log = []  # all answers, also those that a reset or a retry took out of the conversation

    def forget_cache(self):
        """Drop a cache that other weights computed, or that an interrupt left incomplete."""
        self.prefix = prefix_cache.Prefix()

    def prompt(self, turn):
        """(text, token ids, how many of the oldest turns were dropped so that it fits into the model's context)."""
        room = properties.context_length(self.model)
        for dropped in range(len(self.turns) + 1):
            turns, answers = [*self.turns[dropped:], turn], self.answers[dropped:]
            text = benchmarks.render(turns, answers, self.tokenizer if self.chat else None, self.system)
            ids = self.tokenizer(text, add_special_tokens=not self.chat, verbose=False).input_ids
            if room is None or len(ids) <= room - self.max_new_tokens:
                break
        return text, ids, dropped

    def say(self, turn):
        """Answer a turn and print the text as it comes. An interrupt leaves the conversation as it was before."""
        text, ids, dropped = self.prompt(turn)
        if dropped:
            print(f"(the context is full: the {dropped} oldest turns are forgotten)")
        start = time.perf_counter()
        switch = contextlib.nullcontext() if self.adapter or not self.has_adapter else self.model.disable_adapter()
        try:
            with switch:
                found = self._generate(text, ids)
        except BaseException:  # an interrupt too
            self.forget_cache()
            raise
        seconds, answer = time.perf_counter() - start, found.answers[0]
        self.turns, self.answers = [*self.turns[dropped:], turn], [*self.answers[dropped:], answer]
        self.log.append({"adapter": self.adapter, "prompt": turn, "answer": answer})
        state = f", adapter {'on' if self.adapter else 'off'}" if self.has_adapter else ""
        print(f"    [{found.new_tokens} tokens, {found.new_tokens / seconds:.1f} tokens/s{state}]", flush=True)

    def _generate(self, text, ids):
        """The generation.Answers to a prompt, which extend the cache. ids: the prompt's tokens."""
        if prefix_cache.shares_prefix(self.model, len(ids) + self.max_new_tokens):
            common = prefix_cache.common_prefix([self.prefix.ids, ids])
            prefix_cache.crop(self.prefix, min(common, len(ids) - 1))  # the last token is always computed
            if len(ids) - 1 > len(self.prefix.ids):
                prefix_cache.extend(self.model, self.prefix, ids[len(self.prefix.ids) : -1])
        return generation.generate(
            self.model,
            self.tokenizer,
            [text],
            self.max_new_tokens,
            1,
            self.stop,
            not self.chat,
            prefix=self.prefix,
            streamer=TextStreamer(self.tokenizer, skip_prompt=True, skip_special_tokens=True),
            **({"do_sample": True, "temperature": self.temperature} if self.temperature else {}),
        )

    # ------------------------------------------------------------------------------------------------------ commands

    def reset(self, _):
        self.turns, self.answers = [], []
        print("the conversation is forgotten")

    def set_system(self, text):
        self.system = text or None
        print(f"system text: {text}" if text else "no system text")

    def set_adapter(self, state):
        if not self.has_adapter:
            raise utils.UserError("there is no adapter; start with --adapter DIR, without --no_lora")
        if state not in ("on", "off"):
            now = "on" if self.adapter else "off"
            raise utils.UserError(f"/adapter on or /adapter off, not {state!r}; it is {now}")
        if (state == "on") != self.adapter:
            self.forget_cache()
        self.adapter = state == "on"
        print(f"adapter {state}{'' if self.adapter else ': the base model answers'}")

    def retry(self, _):
        if not self.turns:
            raise utils.UserError("nothing was asked yet")
        turn, answer = self.turns.pop(), self.answers.pop()
        try:
            self.say(turn)
        except BaseException:
            self.turns.append(turn)
            self.answers.append(answer)
            raise

    def save(self, file):
        path = Path(file or f"chat-{time.strftime('%Y%m%d-%H%M%S')}.json").expanduser()
        conversation = {
            "script": outputs.SCRIPTS["conversation"],  # the mark of a file that /save may replace
            "model": self.model.config._name_or_path,
            "adapter": self.adapter_name,
            "max_new_tokens": self.max_new_tokens,
            "temperature": self.temperature,
            "system": self.system,
            "turns": self.turns,
            "answers": self.answers,
            "all": self.log,
        }
        outputs.write(path, json.dumps(conversation, indent=2, ensure_ascii=False) + "\n", "conversation", "/save")
        print(f"saved in {path}")

    def run(self):
        """Answer what is typed until /quit or the end of input."""
        commands = {
            "reset": self.reset,
            "system": self.set_system,
            "adapter": self.set_adapter,
            "retry": self.retry,
            "save": self.save,
        }
        print(HELP, flush=True)
        terminal.command_loop(commands, self.say, HELP, prefix="/")
