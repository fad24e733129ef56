"""CHAIR: words that are objects, ground truth, figures, files."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from vlmfix.evals.chair import scorer
from vlmfix.evals.chair.plurals import BIGRAMS
from vlmfix.evals.chair.score_command import as_json, score_file
from vlmfix.evals.chair.scorer import GroundTruth, Vocabulary
from vlmfix.evals.chair.synonyms import OWN_ENTRIES
from vlmfix.evals.chair.tokens import token_starts, tokenize

from tests.support.paths import OFFICIAL
from vlmfix.evaluation.tasks.lengths import drop_incomplete
from vlmfix.evaluation.tasks.ratios import object_errors

SYNONYMS = OFFICIAL / "chair" / "synonyms.txt"
needs_official = pytest.mark.skipif(
    not SYNONYMS.exists(), reason="the official synonym list is not beside the checkout"
)

# The quirks of the official list: a leading space and a capital letter, which never match.
LINES = """\
person, man, child, people
bicycle, bike
motorcycle,  motor bike, motor cycle, motorbike
airplane, plane, jet
bus, minibus, airbus
train
boat, canoe
cat
dog
cow, calf, cattle
elephant
bear
tie, bow, bow tie
sports ball, ball
tennis racket, racket
wine glass
cake,  cheesecake
chair, seat, stool
dining table, table, desk
toilet
tv, television
cell phone, phone, iPhone
oven, stovetop, stove, stove top oven
sink
hair drier, hairdryer
frisbee
skis, ski
"""

CASES = [
    ("The bus waits.", []),
    ("Two buses wait.", ["bus"]),
    ("A red minibus and three minibuses.", ["bus"]),
    ("He wears two ties and a tie.", ["tie"]),
    ("Three wine glasses and one wine glass.", ["wine glass", "wine glass"]),
    ("The glass is empty", []),
    ("A motorbike, a motor bike and a motor cycle", ["motorcycle", "motorcycle"]),
    ("The seat of the toilet is up.", ["toilet"]),
    ("There is a seat near the window.", ["chair"]),
    ("A toilet with its seat up and a chair", ["toilet", "chair"]),
    ("A baby elephant walks with an adult bear.", ["elephant", "bear"]),
    ("A passenger train passes the passenger jet.", ["train", "airplane"]),
    ("He slides into home plate.", []),
    ("The train track is empty.", []),
    ("A hair dryer on the sink.", ["sink"]),
    ("A hair drier and a hairdryer.", ["hair drier", "hair drier"]),
    ("A cat.The dog barks", ["dog"]),
    ("It is a dog/cat", []),
    ("A **dog** and a cat", ["dog", "cat"]),
    ("A couple of people, 2 men and a child's bike.", ["person", "person", "person", "bicycle"]),
    ("The stove top oven is hot.", ["oven", "oven"]),
    ("A dining table and a desk", ["dining table", "dining table"]),
    ("His iPhone and my cheesecake", []),
    ("A TV and the iPhone", ["tv"]),
    ("The cow's calf and calves", ["cow", "cow", "cow"]),
    ("A tennis racket, a sports ball and skis", ["tennis racket", "sports ball", "skis"]),
    ("A toilet seat and a bow tie", ["toilet", "tie"]),
    ("Two canoes and an airbus", []),
    ("", []),
]


def written(folder: Path, text: str = LINES) -> Path:
    path = folder / "synonyms.txt"
    path.write_text(text)
    return path


def named(vocabulary: Vocabulary, caption: str) -> list[str]:
    return [mention.category for mention in vocabulary.mentions(caption)]


@pytest.mark.parametrize(("caption", "expected"), CASES)
def test_mentions(caption: str, expected: list[str], tmp_path: Path) -> None:
    assert named(Vocabulary.from_file(written(tmp_path)), caption) == expected


@needs_official
@pytest.mark.parametrize(("caption", "expected"), CASES)
def test_mentions_with_the_official_list(caption: str, expected: list[str]) -> None:
    assert named(Vocabulary.from_file(SYNONYMS), caption) == expected


@needs_official
def test_the_official_list() -> None:
    vocabulary = Vocabulary.from_file(SYNONYMS)
    assert vocabulary.is_official
    assert len(vocabulary.classes) == 80
    assert vocabulary.classes == tuple(words[0] for words in OWN_ENTRIES)
    assert not Vocabulary().is_official


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("The bus waits.", ["bus"]),
        ("An airbus, a red minibus and three minibuses.", ["bus", "bus", "bus"]),
        ("He wears two ties and a tie.", ["tie", "tie"]),
        ("A motorbike, a motor bike and a motor cycle", ["motorcycle"] * 3),
        ("His iPhone and my cheesecake", ["cell phone", "cake"]),
        ("Two canoes", ["boat"]),
        ("A tennis racket, a sports ball and skis", ["tennis racket", "sports ball", "skis"]),
        ("A wine glass and two wine glasses", ["wine glass", "wine glass"]),
    ],
)
def test_corrected(caption: str, expected: list[str], tmp_path: Path) -> None:
    assert named(Vocabulary.from_file(written(tmp_path), "corrected"), caption) == expected


def test_positions_are_those_before_the_merge(tmp_path: Path) -> None:
    reading = Vocabulary.from_file(written(tmp_path)).read("A wine glass, the seat of a toilet and a cat.")
    assert [(each.word, each.index) for each in reading.mentions] == [
        ("wine glass", 1),
        ("toilet", 8),
        ("cat", 11),
    ]
    assert reading.tokens == 12


def test_own_words_cover_every_class() -> None:
    vocabulary = Vocabulary(variant="corrected")
    assert len(vocabulary.classes) == 80
    for words in OWN_ENTRIES:
        assert len(set(words)) == len(words)
        for word in words:
            if " " not in word or word in BIGRAMS:
                assert words[0] in named(vocabulary, f"There is {word} here.")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("dog,puppy\n", "line 1: 'dog,puppy' is not a class and its words"),
        ("dog, puppy\ncat, , kitten", "line 2: 'cat, , kitten' is not"),
        ('[{"image_id": 1}]', "is not a class and its words"),
        ("dog, pet\ncat, pet", "'pet' is in the classes 'dog' and 'cat'"),
        ("\n \n", "is empty"),
    ],
)
def test_word_files_that_are_none(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        Vocabulary.from_file(written(tmp_path, text))


def test_unknown_variant_and_no_words() -> None:
    with pytest.raises(ValueError, match="unknown variant 'lemmas'; choose from official, corrected, lemma"):
        Vocabulary(variant="lemmas")
    with pytest.raises(ValueError, match="a vocabulary without words"):
        Vocabulary([])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A cat. The dog!", "a cat . the dog !"),
        ("A cat.The dog", "a cat.the dog"),
        ('He said "stop." Then (a dog.) A cat', 'he said " stop . " then ( a dog . ) a cat'),
        ("It's the dogs' bowl; they'd don't cannot", "it 's the dogs ' bowl ; they 'd do n't can not"),
        ("1,000 dogs at 10:30, near: a cat", "1,000 dogs at 10:30 , near : a cat"),
        ("dog-shaped +dog dog/cat", "dog-shaped +dog dog/cat"),
        ("a 'dog' and 'twas 's", "a ' dog ' and ' twas 's"),
        ("a dog -- a cat… or...", "a dog -- a cat… or ..."),
        (
            "a dog\u2014a cat \u201cbus\u201d child\u2019s",
            "a dog \u2014 a cat \u201c bus \u201d child \u2019 s",
        ),
        ("**A bus.** Next", "* * a bus . * * next"),
        ("#1 50% <b> {x} [y] @z & $5", "# 1 50 % < b > { x } [ y ] @ z & $ 5"),
        ("`dog` ``cat``", "` dog ` `` cat ``"),
        ("", ""),
    ],
)
def test_tokens(text: str, expected: str) -> None:
    assert tokenize(text) == expected.split()
    rest = list(text.lower())
    for start, token in zip(token_starts(text), tokenize(text), strict=True):
        assert "".join(rest[start : start + len(token)]) == token
        rest[start : start + len(token)] = " " * len(token)
    assert not "".join(rest).strip()


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("A dog. A cat runs. There is a", "A dog. A cat runs."),
        ('He says "stop!" and then', 'He says "stop!"'),
        ("A dog on a", "A dog on a"),
        ("A dog is 3.5 metres lo", "A dog is 3.5 metres lo"),
        ("A dog.", "A dog."),
        ("A dog.\n\n", "A dog."),
        ("", ""),
    ],
)
def test_incomplete_sentences(caption: str, expected: str) -> None:
    assert drop_incomplete(caption) == expected


CATEGORIES = [
    {"id": number, "name": name} for number, name in enumerate(["dog", "chair", "person", "bus", "cat"], 1)
]
INSTANCES: dict[str, Any] = {
    "images": [{"id": 11}, {"id": 22}, {"id": 33}, {"id": 44}],
    "categories": CATEGORIES,
    "annotations": [
        {"image_id": 11, "category_id": 1, "segmentation": [[1, 2]], "iscrowd": 0},
        {"image_id": 11, "category_id": 2, "iscrowd": 1},
        {"image_id": 22, "category_id": 3},
        {"image_id": 33, "category_id": 4},
        {"image_id": 33, "category_id": 4},
    ],
}
REFERENCES = {
    "images": [{"id": 22}],
    "annotations": [
        {"image_id": 22, "caption": "A man throws a frisbee."},
        {"image_id": 55, "caption": "Two cats"},
    ],
}
CAPTIONS = [
    {"image_id": 11, "caption": "A dog and a cat. The cat sits on a chair."},
    {"image_id": 22, "caption": "A man with a frisbee."},
    {"image_id": 33, "caption": "The bus waits."},
]


@pytest.fixture
def vocabulary(tmp_path: Path) -> Vocabulary:
    return Vocabulary.from_file(written(tmp_path))


def test_ground_truth(vocabulary: Vocabulary) -> None:
    truth = GroundTruth.from_coco([INSTANCES], vocabulary=vocabulary)
    assert truth.objects == {11: {"dog", "chair"}, 22: {"person"}, 33: {"bus"}, 44: set()}
    assert not truth.has_captions
    both = GroundTruth.from_coco([INSTANCES], [REFERENCES], vocabulary=vocabulary)
    assert both.objects[22] == {"person", "frisbee"}
    assert both.objects[55] == {"cat"}
    assert both.has_captions
    some = GroundTruth.from_coco([INSTANCES], [REFERENCES], vocabulary=vocabulary, image_ids=[22, 99])
    assert some.objects == {22: {"person", "frisbee"}}


def test_figures_of_the_example(vocabulary: Vocabulary) -> None:
    truth = GroundTruth.from_coco([INSTANCES], vocabulary=vocabulary)
    judged = [scorer.judge(each["caption"], each["image_id"], truth) for each in CAPTIONS]  # type: ignore[arg-type]
    assert [mention.category for mention in judged[0].mentions] == ["dog", "cat", "cat", "chair"]
    assert [mention.index for mention in judged[0].hallucinated] == [4, 7]
    assert (judged[0].classes, judged[0].truth, judged[0].found) == (
        ("cat", "chair", "dog"),
        ("chair", "dog"),
        ("chair", "dog"),
    )
    assert [each.tokens for each in judged] == [13, 6, 4]
    score = scorer.score(judged)
    figures = (score.chair_i, score.chair_s, score.recall, score.precision, score.f1, score.length)
    expected = ["0.500000", "0.666667", "0.750000", "0.600000", "0.666667", "7.666667"]
    assert [f"{figure:.6f}" for figure in figures] == expected
    mentions = [(m.category, m not in each.hallucinated) for each in judged for m in each.mentions]
    assert list(object_errors(mentions).items())[:2] == [("cat", (2, 2)), ("frisbee", (1, 1))]
    with pytest.raises(ValueError, match="image 5 is not in the ground truth"):
        scorer.judge("A dog", 5, truth)


def test_zero_denominators_are_flagged(vocabulary: Vocabulary) -> None:
    truth = GroundTruth.from_coco([INSTANCES], vocabulary=vocabulary)
    score = scorer.score([scorer.judge("", 44, truth)])
    assert (score.captions, score.chair_s, score.chair_i, score.recall) == (1, 0.0, 0.0, 0.0)
    assert score.undefined == ("chair_i", "recall", "precision", "f1")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], "instances 1: [] is no object"),
        ({"annotations": []}, "no list of objects under 'categories', found the keys 'annotations'"),
        ({"categories": []}, "no list of objects under 'annotations'"),
        ({**INSTANCES, "annotations": [3]}, "no list of objects under 'annotations'"),
        ({**INSTANCES, "annotations": REFERENCES["annotations"]}, "has no 'category_id'"),
        ({**INSTANCES, "categories": CATEGORIES[1:]}, "category_id 1, which 'categories' lacks"),
        ({**INSTANCES, "categories": [{"id": 1, "name": "robot"}]}, "no class for the category 'robot'"),
        ({**INSTANCES, "categories": [{"id": [1]}]}, "the category id [1] is no whole number"),
        ({**INSTANCES, "images": [{"id": "11"}]}, 'the image id "11" is no whole number'),
    ],
)
def test_instances_that_are_none(content: Any, message: str, vocabulary: Vocabulary) -> None:
    with pytest.raises(ValueError, match="instances 1: ") as caught:
        GroundTruth.from_coco([content], vocabulary=vocabulary)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (INSTANCES, "an annotation has no 'caption'"),
        ({"annotations": [{"image_id": 1, "caption": None}]}, "the caption null is no text"),
    ],
)
def test_references_that_are_none(content: Any, message: str, vocabulary: Vocabulary) -> None:
    with pytest.raises(ValueError, match=message):
        GroundTruth.from_coco([INSTANCES], [content], vocabulary=vocabulary)


def saved(path: Path, content: Any) -> Path:
    path.write_text(json.dumps(content))
    return path


@pytest.fixture
def instances(tmp_path: Path) -> Path:
    return saved(tmp_path / "instances.json", INSTANCES)


@pytest.mark.parametrize(
    "content",
    [
        CAPTIONS,
        {"sentences": CAPTIONS},
        {"captions": CAPTIONS},
        {"annotations": CAPTIONS},
        [
            {"image": f"val2014/COCO_val2014_{each['image_id']:012d}.jpg", "text": each["caption"]}
            for each in CAPTIONS
        ],
        [{"image_id": str(each["image_id"]), "caption": each["caption"]} for each in CAPTIONS],
    ],
)
def test_caption_files(content: Any, instances: Path, vocabulary: Vocabulary, tmp_path: Path) -> None:
    report = score_file(saved(tmp_path / "captions.json", content), [instances], vocabulary=vocabulary)
    assert (report.score.chair_i, report.score.captions) == (0.5, 3)


def test_references_change_the_figures(instances: Path, vocabulary: Vocabulary, tmp_path: Path) -> None:
    captions = saved(tmp_path / "captions.json", CAPTIONS)
    without = score_file(captions, [instances], vocabulary=vocabulary)
    assert any("give --coco-captions" in note for note in without.notes)
    references = saved(tmp_path / "references.json", REFERENCES)
    report = score_file(captions, [instances], [references], vocabulary=vocabulary)
    assert report.score.chair_i == 2 / 6
    assert not any("--coco-captions" in note for note in report.notes)
    document = json.loads(json.dumps(as_json(report), allow_nan=False))
    assert document["captions"][0]["hallucinated"][0] == {"word": "cat", "category": "cat", "index": 4}
    assert set(document["files"]) >= {"captions", "instances", "coco_captions", "coco_captions_sha256"}


def test_what_does_not_fit_is_refused_or_counted(
    instances: Path, vocabulary: Vocabulary, tmp_path: Path
) -> None:
    more = [
        {"image_id": 11, "caption": "Again"},
        {"image_id": 99, "caption": "A dog"},
        {"image_id": 44, "caption": None},
        {"image_id": 44, "caption": ""},
    ]
    captions = saved(tmp_path / "captions.json", CAPTIONS + more)
    with pytest.raises(ValueError, match="pass --allow-partial to leave them out") as caught:
        score_file(captions, [instances], vocabulary=vocabulary)
    for part in (
        "1 second captions of an image (11)",
        "1 captions of images that the COCO files lack (99)",
        "record 6",
    ):
        assert part in str(caught.value)
    report = score_file(captions, [instances], vocabulary=vocabulary, allow_partial=True)
    names = (
        "captions",
        "scored",
        "duplicates",
        "unknown",
        "null_captions",
        "empty_captions",
        "without_objects",
    )
    assert [report.counts[name] for name in names] == [7, 4, 1, 1, 1, 1, 2]
    assert report.score.captions == 4
    only = saved(tmp_path / "only.json", more[1:2])
    with pytest.raises(ValueError, match="no caption is of a known image"):
        score_file(only, [instances], vocabulary=vocabulary, allow_partial=True)


@pytest.mark.parametrize("first", [1, 301])
def test_numbers_of_captions_are_no_ids_of_images(
    first: int, instances: Path, vocabulary: Vocabulary, tmp_path: Path
) -> None:
    rows = [{"id": first + place, "text": "A dog."} for place in range(20)]
    captions = saved(tmp_path / "captions.json", rows)
    coco = json.loads(instances.read_text())
    coco["images"] += [{"id": 7 * place + 1} for place in range(500)]
    sparse = saved(tmp_path / "sparse.json", coco)
    with pytest.raises(ValueError, match=rf"ids under 'id' go from {first} to {first + 19} for 20 images"):
        score_file(captions, [sparse], vocabulary=vocabulary, allow_partial=True)
    coco["images"] = [{"id": place} for place in range(400)]
    own = saved(tmp_path / "own.json", coco)  # a data set whose pictures are counted, too
    read = "read as: answers; answer from 'text', joined by id"
    assert read in score_file(captions, [own], vocabulary=vocabulary).notes
    with pytest.raises(ValueError, match="images that the COCO files lack"):
        score_file(saved(tmp_path / "few.json", rows[:19]), [instances], vocabulary=vocabulary)


def test_a_run_that_was_appended_to_itself(instances: Path, vocabulary: Vocabulary, tmp_path: Path) -> None:
    captions = saved(tmp_path / "captions.json", CAPTIONS * 2)
    report = score_file(captions, [instances], vocabulary=vocabulary)
    assert (report.counts["scored"], report.counts["repeated"]) == (3, 3)
    assert "3 captions that stand in the file twice, taken once" in report.notes


@pytest.mark.parametrize(("endings", "told"), [(("", "", "."), True), (("", ".", '."'), False)])
def test_captions_that_were_cut_off(
    endings: tuple[str, ...], told: bool, instances: Path, vocabulary: Vocabulary, tmp_path: Path
) -> None:
    rows = [
        {"image_id": each["image_id"], "caption": f"A dog and a cat{ending}"}
        for each, ending in zip(CAPTIONS, endings, strict=True)
    ]
    report = score_file(saved(tmp_path / "captions.json", rows), [instances], vocabulary=vocabulary)
    assert any("2 of 3 captions end within a sentence" in note for note in report.notes) == told


def test_incomplete_sentences_are_dropped_on_demand(
    instances: Path, vocabulary: Vocabulary, tmp_path: Path
) -> None:
    captions = saved(tmp_path / "captions.json", [{"image_id": 11, "caption": "A dog. A cat and a"}])
    assert score_file(captions, [instances], vocabulary=vocabulary).score.hallucinated_mentions == 1
    report = score_file(captions, [instances], vocabulary=vocabulary, drop_incomplete=True)
    assert (report.score.hallucinated_mentions, report.counts["shortened"]) == (0, 1)
    assert report.judgements[0].caption == "A dog."


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"image_id": 11}, "no caption; expected the key 'caption' or 'answer'"),
        ({"caption": "A dog"}, "no image id; expected the key 'image' or 'image_name'"),
        ({"image_id": "dog.jpg", "caption": "A dog"}, 'the image id is "dog.jpg"'),
        ({"image_id": 11, "caption": ["A dog", "A cat"]}, "the caption is"),
    ],
)
def test_captions_that_are_none(
    row: dict[str, Any], message: str, instances: Path, vocabulary: Vocabulary, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        score_file(saved(tmp_path / "captions.json", [row]), [instances], vocabulary=vocabulary)


class _WordNet:
    """Stands in for NLTK's lemmatizer; the real one needs data."""

    def lemmatize(self, word: str, pos: str) -> str:
        return {("buses", "n"): "bus", ("seated", "v"): "seat", ("dogs", "n"): "dog"}.get((word, pos), word)


def _stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    nltk, stem = ModuleType("nltk"), ModuleType("nltk.stem")
    tags = {"seated": "VBN", "red": "JJ", "up": "RP"}
    nltk.pos_tag = lambda tokens: [(token, tags.get(token, "NNS")) for token in tokens]  # type: ignore[attr-defined]
    stem.WordNetLemmatizer = _WordNet  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "nltk", nltk)
    monkeypatch.setitem(sys.modules, "nltk.stem", stem)


def test_lemmas_find_the_bus_and_make_chairs_of_seated_people(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _stand_in(monkeypatch)
    vocabulary = Vocabulary.from_file(written(tmp_path), "lemma")
    assert named(vocabulary, "Seated dogs wait for the red bus.") == ["chair", "dog", "bus"]


def test_lemmas_without_nltk_or_its_data(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nltk", None)
    with pytest.raises(ImportError, match="the variant lemma needs the package nltk; install nltk"):
        Vocabulary(variant="lemma")
    _stand_in(monkeypatch)

    def missing(tokens: list[str]) -> None:
        raise LookupError("\n***\nResource not found\n***")

    monkeypatch.setattr(sys.modules["nltk"], "pos_tag", missing)
    with pytest.raises(ImportError, match="the variant lemma needs data that NLTK does not find"):
        Vocabulary(variant="lemma")
