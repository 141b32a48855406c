"""Chats, preference pairs and prompts with completions -> rows of instruction, context, response."""

import utils
from harness.data import cells

CHATS = ("messages", "conversations", "conversation")
PROMPT, CHOSEN, REJECTED = "prompt", "chosen", "rejected"
ASKED = (PROMPT, "question", "instruction")  # of a preference pair, the first that is there
USER, ASSISTANT, SYSTEM = ("user", "human", "prompter"), ("assistant", "gpt", "chatgpt", "bot", "model"), ("system",)
JUDGED = {
    "true": True,
    "1": True,
    "1.0": True,
    "false": False,
    "0": False,
    "0.0": False,
}  # of completions, in KTO's label
LAST_ANSWER = "\n\nAssistant:"  # of Anthropic's HH-RLHF, whose chosen text is the whole conversation


def shape(names):
    """What rows with these columns are: "chat", "preference", "completion" or None for none of them."""
    if any(name in names for name in CHATS):
        return "chat"
    if CHOSEN in names and REJECTED in names:
        return "preference"
    return "completion" if PROMPT in names and "completion" in names else None


def as_instructions(splits, names):
    """({split: instruction rows}, notes) of {split: rows} of a `shape`; other rows as they are, without notes.

    names: the columns of the rows. OpenAI's messages and ShareGPT's conversations: the last user turn before an
    assistant's last is the instruction, what was said before it the context, the assistant's turn the response. Of a
    preference pair the chosen answer is the response, of completions that were judged (KTO's label, true or false)
    those judged good. A row without an assistant's turn has an empty response. UserError where none was judged good.
    """
    found = shape(names)
    if found is None:
        return splits, []
    notes, made, longer = [], {}, 0
    chat = next((name for name in CHATS if name in names), None)
    if found == "preference":
        notes.append("preference pairs: the chosen answers are the responses, the rejected ones are not used")
    if found == "completion":
        splits, said = _judged_good(splits)
        notes += said
    for split, rows in splits.items():
        made[split] = []
        for number, row in enumerate(rows):
            where = f"{split} row {number}: {chat or (CHOSEN if found == 'preference' else PROMPT)}"
            turns = _turns(row.get(chat), where) if chat else _prompted(row, found, where)
            instruction, context, response = _last_exchange(turns, _system(row))
            longer += len([role for role, _ in turns if role == "assistant"]) > 1
            used = (chat, PROMPT, "completion", CHOSEN, REJECTED)
            kept = {name: cell for name, cell in row.items() if name not in used}
            context = context or row.get("context") or row.get("input") or ""
            made[split].append({**kept, "instruction": instruction, "context": context, "response": response})
    if longer:
        notes.append(f"{longer} chats of several turns: the last answer is the response, earlier turns are its context")
    return made, notes


def _judged_good(splits):
    """({split: rows that were judged good}, notes); all rows where their labels are no judgements, true or false."""
    found = [row.get("label") for rows in splits.values() for row in rows]
    if not {str(label).strip().lower() for label in found if not cells.is_empty(label)} <= set(JUDGED):
        return splits, []
    if all(map(cells.is_empty, found)):
        return splits, []
    good = {
        split: [row for row in rows if JUDGED.get(str(row.get("label")).strip().lower())]
        for split, rows in splits.items()
    }
    n = sum(map(len, good.values()))
    if not n:
        raise utils.UserError(
            f"label: none of the {len(found)} completions was judged good, so no response can be used"
        )
    return good, [f"judged completions: the {len(found) - n} that were judged bad are not used"]


def _turns(value, where):
    """[(user, assistant, system or another role, text)] of a list of messages."""
    messages, turns = cells.parse(value), []
    if cells.is_empty(messages):
        return []
    if isinstance(messages, dict) and "role" in messages:  # one message
        messages = [messages]
    if not isinstance(messages, (list, tuple)) or not all(isinstance(message, dict) for message in messages):
        raise utils.UserError(f"{where} holds no list of messages with role and content, or from and value")
    for message in messages:
        role, content = (message.get("role", message.get("from")), message.get("content", message.get("value")))
        if not isinstance(role, str):
            raise utils.UserError(f"{where}: a message has neither role nor from; it has {', '.join(message)[:80]}")
        role = role.lower()
        for name, roles in (("user", USER), ("assistant", ASSISTANT), ("system", SYSTEM)):
            role = name if role in roles else role
        turns.append((role, _content(content, where)))
    return turns


def _content(content, where):
    """The text of a message; OpenAI's content may be a list of parts."""
    parts = content if isinstance(content, (list, tuple)) else [content]
    kinds = {part.get("type", "text") for part in parts if isinstance(part, dict)}
    if kinds - {"text"}:
        raise utils.UserError(f"{where}: a message holds {', '.join(sorted(map(str, kinds)))}; only texts are read")
    return "\n".join(
        cells.text(part["text"] if isinstance(part, dict) and "text" in part else part, where) for part in parts
    )


def _prompted(row, found, where):
    """The turns of a prompt and its completion or chosen answer, which may be texts or lists of messages."""
    prompt = _written_messages(next((row[name] for name in ASKED if not cells.is_empty(row.get(name))), None))
    answer = _written_messages(row.get(CHOSEN if found == "preference" else "completion"))
    if isinstance(answer, (list, tuple, dict)):
        turns = _turns(answer, where)
        if any(role == "user" for role, _ in turns):  # the whole conversation
            return turns
    else:
        answer = cells.text(answer, where)
        if cells.is_empty(prompt) and LAST_ANSWER in answer:
            asked, _, answer = answer.rpartition(LAST_ANSWER)
            return [("user", asked.strip().removeprefix("Human:").strip()), ("assistant", answer.strip())]
        turns = [("assistant", answer)]
    asked = isinstance(prompt, (list, tuple, dict))
    return [*(_turns(prompt, where) if asked else [("user", cells.text(prompt, where))]), *turns]


def _written_messages(value):
    """The messages that a text writes down; any other value as it is, such as an answer that is itself JSON."""
    found = cells.parse(value) if isinstance(value, str) else value
    messages = [found] if isinstance(found, dict) else found
    if isinstance(value, str) and not (
        isinstance(messages, list)
        and messages
        and all(isinstance(message, dict) and {"role", "from"} & set(message) for message in messages)
        and any({"content", "value"} & set(message) for message in messages)
    ):
        return value
    return found


def _system(row):
    """The row's own system prompt, "" for none."""
    return next((row[name] for name in ("system", "system_prompt") if isinstance(row.get(name), str)), "")


def _last_exchange(turns, system):
    """(instruction, context, response) of the last assistant's turn and the user's before it; "" for what is not there.

    The system prompt stands before the instruction, earlier turns are the context.
    """
    system = "\n\n".join(filter(None, [system, *(text for role, text in turns if role == "system")])).strip()
    turns = [turn for turn in turns if turn[0] != "system"]
    last = max((i for i, (role, _) in enumerate(turns) if role == "assistant"), default=None)
    asked = max((i for i, (role, _) in enumerate(turns[:last]) if role == "user"), default=None)
    if last is None or asked is None:
        return "", "", ""
    before = [f"{role.capitalize()}: {text}" for i, (role, text) in enumerate(turns[:last]) if i != asked]
    instruction = "\n\n".join(filter(None, [system, turns[asked][1]])) if turns[asked][1].strip() else ""
    return instruction, "\n".join(before), turns[last][1]
