"""What is noted of documents, put together from passes and processes."""

from mir_task.measuring.log import DocumentLog


def log(*documents: str, traps: tuple[str, ...] = (), skipped: tuple[str, ...] = ()) -> DocumentLog:
    return DocumentLog(
        {name: {"traps": list(traps)} for name in documents}, dict.fromkeys(skipped, "why")
    )


def test_traps_of_processes_add_up_and_those_of_passes_do_not() -> None:
    whole = log("a", "b", traps=("beams",))
    whole.merge(log("c", traps=("beams", "steps")))  # another process
    whole.merge(log("a", "b", traps=("beams",)))  # another pass over the same documents
    assert whole.traps == {"beams": 3, "steps": 1}


def test_what_a_later_pass_skips_counts_nowhere() -> None:
    whole = log("a", "b", traps=("beams",))
    whole.merge(log("a", skipped=("b",)))
    whole.merge(log("b", traps=("beams",)))
    assert list(whole.documents) == ["a"]
    assert whole.traps == {}
