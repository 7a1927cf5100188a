"""Globs: what they match, the directory they live in, what is no glob."""

from __future__ import annotations

import random
import re

import pytest

from eventmill.errors import InvalidPattern
from eventmill.rules import glob_matches, glob_root
from tests.rules import naive

CASES = [
    ("*.h5", ["a.h5", ".h5"], ["a/b.h5", "a.h5x", ""]),
    ("/a/*/c", ["/a/b/c", "/a//c"], ["/a/c", "/a/b/b/c"]),
    ("/a/**/c", ["/a/c", "/a/b/c", "/a/b/b/c"], ["/a/", "/ac", "/a/b/cc", "a/c"]),
    ("**/c", ["c", "/c", "a/b/c"], ["cc", "c/"]),
    ("/a/**", ["/a/b", "/a/b/c", "/a/"], ["/a", "/ab"]),
    ("**", ["", "a", "/a/b"], []),
    ("/**/a/**/b/**", ["/a/b/c", "/x/a/y/b/z/z"], ["/a/b", "/b/a/c"]),
    ("/**/a/a/b", ["/a/a/a/b", "/a/a/b"], ["/a/b"]),
    ("/**/a/x*/**/b", ["/a/y/a/x1/b", "/a/x/b/b"], ["/a/y/b"]),
    ("/r*_*_*.h5", ["/r1_2_3.h5", "/r__.h5"], ["/r1_2.h5"]),
    ("/a?b", ["/axb"], ["/ab", "/a/b"]),
    ("/[ab][!ab]", ["/ax", "/bc"], ["/aa", "/a/", "/xa"]),
    ("/[]]", ["/]"], ["/["]),
    ("/[a-]", ["/a", "/-"], ["/b"]),
    ("/[^a]", ["/b"], ["/a"]),
    ("/[a-c]*[0-9]", ["/a1", "/bxx9"], ["/a", "/d1"]),
    ("/\\*\\[\\]\\?\\\\", ["/*[]?\\"], ["/x[]?\\"]),
    ("/{a,b}", ["/{a,b}"], ["/a"]),
    ("/a.b+c", ["/a.b+c"], ["/aXbbc"]),
    ("/ä*ß", ["/äxß"], ["/axß"]),
    ("/a\n*", ["/a\nb\n"], ["/a b"]),
]


@pytest.mark.parametrize(("glob", "matching", "others"), CASES, ids=[case[0] for case in CASES])
def test_glob(glob: str, matching: list[str], others: list[str]) -> None:
    test = glob_matches(glob)
    assert [path for path in matching if not test(path)] == []
    assert [path for path in others if test(path)] == []


@pytest.mark.parametrize(
    ("glob", "root"),
    [
        ("/exfel/**/raw/*.h5", "/exfel"),
        ("/a/b/*.h5", "/a/b"),
        ("/a/b/run_*/c", "/a/b"),
        ("/a/b/c.h5", "/a/b"),
        ("/*.h5", "/"),
        ("/**", "/"),
        ("/a/\\*b/*", "/a/*b"),
        ("a/b/*", "a/b"),
        ("*.h5", ""),
        ("**/x", ""),
    ],
)
def test_root(glob: str, root: str) -> None:
    assert glob_root(glob) == root


@pytest.mark.parametrize("glob", ["/a**", "/**/**", "/[a", "/[]", "/\\a", "/a\\", "/[b-a]", "/[a/b]"])
def test_no_glob(glob: str) -> None:
    for refuse in (glob_matches, glob_root):
        with pytest.raises(InvalidPattern, match=re.escape(glob)):
            refuse(glob)


def test_random_globs_agree_with_regular_expressions() -> None:
    rng = random.Random(1)
    for _ in range(3000):
        levels = [
            rng.choice(("**", "a", "b", "*", "a*", "*b*a", "?", "[!a]b", "a*?")) for _ in range(rng.randint(1, 5))
        ]
        glob = "/".join(level for i, level in enumerate(levels) if level != "**" or i == 0 or levels[i - 1] != "**")
        path = "/".join("".join(rng.choices("ab", k=rng.randint(0, 3))) for _ in range(rng.randint(1, 6)))
        expected = re.fullmatch(naive._glob_regex(glob), path, re.DOTALL) is not None
        assert glob_matches(glob)(path) == expected, (glob, path)
