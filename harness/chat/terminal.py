"""chat_eval.py --mode interactive."""

import contextlib
import json
import time
from pathlib import Path

from transformers import TextStreamer

import utils
from harness import terminal
from harness.chat import benchmarks
from harness.evaluation import prompting
from harness.models import generation, loading, prefix_cache

HELP = "/reset forgets, /system TEXT, /adapter on|off, /retry asks the last again, /save [FILE], /help, /quit; Ctrl-C stops an answer"


class Chat:
    """One conversation with a model. What the next prompt has in common with the last one stays in a key-value cache."""

    def __init__(self, model, tokenizer, chat, max_new_tokens, temperature, system=None, adapter_name=None):
        self.model, self.tokenizer, self.chat = model, tokenizer, chat
        self.max_new_tokens, self.temperature, self.system = max_new_tokens, temperature, system
        self.adapter, self.adapter_name = hasattr(model, "peft_config"), adapter_name  # is it on?
        self.turns, self.answers, self.prefix, self.told = [], [], prefix_cache.Prefix(), []

    def forget_cache(self):
        """What is cached was computed with other weights, or is only half there."""
        self.prefix = prefix_cache.Prefix()

    def prompt(self, turn):
        """(text, token ids, how many of the oldest turns it leaves out, so that it fits into the model's context)."""
        room = loading.context_length(self.model)
        for left_out in range(len(self.turns) + 1):
            turns, answers = [*self.turns[left_out:], turn], self.answers[left_out:]
            text = benchmarks.render(turns, answers, self.tokenizer if self.chat else None, self.system)
            ids = self.tokenizer(text, add_special_tokens=not self.chat, verbose=False).input_ids
            if room is None or len(ids) <= room - self.max_new_tokens:
                break
        return text, ids, left_out

    def say(self, turn):
        """Answer a turn, printing the text as it comes. An interrupt leaves the conversation as it was before."""
        text, ids, left_out = self.prompt(turn)
        if left_out:
            print(f"(the context is full: the {left_out} oldest turns are forgotten)")
        stop = prompting.answer_stop(self.model, self.tokenizer, "instruction", self.chat)
        options = {"do_sample": True, "temperature": self.temperature} if self.temperature else {}
        start = time.perf_counter()
        with (
            contextlib.nullcontext()
            if self.adapter or not hasattr(self.model, "peft_config")
            else self.model.disable_adapter()
        ):
            try:
                if prefix_cache.shares_prefix(self.model, len(ids) + self.max_new_tokens):
                    prefix_cache.crop(
                        self.prefix, min(prefix_cache.common_prefix([self.prefix.ids, ids]), len(ids) - 1)
                    )
                    if len(ids) - 1 > len(self.prefix.ids):
                        prefix_cache.extend(self.model, self.prefix, ids[len(self.prefix.ids) : -1])
                streamer = TextStreamer(self.tokenizer, skip_prompt=True, skip_special_tokens=True)
                found = generation.generate(
                    self.model,
                    self.tokenizer,
                    [text],
                    self.max_new_tokens,
                    1,
                    stop,
                    not self.chat,
                    prefix=self.prefix,
                    streamer=streamer,
                    **options,
                )
            except BaseException:
                self.forget_cache()
                raise
        self.turns, self.answers = [*self.turns[left_out:], turn], [*self.answers[left_out:], found.texts[0]]
        self.told.append({"adapter": self.adapter, "prompt": turn, "answer": found.texts[0]})
        seconds = time.perf_counter() - start
        print(f"    [{found.new_tokens} tokens, {found.new_tokens / seconds:.1f} tokens/s{self.state()}]", flush=True)

    def state(self):
        """What the line behind an answer says of the adapter."""
        return f", adapter {'on' if self.adapter else 'off'}" if hasattr(self.model, "peft_config") else ""

    # ---------------------------------------------------------------------------------------------------------- commands

    def reset(self, _):
        self.turns, self.answers = [], []
        print("the conversation is forgotten")

    def set_system(self, text):
        self.system = text or None
        print(f"system text: {text}" if text else "no system text")

    def set_adapter(self, what):
        if not hasattr(self.model, "peft_config"):
            raise utils.UserError("there is no adapter; start with --adapter DIR, without --no_lora")
        if what not in ("on", "off"):
            raise utils.UserError(f"/adapter on or /adapter off, not {what!r}; it is {'on' if self.adapter else 'off'}")
        if (what == "on") != self.adapter:
            self.forget_cache()
        self.adapter = what == "on"
        print(f"adapter {what}{'' if self.adapter else ': the base model answers'}")

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

    def save(self, where):
        path = Path(where or f"chat-{time.strftime('%Y%m%d-%H%M%S')}.json").expanduser()
        found = {
            "model": self.model.config._name_or_path,
            "adapter": self.adapter_name,
            "max_new_tokens": self.max_new_tokens,
            "temperature": self.temperature,
            "system": self.system,
            "turns": self.turns,
            "answers": self.answers,
            "all": self.told,
        }
        path.write_text(json.dumps(found, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
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
