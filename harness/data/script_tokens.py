"""The words of a text in any script, for the scores of answers and for BM25.

Scripts that put spaces between words give words. Han, kana, Thai, Lao, Khmer, Burmese and Tibetan do not, so they give
characters, as SQuAD's scores are computed for Chinese (Lewis et al. 2020, MLQA). Korean has spaces and gives words.
"""

import unicodedata

import regex

# letters of the scripts without spaces; the long vowel mark belongs to both kana, the ideographic zero is no letter
UNSPACED = r"[[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}\p{Tibetan}ー]&&[\p{L}〇]]"
WORD = r"[\p{L}\p{N}\p{M}\u200c\u200d]"  # combining marks belong to a word: Hindi's vowels are such; joiners too
TOKENS = regex.compile(rf"(?V1){UNSPACED}\p{{M}}*|(?:(?!{UNSPACED}){WORD})+")
# a letter or digit of another script than Latin, not one that all scripts share, such as the micro sign
OTHER = regex.compile(r"(?V1)[[\p{L}--[\p{Latin}\p{Common}\p{Inherited}]][\p{Nd}--[0-9]]ー]")


def script_tokens(text):
    """The tokens of a text, in lower case and without punctuation: words, or characters where there are no spaces.

    A character has its combining marks with it. Characters that Unicode counts as the same (NFKC) give one token.
    """
    return TOKENS.findall(unicodedata.normalize("NFKC", text).lower())


def other_script(text):
    """True if a text has a letter or a digit of another script than Latin."""
    return OTHER.search(text) is not None
