"""`mir-task check`."""

import re
import sys

import pytest
from click.testing import CliRunner

from mir_task.commands.cli import main
from mir_task.errors import MIRError
from mir_task.measuring.plan import Shape
from mir_task.statistics.memory import GIB
from tests.support import evaluate


def checked(*arguments: str):
    return CliRunner().invoke(main, ["check", *arguments])


def arguments(checkpoint) -> list[str]:
    return ["--model", "llava_hf", "--model_args", f"pretrained={checkpoint},device=cpu,device_map=cpu"]


def test_says_in_words_what_is_measured(llava) -> None:
    result = checked(*arguments(llava))
    assert result.exit_code == 0, result.output
    for line in (
        "adapter    lmms_eval.models.chat.llava_hf.LlavaHf (chat)",
        "decoder    model.language_model: 3 layers of 64 dimensions, float32, on cpu",
        "placement  assistant_chat: the text stands in an assistant turn after the image",
        "vision     16 tokens, found by token ids and by provenance, which agree",
        "forwards   1 prefill, 0 decode steps",
        "plan       pass 1 of 100 documents: rows of 4 layers, one of them the decoder's input, 0.0",
    ):
        assert line in result.output
    assert len(re.findall(r"^document ", result.output, re.MULTILINE)) == 2
    assert not re.search(r"^trap ", result.output, re.MULTILINE)


def test_says_what_is_measured_of_captions(llava, tmp_path) -> None:
    page = tmp_path / "strip.html"
    result = checked(*arguments(llava), "--task", "mir_scenes", "--html", str(page))
    assert result.exit_code == 0, result.output
    pattern = r"caption +loss \d+\.\d{4} of \d+ tokens, \d+\.\d{4} with the image of the other document"
    assert len(re.findall(pattern, result.output)) == 2
    assert "with the image of the other document" in page.read_text("utf-8")


def test_says_when_the_documents_run_several_times(llava, tmp_path) -> None:
    room = 2 * Shape(64, 4).sums(5) / GIB
    (tmp_path / "short.yaml").write_text(
        "task: mir_short\nclass: !function mir_task.harness.MIRTask\nmir_base: mir_demo\n"
        f"mir_host_memory: {room}\n"
    )
    short = ["--task", "mir_short", "--include_path", str(tmp_path)]
    result = checked(*arguments(llava), *short)
    assert result.exit_code == 0, result.output
    passes = re.findall(r"^plan +pass \d of 100 documents: (.*), ", result.output, re.MULTILINE)
    first = "sums of 2 layers, one of them the decoder's input"
    assert passes == ["norms and samples", first, "sums of 2 layers"]
    assert "so the documents run 3 times, keeping sums, counting medians, of up to 2" in result.output


def test_draws_every_position_with_its_token(llava, tmp_path) -> None:
    page = tmp_path / "pages" / "strip.html"
    result = checked(*arguments(llava), "--html", str(page))
    assert result.exit_code == 0, result.output
    html = page.read_text("utf-8")
    strips = re.findall(r'<div class="strip"[^>]*>(.*?)</div>', html, re.DOTALL)
    assert len(strips) == 2
    counts = re.findall(r"text +(\d+) tokens counted, (\d+) not", result.output)
    for strip, (text, other) in zip(strips, counts, strict=True):
        kinds = re.findall(r'<b class="(\w+)" data-token="', strip)
        assert kinds.count("vision") == 16
        assert kinds.count("text") == int(text)
        assert kinds.count("other") == int(other)
        # What is counted comes after the image, without a gap.
        assert "".join(kind[0] for kind in kinds).endswith("v" * 16 + "t" * int(text))
    assert "&lt;image&gt;" in html  # tokens are escaped
    assert "<image>" not in html


def test_traps_are_named(llava) -> None:
    result = checked(*arguments(llava), "--force_simple")
    assert result.exit_code == 0, result.output
    assert "(simple)" in result.output
    if "user_generate" in result.output:  # the simple log-likelihood fails on transformers 5
        assert "trap       the adapter LlavaHf does not do assistant_loglikelihood" in result.output


def test_a_forced_placement(llava) -> None:
    result = checked(*arguments(llava), "--placement", "user_generate")
    assert "placement  user_generate: image and text stand in the user turn" in result.output


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            ["--model", "gemma3", "--model_args", "pretrained=/nowhere"],
            "gemma3 could not load its model",
        ),
        (["--model", "no_such_adapter"], "no_such_adapter"),
        (["--model", "bagel_umm"], "could not load its model: ModuleNotFoundError: No module named"),
    ],
)
def test_a_model_that_cannot_be_loaded_is_one_message(change, message: str) -> None:
    result = checked(*change)
    assert result.exit_code == 1
    assert message in result.output
    assert "Traceback" not in result.output


def test_a_package_that_the_adapter_lacks_is_named(llava, monkeypatch) -> None:
    for kind in ("simple", "chat"):
        monkeypatch.delitem(sys.modules, f"lmms_eval.models.{kind}.llava_hf", raising=False)
    monkeypatch.setitem(sys.modules, "decord", None)
    result = checked(*arguments(llava))
    assert result.exit_code == 1
    assert "the adapter llava_hf imports decord, which is not installed" in result.output


def test_a_model_without_vision_tokens_is_refused(llama_vision) -> None:
    model = f"pretrained={llama_vision},device=cpu,device_map=cpu,dtype=float32"
    result = checked("--model", "llama_vision", "--model_args", model)
    assert result.exit_code == 1
    assert "MIR is not defined on it" in result.output


def test_an_unknown_task_is_wrong_usage(llava) -> None:
    assert checked(*arguments(llava), "--task", "mir_nowhere").exit_code == 2


def test_a_task_that_asks_for_more_documents_than_there_are_loads_no_model() -> None:
    from mir_task.harness.check import check

    config = {**evaluate.DEMO, "mir_documents": 4000}
    with pytest.raises(MIRError, match="mir_documents asks for 4000"):
        check(lambda: pytest.fail("loaded"), config)
