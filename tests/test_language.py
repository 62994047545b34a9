"""Messages, help, documentation and docstrings keep to plain English (tests/language.py); the list of what is not
mended yet only shrinks."""

import pytest

from tests import language


def test_nothing_new_breaks_a_rule():
    allowed = language.tolerated()
    found = language.findings()
    new = {
        (file, rule): [f.sentence for f in found if (f.file, f.rule) == (file, rule)]
        for file, rules in language.counted(found).items()
        for rule, count in rules.items()
        if count > allowed.get(file, {}).get(rule, 0)
    }
    lines = [f"{f}: {language.RULES[r][1]}: one of {sentences}" for (f, r), sentences in new.items()]
    assert not lines, "\n".join(lines)


def test_the_list_of_what_is_tolerated_has_shrunk_with_the_findings():
    now = language.counted(language.findings())
    mended = [
        f"{file}: {rule}"
        for file, rules in language.tolerated().items()
        for rule, count in rules.items()
        if now.get(file, {}).get(rule, 0) < count
    ]
    assert not mended, f"mended, so no longer tolerated: run python -m tests.language --shrink ({', '.join(mended)})"


@pytest.mark.parametrize(
    ("text", "rules"),
    [
        ("What was not measured is null.", ["subject", "participle"]),
        ("What does the gate compare?", []),
        ("The command prints it. Whoever reads it knows more.", ["subject", "nobody"]),
        ("re-running stage pack: --on changed", []),
        ("doing pack again: --on is another", ["another"]),
        ("e2fsck is not content", ["content"]),
        ("two layers were rescued from INT8", ["rescue"]),
        ("1.19x faster than before", ["faster ratio"]),
    ],
)
def test_rules_find_their_pattern_and_nothing_else(text, rules):
    assert [rule for rule, _ in language.check(text)] == rules


def test_only_prose_is_read():
    page = "A line.\n\n```sh\nnobody --on is another\n```\n\nSee `nobody` in [x](what-is-said.md).\n"
    assert not [hit for text in language._prose(page) for hit in language.check(text)]
    code = 'def f(name):\n    """Somebody reads this line."""\n    raise E(f"{name}: nobody is left")\n    g("nobody")'
    assert [rule for text in language._strings(code) for rule, _ in language.check(text)] == ["nobody", "nobody"]
