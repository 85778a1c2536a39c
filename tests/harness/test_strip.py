"""The page of `mir-task check` in a browser."""

import pytest

from mir_task.harness.check import Checked, Position, Report, write_html
from tests.support.browser import seen


@pytest.fixture
def page(tmp_path):
    kinds = ["padding"] * 2 + ["other"] * 30 + ["vision"] * 576 + ["text"] * 200
    tokens = [f"token-{n}" for n in range(len(kinds) - 1)] + ["a-token-of-" + "many" * 20 + "-letters"]
    positions = [Position(*both) for both in zip(kinds, tokens, strict=True)]
    long = "model.of.a.name.without.any.gap." * 8
    document = Checked("d1", "by token ids", "word " * 300 + long, (1, 0), ["a trap"], "", positions)
    report = Report(long, "Model", long, "vision", "chat", ["a plan"], [], [document, document])
    path = tmp_path / "strip.html"
    write_html(report, path)
    return path


@pytest.mark.parametrize("width", [1280, 390])
def test_nothing_overflows_and_every_token_is_read(page, width) -> None:
    found = seen(
        page,
        """
        const root = document.documentElement, tip = document.getElementById("tip"), out = {};
        const inside = () => { const box = tip.getBoundingClientRect();
          return box.left >= 0 && box.right <= root.clientWidth &&
            box.top >= 0 && box.bottom <= innerHeight; };
        const over = () => root.scrollWidth - root.clientWidth;
        const settled = () => new Promise(done => setTimeout(done, 50));
        out.over = [over()];
        const [first, second] = document.querySelectorAll(".strip");
        out.hidden = tip.hidden; out.tapped = []; out.inside = [];
        for (const position of [first.children[3], [...first.children].at(-1), second.children[40]]) {
          position.scrollIntoView(); await settled();
          position.click();  // a tap
          out.tapped.push(tip.textContent); out.inside.push(inside()); out.over.push(over());
        }
        out.tabs = document.querySelectorAll(".strip b[tabindex='0']").length;
        const press = key => { document.activeElement.dispatchEvent(
          new KeyboardEvent("keydown", {key, bubbles: true})); return tip.textContent; };
        out.keys = ["ArrowRight", "ArrowLeft", "Home", "ArrowLeft", "End"].map(press);
        press("Escape"); out.escaped = tip.hidden;
        first.children[5].dispatchEvent(new PointerEvent("pointerover", {bubbles: true}));
        out.hovered = tip.textContent;
        first.dispatchEvent(new PointerEvent("pointerleave")); out.left = tip.hidden;
        out.label = first.children[40].getAttribute("aria-label");
        return out;
        """,
        width=width,
    )
    assert found["over"] == [0] * 4
    assert found["hidden"]
    last = "807  a-token-of-" + "many" * 20 + "-letters"
    assert found["tapped"] == ["3  token-3", last, "40  token-40"]
    assert found["inside"] == [True] * 3
    assert found["tabs"] == 2
    assert found["keys"] == ["41  token-41", "40  token-40", "0  token-0", "0  token-0", last]
    assert (found["escaped"], found["hovered"], found["left"]) == (True, "5  token-5", True)
    assert found["label"] == "40, vision token: token-40"
