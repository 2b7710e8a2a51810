"""Every mistake in a kernel's text gets an error that shows file, line and caret, says what is wrong and what to write."""

from pathlib import Path

import pytest

from kpt_dsl import KernelError, KptError
from tests.language.snippets import SIGNATURE, kernel, lower

LOOP = "for m in kd.parallel(kd.tile('M')):\n    "
INNER = LOOP + "for n in kd.sequential(kd.tile('N')):\n        "

# body of the kernel, what the caret must stand under, parts of the message (instance, then remedy)
MISTAKES = {
    "undefined name": (LOOP + "y[m, :] = x[m, :] * scael", "scael", ["scael is not defined", "assign it first"]),
    "name like a module": (LOOP + "row[m] = eps * maht", "maht", ["maht is not defined", "assign it first, or import it"]),
    "private name": (LOOP + "row[m] = eps * _privat", "_privat", ["_privat is not defined", "assign it first, or import it"]),
    "misspelt constant": (LOOP + "row[m] = eps * FACTR", "FACTR", ["FACTR is not defined", "did you mean FACTOR?"]),
    "misspelt helper": (LOOP + "y[m, :] = duble(x[m, :])", "duble", ["duble is not defined", "did you mean double?"]),
    "word without kd": (LOOP + "row[m] = rsqrt(eps)", "rsqrt", ["rsqrt is not defined", "did you mean kd.rsqrt?"]),
    "module of kd's": (LOOP + "y[m, :] = kd.tagets(x[m, :])", "kd.tagets", ["has no tagets", "docs/language.md lists all words"]),
    "no word of a kernel": (LOOP + "y[m, :] = kd.source(x[m, :])", "kd.source",
                            ["kpt_dsl has no source for the text of a kernel", "docs/language.md"]),
    "misspelt of another module": (LOOP + "row[m] = eps * math.pie", "math.pie", ["math has no pie", "did you mean pi?"]),
    "python's sum": (LOOP + "row[m] = sum(x[m, :])", "sum(x[m, :])", ["sum is a Python function", "else use kd.sum"]),
    "module as a value": (LOOP + "row[m] = math", "row[m] = math", ["the module math cannot be stored"]),
    "own name before its value": (LOOP + "FACTOR = FACTOR * 2\n    row[m] = FACTOR", "FACTOR",
                                  ["FACTOR has no value here", "snippet's own everywhere in it"]),
    "value on one way only": (LOOP + "if not flag: s = 1.0\n    row[m] = s", "s", ["s has no value here", "on every way here"]),
    "equal options": (LOOP + "c = kd.choice('fast', 1, True)", "kd.choice('fast', 1, True)", ["two options of choice 'fast' are equal"]),
    "misspelt name": (LOOP + "row[m] = epss", "epss", ["epss is not defined", "did you mean eps?"]),
    "misspelt function": (LOOP + "y[m, :] = kd.epx(x[m, :])", "kd.epx", ["has no epx", "did you mean exp"]),
    "rank mismatch": (LOOP + "y[m, :] = x[m, :] + w[:]", "x[m, :] + w[:]", ["f32[m, N]", "ranks differ", "[None, :]"]),
    "axis mismatch": (
        INNER + "y[m, n] = x[m, n] + x[m, :]", "x[m, n] + x[m, :]", ["axis n does not match axis N", "same tile"],
    ),
    "dot of vectors": (LOOP + "row[m] = kd.dot(w[:], w[:])", "kd.dot(w[:], w[:])", ["two axes", "first operand is bf16[N]", "kd.sum"]),
    "dot inner mismatch": (LOOP + "s = kd.dot(x[m, :], x[m, :])", "kd.dot(x[m, :], x[m, :])",
                           ["N does not match m", "write .T behind the second operand"]),
    "dot of integers": (LOOP + "s = kd.dot(x[m, :].to(kd.i32), x[m, :].T)", "kd.dot(x[m, :].to(kd.i32), x[m, :].T)",
                        ["takes floats", "i32[m, N]", "x.to(kd.bf16)"]),
    "dot mixed": (LOOP + "s = kd.dot(x[m, :].to(kd.f16), x[m, :].T)", "kd.dot(x[m, :].to(kd.f16), x[m, :].T)",
                  ["cannot multiply f16 by bf16", "b.to(kd.f16)"]),
    "dot accumulator": (INNER + "s = kd.dot(x[m, :].T, x[m, n], kd.zeros([m]))", "kd.dot(x[m, :].T, x[m, n], kd.zeros([m]))",
                        ["accumulator of type f32[N, n]", "got f32[m]"]),
    "dot with itself": (LOOP + "s = kd.dot(x[m, :], x[m, :].T)", "kd.dot(x[m, :], x[m, :].T)",
                        ["both axes of this product run over m", "second loop"]),
    "while": (LOOP + "while True: pass", "while True: pass", ["a while loop cannot be used", "kd.sequential"]),
    "python range": (LOOP + "for i in range(4): pass", "range(4)", ["or kd.range(...) only", "kd.tile", "kd.range(4)"]),
    "comprehension": (LOOP + "s = [i for i in w]", "[i for i in w]", ["cannot be used in a kernel"]),
    "lambda": (LOOP + "s = lambda: 1", "lambda: 1", ["cannot be used in a kernel"]),
    "dynamic if": (LOOP + "if eps > 0: row[m] = eps", "eps > 0", ["known before the kernel runs", "kd.where(condition, a, b)"]),
    "dynamic ternary": (LOOP + "row[m] = 1.0 if eps > 0 else 2.0", "1.0 if eps > 0 else 2.0", ["static", "kd.where(c, a, b)"]),
    "and of tiles": (LOOP + "c = (eps > 0) and (eps < 1)", "(eps > 0) and (eps < 1)", ["need static values", "&"]),
    "chained comparison": (LOOP + "c = 0 < eps < 1", "0 < eps < 1", ["chained comparison", "(a < b) & (b < c)"]),
    "in a tuple": (LOOP + "c = eps in (0.0, 1.0)", "eps in (0.0, 1.0)", ["a value of type f32 in (0.0, 1.0)", "(x == a) | (x == b)"]),
    "python's any": (LOOP + "row[m] = eps * any([eps > 0])", "any([eps > 0])", ["any is a Python function"]),
    "store to an undefined name": (LOOP + "rwo[m] = eps", "rwo[m] = eps", ["rwo is not defined", "did you mean row?"]),
    "tuple of tiles stored": (LOOP + "row[m] = (eps, 1)", "row[m] = (eps, 1)", ["(a value of type f32, 1 (int)) cannot be stored"]),
    "tile as a dim": (LOOP + "row[m] = kd.size(m)", "kd.size(m)", ["the tile m of M is not a dim"]),
    "number that a helper's loop changes": (LOOP + "row[m] = turns(x, m)", "count = count + 1", ["count changes inside the loop"]),
    "store to input": (LOOP + "x[m, :] = 0.0", "x[m, :] = 0.0", ["x is declared kd.In", "declare it x: kd.Out"]),
    "load from output": (LOOP + "row[m] = kd.sum(y[m, :], axis=1)", "y[m, :]", ["y is declared kd.Out", "keep the value"]),
    "store shape": (LOOP + "y[m, :] = kd.zeros([m])", "y[m, :] = kd.zeros([m])", ["shape [m, N]", "got f32[m]"]),
    "store to a tile": (LOOP + "s = kd.zeros([m])\n    s[m] = 1.0", "s[m] = 1.0", ["only kd.Out arguments", "kd.where"]),
    "in-place update": (LOOP + "y[m, :] *= 2.0", "y[m, :] *= 2.0", ["only be added to in place", "then store once"]),
    "addition to a narrow output": (LOOP + "y[m, :] += 1.0", "y[m, :] += 1.0",
                                    ["y holds bf16; only a float32 output can be added to", "pass a float32 tensor for y"]),
    "addition to an input": (LOOP + "x[m, :] += 1.0", "x[m, :] += 1.0", ["x is declared kd.In", "declare it x: kd.Out"]),
    "addition of another shape": (LOOP + "row[m] += x[m, :]", "row[m] += x[m, :]", ["shape [m]", "got bf16[m, N]"]),
    "stored and added to": (LOOP + "row[m] = 0.0\n    row[m] += 1.0", "row[m] += 1.0",
                            ["row is stored to and added to in one kernel", "clear it before the kernel runs"]),
    "use after loop": (INNER + "s = kd.sum(x[m, n], axis=1)\n    row[m] = s", "s",
                       ["s is used outside the loop (line", "define s before the loop"]),
    "tile after loop": (INNER + "s = n.start\n    row[m] = n.start", "n", ["n is used outside the loop"]),
    "carried type": (LOOP + "s = kd.zeros([m])\n    for n in kd.sequential(kd.tile('N')):\n        s = s[:, None] + x[m, n]",
                     "s = s[:, None] + x[m, n]", ["s is f32[m] before the loop and f32[m, n] after one turn", "keeps its type"]),
    "carried number": (LOOP + "s = 0.0\n    for n in kd.sequential(kd.tile('N')):\n        s = s + kd.sum(x[m, n], axis=1)",
                       "s = s + kd.sum(x[m, n], axis=1)", ["s is 0.0 (float) before the loop", "start it with kd.zeros"]),
    "wrong dim": (LOOP + "row[m] = w[m]", "m", ["tile m runs over M, but this index of w[N] is N"]),
    "index count": (LOOP + "s = x[m]", "m", ["1 indices for x[M, N]", "2 of them"]),
    "index kind": (LOOP + "s = x[m, eps]", "m, eps", ["indexed with a value of type f32", "whole-number scalar"]),
    "slice bounds": (LOOP + "s = x[m, 0:4]", "0:4", ["a slice with bounds", "kd.tile"]),
    "pick an element": (LOOP + "s = x[m, :]\n    row[m] = s[0]", "s[0]", ["one ':' for each of its 2 axes", "picked"]),
    "unknown dim": (LOOP + "row[m] = kd.size('Q')", "kd.size('Q')", ["'Q' is not a dim", "its dims are M, N"]),
    "reduce axis": (LOOP + "row[m] = kd.sum(x[m, :], axis=2)", "kd.sum(x[m, :], axis=2)", ["axis 2", "from -2 to 1"]),
    "place along no axis": (LOOP + "row[m] = kd.argmax(x[m, :], axis=2)", "kd.argmax(x[m, :], axis=2)",
                            ["kd.argmax of f32[m, N] along axis 2", "from -2 to 1"]),
    "place of conditions": (LOOP + "row[m] = kd.argmin(x[m, :] > 0, axis=1)", "kd.argmin(x[m, :] > 0, axis=1)",
                            ["kd.argmin of conditions", "kd.where(condition, 1, 0)"]),
    "reduce missing axis": (LOOP + "row[m] = kd.sum(x[m, :])", "kd.sum(x[m, :])", ["missing a required argument: 'axis'"]),
    "where condition": (LOOP + "y[m, :] = kd.where(x[m, :], 1.0, 0.0)", "kd.where(x[m, :], 1.0, 0.0)", ["needs a condition first"]),
    "arithmetic on conditions": (LOOP + "row[m] = (eps > 0) + 1.0", "(eps > 0) + 1.0", ["kd.where(condition, a, b)", "no arithmetic"]),
    "float floor division": (LOOP + "row[m] = eps // 2.0", "eps // 2.0", ["whole numbers", "kd.floor(a / b)"]),
    "tensor in arithmetic": (LOOP + "y[m, :] = x + 1.0", "x + 1.0", ["arithmetic with the tensor x[M, N]", "x[:, :]"]),
    "tile in arithmetic": (LOOP + "row[m] = m + 1", "m + 1", ["the tile m of M", "m.index"]),
    "python function": (LOOP + "y[m, :] = plain(x[m, :])", "plain(x[m, :])", ["plain is a Python function", "@kd.function"]),
    "math function": (LOOP + "row[m] = math.exp(eps)", "math.exp(eps)", ["math.exp is a Python function", "kd's own"]),
    "recursion": (LOOP + "y[m, :] = forever(x[m, :])", "forever(x)", ["forever calls itself", "inlined"]),
    "helper arguments": (LOOP + "y[m, :] = double(x[m, :], 1)", "double(x[m, :], 1)", ["too many positional arguments"]),
    "helper results": (LOOP + "a, b, c = both(x[m, :], 1.0)", "a, b, c = both(x[m, :], 1.0)", ["3 names on the left"]),
    "no parallel loop": ("s = 1", "", ["has no parallel loop", "kd.parallel"]),
    "nested parallel": (LOOP + "for n in kd.parallel(kd.tile('N')): pass", "for n in kd.parallel(kd.tile('N')): pass",
                        ["inside another loop", "one parallel loop"]),
    "after parallel": (LOOP + "row[m] = eps\ns = 1", "s = 1", ["after the parallel loop"]),
    "sequential outside": ("for n in kd.sequential(kd.tile('N')): pass", "for n in kd.sequential(kd.tile('N')): pass",
                           ["outside the parallel loop"]),
    "sequential of a number": (LOOP + "for n in kd.sequential(3): pass", "kd.sequential(3)", ["takes kd.tile(name), or a dim's name"]),
    "sequential of no dim": (LOOP + "for n in kd.sequential('Q'): pass", "kd.sequential('Q')", ["'Q' is not a dim", "M, N"]),
    "range of an extent": (LOOP + "for i in kd.range(kd.size('N')): pass", "kd.range(kd.size('N'))",
                           ["a value of type i32", "known before the kernel runs", "for n in kd.sequential"]),
    "range of a float": (LOOP + "for i in kd.range(2.0): pass", "kd.range(2.0)", ["2.0 (float)", "whole numbers"]),
    "range in no steps": (LOOP + "for i in kd.range(0, 4, 0): pass", "kd.range(0, 4, 0)", ["arg 3 must not be zero"]),
    "long range": (LOOP + "for i in kd.range(65): pass", "kd.range(65)", ["65 turns", "64 at most", "kd.sequential"]),
    "long ranges": (LOOP + "for i in kd.range(13):\n        for j in kd.range(5): pass", "kd.range(5)", ["65 turns", "64 at most"]),
    "range's number after it": (LOOP + "for i in kd.range(2): pass\n    row[m] = i", "i", ["used outside the loop (line"]),
    "what a range may not assign": (LOOP + "for i in kd.range(0): s = eps\n    row[m] = s", "s", ["s has no value here"]),
    "range with a keyword": (LOOP + "for i in kd.range(stop=3): pass", "kd.range(stop=3)", ["range(start: int, stop"]),
    "share of single indices": ("for p in kd.parallel('M'):\n    for n in kd.sequential('N', share=p): pass",
                                "for n in kd.sequential('N', share=p): pass", ["share deals out tiles", "kd.tile"]),
    "float bound": (LOOP + "for n in kd.sequential(kd.tile('N'), stop=eps): pass",
                    "for n in kd.sequential(kd.tile('N'), stop=eps): pass", ["stop must be a whole-number scalar", "type f32"]),
    "long bound": ("for m in kd.parallel('M'):\n    for n in kd.sequential(kd.tile('N'), stop=kd.size('N').to(kd.i64)): pass",
                   "for n in kd.sequential(kd.tile('N'), stop=kd.size('N').to(kd.i64)): pass", ["of type i32", ".to(kd.i32)"]),
    "share of a tile": (LOOP + "for n in kd.sequential(kd.tile('N'), share=m): pass",
                        "for n in kd.sequential(kd.tile('N'), share=m): pass",
                        ["index of an untiled parallel loop", "the tile m of M", "share=p"]),
    "loop variable taken": (LOOP + "for x in kd.sequential(kd.tile('N')): pass", "x", ["x already has a meaning"]),
    "loop variables": ("for m, n in kd.parallel(kd.tile('M')): pass", "for m, n in kd.parallel(kd.tile('M')): pass",
                       ["2 loop variables for 1 dims"]),
    "choice": (LOOP + "c = kd.choice('fast')", "kd.choice('fast')", ["at least two options"]),
    "return": (LOOP + "return 1", "return 1", ["a kernel returns nothing", "kd.Out"]),
    "unused value": (LOOP + "kd.exp(x[m, :])", "kd.exp(x[m, :])", ["not used", "assign it"]),
    "rebinding a tensor": (LOOP + "w = kd.zeros([m])", "w = kd.zeros([m])", ["w is a tensor argument"]),
    "static failure": (LOOP + "s = 1 / 0", "1 / 0", ["ZeroDivisionError", "known before the kernel runs"]),
    "cast": (LOOP + "s = x[m, :].to(float)", "x[m, :].to(float)", [".to takes one dtype", "kd.f32"]),
    "method": (LOOP + "s = x[m, :].sum(1)", "x[m, :].sum", ["a value has no .sum", "kd.sum(x, axis=1)"]),
    "transpose": (LOOP + "s = w[:].T", "w[:].T", ["needs a tile with two axes", "bf16[N]"]),
    "twice one tile": (INNER + "s = x[m, n].to(kd.f32)\n        t = kd.full([m], x[m, n])", "kd.full([m], x[m, n])", ["takes a scalar"]),
    "power": (LOOP + "row[m] = eps ** 3", "eps ** 3", ["can be squared"]),
    "matrix operator": (LOOP + "s = w[:] @ w[:]", "w[:] @ w[:]", ["operator cannot be used"]),
    "star arguments": (LOOP + "s = kd.exp(*w)", "kd.exp(*w)", ["* and ** in a call"]),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_mistake_is_explained(name: str, tmp_path: Path) -> None:
    body, culprit, parts = MISTAKES[name]
    with pytest.raises(KernelError) as caught:
        lower(tmp_path, body)
    text = str(caught.value)
    for part in parts:
        assert part in text, text
    head, line, caret, *_ = text.splitlines()
    file, number, _ = head.split(":", 2)
    written = (tmp_path / file).read_text().splitlines()[int(number) - 1]
    assert line.split("| ", 1)[1] == written
    if culprit:
        start = caret.index("^")
        assert line[start : start + caret.count("^")] == culprit, text


DECLARATIONS = {
    "no dims": (
        '@kd.kernel(y="M")\ndef snippet(x: kd.In, y: kd.Out): pass',
        ["tensor x has no dims", '@kd.kernel(x="M N")'],
    ),
    "extra dims": ('@kd.kernel(y="M", z="M")\ndef snippet(y: kd.Out): pass', ["['z']", "not tensor arguments"]),
    "no output": ('@kd.kernel(x="M")\ndef snippet(x: kd.In): pass', ["has no output", "kd.Out"]),
    "no kind": ('@kd.kernel(y="M")\ndef snippet(y: kd.Out, n: int): pass', ["argument n has no kind", "kd.Static"]),
    "repeated dim": ('@kd.kernel(y="M M")\ndef snippet(y: kd.Out): pass', ["dims of y repeat"]),
    "bad dim": ('@kd.kernel(y="M 3")\ndef snippet(y: kd.Out): pass', ["'3' cannot name a dim"]),
    "comma": (
        '@kd.kernel(y="M, N")\ndef snippet(y: kd.Out): pass',
        ["'M,' cannot name a dim of y", "with spaces between"],
    ),
    "keyword as a dim": ('@kd.kernel(y="for")\ndef snippet(y: kd.Out): pass', ["'for' cannot name a dim"]),
    "list of dims": (
        '@kd.kernel(y=["M", "N"])\ndef snippet(y: kd.Out): pass',
        ["dims of y are ['M', 'N']", '@kd.kernel(y="M N")'],
    ),
    "number for dims": ("@kd.kernel(y=2)\ndef snippet(y: kd.Out): pass", ["dims of y are 2", '@kd.kernel(y="M N")']),
    "no parentheses": (
        "@kd.kernel\ndef snippet(y: kd.Out): pass",
        [".py:", "without parentheses", '@kd.kernel(x="M N"'],
    ),
    "positional": ('@kd.kernel("M N")\ndef snippet(y: kd.Out): pass', ["with 'M N', which names no argument"]),
    "any number of arguments": (
        '@kd.kernel(y="M")\ndef snippet(y: kd.Out, *rest): pass',
        ["*rest takes any number of values"],
    ),
    "any keywords": ('@kd.kernel(y="M")\ndef snippet(y: kd.Out, **rest): pass', ["**rest takes any number of values"]),
    "default before none": (
        '@kd.kernel(y="M")\ndef snippet(y: kd.Out, *, a: kd.Int = 1, b: kd.Int): pass',
        ["argument b has no default, but a has one", "write b before a"],
    ),
    "class": (
        '@kd.kernel(y="M")\nclass snippet: pass',
        ["was given the class snippet", "directly above a function's def"],
    ),
    "async": ('@kd.kernel(y="M")\nasync def snippet(y: kd.Out): pass', [".py:", "not an async function"]),
    "lambda": ('snippet = kd.kernel(y="M")(\n    lambda y: y)', [".py:", "not a lambda"]),
    "twice": (
        '@kd.kernel(y="M")\n@kd.kernel(y="M")\ndef snippet(y: kd.Out): pass',
        ["was given a Kernel", ":snippet>"],
    ),
    "another decorator": (
        'import functools\n@kd.kernel(y="M")\n@functools.wraps(plain)\ndef snippet(y: kd.Out): pass',
        [".py:", "what another decorator made of"],
    ),
    "function with parentheses": (
        "@kd.function()\ndef snippet(y): return y",
        ["@kd.function is written with parentheses"],
    ),
    "function of a builtin": (
        "snippet = kd.function(len)",
        ["@kd.function was given a builtin_function_or_method, len"],
    ),
    "function of a kernel": (
        '@kd.function\n@kd.kernel(y="M")\ndef snippet(y: kd.Out): pass',
        ["@kd.function was given a Kernel"],
    ),
    "annotation that cannot be read": (
        'def make():\n    kind = kd.Out\n    @kd.kernel(y="M")\n    def snippet(y: "kind"): pass\nmake()',
        ["the kind of y cannot be read: name 'kind' is not defined", "write it as kd.In"],
    ),
    "no source": (
        "exec(\"import kpt_dsl as kd\\n@kd.kernel(y='M')\\ndef snippet(y: kd.Out): pass\")",
        ["the source of snippet cannot be read", "in a file or a notebook cell"],
    ),
}


@pytest.mark.parametrize("name", DECLARATIONS)
def test_declaration_is_explained(name: str, tmp_path: Path) -> None:
    text, parts = DECLARATIONS[name]
    with pytest.raises(KernelError) as caught:
        kernel(tmp_path, text)
    assert all(part in str(caught.value) for part in parts), str(caught.value)


def test_every_kernel_error_is_a_kpt_error() -> None:
    assert issubclass(KernelError, KptError)


def test_language_functions_refuse_to_run_in_python() -> None:
    import kpt_dsl as kd

    with pytest.raises(KernelError, match=r"kd\.exp was called by Python; it can only be written inside a @kd\.kernel"):
        kd.exp(1.0)


def test_snippet_signature_itself_is_sound(tmp_path: Path) -> None:
    assert "def snippet" in SIGNATURE
    assert lower(tmp_path, LOOP + "row[m] = eps").name == "snippet"
