"""Where keys stand in a TOML document, held against tomllib and against documents whose lines are known."""

from __future__ import annotations

import tomllib
from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as st

from dse.cli.run.lines import Key, find_lines


def paths(value: Any, key: Key = ()) -> set[Key]:
    """Every key path of a document."""
    found = {key} if key else set()
    if isinstance(value, dict):
        for name, each in value.items():
            found |= paths(each, (*key, name))
    elif isinstance(value, list):
        for index, each in enumerate(value):
            found |= paths(each, (*key, index))
    return found


def leaves(value: Any, key: Key = ()) -> dict[Key, Any]:
    if isinstance(value, dict):
        return {k: v for name, each in value.items() for k, v in leaves(each, (*key, name)).items()}
    if isinstance(value, list):
        return {k: v for index, each in enumerate(value) for k, v in leaves(each, (*key, index)).items()}
    return {key: value}


def test_each_way_to_write_a_key_is_found_at_its_line() -> None:
    text = '''# a comment with [brackets] and = signs
a = 1
b.c . "d.e" = """
three
lines = "here"
"""
'single # quoted' = 'x = "y'

[table]  # comment
"esc\\u0061ped" = [1, [2,
  3], # a comment ]
  { x = 1, y.z = [4] },
]
[[array]]
n = 1
[array.sub]
n = 2
[[array]]
n = 3
[[array.inner]]
n = 4
[[array.inner]]
[deep.er.est]
n = 5
[deep]
n = 6
'''
    lines = find_lines(text)
    assert set(lines.known) == paths(tomllib.loads(text))
    assert {key: lines[key] for key in leaves(tomllib.loads(text)) if key} == {
        ("a",): 2,
        ("b", "c", "d.e"): 3,
        ("single # quoted",): 7,
        ("table", "escaped", 0): 10,
        ("table", "escaped", 1, 0): 10,
        ("table", "escaped", 1, 1): 11,
        ("table", "escaped", 2, "x"): 12,
        ("table", "escaped", 2, "y", "z", 0): 12,
        ("array", 0, "n"): 15,
        ("array", 0, "sub", "n"): 17,
        ("array", 1, "n"): 19,
        ("array", 1, "inner", 0, "n"): 21,
        ("deep", "er", "est", "n"): 24,
        ("deep", "n"): 26,
    }
    assert lines["array", 1, "inner", 1] == 22
    assert lines["deep", "er"] == 23
    assert lines["deep",] == 25, "its own header, not that of a table in it"


def test_a_key_that_is_not_there_is_placed_at_the_table_that_lacks_it() -> None:
    lines = find_lines("a = 1\n\n[b.c]\nd = 2\n")
    assert lines["b", "c", "missing"] == 3
    assert lines["b", "c", "d", 7, "x"] == 4
    assert lines["elsewhere",] == 1
    assert lines[()] == 1


# Documents whose lines are known: every scalar is a number that occurs nowhere else.


class Writer:
    """Writes a document by draws: the text, in which each scalar is unique."""

    def __init__(self, draw: Any) -> None:
        self._draw = draw
        self._numbers = iter(range(100_000, 200_000))

    def key(self) -> str:
        names = self._draw(
            st.lists(st.sampled_from(["a", "b", "c-d", '"e f"', "'g.h'", '"i\\"j"']), min_size=1, max_size=3)
        )
        return self._draw(st.sampled_from([".", " . "])).join(names)

    def value(self, depth: int = 0) -> str:
        kind = self._draw(st.integers(0, 7 if depth < 3 else 4))
        number = next(self._numbers)
        if kind == 0:
            return f'"{number} # ] }} = \\" \\\\"'
        if kind == 1:
            return f"'{number} \\'"
        if kind == 2:
            return f'"""{number}\n \\" x = 1\n[t]\n""" ""'.removesuffix(' ""')
        if kind == 3:
            return f"'''{number}\n# = ]\n'''''"
        if kind in (4, 5):
            return str(number)
        if kind == 6:
            inner = [self.value(depth + 1) for _ in range(self._draw(st.integers(0, 3)))]
            gap = self._draw(st.sampled_from([", ", ",\n  ", " , # comment, ]\n"]))
            return "[" + self._draw(st.sampled_from(["", "\n", " # [\n "])) + gap.join(inner) + "]"
        # Within one line but for what its values hold.
        pairs = [f"{name}={self.value(3)}" for name in ("x", "y.z", '"w w"')[: self._draw(st.integers(0, 3))]]
        return "{" + ", ".join(pairs) + "}"

    def statement(self) -> str:
        kind = self._draw(st.integers(0, 5))
        if kind == 0:
            return f"[{self.key()}]"
        if kind == 1:
            return f"[[ {self.key()} ]] # comment"
        if kind == 2:
            return self._draw(st.sampled_from(["", "# comment = 1", "   "]))
        return f"{self.key()} = {self.value()}"


@st.composite
def documents(draw: Any) -> str:
    writer = Writer(draw)
    statements: list[str] = []
    for _ in range(draw(st.integers(0, 12))):
        statement = writer.statement()
        try:
            tomllib.loads("\n".join([*statements, statement]))
        except tomllib.TOMLDecodeError:
            continue  # a key twice, or a table that is none
        statements.append(statement)
    return draw(st.sampled_from(["\n", "\r\n"])).join(statements)


@settings(max_examples=100, deadline=None)
@given(documents())
def test_every_key_of_any_document_is_found_on_the_line_that_holds_it(text: str) -> None:
    data = tomllib.loads(text)
    found = find_lines(text)
    assert set(found.known) == paths(data)
    written = text.split("\n")
    for key, value in leaves(data).items():
        if value in ({}, []) or not key or isinstance(value, dict | list):
            continue
        number = str(value).strip()[:6]
        (holding,) = [number_of for number_of, line in enumerate(written, 1) if number in line]
        assert found[key] == holding, (key, text)


_PIECES = st.sampled_from(
    [
        "a",
        "b",
        "=",
        "1",
        '"',
        "'",
        '"""',
        "'''",
        "[",
        "]",
        "[[",
        "]]",
        "{",
        "}",
        ",",
        ".",
        " ",
        "\n",
        "#",
        "\\",
        "\\u0041",
    ]
)
_VALUES = st.recursive(
    st.sampled_from(["1", '"#"', "']'", '""""x"""""', "''''''", '"""\\\n\n"""', "1979-05-27 07:32:00", "-inf"]),
    lambda inner: (
        st.lists(inner, max_size=3).map(lambda them: "[" + ",\n#]\n".join(them) + "]")
        | st.lists(inner, max_size=2).map(
            lambda them: "{" + ", ".join(f"k{n}.a = {v}" for n, v in enumerate(them)) + "}"
        )
    ),
    max_leaves=6,
)
_KEYS = st.lists(st.sampled_from(["a", "b", '"a"', "'='", '"\\u0062"', '""']), min_size=1, max_size=3).map(" . ".join)
_STATEMENTS = st.one_of(
    _KEYS.map("[{}]".format), _KEYS.map("[[{}]]".format), st.builds("{} = {}#".format, _KEYS, _VALUES), _PIECES
)


@settings(max_examples=300, deadline=None)
@example("a={}")
@example('a=""""""')
@example("a = [\n]\n")
@example('a="""\\\n"""')
@given(st.lists(_STATEMENTS, max_size=6).map("\n".join) | st.lists(_PIECES, max_size=12).map("".join))
def test_what_tomllib_accepts_has_the_same_keys_for_both(text: str) -> None:
    try:
        data = tomllib.loads(text)
    except (ValueError, RecursionError):
        find_lines(text)
        return
    assert set(find_lines(text).known) == paths(data)


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=60) | st.lists(_PIECES, max_size=40).map("".join))
def test_text_that_is_no_toml_does_no_harm(text: str) -> None:
    find_lines(text)


def test_nesting_beyond_the_stack_does_no_harm() -> None:
    find_lines("a = [}")
    find_lines("a = " + "[" * 100_000)
    find_lines("a = " + "{a=" * 100_000)
