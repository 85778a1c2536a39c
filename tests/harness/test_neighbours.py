"""MIR among other tasks of a run: none takes another with it, and each has what it would have alone."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from mir_task import MIRError
from mir_task.tasks import packaged_tasks, read_task, with_base
from tests.support import evaluate, hub
from tests.support.evaluate import tasks_of

MIR = """
task: {name}
class: !function mir_task.harness.MIRTask
mir_base: mir_demo
mir_documents: {documents}
mir_groups: 0
"""


@pytest.fixture
def adapter(llava):
    """Makes a fresh adapter: the harness deletes the model of one that has run."""
    return lambda **arguments: evaluate.load(llava, **arguments)


@pytest.fixture
def folder(tmp_path) -> Path:
    """With the YAML files of `mir_a` and `mir_b`."""
    path = tmp_path / "tasks"
    path.mkdir()
    for name in ("mir_a", "mir_b"):
        write(path, name)
    return path


def write(folder: Path, name: str, *lines: str, documents: int = 4) -> None:
    text = MIR.format(name=name, documents=documents) + "".join(f"{line}\n" for line in lines)
    (folder / f"{name}.yaml").write_text(text)


def group(folder: Path, name: str, *tasks: str, aggregate: bool = False, **keys: object) -> None:
    lines = [f"group: {name}", "task:", *(f"  - {task}" for task in tasks)]
    if aggregate:
        lines += ["aggregate_metric_list:", "  - metric: mir", "    weight_by_size: false"]
    (folder / f"{name}.yaml").write_text("\n".join([*lines, *(f"{k}: {v}" for k, v in keys.items())]))


def mir(results: dict, task: str) -> float:
    return results["results"][task]["mir,none"]


def side_files(output: Path) -> dict[str, dict]:
    paths = (path for path in output.rglob("*_mir_*.json") if "_failed_" not in path.name)
    found = [json.loads(path.read_text()) for path in paths]
    assert len({each["task"] for each in found}) == len(found)
    return {each["task"]: each for each in found}


@pytest.fixture(scope="module")
def alone(llava):
    """MIR of `mir_a` in a run of its own, by its seed and number of documents."""

    def run(seed: int = 0, documents: int = 4) -> float:
        task = evaluate.task(task="mir_a", mir_seed=seed, mir_documents=documents, mir_groups=0)
        return mir(evaluate.evaluate(evaluate.load(llava), task), "mir_a")

    return run


class TestOneName:
    def test_a_group_and_its_own_member_are_measured_once(
        self, adapter, folder, tmp_path, alone, monkeypatch
    ) -> None:
        group(folder, "mir_pair", "mir_a", "mir_b")
        lm, sent = adapter(), []
        generate = lm._model.generate
        lm._model.generate = lambda **keys: (sent.append(1), generate(**keys))[1]
        names = ("mir_a", "mir_b", "mir_pair")
        results = evaluate.evaluate(lm, *names, output=tmp_path / "out", manager=tasks_of(folder))
        assert len(sent) == 2 * (4 + 1)  # documents and a probe, of two tasks
        assert mir(results, "mir_a") == mir(results, "mir_b") == alone()
        assert set(side_files(tmp_path / "out")) == {"mir_a", "mir_b"}

    def test_a_group_that_overrides_a_key_has_its_own(self, adapter, folder, tmp_path, alone) -> None:
        group(folder, "mir_other", "mir_a", mir_seed=3)
        results = evaluate.evaluate(
            adapter(), "mir_a", "mir_other", output=tmp_path / "out", manager=tasks_of(folder)
        )
        files = side_files(tmp_path / "out")
        assert set(files) == {"mir_a", "mir_a-1"}
        for name, file in files.items():
            assert mir(results, name) == file["mir"] == alone(file["settings"]["mir_seed"])
        assert {file["settings"]["mir_seed"] for file in files.values()} == {0, 3}

    def test_a_group_of_one_task_twice_with_other_keys(self, adapter, folder, tmp_path, alone) -> None:
        entries = ("{task: mir_a, mir_seed: 1}", "{task: mir_a, mir_seed: 2}")
        group(folder, "mir_seeds", *entries, aggregate=True)
        manager = tasks_of(folder)
        for number in range(2):  # the harness numbers on from run to run
            out = tmp_path / str(number)
            results = evaluate.evaluate(adapter(), "mir_seeds", output=out, manager=manager)
            files = side_files(out)
            assert len(files) == 2
            for name, file in files.items():
                assert mir(results, name) == alone(file["settings"]["mir_seed"])
            assert mir(results, "mir_seeds") == pytest.approx((alone(1) + alone(2)) / 2, abs=1e-12)

    @pytest.mark.parametrize("as_objects", [False, True])
    def test_dicts_and_objects_of_one_name(self, adapter, folder, tmp_path, alone, as_objects) -> None:
        keys = [{"task": "mir_a", "mir_seed": seed} for seed in (1, 2, 1)]
        if as_objects:
            same = {"mir_documents": 4, "mir_groups": 0}
            tasks = [evaluate.task(**each, **same) for each in keys]
        else:
            tasks = keys
        results = evaluate.evaluate(adapter(), *tasks, output=tmp_path / "out", manager=tasks_of(folder))
        files = side_files(tmp_path / "out")
        assert {name: file["settings"]["mir_seed"] for name, file in files.items()} == {
            "mir_a": 1,
            "mir_a-1": 2,
        }
        assert (mir(results, "mir_a"), mir(results, "mir_a-1")) == (alone(1), alone(2))
        assert keys[0]["task"] == "mir_a"  # the caller's own are as they were

    def test_an_object_beside_a_name(self, adapter, folder, tmp_path, alone) -> None:
        task = evaluate.task(task="mir_a", mir_seed=1, mir_documents=4, mir_groups=0)
        results = evaluate.evaluate(adapter(), "mir_a", task, manager=tasks_of(folder))
        assert (mir(results, "mir_a"), mir(results, "mir_a-1")) == (alone(0), alone(1))

    def test_all_packaged_tasks_and_their_groups(self, adapter, tmp_path, monkeypatch) -> None:
        hub.coco_captions(tmp_path / "hub")
        monkeypatch.setenv("MIR_TASK_DATA", str(tmp_path / "hub"))
        monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
        manager, out = tasks_of(), tmp_path / "out"
        names = manager.match_tasks(["mir_*"])
        results = evaluate.evaluate(adapter(), *names, output=out, manager=manager, limit=3)
        found = {
            name: scores["mir,none"] for name, scores in results["results"].items() if len(scores) > 2
        }
        assert set(found) == set(packaged_tasks())
        measured = {name for name, value in found.items() if value != "N/A"}
        assert {"mir_demo", "mir_scenes", "mir_coco"} <= measured
        assert set(side_files(out)) >= measured
        assert len(list(out.rglob("*_failed_*.json"))) == len(found) - len(measured)

    def test_threads(self, adapter, tmp_path, alone) -> None:
        out, seeds = tmp_path / "out", (0, 1, 2)
        tasks = [
            evaluate.task(task="mir_a", mir_seed=seed, mir_documents=4, mir_groups=0) for seed in seeds
        ]
        adapters = [adapter() for _ in seeds]
        with ThreadPoolExecutor(len(seeds)) as pool:
            results = list(pool.map(lambda *of: evaluate.evaluate(*of, output=out), adapters, tasks))
        values = {seed: alone(seed) for seed in seeds}
        assert [mir(of, "mir_a") for of in results] == list(values.values())
        files = [json.loads(path.read_text()) for path in out.rglob("*_mir_mir_a.json")]
        assert {file["settings"]["mir_seed"]: file["mir"] for file in files} == values
        assert len(list(out.rglob("*_mir_mir_a.png"))) == 3
        assert not list(out.rglob(".*"))

    def test_threads_with_an_index_each(self, folder) -> None:
        from mir_task.harness import MIRTask

        manager = tasks_of(folder)
        with ThreadPoolExecutor(2) as pool:
            others = pool.submit(lambda: [tasks_of(folder) for _ in range(20)])
            while not others.done():
                assert manager._get_config("mir_a")["class"] is MIRTask
        assert all("mir_a" in other.mir_paths for other in others.result())


class TestFirst:
    @pytest.mark.parametrize("way", ["group", "nested", "dicts", "objects"])
    def test_a_benchmark_that_crashes_takes_no_mir_along(self, adapter, folder, tmp_path, way) -> None:
        group(folder, "mixed", "bench_crashes", "mir_a")
        group(folder, "inner", "bench", "mir_a")
        group(folder, "around", "bench_crashes", "inner")
        tasks = {
            "group": ["mixed"],
            "nested": ["around"],
            "dicts": [{"task": "bench_crashes"}, {"task": "mir_a"}],
            "objects": [{"task": "bench_crashes"}, evaluate.task(task="mir_a")],
        }[way]
        out = tmp_path / "out"
        # The harness gives benchmarks in dicts to a chat adapter as it does to simple ones.
        message = "the benchmark broke" if way in ("group", "nested") else "no attribute 'items'"
        with pytest.raises((RuntimeError, AttributeError), match=message):
            evaluate.evaluate(adapter(), *tasks, output=out, manager=tasks_of(folder), limit=3)
        assert set(side_files(out)) == {"mir_a"}

    @pytest.mark.parametrize("limit", [0.1, 0.3, 2, None])
    def test_limits_are_each_tasks_own(self, adapter, folder, tmp_path, limit) -> None:
        write(folder, "mir_a", documents=30)
        manager = tasks_of(folder)

        def run(*tasks: str) -> tuple[dict, list[int]]:
            lm, counts = adapter(), []
            generate_until = lm.generate_until
            lm.generate_until = lambda requests: (
                counts.append(len(requests)) if requests[0].task_name == "bench" else None,
                generate_until(requests),
            )[1]
            return evaluate.evaluate(lm, *tasks, manager=manager, limit=limit)["results"], counts

        bench, count = run("bench")
        value, _ = run("mir_a")
        for order in (("bench", "mir_a"), ("mir_a", "mir_b", "bench")):
            beside, counted = run(*order)
            assert (beside["bench"], counted) == (bench["bench"], count)
            assert beside["mir_a"]["mir,none"] == value["mir_a"]["mir,none"]

    @pytest.mark.parametrize("documents", [30, 80])
    def test_samples_are_those_of_the_limit_of_their_task(self, adapter, folder, documents) -> None:
        write(folder, "mir_a", documents=documents)
        found = evaluate.evaluate(
            adapter(), "bench", "mir_a", manager=tasks_of(folder), limit=0.2, log_samples=True
        )
        counts = {name: len(rows) for name, rows in found["samples"].items()}
        assert counts == {"mir_a": documents // 5, "bench": 10}

    def test_benchmarks_that_sample_answer_as_they_do_alone(self, adapter, folder) -> None:
        manager = tasks_of(folder)
        scores = [
            evaluate.evaluate(adapter(), *tasks, manager=manager, limit=4)["results"]
            for tasks in (["bench_sampled", "bench"], ["bench_sampled", "mir_a", "bench"])
        ]
        assert scores[0]["bench_sampled"]["hash,none"] != scores[0]["bench"]["hash,none"]
        for name in ("bench_sampled", "bench"):
            assert scores[1][name] == scores[0][name]

    def test_what_the_adapter_knows_of_documents_is_put_back(self, adapter, folder) -> None:
        lm, held = adapter(), {}
        own = evaluate.task(task="mir_a")
        generate_until = lm.generate_until

        def watched(requests):
            held[requests[0].task_name] = dict(lm.task_dict)
            return generate_until(requests)

        lm.generate_until = watched
        evaluate.evaluate(lm, "mir_b", own, "bench", manager=tasks_of(folder), limit=2)
        assert held["mir_a"]["mir_a"] is own.dataset
        assert set(held["bench"]) == {"mir_a", "mir_b", "bench"}


class TestFailures:
    """Each is one entry in the results."""

    @pytest.fixture
    def with_bad(self, folder) -> Path:
        write(folder, "mir_bad", "mir_media_dataset: nowhere.jsonl")
        return folder

    def test_at_load(self, adapter, with_bad, tmp_path) -> None:
        group(with_bad, "mir_all", "mir_a", "mir_bad", aggregate=True)
        out = tmp_path / "out"
        results = evaluate.evaluate(
            adapter(), "mir_all", "bench", output=out, manager=tasks_of(with_bad), limit=2
        )
        assert mir(results, "mir_bad") == "N/A"
        assert isinstance(mir(results, "mir_a"), float)
        assert isinstance(results["results"]["bench"]["hash,none"], float)
        assert mir(results, "mir_all") == results["groups"]["mir_all"]["mir,none"] == "N/A"
        (why,) = out.rglob("*_failed_mir_bad.json")
        assert "nowhere.jsonl" in json.loads(why.read_text())["why"]
        from lmms_eval.utils import make_table

        assert "N/A" in make_table(results, "groups")

    def test_alone_they_end_in_the_message(self, adapter, with_bad) -> None:
        for tasks in (["mir_bad"], [{"task": "mir_bad"}]):
            with pytest.raises(MIRError, match=r"mir_bad.*nowhere\.jsonl"):
                evaluate.evaluate(adapter(), *tasks, manager=tasks_of(with_bad))

    def test_at_run(self, adapter, folder, tmp_path) -> None:
        write(folder, "mir_b", "mir_text_rows: 5000")
        group(folder, "mir_pair", "mir_a", "mir_b", aggregate=True)
        results = evaluate.evaluate(
            adapter(), "mir_pair", "bench", output=tmp_path / "out", manager=tasks_of(folder), limit=2
        )
        assert (mir(results, "mir_b"), mir(results, "mir_pair")) == ("N/A", "N/A")
        assert isinstance(mir(results, "mir_a"), float)

    def test_a_task_of_the_harness_with_a_class_of_its_own_is_none_of_ours(self, folder) -> None:
        (folder / "utils.py").write_text("class Broken:\n    def __init__(self): raise KeyError('x')\n")
        (folder / "own.yaml").write_text("task: own\nclass: !function utils.Broken\n")
        with pytest.raises(KeyError, match="x"):
            tasks_of(folder).load_task_or_group(["own"])

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"limit": 0}, "mir_a: --limit 0 leaves no document; leave it out for all 4"),
            ({"offset": 4}, "mir_a: --offset 4 leaves no document, as the task has 4; lower it"),
            ({"offset": 9, "limit": 2}, "mir_a: --offset 9 leaves no document, as the task has 4"),
        ],
    )
    def test_options_that_leave_nothing(self, adapter, folder, tmp_path, options, message) -> None:
        manager, out = tasks_of(folder), tmp_path / "out"
        with pytest.raises(MIRError, match=message):
            evaluate.evaluate(adapter(), "mir_a", manager=manager, **options)
        if options.get("limit") != 0:  # of which the harness makes an error itself
            results = evaluate.evaluate(
                adapter(), "mir_a", "bench", manager=manager, output=out, **options
            )
            assert mir(results, "mir_a") == "N/A"
            (why,) = out.rglob("*_failed_mir_a.json")
            assert message in json.loads(why.read_text())["why"]

    def test_whatever_a_task_of_python_code_raises_is_a_message_that_names_it(self) -> None:
        with pytest.raises(MIRError, match="task mir_test cannot be loaded: TypeError"):
            evaluate.task(metadata=5)

    def test_a_task_object_is_itself_again_in_the_next_run(self, adapter, alone) -> None:
        task = evaluate.task(task="mir_a", mir_documents=4, mir_groups=0)
        with pytest.raises(MIRError, match="--offset"):
            evaluate.evaluate(adapter(), task, offset=4)
        assert mir(evaluate.evaluate(adapter(), task), "mir_a") == alone()

    def test_an_adapter_used_twice(self, adapter) -> None:
        lm = adapter()
        evaluate.evaluate(lm, evaluate.task())
        with pytest.raises(MIRError, match=r"LlavaHf has no model any more: .* load the adapter anew"):
            evaluate.evaluate(lm, evaluate.task())

    def test_a_rank_that_another_run_has_left(self, adapter, tmp_path, monkeypatch) -> None:
        lm = adapter()
        monkeypatch.setenv("RANK", "1")
        with pytest.raises(MIRError, match=r"process 1 \(RANK\) of 1 \(WORLD_SIZE\), .* unset RANK"):
            evaluate.evaluate(lm, evaluate.task(), output=tmp_path)
        assert [path.name.split("_", 2)[2] for path in tmp_path.rglob("*")] == ["failed_mir_test.json"]


class TestKeysOfTheHarness:
    @pytest.mark.parametrize(
        "keys",
        [
            {"metadata": {"doc_id": 7, "task": "x", "repeats": 0, "split": "train"}},
            {"metadata": {"__padding_only__": True}},
            {"reasoning_tags": "no JSON"},
            {"reasoning_tags": [["{", "}"]]},
            {"auto_strip_thinking": True},
            {"filter_list": [{"name": "x", "filter": [{"function": "lowercase"}]}]},
            {"score_key": "text_tokens", "cluster_key": "vision_tokens"},
            {"process_docs": lambda rows: rows.select([0])},
            {"output_type": "loglikelihood", "generation_kwargs": {"until": ["x"]}},
            {"repeats": 3},
            {"repeats": 0},
        ],
        ids=lambda keys: "-".join(keys),
    )
    def test_they_change_nothing(self, adapter, alone, tmp_path, keys) -> None:
        task = evaluate.task(task="mir_a", mir_documents=4, mir_groups=0, **keys)
        results = evaluate.evaluate(adapter(), task, output=tmp_path, log_samples=True)
        assert mir(results, "mir_a") == alone()
        assert results["results"]["mir_a"]["mir_stderr_clt,none"] == "N/A"
        assert [sample["doc_id"] for sample in results["samples"]["mir_a"]] == [0, 1, 2, 3]
        assert all(sample["mir"]["vision_tokens"] == 16 for sample in results["samples"]["mir_a"])
        assert len(side_files(tmp_path)["mir_a"]["documents"]) == 4

    def test_an_included_file(self, folder) -> None:
        text = MIR.format(name="mir_a", documents=3) + "mir_seed: 5\nnonsense: 1\n"
        (folder / "mir_a.yaml").write_text("task: mir_a\ninclude: common\n")
        (folder / "common").write_text(text)
        manager = tasks_of(folder)
        assert manager.mir_paths["mir_a"] == folder / "mir_a.yaml"
        with pytest.raises(MIRError, match="mir_a of .*: 'nonsense' is no key"):
            manager.load_task_or_group(["mir_a"])
        (folder / "common").write_text(text.replace("nonsense: 1\n", ""))
        (task,) = manager.load_task_or_group(["mir_a"]).values()
        assert task.settings.seed == 5
        # The commands and a mir_base read it as the harness does.
        bases = {**packaged_tasks(), "mir_a": folder / "mir_a.yaml"}
        read = read_task(folder / "mir_a.yaml", bases)
        assert (read["mir_seed"], "include" in read) == (5, False)
        other = with_base({"task": "mir_b", "mir_base": "mir_a"}, bases)
        assert other == {**read, "task": "mir_b"}
        (folder / "common").write_text("include: mir_a.yaml")
        with pytest.raises(MIRError, match="include goes round in a circle"):
            read_task(folder / "mir_a.yaml", bases)

    def test_a_key_that_is_none_is_named(self, folder) -> None:
        write(folder, "mir_a", "doc_to_txt: x")
        with pytest.raises(MIRError, match=r"mir_a of .*mir_a\.yaml: 'doc_to_txt' is no key"):
            tasks_of(folder).load_task_or_group(["mir_a"])


class TestBases:
    def test_they_are_those_of_one_index(self, tmp_path, adapter) -> None:
        managers = []
        for seed in (1, 2):
            folder = tmp_path / str(seed)
            folder.mkdir()
            write(folder, "mir_base", f"mir_seed: {seed}")
            if seed == 1:
                write(folder, "mir_a")
                text = (folder / "mir_a.yaml").read_text()
                (folder / "mir_a.yaml").write_text(
                    text.replace("mir_base: mir_demo", "mir_base: mir_base")
                )
            managers.append(tasks_of(folder))
        (task,) = managers[0].load_task_or_group(["mir_a"]).values()
        assert task.settings.seed == 1
        with pytest.raises(MIRError, match="mir_base is 'mir_base', and no MIR task has that name"):
            evaluate.task(mir_base="mir_base")

    def test_a_task_based_on_one_that_overrides_a_packaged_one(self, folder) -> None:
        write(folder, "mir_demo", "mir_seed: 5", documents=7)
        write(folder, "mir_a", documents=3)
        (task,) = tasks_of(folder).load_task_or_group(["mir_a"]).values()
        assert (task.settings.seed, task.settings.documents) == (5, 3)

    def test_a_circle_of_one(self, folder) -> None:
        text = (folder / "mir_a.yaml").read_text().replace("mir_base: mir_demo", "mir_base: mir_a")
        (folder / "mir_a.yaml").write_text(text)
        with pytest.raises(MIRError, match="in a circle: mir_a$"):
            tasks_of(folder).load_task_or_group(["mir_a"])

    def test_dicts_of_tasks_that_no_index_has(self, adapter, alone) -> None:
        from mir_task.harness import MIRTask

        base = {"task": "mir_x", "class": MIRTask, "mir_base": "mir_demo", "mir_documents": 4}
        base["mir_groups"] = 0
        based = {"task": "mir_y", "class": MIRTask, "mir_base": "mir_x", "mir_on_error": "skip"}
        given = [dict(base), dict(based)]
        for _ in range(2):
            results = evaluate.evaluate(adapter(), *given)
            assert mir(results, "mir_y") == mir(results, "mir_x") == alone()
        assert given == [base, based]
