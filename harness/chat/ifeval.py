"""Instructions that code can verify: IFEval's own, and those that a prompt states in plain phrases."""

import inspect
import json
import re

NUMBER_WORDS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
NUMBERS = {word: i for i, word in enumerate(NUMBER_WORDS, start=1)}
NUMBER = rf"(\d+|{'|'.join(NUMBERS)}|a single)"


def words(text):
    """The words of a text, as \\w+ finds them."""
    return re.findall(r"\w+", text)


def sentences(text):
    """The sentences of a text: parts that end with . ! or ? before a space or the end, and single lines."""
    return [part.strip() for part in re.split(r"(?<=[.!?])[\"')\]]*\s+|\n+", text) if words(part)]


def paragraphs(text):
    """The paragraphs of a text, separated by empty lines."""
    return [part for part in re.split(r"\n\s*\n", text) if part.strip()]


def parts_between(text, mark):
    """The parts of a text between marks, without an empty one at either end; None if an inner part is empty."""
    parts = [part.strip() for part in re.split(mark, text)]
    inner = parts[not parts[0] : len(parts) - (not parts[-1])]
    return inner if all(inner) else None


def bullets(text):
    """Lines that begin with * or -."""
    return re.findall(r"^\s*\*[^*].*$", text, re.M) + re.findall(r"^\s*-.*$", text, re.M)


def numbered(text):
    """Lines that begin with 1. or 1)."""
    return re.findall(r"^\s*\d+[.)]\s+\S", text, re.M)


def highlights(text):
    """*highlighted* and **highlighted** parts, by IFEval's two patterns."""
    found = re.findall(r"\*[^\n*]*\*", text) + re.findall(r"\*\*[^\n*]*\*\*", text)
    return [part for part in found if part.strip("*").strip()]


def is_json(text):
    """True if the whole text, without a code fence around it, is JSON."""
    try:
        json.loads(re.sub(r"^```(?:json)?|```$", "", text.strip(), flags=re.I).strip())
    except ValueError:
        return False
    return True


def has_postscript(text, marker):
    """True if the text has the marker, in any case and with or without spaces between its letters."""
    pattern = {"P.P.S": r"p\.\s?p\.\s?s", "P.S.": r"p\.\s?s\."}.get(marker, re.escape(marker.lower()))
    return bool(re.search(pattern, text.lower()))


def compare(found, relation, wanted):
    """`at least` and `less than` are IFEval's relations, `at most` and `exactly` are ours."""
    return {
        "at least": found >= wanted,
        "less than": found < wanted,
        "at most": found <= wanted,
        "exactly": found == wanted,
    }[relation]


def _times(text, keyword, whole_word=False):
    """How often a text has a keyword. IFEval's code takes it for a pattern, which is the same for its own keywords: all
    are letters. Those of other sets ("C++", "node.js") are meant as text.
    """
    pattern = re.escape(keyword)
    return len(re.findall(rf"(?<!\w){pattern}(?!\w)" if whole_word else pattern, text, re.I))


# instruction id -> function: True if the answer follows it. Arguments have IFEval's names
CHECKS = {
    "keywords:existence": lambda text, keywords: all(_times(text, word) for word in keywords),
    "keywords:forbidden_words": lambda text, forbidden_words: (
        not any(_times(text, word, whole_word=True) for word in forbidden_words)
    ),
    "keywords:frequency": lambda text, keyword, frequency, relation="at least": compare(
        _times(text, keyword), relation, frequency
    ),
    "keywords:letter_frequency": lambda text, letter, let_frequency, let_relation="at least": compare(
        text.lower().count(letter.lower()), let_relation, let_frequency
    ),
    "length_constraints:number_words": lambda text, num_words, relation="at least": compare(
        len(words(text)), relation, num_words
    ),
    "length_constraints:number_sentences": lambda text, num_sentences, relation="at least": compare(
        len(sentences(text)), relation, num_sentences
    ),
    "length_constraints:number_paragraphs": lambda text, num_paragraphs, relation=None: (
        compare(len(paragraphs(text)), relation, num_paragraphs)
        if relation
        else len(parts_between(text, r"\*\*\*") or []) == num_paragraphs
    ),  # IFEval separates paragraphs by ***, our phrases by an empty line
    "length_constraints:nth_paragraph_first_word": lambda text, num_paragraphs, nth_paragraph, first_word: (
        len(paragraphs(text)) == num_paragraphs >= nth_paragraph
        and words(paragraphs(text)[nth_paragraph - 1].lower())[:1] == words(first_word.lower())[:1]
    ),
    "detectable_content:number_placeholders": lambda text, num_placeholders: (
        len(re.findall(r"\[.*?\]", text)) >= num_placeholders
    ),
    "detectable_content:postscript": lambda text, postscript_marker: has_postscript(text, postscript_marker),
    "detectable_format:number_bullet_lists": lambda text, num_bullets, relation="exactly": compare(
        len(bullets(text)), relation, num_bullets
    ),
    "detectable_format:numbered_list": lambda text, num_items, relation="exactly": compare(
        len(numbered(text)), relation, num_items
    ),
    "detectable_format:number_highlighted_sections": lambda text, num_highlights: (
        len(highlights(text)) >= num_highlights
    ),
    "detectable_format:multiple_sections": lambda text, section_spliter, num_sections: (
        len(re.findall(rf"\s?{re.escape(section_spliter)}\s?\d+\s?", text)) >= num_sections
    ),
    "detectable_format:json_format": lambda text: is_json(text),
    "detectable_format:title": lambda text: any(part.strip("<> ") for part in re.findall(r"<<[^\n]+>>", text)),
    "detectable_format:constrained_response": lambda text: any(
        option in text for option in ("My answer is yes.", "My answer is no.", "My answer is maybe.")
    ),
    "combination:two_responses": lambda text: len(found := parts_between(text, r"\*{6}") or []) == 2 == len(set(found)),
    "combination:repeat_prompt": lambda text, prompt_to_repeat: (
        text.strip().lower().startswith(prompt_to_repeat.strip().lower())
    ),
    "startend:end_checker": lambda text, end_phrase: (
        text.strip().strip('"').lower().endswith(end_phrase.strip().lower())
    ),
    "startend:quotation": lambda text: len(text.strip()) > 1 and text.strip()[0] == text.strip()[-1] == '"',
    "startend:sentences_begin": lambda text, letter: all(
        words(part)[0].lower().startswith(letter.lower()) for part in sentences(text)
    ),
    "change_case:english_capital": lambda text: text.isupper(),
    "change_case:english_lowercase": lambda text: text.islower(),
    "change_case:capital_word_frequency": lambda text, capital_frequency, capital_relation="at least": compare(
        sum(word.isupper() for word in words(text)), capital_relation, capital_frequency
    ),
    "punctuation:no_comma": lambda text: "," not in text,
}


WHOLE = re.compile(r"num_|nth_|.*frequency$")  # names of arguments that are whole numbers
RELATIONS = ("at least", "less than", "at most", "exactly")


def followed(answer, checks):
    """[bool] for the checks that can be made; an empty answer follows none. checks: (instruction id, arguments)."""
    return [bool(answer.strip()) and bool(CHECKS[name](answer, **given)) for name, given in checks if can(name, given)]


def can(name, given):
    """True for a check that is known here, with arguments of its kinds."""
    return name in CHECKS and unusable(name, given) is None


def unusable(name, given):
    """Why a check cannot be made with these arguments; None where it can, and for a check that is not known here."""
    if name not in CHECKS:
        return None
    try:
        inspect.signature(CHECKS[name]).bind("", **given)
    except TypeError as error:
        return f"{name} with {given}: {error}"
    wrong = next((argument for argument, value in given.items() if not _has_its_type(argument, value)), None)
    return f"{name} with {given}: {wrong} has a wrong value" if wrong else None


def _has_its_type(argument, value):
    """True if IFEval's argument has a value of its kind."""
    if WHOLE.match(argument):
        return isinstance(value, int) and not isinstance(value, bool)
    if argument in ("keywords", "forbidden_words"):
        return isinstance(value, list) and bool(value) and all(isinstance(word, str) and word for word in value)
    if argument.endswith("relation"):
        return value in RELATIONS
    return isinstance(value, str) and bool(value.strip())


def whole(value):
    """A number that a table made a float ("3.0"), as the whole number it was; anything else as it is."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def count_in(text):
    return 1 if text.lower() == "a single" else int(text) if text.isdecimal() else NUMBERS[text.lower()]


FEW_WORDS = 15  # a limit below it is that of a title or of each item, not of the answer
# unit in a prompt -> (instruction id, name of the argument)
UNITS = {
    "words?": ("length_constraints:number_words", "num_words"),
    "bullet(?:ed)?(?: points?)?": ("detectable_format:number_bullet_lists", "num_bullets"),
    "sentences?": ("length_constraints:number_sentences", "num_sentences"),
    "paragraphs?": ("length_constraints:number_paragraphs", "num_paragraphs"),
}
# relation -> the words before a number and a unit; "N words or less" has them behind
BOUNDS = {
    "at most": r"(?:at most|no more than|not more than|up to|a maximum of|maximum|no longer than|not exceed(?:ing)?|"
    r"within|(?:limit\w*|keep)\b[^.\n]{0,40}?\bto)",
    "less than": r"(?:less than|fewer than|under|below)",
    "at least": r"(?:at least|no fewer than|no less than|a minimum of|minimum)",
    "exactly": r"(?:exactly|in|using|with)(?: just| only| exactly)?",
}
SAY = r"\b(?:answer|respond|reply|write(?: (?:it|everything))?)"


PHRASES = (  # (pattern of a phrase, instruction id, function: match -> arguments)
    (
        r"\b(?:output|return|respond|reply|answer|present|provide|format|write)\b[^.\n]{0,80}"
        r"\b(?:in|as)(?: a| valid)* json\b(?! (?:schema|files?))",
        "detectable_format:json_format",
        lambda m: {},
    ),
    (
        rf"{SAY} (?:only )?(?:in|using|with|in only) (?:all |only )*(?:upper ?case|capital letters|all caps)\b",
        "change_case:english_capital",
        lambda m: {},
    ),
    (
        rf"{SAY} (?:only )?(?:in|using|with|in only) (?:all |only )*lower ?case\b",
        "change_case:english_lowercase",
        lambda m: {},
    ),
    (r"\b(?:without|do not use|don['’]t use|avoid)(?: using)?(?: any)? commas\b", "punctuation:no_comma", lambda m: {}),
    (
        r"\b(?:in|as|use|using)(?: an?| the)? bullet(?:ed)?[- ](?:points?|lists?)\b",
        "detectable_format:number_bullet_lists",
        lambda m: {"num_bullets": 1, "relation": "at least"},
    ),
    (
        r"\b(?:in|as|use|using|with)(?: an?| the)? numbered list\b",
        "detectable_format:numbered_list",
        lambda m: {"num_items": 1, "relation": "at least"},
    ),
    (
        r"\b(?:start|begin)(?:ning)? every sentence with the letter ['\"“]?([a-z])\b",
        "startend:sentences_begin",
        lambda m: {"letter": m[1]},
    ),
    (
        r"\b(?:include|includes|including|use|using|contain|contains|containing|mention)(?: all)?(?: of)? the "
        r"(?:following )?(?:key)?words?:? "
        r"((?:[\"“'‘][\w -]+[\"”'’](?:, and |,? and |, )?)+)",
        "keywords:existence",
        lambda m: {"keywords": re.findall(r"[\"“'‘]([\w -]+)[\"”'’]", m[1])},
    ),
    (
        r"\b(?:without using|do not use|don['’]t use|avoid(?: using)?) the words? "
        r"((?:[\"“'‘][\w -]+[\"”'’](?:, or |,? or |,? and |, )?)+)",
        "keywords:forbidden_words",
        lambda m: {"forbidden_words": re.findall(r"[\"“'‘]([\w -]+)[\"”'’]", m[1])},
    ),
)


def asked_for(prompt):
    """The verifiable instructions in a prompt's own words: [(instruction id, arguments)], at most one of each id.

    Only plain phrases count ("in at most 50 words", "in three bullet points", "as JSON"): a missed instruction costs
    one example, a wrong one would falsify the score. "In 50 words" is not read as exactly 50, and negated phrases are
    skipped.
    """
    found = {}
    for unit, (name, argument) in UNITS.items():
        for relation, bound in BOUNDS.items():
            match = re.search(
                rf"\b{bound} {NUMBER}[ -]{unit}\b(?! (?:or (?:more|less|fewer)|long|per|each|summary of))", prompt, re.I
            )
            loose = match and relation == "exactly" and unit == "words?" and "exactly" not in match[0].lower()
            few = match and unit == "words?" and count_in(match[1]) < FEW_WORDS
            if match and name not in found and not (loose or few or _denied(prompt, match)):
                found[name] = {argument: count_in(match[1]), "relation": relation}
        match = re.search(rf"\b{NUMBER} {unit} or (less|fewer|more)\b", prompt, re.I)
        if match:
            found[name] = {
                argument: count_in(match[1]),
                "relation": "at least" if match[2].lower() == "more" else "at most",
            }
    for phrase, name, arguments in PHRASES:
        match = re.search(phrase, prompt, re.I)
        if match and name not in found and not _denied(prompt, match):
            found[name] = arguments(match)
    if "keywords:forbidden_words" in found:  # "do not use the words" matches both
        found.pop("keywords:existence", None)
    return list(found.items())


def _denied(prompt, match):
    """True if "not" or "never" is among the few words before the match."""
    return bool(re.search(r"\b(?:not|never|n['’]t)\b[^.\n]{0,20}$", prompt[: match.start()], re.I))
