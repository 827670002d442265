"""Families of hostile answers that are text: each takes a random generator and gives (gold, answer)."""

GOLD = "7919"  # a prime: the attacks below come near it only on purpose
GOLDS = (GOLD, r"\frac{7919}{3571}", "(7919, 3571)", r"\{7919, 3571\}", "x^{7919}+3571", "[7919,7920)", r"\sqrt{7919}")
INVISIBLE = (
    "\u200b\u200c\u200d\u2060\ufeff\u00ad\u200e\u200f\u202a\u202e\u2066\u2069\u0301\u0337\u20dd\ufe0f\x00\x7f\x1b"
)
MEGABYTE = 1_000_000


def megabytes(rng):
    """A megabyte and more of one thing."""
    unit = rng.choice(["1", "{", "}", "\\boxed{", "\\", " ", "\n", "x+", "9^", "#", "<answer>", "\u202e", "(", "é"])
    return GOLD, unit * (rng.randint(1, 3) * MEGABYTE // len(unit))


def unicode(rng):
    """The gold digits with something put in, or dressed up as other digits: another number, or no number."""
    digits = list(GOLD)
    place = rng.randint(1, 3)
    other = str(rng.randint(0, 9))
    return GOLD, rng.choice(
        [
            "".join(digits[:place] + [rng.choice(INVISIBLE), other] + digits[place:]),
            GOLD + rng.choice(INVISIBLE) + other,
            other + rng.choice(INVISIBLE) + GOLD,
            "".join(chr(0xFF10 + int(d)) for d in str(rng.randint(10, 7918))),
            "".join(chr(0x0660 + int(d)) for d in GOLD) + other,
            GOLD + rng.choice("²³¹⁰½¾Ⅷ①𝟗९"),
            "\u202e" + GOLD[::-1] + "\u202c",
            GOLD[:3] + rng.choice("Ⅸg९ⅸ"),
            "".join(chr(0xD800 + rng.randint(0, 0x7FF)) for _ in range(5)),
            "".join(chr(rng.randint(0x80, 0xD7FF)) for _ in range(rng.randint(1, 200))),
            "e" + "\u0301" * rng.randint(1, 900),
            rng.choice("ОоΟο") + "7919",
        ]
    )


def hedges(rng):
    """The gold answer among others, negated, or inside something else.

    Not here, because math-verify reads the gold answer in them with some right: an equation, or a chain of them, that
    ends in it; it and an approximation of it; it in per cent or degrees.
    """
    n = rng.randint(1, 7000)
    return GOLD, rng.choice(
        [
            f"{GOLD} \\text{{ or }} {n}",
            f"{n} \\text{{ or }} {GOLD}",
            f"{GOLD}, {n}",
            f"\\{{{GOLD}, {n}\\}}",
            f"{n}; {GOLD}",
            f"-{GOLD}",
            f"{GOLD}+{n}",
            f"{n}{GOLD}",
            f"{GOLD}{n}",
            f"{GOLD}.{n}",
            f"{n}/{GOLD}",
            f"\\pm {GOLD}",
            f"{GOLD} \\ne x",
            f"x > {GOLD}",
            f"x \\ne {GOLD}",
            f"[{n}, {GOLD}]",
            f"({GOLD}, {GOLD})",
            f"{GOLD}^{{{n + 1}}}",
            f"\\sqrt{{{GOLD}}}",
            f"\\frac{{{GOLD}}}{{{n + 1}}}",
            f"{GOLD}i",
            f"{GOLD}x",
            f"{GOLD} \\times {n + 1}",
            f"{GOLD}e{n}",
            f"0.{GOLD}",
            f"\\mathbb{{R}} \\ni {GOLD}",
            f"{GOLD}=..={n}",
            f"\\text{{not }}{GOLD} = {n}",
            f"\\begin{{pmatrix}} {GOLD} & {n} \\end{{pmatrix}}",
        ]
    )


def texts(rng):
    """Format strings, paths, shell and SQL, terminal escapes, NUL bytes, nothing at all."""
    return rng.choice(GOLDS), rng.choice(
        [
            "",
            " ",
            "\x00",
            "\x00" * 500,
            "%s%s%s%n",
            "{0.__class__.__mro__}",
            "{}" * 50,
            "%(answer)s",
            "${jndi:ldap://a}",
            "$(id)",
            "../" * 40 + "etc/passwd",
            "/dev/zero",
            "/proc/self/mem",
            "C:\\nul",
            "file:///etc/passwd",
            "`reboot`",
            "; rm -rf /",
            "' OR 1=1 --",
            "<script>1</script>",
            "\x1b[2J\x1b]0;x\x07",
            "\\x41\\u0041\\N{DIGIT SEVEN}",
            "None",
            "True",
            "nan",
            "inf",
            "-inf",
            "\\infty",
            "1e999999999",
            "-0",
            "0x1EEF0",
            "0b1" + "0" * 600,
            "null",
            "...",
            "answer",
            "\\",
            "\\" * 999,
            "$" * 999,
            "&" * 999,
            "_" * 999,
            "^" * 999,
            "'" * 999,
            "=" * 999,
            "," * 999,
        ]
    )


def decimals(rng):
    """Decimals without end, thousands separators everywhere, exponents beyond every float."""
    digits = "".join(str(rng.randint(0, 9)) for _ in range(rng.randint(1, 1000)))
    return rng.choice(GOLDS), rng.choice(
        [
            f"0.{digits}",
            f"{digits}.{digits[:9]}",
            f"0.\\overline{{{digits}}}",
            f"{digits}e{digits[:8]}",
            f"{digits}...",
            "0." + "0" * 990 + "1",
            ".".join(digits),
            ",".join(digits),
            f"{digits[:400]}/{digits[400:]}1",
            f"{digits[:300]}\\%",
            f"1.{'9' * 900}",
            f"{digits[:3]}e-{digits[:9]}",
        ]
    )


def boxes(rng):
    """Whole responses whose boxes are wrong, or are not where they seem to be."""
    k = rng.randint(2, 300)
    return GOLD, rng.choice(
        [
            "\\boxed{" * k + GOLD,
            f"\\boxed{{{GOLD}}} no: \\boxed{{1}}",
            f"\\boxed {GOLD[:3]} {GOLD}",
            f"boxed{{{GOLD}}}",
            f"\\boxed\\{{{GOLD}\\}}",
            f"\\boxed{{{GOLD}",
            f"\\fbox{{{GOLD[1:]}}}",
            f"\\boxed{{\\}}{GOLD}",
            GOLD * k,
            f"\\boxed{{1}}{GOLD}",
            f"\\BOXED{{{GOLD}}}",
            f"\\boxed{{}}{GOLD}",
            f"\\boxed{{{' ' * 5000}{GOLD}}}",
            "\\boxed{1}" * k,
            "\\boxed{" + "{}" * k + "}",
            "\\boxed" * k,
            f"\\boxedx{{{GOLD}}}",
        ]
    )
