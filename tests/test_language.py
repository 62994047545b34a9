"""Messages, help, documentation and docstrings follow the rules of plain English (tests/language.py); the list of
tolerated findings only shrinks."""

import pytest

from tests import language


def test_no_new_text_breaks_a_rule():
    allowed = language.tolerated()
    findings = language.findings()
    new = {
        (file, rule): [f.sentence for f in findings if (f.file, f.rule) == (file, rule)]
        for file, rules in language.counted(findings).items()
        for rule, count in rules.items()
        if count > allowed.get(file, {}).get(rule, 0)
    }
    lines = [f"{f}: {language.RULES[r][1]}: one of {sentences}" for (f, r), sentences in new.items()]
    assert not lines, "\n".join(lines)


def test_the_list_of_tolerated_findings_is_up_to_date():
    now = language.counted(language.findings())
    mended = [
        f"{file}: {rule}"
        for file, rules in language.tolerated().items()
        for rule, count in rules.items()
        if now.get(file, {}).get(rule, 0) < count
    ]
    assert not mended, f"rewritten, so no longer tolerated: run python -m tests.language --shrink ({', '.join(mended)})"


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
        ("the largest cut keeps 90 % of the uncut mAP", ["cut"]),
        ("uncut: cost of the unpruned network", []),
        ("INT8-aware training holds back a tenth", ["qat", "hold out"]),
        ("the weights are re-solved", ["refit"]),
        ("both are measured in turns", ["alternately"]),
    ],
)
def test_rules_find_only_their_pattern(text, rules):
    assert [rule for rule, _ in language.check(text)] == rules


def test_only_prose_is_checked():
    page = "A line.\n\n```sh\nnobody --on is another\n```\n\nSee `nobody` in [x](what-is-said.md).\n"
    assert not [hit for text in language._prose(page) for hit in language.check(text)]
    code = 'def f(name):\n    """Somebody reads this line."""\n    raise E(f"{name}: nobody is left")\n    g("nobody")'
    assert [rule for text in language._strings(code) for rule, _ in language.check(text)] == ["nobody", "nobody"]
