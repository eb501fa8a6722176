"""Texts that reveal differences between tokenizers."""

import random

SCORED = (
    "a photo of two red apples on a wooden table",
    "",
    "Ein Bär & ein Fuchs, die «Café» trinken — 3½ Tassen (heiß!), #1; don't",
    "猫が窓の外を見ている 🐱, ultra-detailed",
    "a lone lighthouse at dusk, waves below, " * 12,
)
"""Also scored with images; the last one is too long for each of the tokenizers."""

_ODD = (
    " ",
    "\t tabs\tand\nlines \r\n",
    "no\u00a0break, thin\u2009space, zero\u200bwidth, soft\u00adhyphen, \ufeffmark",
    "control \x00 \x07 \x1b characters \x7f \ufffd",
    "ÀÉÎÕÜ àéîõü Straße ŁÓDŹ İstanbul ıstanbul ΣΑΣ ΟΔΟΣ",
    "e\u0301 a\u0308 n\u0303 combined, ﬁ ﬂ ﬃ ligatures, Å Å two angstroms",
    "ｆｕｌｌ　ｗｉｄｔｈ ＡＢＣ１２３",
    "кот сидит на окне, красивый свет",
    "قطة تجلس على النافذة",
    "חתול על החלון",
    "बिल्ली खिड़की पर बैठी है",
    "แมวนั่งอยู่ที่หน้าต่าง",
    "고양이가 창가에 앉아 있다",
    "两只猫坐在窗台上，阳光明媚。",
    "𠀀𠀁 rare Han, 𝓯𝓪𝓷𝓬𝔂 letters, 𝟘𝟙𝟚 digits",
    "👩‍👩‍👧‍👦 family, 👍🏽 thumb, 🇩🇪 flag, ☃️ snowman, ❤ heart",
    "&lt;b&gt; &amp;amp; &quot;quoted&quot; &#39;s &eacute; &copy;",
    "Ã©tÃ© mojibake, â€œquotesâ€\x9d",
    "‘single’ “double” „low“ «angled» … – — ― ‐ ‑",
    "it's they're we've I'm you'll he'd IT'S THEY'RE",
    "(red:1.2), [blue|green], ((masterpiece)), <lora:style:0.8> BREAK --ar 16:9",
    "a.b.c e.g. i.e. U.S.A. 3.14159 1,000,000 10% $5 €6 £7 ¥8 50°",
    "CamelCase snake_case kebab-case dot.com/path?x=1&y=2#z user@host",
    "!?!?... ;;; ::: ~~~ ``` ^^^ *** === +++ ||| \\\\\\ ///",
    "one_two __init__ {curly} [square] (round) <angle>",
    "supercalifragilisticexpialidocious antidisestablishmentarianism",
    "x" * 99,
    "x" * 100,
    "x" * 101,
    "word" * 60,
    "\u4e00" * 90,
    "🙂" * 60,
    "!" * 120,
    "1234567890" * 12,
    "CLS SEP PAD MASK UNK",
    "½ ¼ ² ³ ₂ ⅷ Ⅷ № ™ ® © ℃ ∑ √ ∞ ≠ ≤",
    "日本語ｶﾀｶﾅ ひらがな カタカナ、。",
    "a\u0300\u0301\u0302\u0303 stacked, \u0301 alone",
    "\u202eright to left\u202c \u2066isolate\u2069",
    "naïve façade coöperate résumé Zoë",
)
_SPECIAL = (
    "[CLS] a cat [SEP] a dog",
    "a [MASK] in a [UNK] [PAD]",
    "[cls] [sep] [mask]",
    "<start_of_text> a cat <end_of_text>",
    "<|startoftext|> a cat <|endoftext|>",
    "[DEC] a cat",  # BLIP's own two
    "a cat [ENC]",
)
_ADJECTIVES = "red tiny Gothic neon-lit 1970s hand-painted gloomy iridescent 8k low-poly".split()
_NOUNS = "cats lighthouse cyborg teapot Tyrannosaurus café skyscraper bonsai astronaut über-goat"
_NOUNS = _NOUNS.split()
_PLACES = (
    "on Mars", "in the rain", "at 5:30 p.m.", "under St. Peter's dome", "beside the Seine (1889)",
    "by Hokusai", "in São Paulo", "inside a snow-globe",
)  # fmt: skip
_ENDINGS = (
    "", ".", "!", ", trending on ArtStation, f/1.8, 35mm", " -- v5", "; 4K, HDR", ", no text",
    " | studio lighting | " + "highly detailed, " * 20,
)  # fmt: skip


def varied_texts(count: int = 200) -> list[str]:
    """The scored texts, odd texts, texts with special tokens, and random prompts up to `count`."""
    draw = random.Random(0)
    texts = [*SCORED, *_ODD, *_SPECIAL]
    while len(texts) < count:
        what = f"{draw.choice(_ADJECTIVES)} {draw.choice(_NOUNS)}"
        text = f"{draw.randint(1, 99)} {what} {draw.choice(_PLACES)}{draw.choice(_ENDINGS)}"
        texts.append(draw.choice((text, text.upper(), text.title(), text.replace(" ", "  "))))
    return texts
