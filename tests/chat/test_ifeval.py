import pytest

from harness.chat import ifeval


@pytest.mark.parametrize(
    ("name", "given", "good", "bad"),
    [
        ("keywords:existence", {"keywords": ["Paris", "film"]}, "Films of parisians.", "A film of Rome."),
        ("keywords:forbidden_words", {"forbidden_words": ["dull"]}, "a dullard", "Dull!"),
        ("keywords:frequency", {"keyword": "the", "frequency": 2, "relation": "less than"}, "The end", "the other"),
        (
            "keywords:letter_frequency",
            {"letter": "q", "let_frequency": 2, "let_relation": "at least"},
            "Quick quiz",
            "quick",
        ),
        ("length_constraints:number_words", {"num_words": 3, "relation": "less than"}, "two words", "these are three"),
        (
            "length_constraints:number_sentences",
            {"num_sentences": 2, "relation": "exactly"},
            'Yes. "It is." ',
            "Yes, it is 3.5 long.",
        ),
        ("length_constraints:number_paragraphs", {"num_paragraphs": 2}, "one\n***\ntwo", "one\n\ntwo"),
        (
            "length_constraints:number_paragraphs",
            {"num_paragraphs": 2, "relation": "exactly"},
            "one\n\ntwo",
            "one\ntwo",
        ),
        (
            "length_constraints:nth_paragraph_first_word",
            {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "So"},
            "a\n\nso it",
            "so\n\nb",
        ),
        ("detectable_content:number_placeholders", {"num_placeholders": 2}, "[name] lives in [city]", "[name]"),
        ("detectable_content:postscript", {"postscript_marker": "P.S."}, "text\np. s. more", "no PS here"),
        ("detectable_format:number_bullet_lists", {"num_bullets": 2}, "* a\n- b", "* a\n**bold**"),
        ("length_constraints:number_paragraphs", {"num_paragraphs": 2}, "***one***two", "one***   ***two"),
        ("detectable_format:number_highlighted_sections", {"num_highlights": 2}, "*a b* and *c*", "*a b* and ** **"),
        (
            "detectable_format:multiple_sections",
            {"section_spliter": "SECTION", "num_sections": 2},
            "SECTION 1\na\nSECTION 2\nb",
            "SECTION 1",
        ),
        ("detectable_format:json_format", {}, '```json\n{"a": [1]}\n```', 'Here: {"a": 1}'),
        ("detectable_format:title", {}, "<<A title>>\ntext", "<< >>"),
        ("detectable_format:constrained_response", {}, "My answer is no.", "No."),
        ("combination:two_responses", {}, "one\n******\ntwo", "same\n******\nsame"),
        ("combination:repeat_prompt", {"prompt_to_repeat": "Do it."}, "do it. Done", "Done"),
        ("startend:end_checker", {"end_phrase": "That is all."}, "So. That is all. ", "That is all. No."),
        ("startend:quotation", {}, ' "so" ', '"so" it is'),
        ("startend:sentences_begin", {"letter": "A"}, "A cat. And a dog!", "A cat. The dog."),
        ("change_case:english_capital", {}, "ALL 3!", "All"),
        ("change_case:english_lowercase", {}, "all 3!", "All"),
        (
            "change_case:capital_word_frequency",
            {"capital_frequency": 2, "capital_relation": "at least"},
            "THE BIG one",
            "THE big one",
        ),
        ("punctuation:no_comma", {}, "one and two", "one, two"),
    ],
)
def test_verifiable_instructions(name, given, good, bad):
    assert ifeval.followed(good, [(name, given)]) == [True]
    assert ifeval.followed(bad, [(name, given)]) == [False]
    assert ifeval.followed(" ", [(name, given)]) == [False]


@pytest.mark.parametrize(
    ("name", "given", "good", "bad"),
    [
        ("keywords:existence", {"keywords": ["C++", "node.js"]}, "c++ and Node.js", "C and nodeXjs"),
        ("keywords:forbidden_words", {"forbidden_words": ["C++", "a.b"]}, "I like aXb and C", "I like C++ a lot"),
        ("keywords:frequency", {"keyword": "(x)", "frequency": 2}, "(x) and (X)", "x x"),
        (
            "detectable_format:multiple_sections",
            {"section_spliter": "[Part]", "num_sections": 1},
            "[Part] 1\nText",
            "P 1\nText",
        ),
    ],
)
def test_keywords_are_text_and_no_patterns(name, given, good, bad):
    assert ifeval.followed(good, [(name, given)]) == [True] and ifeval.followed(bad, [(name, given)]) == [False]


def test_what_a_prompt_asks_for_is_read_from_plain_phrases_alone():
    words = "length_constraints:number_words"
    for text, wanted in {
        "Answer in at most 50 words.": [(words, {"num_words": 50, "relation": "at most"})],
        "Write fewer than 200 words on it": [(words, {"num_words": 200, "relation": "less than"})],
        "an essay of 300 words or more": [(words, {"num_words": 300, "relation": "at least"})],
        "Explain it in three bullet points": [
            ("detectable_format:number_bullet_lists", {"num_bullets": 3, "relation": "exactly"})
        ],
        "in just one sentence": [("length_constraints:number_sentences", {"num_sentences": 1, "relation": "exactly"})],
        "Return the result as a JSON object": [("detectable_format:json_format", {})],
        "Use the words 'sun' and 'moon'.": [("keywords:existence", {"keywords": ["sun", "moon"]})],
        'Do not use the word "very".': [("keywords:forbidden_words", {"forbidden_words": ["very"]})],
        "in at least three bullet points": [
            ("detectable_format:number_bullet_lists", {"num_bullets": 3, "relation": "at least"})
        ],
        "with no more than 5 bullet points": [
            ("detectable_format:number_bullet_lists", {"num_bullets": 5, "relation": "at most"})
        ],
        "Write it in exactly 100 words": [(words, {"num_words": 100, "relation": "exactly"})],
        "Answer in all capital letters.": [("change_case:english_capital", {})],
        "write a script that reads json files": [],
        "Provide a Python script that reads a JSON file": [],
        "3 to 5 bullet points": [],
        "a story in 100 words": [],
        "Answer the question about how to use uppercase letters": [],
        "Do not answer in one sentence": [],
        "Give me a list of 5 words": [],
        "Tell a story about two sentences that met.": [],
    }.items():
        assert ifeval.asked_for(text) == wanted, text
