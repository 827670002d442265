"""Families of hostile answers that are formulas or code: each takes a random generator and gives (gold, answer)."""

from hostile_text import GOLD, GOLDS


def powers(rng):
    """Towers, factorials, binomials, logarithms of numbers nobody can write down."""
    tower = "9"
    for _ in range(rng.randint(2, 6)):
        tower = f"{rng.randint(2, 99)}^{{{tower}}}"
    e = rng.randint(5, 12)
    return rng.choice(GOLDS), rng.choice(
        [
            tower,
            f"{tower}+1",
            f"{tower}-{tower}",
            f"-{tower}",
            f"\\sqrt{{{tower}}}",
            f"\\frac{{1}}{{{tower}}}",
            "**".join(str(rng.randint(2, 9)) for _ in range(rng.randint(3, 9))),
            f"10^{{-10^{{{e}}}}}",
            f"{10**e}!",
            f"{rng.randint(5, 9)}" + "!" * rng.randint(2, 40),
            f"\\binom{{10^{{{e}}}}}{{10^{{{e - 2}}}}}",
            f"\\log_{{2}}(2^{{10^{{{e}}}}})",
            f"\\sin(10^{{10^{{{e}}}}})",
            f"(x+1)^{{{10**e}}}",
            f"(x+y+z+1)^{{{rng.randint(50, 5000)}}}",
            f"10^{{10^{{{e}}}}} \\bmod 10007",
        ]
    )


def nesting(rng):
    """Hundreds of levels of anything that nests, closed and not."""
    left, right = rng.choice(
        [
            ("(", ")"),
            ("{", "}"),
            ("[", "]"),
            ("\\{", "\\}"),
            ("\\frac{1}{", "}"),
            ("\\sqrt{", "}"),
            ("|", "|"),
            ("\\left(", "\\right)"),
            ("\\text{", "}"),
            ("x^{", "}"),
            ("x_{", "}"),
            ("\\boxed{", "}"),
            ("-", ""),
            ("\\lfloor ", "\\rfloor "),
            ("\\sin(", ")"),
            ("\\begin{pmatrix}", "\\end{pmatrix}"),
            ("\\int ", " dx"),
        ]
    )
    depth = rng.randint(20, 1000 // (len(left) + len(right)))
    closed = rng.choice([depth, depth, depth - 1, 0])
    return rng.choice(GOLDS), left * depth + str(rng.randint(1, 99)) + right * closed


def macros(rng):
    """TeX that defines itself, opens files, or never closes."""
    k = rng.randint(2, 60)
    return rng.choice(GOLDS), rng.choice(
        [
            "\\def\\x{\\x\\x}\\x",
            "\\newcommand{\\a}{\\b}\\newcommand{\\b}{\\a}\\a",
            "\\loop\\iftrue\\repeat",
            "\\input{/etc/passwd}",
            "\\include{/dev/zero}",
            "\\csname " * k,
            "\\write18{id}",
            "\\catcode`\\{=13",
            "\\expandafter" * k,
            "\\let\\frac\\sqrt \\frac{1}{2}",
            "\\begin{array}" * k,
            "\\begin{cases}1\\\\" * k,
            "\\frac" * k,
            "\\sqrt" * k,
            "\\frac{" * k,
            "\\text{" * k,
            "\\left" * k,
            "\\\\" * k,
            "\\" + "a" * 900,
            "\\unknown{1}" * k,
            "\\hspace{" + "9" * 500 + "em}1",
            "\\displaystyle" * k + "1",
            "\\begin{matrix}" + "1&" * k + "1" + "\\\\1" * k + "\\end{matrix}",
        ]
    )


def calculus(rng):
    """Integrals, limits, sums, products and sets that take for ever."""
    n = rng.randint(3, 9)
    return rng.choice(GOLDS), rng.choice(
        [
            f"\\sum_{{i=1}}^{{10^{n}}} i^i",
            f"\\prod_{{i=1}}^{{10^{n}}} i",
            "\\int_0^{10} e^{x^x} dx",
            "\\int " * n + "x^{x}" + " dx" * n,
            "\\lim_{x\\to 0} \\frac{\\sin x}{x^{x^{x}}}",
            f"\\zeta(10^{{{n}}})",
            "\\sum_{i=1}^{\\infty} \\frac{1}{i^{i}}",
            "\\frac{d}{dx} " * n + "x^{x^{x}}",
            "x^{x^{x^{x^{x}}}}",
            "+".join(f"\\sin({i}x)\\cos(x^{{{i}}})" for i in range(2, 20)),
            "=".join("123456789"),
            "<".join("123456789"),
            "\\{" + ",".join(f"\\sqrt{{{i}}}" for i in range(90)) + "\\}",
            ",".join(str(i) for i in range(250)),
            "\\cup".join(f"[{i},{i + 1}]" for i in range(0, 200, 2)),
            "\\sqrt{2}" * 100,
            "(x+1)(x-1)" * 90,
            "\\begin{pmatrix}" + "\\\\".join("&".join("x" * 12) for _ in range(12)) + "\\end{pmatrix}^{99}",
            "\\sqrt{" + "+\\sqrt{".join(str(i) for i in range(2, 2 + 8 * n)) + "}" * 8 * n,
        ]
    )


def code(rng):
    """Python that a parser might run, and SymPy that it will."""
    call = rng.choice(["os').system('id", "sys').exit('1", "os').fork() or ('", "time').sleep(99) or ('"])
    return rng.choice(GOLDS), rng.choice(
        [
            f"__import__('{call}')",
            f"\\text{{__import__('{call}')}}",
            "eval(chr(49))",
            "exit()",
            "quit()",
            "input()",
            "().__class__.__base__.__subclasses__()",
            "[x for x in range(10**10)]",
            "lambda: 1",
            "open('/tmp/x', 'w')",
            "Symbol('x').func.__globals__",
            "sympify('9**9**9')",
            "factorial(10**9)",
            "isprime(2**9999-1)",
            "while True: 1",
            "exec('import os')",
            "globals()",
            "breakpoint()",
            "(lambda f: f(f))(lambda f: f(f))",
            "S('1')+N(pi, 10**9)",
            "'a' * 10**10",
            "[[]] * 10**10",
            "9**9**9",
            "Integer(9)**Integer(9)**Integer(99)",
            "{1: 2}[3]",
            "x.__class__",
            "getattr(x, 'y')",
            "prime(10**12)",
            "nextprime(10**400)",
            "factorint(10**80+129)",
            "#",
            "\n\n",
            "1\\\n2",
        ]
    )


def soup(rng):
    """Random TeX tokens."""
    tokens = [
        "\\frac",
        "{",
        "}",
        "^",
        "_",
        "\\sqrt",
        "(",
        ")",
        "x",
        "y",
        "1",
        "2",
        "+",
        "-",
        "=",
        "\\cdot",
        "\\left(",
        "\\right)",
        ",",
        "\\{",
        "\\}",
        "\\pi",
        "\\sin",
        "\\text{",
        "\\%",
        "$",
        "&",
        "\\\\",
        "[",
        "]",
        "|",
        "!",
        "<",
    ]
    return rng.choice(GOLDS), "".join(rng.choice(tokens) for _ in range(rng.randint(1, 120)))


def evaluated(rng):
    """What a scorer that calls `eval` would run."""
    act = rng.choice(
        [
            "__import__('os').system('touch /tmp/x')",
            "open('/tmp/x','w')",
            "exec(chr(112)*9)",
            "eval('9**9**9')",
            "[].__class__.__base__.__subclasses__()",
            "__import__('sys')._getframe(9).f_locals",
            "exit()",
            "print(1)",
            "__import__('time').sleep(99)",
            "__import__('os')._exit(1)",
            "9**9**9**9",
            "factorial(10**9)",
            "x.y.z()",
            "(lambda f: f(f))(lambda f: f(f))",
            "S('9**9**9')",
            "simplify(chr(49))",
            "2**2**2**2**2**2",
            "N(pi,10**9)",
        ]
    )
    return GOLD, rng.choice(
        ["{}", "({})", "[{}]", "1+{}", "[[{}]]", "'{}'", "-{}", "{}, {}", "{} if 1 else 2"]
    ).replace("{}", act)
