"""Protocols: what the shipped ones fix, how ids tell deviations, and which files are refused."""

import dataclasses

import pytest

from tests.support.paths import BENCHMARKS
from vlmfix.evaluation.tasks.protocol_files import default_protocol, load_protocol, protocols

SHORT = "Answer the question using a single word or phrase."
ONE_WORD = "Please answer this question with one word."
GREEDY, SAMPLED, BEAMS = (0.0, 1, 1), (1.0, 1, 3), (0.0, 5, 1)
"""Temperature, beams, seeds."""

POPE = {
    "pope.llava": (f"?\n{SHORT}", GREEDY, 16, "official"),
    "pope.one-word": (f"? {ONE_WORD}", GREEDY, 16, "official"),
    "pope.one-word-sample": (f"? {ONE_WORD}", SAMPLED, 16, "vcd"),
    "pope.yes-no": ("? Please just answer yes or no.", GREEDY, 16, "official"),
    "pope.bare": ("?", GREEDY, 10, "opera"),
    "pope.bare-beam5": ("?", BEAMS, 10, "opera"),
    "pope.mirage": (f"? {SHORT}", GREEDY, 16, "official"),
    "pope.mirage-sample": (f"? {SHORT}", SAMPLED, 16, "official"),
    "pope.tiny": ("?", GREEDY, 4, "strict"),
}
DETAIL = "Please describe this image in detail."
CHAIR = {
    "chair.512": (DETAIL, GREEDY, 512, False, "vlmfix-500"),
    "chair.128": (DETAIL, GREEDY, 128, True, "vlmfix-500"),
    "chair.64": (DETAIL, GREEDY, 64, True, "vlmfix-500"),
    "chair.opera-512": (DETAIL, GREEDY, 512, False, "opera-500"),
    "chair.opera-512-beam5": (DETAIL, BEAMS, 512, False, "opera-500"),
    "chair.pai-512": ("Please help me describe the image in detail.", GREEDY, 512, False, "vlmfix-500"),
    "chair.sample-64": (DETAIL, SAMPLED, 64, False, "vlmfix-500"),
    "chair.tiny": ("Describe the image.", GREEDY, 80, False, ""),
}
VQA = {
    "vqa.llava": (f"a?\n{SHORT}", 16, "always"),
    "vqa.official": (f"a?\n{SHORT}", 16, "official"),
    "textvqa.llava": (f"A?\n{SHORT}", 16, "m4c"),
    "gqa.llava": (f"a?\n{SHORT}", 16, "gqa"),
    "vqa.tiny": ("a?", 4, "always"),
}
GREEDY_ONES = {
    "mme.official": ("?", 16, "mme_official"),
    "mme.hallucination": ("?", 16, "mme_official"),
    "mme.tiny": ("?", 4, "strict"),
    "amber.yes-no": ("? Please answer yes or no.", 16, "strict"),
    "amber.llava": (f"?\n{SHORT}", 16, "strict"),
    "amber.tiny": ("?", 4, "strict"),
    "amber_generative.512": ("?", 512, "corrected"),
    "amber_generative.tiny": ("?", 80, "corrected"),
}
"""What is asked, the length, and the parser or scorer."""


def decoding(protocol):
    assert (protocol.top_p, protocol.top_k) == (1.0, 0)
    return protocol.temperature, protocol.num_beams, len(protocol.seeds)


def test_all_shipped_protocols_are_known_here():
    known = [name for name, protocol in protocols().items() if protocol.task in ("pope", "chair", "vqa")]
    assert sorted(known) == sorted([*POPE, *CHAIR, *VQA])
    assert {protocol.task for protocol in protocols().values()} == set(BENCHMARKS)
    assert all(protocol.mirrors for protocol in protocols().values())


@pytest.mark.parametrize("name", POPE)
def test_pope(name):
    protocol = load_protocol(name)
    assert protocol.task == "pope"
    assert (protocol.ask("?"), decoding(protocol), protocol.max_new_tokens, protocol.parser) == POPE[name]


@pytest.mark.parametrize("name", CHAIR)
def test_chair(name):
    protocol = load_protocol(name)
    assert (protocol.task, protocol.scorer) == ("chair", "official")
    assert protocol.own["subset_size"] == (500 if protocol.own["subset"] else 0)
    found = (protocol.ask(protocol.prompt), decoding(protocol), protocol.max_new_tokens)
    assert (*found, protocol.own["drop_incomplete"], protocol.own["subset"]) == CHAIR[name]


@pytest.mark.parametrize("name", VQA)
def test_vqa(name):
    protocol = load_protocol(name)
    assert (protocol.task, decoding(protocol), protocol.own["ocr_tokens"]) == ("vqa", GREEDY, "none")
    assert (protocol.ask("a?"), protocol.max_new_tokens, protocol.scorer) == VQA[name]


@pytest.mark.parametrize("name", GREEDY_ONES)
def test_greedy_ones(name):
    protocol = load_protocol(name)
    assert decoding(protocol) == GREEDY
    found = (protocol.ask("?"), protocol.max_new_tokens, protocol.parser or protocol.scorer)
    assert found == GREEDY_ONES[name]


def test_defaults():
    assert [default_protocol(task).id for task in ("pope", "chair", "vqa")] == [
        "pope.llava",
        "chair.512",
        "vqa.llava",
    ]
    assert [default_protocol(task, "synthetic").id for task in ("pope", "chair", "vqa")] == [
        "pope.tiny",
        "chair.tiny",
        "vqa.tiny",
    ]
    with pytest.raises(ValueError, match=r"unknown task 'popes' \(did you mean 'pope'\?\)"):
        default_protocol("popes")


def test_ids_name_data_set_and_deviations():
    protocol = load_protocol("pope.llava")
    assert protocol.on("synthetic").id == "pope.llava/synthetic"
    assert load_protocol("pope.llava/gqa") == protocol.on("gqa")
    changed = protocol.with_(suffix="Yes or no?", max_new_tokens=32)
    assert changed.id == 'pope.llava+max_new_tokens=32+suffix="Yes or no?"'
    assert changed.on("coco") == protocol.on("coco").with_(max_new_tokens=32).with_(suffix="Yes or no?")
    assert changed.on("coco").id == 'pope.llava/coco+max_new_tokens=32+suffix="Yes or no?"'
    assert changed.replaced == {"max_new_tokens": 16, "suffix": SHORT}
    assert protocol.with_(parser="strict").id == "pope.llava+parser=strict"
    sampled = protocol.with_(temperature=1, seeds=[3, 4])
    assert (sampled.temperature, sampled.seeds) == (1.0, (3, 4))
    assert sampled.id == "pope.llava+seeds=[3,4]+temperature=1.0"
    assert load_protocol("chair.512").with_(drop_incomplete=True).id == "chair.512+drop_incomplete=true"


def test_a_deviation_taken_back_is_none():
    protocol = load_protocol("pope.llava")
    assert protocol.with_(max_new_tokens=16) == protocol
    assert protocol.with_(max_new_tokens=32).with_(max_new_tokens=16) == protocol


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_new_token": 32}, r"no setting 'max_new_token' \(did you mean 'max_new_tokens'\?\)"),
        ({"scorer": "official"}, "no setting 'scorer'"),
        ({"prompt": "Describe."}, "no setting 'prompt'"),
        ({"task": "vqa"}, "no setting 'task'"),
        ({"max_new_tokens": 0}, "max_new_tokens of pope.llava must be a whole number of 1 or more, got 0"),
        ({"max_new_tokens": "32"}, "got '32'"),
        ({"max_new_tokens": True}, "got True"),
        ({"temperature": float("nan")}, "0 or a number of 0.0001 or more, got nan"),
        ({"top_p": 0}, r"a number in \(0, 1\]"),
        ({"seeds": []}, "a list of different whole numbers"),
        ({"seeds": [1, 1]}, "a list of different whole numbers"),
        ({"seeds": [{}]}, "a list of different whole numbers"),
        ({"join": ["newline"]}, "one of newline, space"),
        ({"parser": "lenient"}, "parser of pope.llava must be one of official, opera"),
        ({"suffix": 3}, "must be text"),
        ({"seeds": [0, 1]}, "2 seeds but decodes greedily"),
        ({"temperature": 1.0, "num_beams": 5}, "num_beams=5 and temperature=1.0"),
    ],
)
def test_wrong_deviations_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        load_protocol("pope.llava").with_(**changes)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("vqa.llava", {"ocr_tokens": "all"}, "must be none"),
        ("vqa.llava", {"scorer": "m4"}, "scorer of vqa.llava must be"),
        ("chair.512", {"scorer": "pos"}, "scorer of chair.512 must be"),
        ("chair.512", {"prompt": " "}, "must be what to ask"),
        ("chair.512", {"drop_incomplete": "yes"}, "must be true or false"),
        ("chair.512", {"subset_size": -1}, "0 or more"),
    ],
)
def test_wrong_deviations_of_other_tasks_are_refused(name, changes, message):
    with pytest.raises(ValueError, match=message):
        load_protocol(name).with_(**changes)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("pope.lava", r"unknown protocol 'pope.lava' \(did you mean 'pope.llava'\?\); known.* chair.512"),
        ("pope.llava/aokvq", r"no data set 'aokvq' \(did you mean 'aokvqa'\?\)"),
        ("pope.llava/", "no data set ''"),
        ("", "unknown protocol ''"),
    ],
)
def test_unknown_ids_are_refused(name, message):
    with pytest.raises(ValueError, match=message):
        load_protocol(name)


def test_a_protocol_of_the_user(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("task: pope\nprotocols: {pope.mine: {max_new_tokens: 8, parser: mme, suffix: Go.}}")
    protocol = load_protocol(str(path))
    assert protocol == load_protocol(path)
    assert (protocol.id, protocol.ask("a?")) == ("pope.mine", "a?\nGo.")
    assert protocol.with_(join="space").ask("a?") == "a? Go."
    assert dataclasses.replace(protocol, suffix="").ask("a?") == "a?"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("task: [", "is no YAML"),
        ("- pope", "is no protocol file"),
        ("task: pope", "is no protocol file"),
        ("task: birds\nprotocols: {}", f"task is 'birds'; use one of {', '.join(BENCHMARKS)}"),
        ("task: pope\nprotocols: {}", "holds 0 protocols"),
        ("task: pope\nid: x\nprotocols: {}", "unknown keys: id"),
        (
            "task: vqa\nprotocols: {a: &a {max_new_tokens: 1, scorer: m4c}, b: *a}",
            r"holds 2 protocols \(a, b\)",
        ),
        ("task: pope\nprotocols: {pope.llava: {max_new_tokens: 1, parser: opera}}", "is a shipped protocol"),
        ("task: pope\nprotocols: {a/b: {max_new_tokens: 1}}", "the name 'a/b'"),
        ("task: pope\nprotocols: {a: 3}", "a must be a mapping of settings, got 3"),
        ("task: pope\nprotocols: {a: {parser: opera}}", "a lacks max_new_tokens"),
        ("task: chair\nprotocols: {a: {max_new_tokens: 1}}", "a lacks prompt, scorer"),
        ("task: pope\nprotocols: {a: {max_new_tokens: 1, parser: opera, 3: 4}}", "no setting 3"),
        ("task: pope\nprotocols: {a: {max_new_tokens: 1, parser: opera, seeds: [0, 1]}}", "greedily"),
    ],
)
def test_broken_files_are_refused(tmp_path, content, message):
    path = tmp_path / "mine.yml"
    path.write_text(content)
    with pytest.raises(ValueError, match=message) as caught:
        load_protocol(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_reported():
    with pytest.raises(FileNotFoundError, match=r"no protocol file 'mine\.yaml'; check the path"):
        load_protocol("mine.yaml")
