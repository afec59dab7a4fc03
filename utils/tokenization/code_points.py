"""Unicode's code points in the order in which a vocabulary without a text to learn from should take them.

First what most texts are written with, then the rest by number. The order is a fixed list of ranges and of four national
character sets, so it is the same with every version of Python and of Unicode:

1. ASCII's printable characters, line end and tab; the rest of Latin-1
2. punctuation, currency, Latin letters with marks (Vietnamese among them), Greek, Cyrillic, Hebrew, Arabic
3. kana and the punctuation of East Asia; arrows, mathematics, boxes, symbols
4. the scripts of India and of South-East Asia, Georgian, Armenian, Ethiopic
5. the frequent Chinese characters, syllables and kanji: GB 2312 level 1 (3,755), JIS X 0208 level 1 (2,965), KS X 1001's hangul
   (2,350), Big5 level 1 (5,401), each in the order of its standard, which chose them by how often they are used; emoji
6. everything else from U+0000 to U+10FFFF by number, those for private use last. The 2,048 surrogates are no characters.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from itertools import chain

#: How many code points there are to take: all of Unicode but the surrogates.
NUM_CODE_POINTS = 0x110000 - 0x800

#: The printable characters of ASCII and the line end: with fewer, not even English could be written.
NUM_BASIC = 96

_FREQUENT = (
    (0x20, 0x7F), (0x0A, 0x0B), (0x09, 0x0A), (0xA0, 0x100),
    (0x2000, 0x2070), (0x20A0, 0x20D0), (0x100, 0x250), (0x1E00, 0x1F00), (0x300, 0x370), (0x370, 0x400), (0x400, 0x530),
    (0x590, 0x600), (0x600, 0x700),
    (0x3000, 0x3100), (0xFF00, 0xFFF0), (0x2100, 0x2800),
    (0x900, 0xE00), (0xE00, 0x1000), (0x1000, 0x10A0), (0x10A0, 0x1100), (0x530, 0x590), (0x1200, 0x1380),
    (0x1780, 0x1800),
)  # fmt: skip
_EMOJI = ((0x1F300, 0x1F650), (0x1F680, 0x1F700), (0x1F900, 0x1FA00))
_PRIVATE = ((0xE000, 0xF900), (0xF0000, 0x110000))
_SURROGATES = (0xD800, 0xE000)


def code_points_by_use(number: int) -> list[str]:
    """The first `number` characters of the order above, or all 1,112,064."""
    order = chain(_ranges(_FREQUENT), _national(), _ranges(_EMOJI), _others(), _ranges(_PRIVATE))
    seen: dict[str, None] = {}
    for character in order:
        if len(seen) >= number:
            break
        seen.setdefault(character)
    return list(seen)


def _ranges(ranges: tuple[tuple[int, int], ...]) -> Iterator[str]:
    for first, end in ranges:
        yield from map(chr, range(first, end))


def _national() -> Iterator[str]:
    """The level of the frequent characters of each standard, row by row. Python's codecs hold the tables."""
    yield from _rows("gb2312", range(0xB0, 0xD8), range(0xA1, 0xFF))
    yield from _rows("euc_jp", range(0xB0, 0xD0), range(0xA1, 0xFF))
    yield from _rows("euc_kr", range(0xB0, 0xC9), range(0xA1, 0xFF))
    yield from _rows("big5", range(0xA4, 0xC6), [*range(0x40, 0x7F), *range(0xA1, 0xFF)])
    yield from _rows("big5", range(0xC6, 0xC7), range(0x40, 0x7F))


def _rows(encoding: str, leads: Iterable[int], trails: Collection[int]) -> Iterator[str]:
    for lead in leads:
        for trail in trails:
            yield from bytes((lead, trail)).decode(encoding, errors="ignore")


def _others() -> Iterator[str]:
    apart = (_SURROGATES, *_PRIVATE)
    bounds = [0, *chain.from_iterable(sorted(apart)), 0x110000]
    return _ranges(tuple(zip(bounds[::2], bounds[1::2], strict=True)))
