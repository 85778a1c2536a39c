"""YAML files of tasks that cannot be read, and secrets in what is written of a run."""

import pytest
from click.testing import CliRunner

from mir_task import MIRError
from mir_task.commands.cli import main
from mir_task.tasks import tasks_in


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("mir_documents: 3", "bad.yaml has keys of a MIR task and no name of one: give it `task: NAME`"),
        ("task: [1]\nmir_documents: 3", "no name of one"),
        ("task: x\n  mir: {", "bad.yaml is no YAML that can be read"),
        ("task: \x00", "bad.yaml is no YAML that can be read"),
    ],
)
def test_a_file_that_cannot_be_read_is_one_message(tmp_path, content: str, message: str) -> None:
    (tmp_path / "bad.yaml").write_text(content)
    with pytest.raises(MIRError, match=message):
        tasks_in(tmp_path)
    command = ["data", "prepare", "x", "--to", str(tmp_path / "out"), "--include_path", str(tmp_path)]
    done = CliRunner().invoke(main, command)
    assert done.exit_code == 1
    assert message.split(" give")[0] in " ".join(done.output.split())


def test_secrets_are_left_out_where_the_harness_does_not_do_so() -> None:
    from mir_task.harness.output import without_secrets

    given = "pretrained=org/x,api_key=sk-1,hf_token=t,tokenizer=org/y"
    kept = "pretrained=org/x,api_key=[REDACTED],hf_token=[REDACTED],tokenizer=org/y"
    assert without_secrets(given) == kept
    assert "sk-1" not in without_secrets({"API_KEY": "sk-1", "dtype": "float16"})
