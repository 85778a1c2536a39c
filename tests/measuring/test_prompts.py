"""Which part of a prompt is a document's text: short, nested or changed by an adapter."""

import random
import string

import pytest

from mir_task import MIRError
from mir_task.capture.positions import NO_TOKEN
from mir_task.measuring.prompts import NothingArrived, Template, alike, forms_of, probe_for, squashed


class Letters:
    """A token a character."""

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        return [ord(c) for c in text]

    def decode(self, token_ids) -> str:
        return "".join(map(chr, token_ids))


class Lowering(Letters):
    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        return super().encode(text.lower(), add_special_tokens=add_special_tokens)


class Words:
    """One token a word, in lower case; others are unknown."""

    words = ("<s>", "<unk>", "user", "a", "red", "circle", "at", "left", "</s>", "user:")

    def encode(self, text, *, add_special_tokens):
        return [self.words.index(w) if w in self.words else 1 for w in text.lower().split()]

    def decode(self, ids):
        return " ".join(self.words[i] for i in ids)


AROUND = ("\n ASSISTANT: {}</s> ASSISTANT:", "{}", "USER: {}\n", "A {} A", "{}</s>", "is it {} ?")
TEXTS = (
    *("A", "T", "ANT", "is", "assistant", "ASSISTANT:", "</s>", "A A", "a dog  lies", "a dog lies"),
    *("\u00e9", "e\u0301", "\u4f60"),
)


def spelled(tokenizer, text: str) -> str:
    return tokenizer.decode(tokenizer.encode(text, add_special_tokens=False))


def learned(around: str, text: str, tokenizer) -> Template:
    probe = probe_for(text, tokenizer)
    own, other = (spelled(tokenizer, around.format(each)) for each in (text, probe))
    return Template.of(["other", own], ["other", other], spelled(tokenizer, probe))


@pytest.mark.parametrize("tokenizer", [Letters(), Lowering()])
@pytest.mark.parametrize("first", TEXTS)
@pytest.mark.parametrize("around", AROUND)
def test_a_text_is_found_whatever_it_is(around: str, first: str, tokenizer) -> None:
    template = learned(around, first, tokenizer)
    assert template.number == 1
    for text in TEXTS:
        ids = tokenizer.encode(around.format(text), add_special_tokens=False)
        span = tokenizer.decode(ids)
        arrival = template.whole(span, forms_of(text, tokenizer))
        assert arrival == template.arrival(span, forms_of(text, tokenizer))
        assert alike(squashed(span)[arrival.start : arrival.end]) == alike(text)
        assert arrival.start == len(squashed(around.partition("{}")[0]))
        tokens = range(len(ids))[arrival.tokens(ids, span, tokenizer)]
        start = len(around.partition("{}")[0])
        assert (tokens.start, tokens.stop) == (start, start + len(text))
        for other in TEXTS:
            if alike(other) != alike(text):
                assert template.whole(span, forms_of(other, tokenizer)) is None


def test_random_texts_in_random_templates() -> None:
    """Prefixes, suffixes and template words of each other, from a few characters."""
    chance = random.Random(0)
    text = lambda: "".join(chance.choices("aA :</s>tT", k=chance.randint(1, 6))).strip() or "a"  # noqa: E731
    for _ in range(3000):
        around = f"{text()}{{}}{text()}" if chance.random() < 0.8 else "{}"
        first, second, third = text(), text(), text()
        template = learned(around, first, Letters())
        arrival = template.whole(around.format(second), forms_of(second, Letters()))
        start = len(squashed(around.partition("{}")[0]))
        assert arrival.start == start
        assert squashed(around.format(second))[start : arrival.end] == squashed(second)
        if alike(third) != alike(second):
            assert template.whole(around.format(second), forms_of(third, Letters())) is None


def test_what_is_cut_changed_or_dropped_is_told() -> None:
    template = learned(AROUND[0], "a first text", Letters())
    before, after = template.before, template.after

    def told(arrived: str, text: str, end: str = after):
        arrival = template.arrival(f"{before} {arrived}{end}", forms_of(text, Letters()))
        return arrival.cut, arrival.changes

    assert told("a red", "a red circle") == (6, "")
    assert told("a red", "a red circle", end="") == (6, "")
    assert told("a red circle", "a red circle", end="") == (0, "")
    assert told("a red circle", "a red circle", end="</s> ASS") == (0, "")
    assert told("a circle", "a red circle") == (0, "'red' became ''")
    assert told("A RED", "a red") == (0, "'ared' became 'ARED'")
    assert told("a red circle", "a <image>red circle") == (0, "'<image>' became ''")
    for span, message in (
        ("other template", "the prompt around its text is another"),
        (f"{before}{after}", "nothing of its text arrived"),
        (f"{before} Rain in the valley{after}", "'Raininthevalley' arrived in the place of its text"),
    ):
        with pytest.raises(MIRError, match=message):
            template.arrival(span, forms_of("a red circle", Letters()))
    cut = template.arrival(f"{before} a r", forms_of("a red circle", Letters()))
    assert f"{before}ar"[cut.start : cut.end] == "ar"


def test_unknown_words() -> None:
    for first in ("a red circle", "a blue", "blue", "blue a"):
        template = learned("user: {} </s>", first, Words())
        for text in ("a red circle", "blue", "a blue circle at left"):
            ids = Words().encode(f"user: {text} </s>", add_special_tokens=False)
            arrival = template.whole(Words().decode(ids), forms_of(text, Words()))
            assert arrival.tokens(ids, Words().decode(ids), Words()) == slice(1, len(ids) - 1)


def test_a_text_that_makes_no_difference_is_refused() -> None:
    with pytest.raises(NothingArrived):
        Template.of(["same", "this"], ["same", "this"], "0 probe")


def test_a_prompt_that_changes_with_the_text_is_refused() -> None:
    with pytest.raises(MIRError, match="the prompt holds '7:0probe' where the text '0probe' was sent"):
        Template.of(["4:text"], ["7:0 probe"], "0 probe")


def test_positions_without_a_token_write_nothing() -> None:
    ids = [NO_TOKEN, *(ord(c) for c in "say: a boat.")]
    template = learned("say: {}", "Every", Lowering())
    arrival = template.whole("say: a boat.", forms_of("A  Boat.", Lowering()))
    assert arrival.tokens(ids, "say: a boat.", Lowering()) == slice(6, 13)


def test_a_probe_begins_with_what_no_other_text_holds() -> None:
    assert probe_for("a text of 0 and 1", Letters())[0] == "2"
    everything = string.printable
    assert probe_for(everything, Letters())[0] != everything.strip()[0]
    with pytest.raises(MIRError, match="begins every text as it begins 'blue'"):
        probe_for("blue", type("Unknown", (Letters,), {"encode": lambda *_, **__: [120]})())
