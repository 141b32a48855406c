"""What can be said of an answer without a judge: whether it follows instructions that code can verify, refusals, repetition.

The verifiable instructions have the names and arguments of IFEval (Zhou et al. 2023), so that its prompts can be scored; `asked_for`
finds the same kinds in the words of any prompt. Imports no other helper.
"""

import json
import re

NUMBERS = {
    word: i
    for i, word in enumerate("one two three four five six seven eight nine ten eleven twelve".split(), start=1)  # noqa: SIM905
}
NUMBER = rf"(\d+|{'|'.join(NUMBERS)}|a single)"
REFUSAL = re.compile(
    r"\b(i['’]?m sorry|i am sorry|i apologi[sz]e|my apologies|as an ai\b|i (cannot|can['’]?t|can not|am not able to|am unable to)\b|"
    r"i['’]m (not able|unable) to\b|i (do not|don['’]?t) have the ability to\b)",
    re.I,
)


# ------------------------------------------------------------------------------------------------------------ the answer's parts


def words(text):
    """The words of a text, as \\w+ finds them."""
    return re.findall(r"\w+", text)


def sentences(text):
    """Its sentences: what ends with . ! or ? before a space or the end, and what stands on a line of its own."""
    return [part.strip() for part in re.split(r"(?<=[.!?])[\"')\]]*\s+|\n+", text) if words(part)]


def paragraphs(text, mark=r"\n\s*\n"):
    return [part for part in re.split(mark, text) if part.strip()]


def bullets(text):
    """Lines that begin with *, - or a bullet character."""
    return re.findall(r"^\s*(?:\*(?!\*)|-|•)\s+\S", text, re.M)


def numbered(text):
    """Lines that begin with 1. or 1)."""
    return re.findall(r"^\s*\d+[.)]\s+\S", text, re.M)


def is_json(text):
    """Is the text, or what stands in its one code fence, a JSON object or list?"""
    fenced = re.findall(r"```(?:json)?\s*(.*?)```", text, re.S | re.I)
    try:
        return isinstance(json.loads(fenced[0] if len(fenced) == 1 else text), (dict, list))
    except ValueError:
        return False


def compare(found, relation, wanted):
    """IFEval's relations, at least and less than; exactly and at most besides."""
    return {"at least": found >= wanted, "less than": found < wanted, "at most": found <= wanted, "exactly": found == wanted}[relation]


def _holds(text, keyword):
    return len(re.findall(rf"(?<!\w){re.escape(keyword)}(?!\w)", text, re.I))


# instruction id -> does the answer follow it? Arguments are named as IFEval names them
CHECKS = {
    "keywords:existence": lambda text, keywords: all(_holds(text, word) for word in keywords),
    "keywords:forbidden_words": lambda text, forbidden_words: not any(_holds(text, word) for word in forbidden_words),
    "keywords:frequency": lambda text, keyword, frequency, relation="at least": compare(_holds(text, keyword), relation, frequency),
    "keywords:letter_frequency": lambda text, letter, let_frequency, let_relation="at least": compare(
        text.lower().count(letter.lower()), let_relation, let_frequency
    ),
    "length_constraints:number_words": lambda text, num_words, relation="at least": compare(len(words(text)), relation, num_words),
    "length_constraints:number_sentences": lambda text, num_sentences, relation="at least": compare(
        len(sentences(text)), relation, num_sentences
    ),
    "length_constraints:number_paragraphs": lambda text, num_paragraphs, relation=None: (
        compare(len(paragraphs(text)), relation, num_paragraphs) if relation else len(paragraphs(text, r"\*\*\*")) == num_paragraphs
    ),  # IFEval divides paragraphs by ***, people by an empty line
    "length_constraints:nth_paragraph_first_word": lambda text, num_paragraphs, nth_paragraph, first_word: (
        len(paragraphs(text)) == num_paragraphs and words(paragraphs(text)[nth_paragraph - 1].lower())[:1] == words(first_word.lower())[:1]
    ),
    "detectable_content:number_placeholders": lambda text, num_placeholders: len(re.findall(r"\[.*?\]", text)) >= num_placeholders,
    "detectable_content:postscript": lambda text, postscript_marker: bool(
        re.search(rf"^\s*{re.escape(postscript_marker)}", text, re.M | re.I)
    ),
    "detectable_format:number_bullet_lists": lambda text, num_bullets, relation="exactly": compare(
        len(bullets(text)), relation, num_bullets
    ),
    "detectable_format:numbered_list": lambda text, num_items, relation="exactly": compare(len(numbered(text)), relation, num_items),
    "detectable_format:number_highlighted_sections": lambda text, num_highlights: (
        len(re.findall(r"\*\*[^*\n]+\*\*|(?<!\*)\*[^*\s][^*\n]*\*(?!\*)", text)) >= num_highlights
    ),
    "detectable_format:multiple_sections": lambda text, section_spliter, num_sections: (
        len(re.findall(rf"\s?{re.escape(section_spliter)}\s?\d+", text)) >= num_sections
    ),
    "detectable_format:json_format": lambda text: is_json(text),
    "detectable_format:title": lambda text: bool(re.search(r"<<[^<>\n]*\w[^<>\n]*>>", text)),
    "detectable_format:constrained_response": lambda text: any(
        option in text for option in ("My answer is yes.", "My answer is no.", "My answer is maybe.")
    ),
    "combination:two_responses": lambda text: len({part.strip() for part in text.split("******") if part.strip()}) == 2,
    "combination:repeat_prompt": lambda text, prompt_to_repeat: text.strip().lower().startswith(prompt_to_repeat.strip().lower()),
    "startend:end_checker": lambda text, end_phrase: text.strip().strip('"').lower().endswith(end_phrase.strip().lower()),
    "startend:quotation": lambda text: len(text.strip()) > 1 and text.strip()[0] == text.strip()[-1] == '"',
    "startend:sentences_begin": lambda text, letter: all(words(part)[0].lower().startswith(letter.lower()) for part in sentences(text)),
    "change_case:english_capital": lambda text: text.isupper(),
    "change_case:english_lowercase": lambda text: text.islower(),
    "change_case:capital_word_frequency": lambda text, capital_frequency, capital_relation="at least": compare(
        sum(word.isupper() for word in words(text)), capital_relation, capital_frequency
    ),
    "punctuation:no_comma": lambda text: "," not in text,
}


def followed(answer, checks):
    """[bool] for the checks that code can verify here; an empty answer follows none. checks: (instruction id, arguments)."""
    known = [(CHECKS[name], given) for name, given in checks if name in CHECKS]
    return [bool(answer.strip()) and bool(check(answer, **given)) for check, given in known]


# ------------------------------------------------------------------------------------------------------ what a prompt asks for


def _count(text):
    return 1 if text.lower() == "a single" else int(text) if text.isdecimal() else NUMBERS[text.lower()]


FEW_WORDS = 15  # a limit below it is of a title or of each item, not of the answer
UNITS = {"words?": ("length_constraints:number_words", "num_words"),
         "sentences?": ("length_constraints:number_sentences", "num_sentences"),
         "paragraphs?": ("length_constraints:number_paragraphs", "num_paragraphs")}  # fmt: skip
BOUNDS = {  # before a number and a unit, "N words or less" behind them
    "at most": r"(?:at most|no more than|not more than|up to|a maximum of|maximum|no longer than|not exceed(?:ing)?|within|"
               r"(?:limit\w*|keep)\b[^.\n]{0,40}?\bto)",
    "less than": r"(?:less than|fewer than|under|below)",
    "at least": r"(?:at least|no fewer than|no less than|a minimum of|minimum)",
    "exactly": r"(?:exactly|in|using)(?: just| only| exactly)?",
}  # fmt: skip
PHRASES = (  # (what a prompt says, instruction id, arguments from the match)
    (r"\b(?:output|return|respond|reply|answer|present|provide|format)\b[^.\n]{0,80}\b(?:in|as|a|valid) (?:an? |valid )?json\b(?! schema)",
     "detectable_format:json_format", lambda m: {}),
    (r"\b(?:in|use|all) (?:all )?(?:upper ?case|capital letters|all caps)\b", "change_case:english_capital", lambda m: {}),
    (r"\b(?:in|use|all) (?:all )?lower ?case\b(?! variable)", "change_case:english_lowercase", lambda m: {}),
    (r"\b(?:without|do not use|don['’]t use|avoid)(?: using)?(?: any)? commas\b", "punctuation:no_comma", lambda m: {}),
    (rf"\b{NUMBER} bullet(?:ed)?(?: points?)?\b", "detectable_format:number_bullet_lists", lambda m: {"num_bullets": _count(m[1])}),
    (r"\b(?:in|as|use|using)(?: an?| the)? bullet(?:ed)?[- ](?:points?|lists?)\b", "detectable_format:number_bullet_lists",
     lambda m: {"num_bullets": 1, "relation": "at least"}),
    (r"\b(?:in|as|use|using|with)(?: an?| the)? numbered list\b", "detectable_format:numbered_list",
     lambda m: {"num_items": 1, "relation": "at least"}),
    (r"\b(?:start|begin)(?:ning)? every sentence with the letter ['\"“]?([a-z])\b", "startend:sentences_begin", lambda m: {"letter": m[1]}),
    (r"\b(?:include|includes|including|use|using|contain|contains|containing|mention)(?: all)?(?: of)? the (?:following )?(?:key)?words?:? "
     r"((?:[\"“'‘][\w -]+[\"”'’](?:, and |,? and |, )?)+)", "keywords:existence",
     lambda m: {"keywords": re.findall(r"[\"“'‘]([\w -]+)[\"”'’]", m[1])}),
    (r"\b(?:without using|do not use|don['’]t use|avoid(?: using)?) the words? ((?:[\"“'‘][\w -]+[\"”'’](?:, or |,? or |,? and |, )?)+)",
     "keywords:forbidden_words", lambda m: {"forbidden_words": re.findall(r"[\"“'‘]([\w -]+)[\"”'’]", m[1])}),
)  # fmt: skip


def asked_for(prompt):
    """The verifiable instructions in a prompt's own words: [(instruction id, arguments)], one of a kind; [] for most prompts.

    Only plain phrases count ("in at most 50 words", "in three bullet points", "as JSON"): what is missed costs examples, what
    is found wrongly would cost truth.
    """
    found = {}
    for unit, (name, argument) in UNITS.items():
        for relation, bound in BOUNDS.items():
            match = re.search(rf"\b{bound} {NUMBER}[ -]{unit}\b(?! (?:or (?:more|less|fewer)|long|per|each|summary of))", prompt, re.I)
            if match and name not in found and not (unit == "words?" and _count(match[1]) < FEW_WORDS):
                found[name] = {argument: _count(match[1]), "relation": relation}
        match = re.search(rf"\b{NUMBER} {unit} or (less|fewer|more)\b", prompt, re.I)
        if match:
            found[name] = {argument: _count(match[1]), "relation": "at least" if match[2].lower() == "more" else "at most"}
    for phrase, name, arguments in PHRASES:
        match = re.search(phrase, prompt, re.I)
        if match and name not in found:
            found[name] = arguments(match)
    if "keywords:forbidden_words" in found:  # "do not use the words" asks for none of them
        found.pop("keywords:existence", None)
    return list(found.items())


# ------------------------------------------------------------------------------------------------------------------ the surface


def refuses(answer):
    """Does an answer begin as refusals do, within its first 200 characters? Words alone are looked at, so this is a rough count."""
    return bool(REFUSAL.search(answer[:200]))


def repetition(answer, n=4):
    """1 - distinct / all n-grams of words (seq-rep-n, Welleck et al. 2020); 0 for an answer shorter than n + 1 words."""
    said = [word.lower() for word in words(answer)]
    grams = [tuple(said[i : i + n]) for i in range(len(said) - n + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0
