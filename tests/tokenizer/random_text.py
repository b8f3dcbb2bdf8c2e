"""Random strings in the scripts of Unicode, the same on every machine and with every version of Python."""

import random
import unicodedata
from collections.abc import Iterator

# The first and the last code point of the Unicode blocks of each script. Unassigned code points are not left out: which
# they are depends on the version of Unicode.
SCRIPTS: dict[str, list[tuple[int, int]]] = {
    "Latin": [(0x20, 0x7E), (0xA0, 0x24F), (0x1E00, 0x1EFF)],
    "phonetic": [(0x250, 0x2FF), (0x1D00, 0x1DBF)],
    "Greek": [(0x370, 0x3FF), (0x1F00, 0x1FFF)],
    "Cyrillic": [(0x400, 0x52F), (0x2DE0, 0x2DFF), (0xA640, 0xA69F)],
    "Armenian": [(0x530, 0x58F)],
    "Hebrew": [(0x590, 0x5FF), (0xFB1D, 0xFB4F)],
    "Arabic": [(0x600, 0x6FF), (0x750, 0x77F), (0x8A0, 0x8FF)],
    "Arabic presentation forms": [(0xFB50, 0xFDFF), (0xFE70, 0xFEFC)],
    "Syriac": [(0x700, 0x74F)],
    "Thaana": [(0x780, 0x7BF)],
    "NKo": [(0x7C0, 0x7FF)],
    "Devanagari": [(0x900, 0x97F), (0xA8E0, 0xA8FF)],
    "Bengali": [(0x980, 0x9FF)],
    "Gurmukhi": [(0xA00, 0xA7F)],
    "Gujarati": [(0xA80, 0xAFF)],
    "Oriya": [(0xB00, 0xB7F)],
    "Tamil": [(0xB80, 0xBFF)],
    "Telugu": [(0xC00, 0xC7F)],
    "Kannada": [(0xC80, 0xCFF)],
    "Malayalam": [(0xD00, 0xD7F)],
    "Sinhala": [(0xD80, 0xDFF)],
    "Thai": [(0xE00, 0xE7F)],
    "Lao": [(0xE80, 0xEFF)],
    "Tibetan": [(0xF00, 0xFFF)],
    "Myanmar": [(0x1000, 0x109F), (0xAA60, 0xAA7F)],
    "Georgian": [(0x10A0, 0x10FF), (0x2D00, 0x2D2F)],
    "Hangul jamo": [(0x1100, 0x11FF), (0xA960, 0xA97F), (0xD7B0, 0xD7FF)],
    "Hangul": [(0xAC00, 0xD7A3), (0x3130, 0x318F)],
    "Ethiopic": [(0x1200, 0x139F), (0x2D80, 0x2DDF)],
    "Cherokee": [(0x13A0, 0x13FF), (0xAB70, 0xABBF)],
    "Canadian syllabics": [(0x1400, 0x167F)],
    "Ogham and runes": [(0x1680, 0x16FF)],
    "Philippine scripts": [(0x1700, 0x177F)],
    "Khmer": [(0x1780, 0x17FF), (0x19E0, 0x19FF)],
    "Mongolian": [(0x1800, 0x18AF)],
    "Limbu, Tai Le, New Tai Lue": [(0x1900, 0x19DF)],
    "Buginese, Tai Tham": [(0x1A00, 0x1AAF)],
    "Balinese, Sundanese": [(0x1B00, 0x1BBF)],
    "Batak, Lepcha, Ol Chiki": [(0x1BC0, 0x1C7F)],
    "combining marks": [(0x300, 0x36F), (0x1AB0, 0x1AFF), (0x1DC0, 0x1DFF), (0x20D0, 0x20FF)],
    "punctuation and spaces": [(0x20, 0x2F), (0x2000, 0x206F), (0x3000, 0x303F)],
    "symbols": [(0x2070, 0x20CF), (0x2100, 0x2BFF)],
    "Glagolitic, Coptic": [(0x2C00, 0x2C5F), (0x2C80, 0x2CFF)],
    "Tifinagh": [(0x2D30, 0x2D7F)],
    "radicals": [(0x2E80, 0x2FDF)],
    "kana": [(0x3040, 0x30FF), (0x31F0, 0x31FF), (0xFF65, 0xFF9F)],
    "Bopomofo": [(0x3100, 0x312F), (0x31A0, 0x31BF)],
    "enclosed characters": [(0x2460, 0x24FF), (0x3200, 0x33FF)],
    "Han": [(0x4E00, 0x9FFF)],
    "rare Han": [(0x3400, 0x4DBF), (0x20000, 0x2A6DF), (0xF900, 0xFAFF)],
    "Yi": [(0xA000, 0xA4CF)],
    "Lisu, Vai, Bamum": [(0xA4D0, 0xA63F), (0xA6A0, 0xA6FF)],
    "Javanese, Cham": [(0xA980, 0xAA5F)],
    "Meetei Mayek": [(0xAAE0, 0xAAFF), (0xABC0, 0xABFF)],
    "full and half width": [(0xFE30, 0xFE6F), (0xFF00, 0xFFEF)],
    "Gothic, Deseret, cuneiform": [(0x10330, 0x1034F), (0x10400, 0x1044F), (0x12000, 0x123FF)],
    "Indic scripts beyond U+FFFF": [(0x11000, 0x110CF), (0x11100, 0x1115F), (0x11300, 0x1137F), (0x11480, 0x114DF)],
    "mathematical letters": [(0x1D400, 0x1D7FF)],
    "emoji": [(0x1F300, 0x1F6FF), (0x1F900, 0x1FAFF), (0xFE00, 0xFE0F)],
    "private use": [(0xE000, 0xF8FF)],
    "controls": [(0x01, 0x1F), (0x7F, 0x9F)],
}


def random_texts(count: int, seed: int = 0) -> Iterator[str]:
    """Strings of 1 to 30 characters from one to three scripts, with spaces, marks and controls.

    Every fourth string is decomposed (NFD), as the names of files on macOS are.
    """
    generator = random.Random(seed)
    names = list(SCRIPTS)
    for number in range(count):
        scripts = generator.choices(names, k=generator.randint(1, 3))
        length = generator.randint(1, 30)
        text = "".join(_character(generator, generator.choice(scripts)) for _ in range(length))
        yield unicodedata.normalize("NFD", text) if number % 4 == 3 else text


def _character(generator: random.Random, script: str) -> str:
    other = generator.random()
    if other < 0.12:
        return " "
    if other < 0.16:
        script = "combining marks"
    elif other < 0.17:
        script = "controls"
    first, last = generator.choice(SCRIPTS[script])
    return chr(generator.randint(first, last))
