"""Texts that tokenizers get wrong."""

NASTY_TEXTS = [
    "",
    " ",
    "Hello, world!",
    "  two spaces, \t\ttabs \n\n \r\n lines   ",
    "안녕하세요 세계, 한국어를 읽습니다.",
    "שלום עולם مرحبا بالعالم \u202eright to left\u202c",
    "日本語と中文混排、句読点。",
    "def f(x):\n\treturn {k: v**2 for k, v in x.items()}  # 'why'\n\n\n    pass",
    "\x00\x01\x1b[31m\x7f\u0085\u2028\ufeffcontrol",
    "😀👍🏽👨‍👩‍👧‍👦🇰🇷 emoji",
    "e\u0301 é n\u0303 ñ Z\u0351\u036b\u0343a\u0363lgo",
    "don't I'll we've THEY'RE 'tis it'S",
    "no\u00a0break\u3000wide\u200bzero",
    "\ufffd replaced \ufffd\ufffd",
    "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n",
    "<|endoftext|><|endoftext|> <|im_start|",
    "<s>[INST] hi [/INST]</s><unk>",
    "[CLS] masked [MASK] [SEP] [PAD]",
    "antidisestablishmentarianism" * 5,
    "a" * 500,
    "!?.,;:'\"()[]{}<>@#$%^&*-_=+|\\/~`",
    "https://example.org/path?query=value&other=%20#part",
    "\U0001f9ff\U00010348\U0001d11e beyond the basic plane",
]
NASTY_NUMBERS = [
    "1234567890 12 3",
    "in 2024,  12 x   345\n67\t8",
    "3.14159e-10 0xFF 1,000,000",
    "²³ ½ Ⅷ ٣٤ १२",
    "7" * 200,
]
