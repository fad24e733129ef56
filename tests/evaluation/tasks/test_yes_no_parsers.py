"""Named parsers of yes and no."""

from __future__ import annotations

import pytest

from vlmfix.evaluation.tasks import yes_no_parsers as parsers
from vlmfix.evaluation.tasks.yes_no_parsers import PARSERS, Verdict

NAMES = ["official", "opera", "vcd", "lmms_eval", "vlmevalkit", "mme", "strict"]
WORDS: dict[str, Verdict | None] = {"y": "yes", "n": "no", "u": None}


@pytest.mark.parametrize(
    ("answer", "target", "expected"),
    [
        ("I can see no truck here", "no", "n n n u n u n"),
        ("no way to tell", "yes", "n n n u n n n"),
        ("It's hard to say; no", "no", "n n n u n u n"),
        ("Never", "no", "y y y u u u u"),
        ("Sure. Yes", "yes", "y y y u y u y"),
        ("Yes and no", "no", "n n n u u y y"),
        ("The notebook is open", "no", "y y n u u u u"),
        ("n", "no", "y y y u u n u"),
        ("No truck. Yes, a car", "no", "n n n u u n n"),
        ("Correct", "yes", "y y n u u u u"),
        ("No-one is there", "no", "y y n u n n n"),
        ("Yes... I do not doubt it", "yes", "y n y u y y y"),
        ("no/yes", "no", "y y n u u n n"),
        ("   ", "yes", "y y n u u u u"),
        ("No.", "no", "n n n u n n n"),
        ("NO", "no", "y n n n n n n"),
        ("There isn't one", "no", "y n y u u u n"),
        ("I know this dog", "no", "y y n u u u u"),
        ("", "no", "y y y u u u u"),
        ("no\n", "no", "y y n n n n n"),
        ("Yes", "yes", "y y y y y y y"),
        ("1,000 no-one", "no", "y y n u u u n"),
        ("There isn\u2019t a dog in the image.", "no", "y y y u u u n"),
        ("I cannot see a dog in the image.", "no", "y y n u u u n"),
        ("I can\u2019t say; yes", "yes", "y y y u y u n"),
        ("Cannot tell, yes", "yes", "y y y u y u n"),
        ("don\u00b4t know", "no", "y y n u u u n"),
        ("\u2018Yes\u2019", "yes", "y y y u u y y"),
        ("N\u00e3o", "no", "y y y u u u u"),
        ("no\u00e9 yes", "yes", "y y y u y n y"),
        ("dont know", "no", "y y n u u u u"),
    ],
)
def test_parsers(answer: str, target: Verdict, expected: str) -> None:
    assert list(PARSERS) == NAMES
    found = {name: PARSERS[name](answer, target) for name in NAMES}
    assert found == {name: WORDS[letter] for name, letter in zip(NAMES, expected.split(), strict=True)}


def test_parsers_that_a_command_names() -> None:
    known = {"strict": parsers.strict, "official": parsers.official}
    assert parsers.chosen_parsers(["official", "strict", "official"], known) == ["official", "strict"]
    assert parsers.chosen_parsers(["official", "all"], known) == ["strict", "official"]
    with pytest.raises(ValueError, match="unknown parser 'mme'; choose from strict, official, or all"):
        parsers.chosen_parsers(["all", "mme"], known)


def test_parsers_are_registered_once() -> None:
    with pytest.raises(ValueError, match="there is a parser 'official' already"):
        parsers.register_parser("official")(parsers.official)
    with pytest.raises(ValueError, match="unknown parser 'oficial'; choose from official, opera"):
        parsers.parser_named("oficial")
