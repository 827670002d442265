"""One spelling for what people and models write in many: Unicode, plain text, styles, blanks, synonyms.

`spell` gives LaTeX in which every word stands alone in a `\\text{}`, signs of degrees, percent and currencies are such
words too, digits are not grouped, and commands have their groups. Regular expressions and scans, no mathematics.
"""

from __future__ import annotations

import re
import unicodedata

from iiblpo_jax.rewards.math.groups import argument, rewrite
from iiblpo_jax.rewards.math.words import phrase, wordy

SYMBOLS = {
    **dict.fromkeys("−–—‐‑﹣", "-"),
    **dict.fromkeys("·∙⋅×✕∗", r"\cdot "),
    **dict.fromkeys("’‘′", "'"),
    **dict.fromkeys("“”″", '"'),
    **dict.fromkeys("\u00a0\u2009\u202f\u2002\u2003\u2007\u3000", " "),
    **dict.fromkeys("\u200b\u200c\u200d\u2060\ufeff", ""),
    **{"÷": "/", "⁄": "/", "∕": "/", "∶": ":", "…": r"\ldots ", "±": r"\pm ", "∓": r"\mp ", "°": r"^{\circ}"},
    **{"≤": r"\le ", "≥": r"\ge ", "⩽": r"\le ", "⩾": r"\ge ", "≠": r"\ne ", "≈": r"\approx ", "≡": r"\equiv "},
    **{"∞": r"\infty ", "∪": r"\cup ", "∩": r"\cap ", "∈": r"\in ", "∖": r"\setminus ", "∅": r"\emptyset "},
    **{"ℝ": r"\mathbb{R}", "ℤ": r"\mathbb{Z}", "ℕ": r"\mathbb{N}", "ℚ": r"\mathbb{Q}", "ℂ": r"\mathbb{C}"},
    **{"√": r"\sqrt ", "∛": r"\sqrt[3]", "∜": r"\sqrt[4]", "∠": r"\angle ", "△": r"\triangle ", "→": r"\to "},
    **{"€": r"\text{euro}", "£": r"\text{sterling}", "¥": r"\text{yen}", "₹": r"\text{rupee}", "¢": r"\text{cent}"},
    **{"⇒": r"\Rightarrow ", "∴": "", "⟨": "(", "⟩": ")", "∧": r"\land ", "∨": r"\lor "},
}
GREEK = "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi omicron pi rho sigma tau upsilon phi chi psi omega"  # noqa: E501
SYMBOLS |= {
    unicodedata.lookup(f"GREEK SMALL LETTER {'LAMDA' if name == 'lambda' else name.upper()}"): f"\\{name} "
    for name in GREEK.split()
}
SYMBOLS |= {"ϕ": r"\phi ", "Δ": r"\Delta ", "Σ": r"\Sigma ", "Ω": r"\Omega ", "Π": r"\Pi ", "Θ": r"\Theta "}
RAISED, LOWERED = (
    dict(zip(raised, "0123456789+-()nix", strict=False)) for raised in ("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁽⁾ⁿⁱˣ", "₀₁₂₃₄₅₆₇₈₉₊₋₍₎ₙᵢₓ")
)
CHARACTERS = str.maketrans(SYMBOLS)
RAISED_RUN, LOWERED_RUN = (re.compile(f"[{''.join(table)}]+") for table in (RAISED, LOWERED))
WIDE = re.compile("[\uff01-\uff5e\U0001d400-\U0001d7ff]+")  # full width, and the letters of mathematics
VULGAR = re.compile("[¼½¾⅐-⅞]")

# Commands that change only how something looks, and take no argument.
BARE_STYLES = re.compile(
    r"\\(?:displaystyle|textstyle|scriptstyle|limits|nolimits|left|right|middle|[bB]igg?[lrm]?|boldmath|bf|it|rm|sf|tt"
    r"|hfill|hfil|allowbreak|noindent|bold|newline|par|smallskip|medskip|bigskip|Large|large|huge|small|normalsize"
    r"|ensuremath|mathstrut|strut|relax|protect)(?![A-Za-z])\.?(?![\d])|\\(?:left|right)\.|\\[lr]Vert(?![A-Za-z])"
)
STYLED = re.compile(r"\{\\(?:rm|bf|it|sf|tt)\s+([^{}]*)\}")
DROPPED = re.compile(r"\\(?:color|hspace\*?|vspace\*?|phantom|hphantom|vphantom|label|tag\*?|pagecolor)\s*(?=\{)")
FRAMES = re.compile(
    r"\\(?:boxed|fbox|framebox|underline|uline|bbox|mathop|mathord|cancel|emph|smash|mathclose)\s*(?=\{)"
)
TEXTCOLOR = re.compile(r"\\(?:textcolor|colorbox|color)\s*(?:\[[^\]]*\])?\s*\{[^{}]*\}\s*")
TEXTS = re.compile(r"\\(?:text(?:bf|it|rm|sf|tt|normal|up|md|sc|sl)?|mbox|hbox|operatorname\*?)\s*(?=\{)")
ALPHABETS = re.compile(r"\\(?:math(?:rm|sf|tt|bf|it|normal|cal|frak)|bm|boldsymbol|pmb|symbf)\s*(?=\{)")
UPRIGHT = re.compile(
    r"\s*\(?[A-Za-z]{2,}\)?\s*|\([A-Z]\)|[A-Za-z]+(?:\s*[/ ]\s*[A-Za-z]+|\^\{?-?\d\}?)+\s*"
)  # and units
DIGITS_BOLD = re.compile(r"\\(?:math(?:rm|bf|it|sf)|text)\s+(?=[A-Za-z0-9])")

SYNONYMS = [
    (re.compile(pattern), replacement)
    for pattern, replacement in [
        (r"\\[dtc]frac(?![A-Za-z])", r"\\frac"),
        (r"\\[dt]binom(?![A-Za-z])", r"\\binom"),
        (r"\\(?:leqslant|leqq|leq|le)(?![A-Za-z])|<=|=<|\\not\s*>", r"\\le "),
        (r"\\(?:geqslant|geqq|geq|ge)(?![A-Za-z])|>=|\\not\s*<", r"\\ge "),
        (r"\\(?:neq|ne)(?![A-Za-z])|\\not\s*=|/=|<>|(?<=[A-Za-z])\s*!=", r"\\ne "),
        (r"\\lt(?![A-Za-z])", "<"),
        (r"\\gt(?![A-Za-z])", ">"),
        (r"\\(?:[lcdv]?dots[cbmio]?|textellipsis|ddots)(?![A-Za-z])|\.\.\.+", r"\\ldots "),
        (r"\\(?:times|cdot|ast|bullet|star|cdotp)(?![A-Za-z])|\*", r"\\cdot "),
        (r"\\div(?![A-Za-z])", "/"),
        (r"\\colon(?![A-Za-z])|\{:\}", ":"),
        (r"\\(?:lbrace)(?![A-Za-z])", r"\\{"),
        (r"\\(?:rbrace)(?![A-Za-z])", r"\\}"),
        (r"\\(?:lbrack)(?![A-Za-z])", "["),
        (r"\\(?:rbrack)(?![A-Za-z])", "]"),
        (r"\\(?:langle|lparen|lgroup)(?![A-Za-z])", "("),
        (r"\\(?:rangle|rparen|rgroup)(?![A-Za-z])", ")"),
        (r"\\(?:[lr]?vert)(?![A-Za-z])", "|"),
        (r"\\(?:varnothing|O)(?![A-Za-z])|\\\{\s*\\\}", r"\\emptyset "),
        (r"\\(?:ldotp)(?![A-Za-z])", "."),
        (r"\\(?:wedge|land)(?![A-Za-z])", r"\\text{and}"),
        (r"\\(?:vee|lor)(?![A-Za-z])", r"\\text{or}"),
        (r"\\(?:backslash|smallsetminus)(?![A-Za-z])", r"\\setminus "),
        (r"\\(?:Real|Reals|R|reals)(?![A-Za-z])", r"\\mathbb{R}"),
        (r"\\(?:sim|simeq|cong|doteq|thickapprox|approxeq)(?![A-Za-z])|~=", r"\\approx "),
        (r"\\(?:infin)(?![A-Za-z])", r"\\infty "),
        (r"\\(?:varphi)(?![A-Za-z])", r"\\phi "),
        (r"\\(?:bmod|mod)(?![A-Za-z])\s*\{?(\w+)\}?", r"\\pmod{\1}"),
        (r"\\pmod\s*(\w)(?![A-Za-z])", r"\\pmod{\1}"),
        (r"\\(?:tg)(?![A-Za-z])", r"\\tan "),
        (r"\\(?:mathbb|Bbb)\s*([A-Z])", r"\\mathbb{\1}"),
        (r"\+\s*/?\s*-|\\pm(?![A-Za-z])", r"\\pm "),
        (r":=|==", "="),
        (r"\\over\b(?!\w)", r"\\over "),
    ]
]
DEGREES = re.compile(
    r"\^\s*(?:\{\s*(?:\\circ|\\text\{o\}|\\text\{\\circ\}|\\degree)\s*\}|\\circ|\\text\{o\})|\\(?:text)?degree(?![A-Za-z])"
)
MODULO = re.compile(r"\(?\s*\\text\{mod(?:ulo)?\}\s*(\w+)\s*\)?")
BASE = re.compile(r"(?<=\d)\s*\(?\s*(?:\\text\{in\}\s*)?\\text\{base\}\s*(\d+|\\text\{\w+\})\s*\)?")
TEMPERATURE = re.compile(r"\\text\{degrees?\}\s*(?:\\text\{)?([CF])(?:elsius|ahrenheit)?\}?(?![A-Za-z])")
BLANKS = re.compile(
    r"(?<!\\)\\(?:[,;:> ]|(?:qquad|quad|enspace|thinspace|enskip|space|nobreakspace)(?![A-Za-z])|(?=\s))|~"
)
GROUPED = re.compile(r"(?<![\d.,^_])(\d{1,3}(?: \d{3})+)(?!\d)")
HARD_COMMA = re.compile(r"(?<=\d)(?:\{\s*,\s*\}|,\s*\\!\s*|\\text\{,\}|\{\s*,\s*\\!\s*\})(?=\d{3}(?!\d))")
DECIMAL_COMMA = re.compile(r"(?<=\d)\{\s*,\s*\}(?=\d)")
CURRENCY = re.compile(r"\\text\s*\{\s*\\\$\s*\}|\\(?:textdollar|mathdollar)(?![A-Za-z])|\\\$|\$(?=\s*\d)(?=[^$]*$)")
OVER = re.compile(r"\{([^{}]*)\\(over|choose)\s([^{}]*)\}")
TIMES_TEN = re.compile(r"(?<=\d)\s*[xX]\s*(?=10\s*\^)")
TRAILING = re.compile(r"(?:\s|[.,;:]|\\\\|\\text\{\.?\}|\\$)+$")
LEADING = re.compile(
    r"^(?:\s|[=:,;]|\\(?:approx|Rightarrow|Longrightarrow|implies|therefore|iff|to|rightarrow|because)(?![A-Za-z]))+"
)


def spell(text: str, *, plain: bool = False) -> str:
    """The canonical spelling of an answer.

    Args:
      text: the content of a box, or a gold answer.
      plain: exponents of many digits need no braces, `2^10` is 1024; otherwise only where the text shows that it is
        not LaTeX (`3*2^10`), for LaTeX reads `2^10` as 2^1 0.
    """
    plain = plain or "*" in text or "sqrt(" in text.replace("\\sqrt(", "")
    text = _characters(text.strip())
    text = _wrappers(text)
    text = _separators(text)
    text = _texts(text)
    for pattern, replacement in SYNONYMS:
        text = pattern.sub(replacement, text)
    text = wordy(_percent(DEGREES.sub(r"\\text{degree}", text)))
    text = BASE.sub(r"_{\1}", MODULO.sub(r"\\pmod{\1}", text))
    text = TEMPERATURE.sub(lambda found: r"\text{celsius}" if found[1] == "C" else r"\text{fahrenheit}", text)
    text = _arguments(_plain_text(text, plain))
    return trim(text)


def trim(text: str) -> str:
    """Without the blanks and the punctuation around it."""
    text = LEADING.sub("", TRAILING.sub("", text)) if not text.rstrip().endswith("\\ldots") else text
    return re.sub(r" (?=[)\]}^_])|(?<=[(\[{]) ", "", " ".join(text.split()))


def _characters(text: str) -> str:
    """ASCII for what Unicode has a character for."""
    text = VULGAR.sub(_vulgar, text)
    text = RAISED_RUN.sub(lambda run: "^{" + "".join(RAISED[c] for c in run.group()) + "}", text)
    text = LOWERED_RUN.sub(lambda run: "_{" + "".join(LOWERED[c] for c in run.group()) + "}", text)
    text = text.translate(CHARACTERS)
    return WIDE.sub(lambda run: unicodedata.normalize("NFKC", run.group()), text).translate(CHARACTERS)


def _vulgar(found: re.Match[str]) -> str:
    top, _, bottom = unicodedata.normalize("NFKC", found.group()).partition("⁄")
    return rf"\frac{{{top}}}{{{bottom}}}"


def _wrappers(text: str) -> str:
    """Without delimiters of formulas, frames, colours and sizes."""
    if text.startswith("**") and text.endswith("**") and len(text) > 4:
        text = text[2:-2]
    if "\\begin" not in text:
        text = re.sub(r"\\\\(?=[A-Za-z])", r"\\", text)
    text = CURRENCY.sub(r"\\text{dollar}", text)
    text = re.sub(r"\\[()\[\]#](?!\s*\\\\)", " ", text) if "\\\\[" not in text else text
    text = re.sub(r"\$\s*,\s*\$", ", ", text).replace("$", "")
    text = STYLED.sub(r"\\text{\1}", text)
    text = rewrite(TEXTCOLOR.sub("", text), DROPPED, lambda _, content: " ")
    return BARE_STYLES.sub(" ", rewrite(text, FRAMES, lambda _, content: content))


def _separators(text: str) -> str:
    """Blanks are blanks, and digits are not grouped."""
    text = DECIMAL_COMMA.sub(".", HARD_COMMA.sub("", text)).replace("\\!", "")
    text = BLANKS.sub(" ", text)
    text = re.sub(r"(?<=\d)\{\s+\}(?=\d{3}(?!\d))", " ", text)
    return GROUPED.sub(lambda found: found.group().replace(" ", ""), re.sub(r"\s+", " ", text))


def _texts(text: str) -> str:
    """Every word in a `\\text{}` of its own; what is not a word, outside."""
    text = DIGITS_BOLD.sub(" ", text)
    text = rewrite(text, ALPHABETS, _alphabet)
    return rewrite(text, TEXTS, lambda found, content: phrase(content, operator="operatorname" in found.group()))


def _alphabet(found: re.Match[str], content: str) -> str:
    """`\\mathrm{cm}` is a word, `\\mathbf{6}` a number, `\\mathbf{v}` a letter."""
    letters = content.replace(" ", "")
    spaced = found.group().startswith("\\mathrm") and len(letters) == 1 and content != letters
    return phrase(content, operator=True) if spaced or UPRIGHT.fullmatch(content) else f" {content} "


def _percent(text: str) -> str:
    return re.sub(r"\\?%", r"\\text{percent}", text)


def _plain_text(text: str, plain: bool) -> str:
    """`sqrt(2)`, `x^(n+1)`, `x**2`, `3 x 10^8` and `(0,1)U(2,3)` as LaTeX has them."""
    text = re.sub(r"\\cdot\s*\\cdot\s*", "^", text)
    text = TIMES_TEN.sub(r"\\cdot ", text)
    text = re.sub(r"(?<=[)\]])\s*U\s*(?=[(\[])", r"\\cup ", text)
    text = re.sub(r"\^\s*-\s*(\d+)", r"^{-\1}", text)
    if plain or re.search(r"\d[eE]|\^\(", text):
        text = re.sub(r"\^\s*(\d+)", r"^{\1}", text)
    return text


def _arguments(text: str) -> str:
    """Every fraction, root and exponent with its arguments in braces."""
    for _ in range(4):
        text = OVER.sub(lambda f: rf"\{'frac' if f[2] == 'over' else 'binom'}{{{f[1]}}}{{{f[3]}}}", text)
    if found := re.fullmatch(r"(.*?)\\(over|choose)\s(.*)", text):
        text = rf"\{'frac' if found[2] == 'over' else 'binom'}{{{found[1]}}}{{{found[3]}}}"
    return _braces(text, 0)


HUNGRY = re.compile(r"\\(frac|binom|sqrt)(?![A-Za-z])\s*(\[[^\[\]]*\])?|\^")
PARENTHESES = re.compile(r"\s*\(([^()]*(?:\([^()]*\)[^()]*)*)\)")


def _braces(text: str, depth: int) -> str:
    done, at = [], 0
    for match in HUNGRY.finditer(text):
        if match.start() < at or depth > 40:
            continue
        found, end = [], match.end()
        for _ in range(2 if match[1] in ("frac", "binom") else 1):
            taken = _taken(text, end, match[1])
            if taken is None:
                break
            found.append(_braces(taken[0], depth + 1))
            end = taken[1]
        else:
            done += [text[at : match.start()], match.group().rstrip(), *(f"{{{content}}}" for content in found)]
            at = end
    return "".join([*done, text[at:]])


def _taken(text: str, start: int, command: str | None) -> tuple[str, int] | None:
    """The argument of a root, an exponent or a fraction: plain text puts it in parentheses, or just after `\\sqrt`."""
    if command in ("sqrt", None):
        if parentheses := PARENTHESES.match(text, start):
            return parentheses[1], parentheses.end()
        if command == "sqrt" and (digits := re.compile(r"\s*(\d+)").match(text, start)):
            return digits[1], digits.end()
        if command is None and re.compile(r"\s*\d\d").match(text, start):
            return None  # LaTeX takes one digit, whoever wrote it meant two: not read at all
    return argument(text, start)
