"""Trials that start from what other trials have learnt: `init_from` and the teacher of semantic noise."""

from __future__ import annotations

import json
import os
import subprocess
from functools import partial
from pathlib import Path

import pytest
import torch

from lnl import Noise, Study, Trial
from lnl.data import DataError, load
from lnl.execution import job as execution_job
from lnl.execution import worker
from lnl.execution.queue import is_ready, trials_to_run, why_blocked
from lnl.storage import checkpoints
from lnl.storage.store import Store
from lnl.study.plan import Plan, Planned
from lnl.study.status import reconcile
from lnl.training.learner import trained_backbone
from lnl.trial.config import parse
from lnl.trial.divergence import Diverged
from lnl.trial.provenance import Current
from lnl.trial.run import Execution, assemble, run
from lnl.trial.trained import is_trained, save_trained
from tests.forked import WITHOUT_RAY, run_script

DIGITS = {"dataset": "digits", "network": "small_convnet", "epochs": 2, "steps": 3, "method.batch_size": 16}
SYMMETRIC = {"noise": {"kind": "symmetric", "rate": 0.4}}
SIMCLR = {"method": {"name": "simclr", "batch_size": 16}, "epochs": 3}


def digits_trial(method: str = "supervised", **changes: object) -> Trial:
    return parse({"method": method}).override({**DIGITS, **changes})


def backbone(method: object) -> dict[str, torch.Tensor]:
    return {
        name.removeprefix("backbone."): tensor.clone()
        for name, tensor in method.learner.network.state_dict().items()
        if name.startswith("backbone.")
    }


def test_an_initialisation_is_where_training_starts() -> None:
    trial = digits_trial(labels=50, init_from=SIMCLR)
    source = trial.prerequisites["initialisation"]
    assert (source.method_name, source.epochs, source.steps, source.labels) == ("simclr", 3, 3, 50)
    *_, row = run(source)
    trained = trained_backbone(row.snapshot()["parts"])
    started, plain = assemble(trial, Execution())[0], assemble(digits_trial(labels=50), Execution())[0]
    assert trained.keys() == backbone(started).keys()
    assert all(torch.equal(tensor, trained[name]) for name, tensor in backbone(started).items())
    assert not any(
        torch.equal(tensor, trained[name]) for name, tensor in backbone(plain).items() if "num_batches" not in name
    )
    heads = [method.learner.network.heads.state_dict() for method in (started, plain)]
    assert all(torch.equal(tensor, heads[1][name]) for name, tensor in heads[0].items()), "the heads are new"


def test_averaged_weights_are_what_is_passed_on() -> None:
    source = digits_trial("mixmatch", labels=50, **{"method.optimizer.average": 0.5})
    *_, row = run(source)
    parts = row.snapshot()["parts"]
    found = trained_backbone(parts)
    for name in ("layers.0.weight", "layers.1.running_mean"):
        assert torch.equal(found[name], parts["learner"]["average"][f"backbone.{name}"])
        assert not torch.equal(found[name], parts["learner"]["network"][f"backbone.{name}"])


def test_what_is_trained_without_labels_is_shared_by_all_noise_rates() -> None:
    trials = [digits_trial(init_from=SIMCLR, noise={"kind": "symmetric", "rate": rate}) for rate in (0.2, 0.5)]
    assert len({trial.id for trial in trials}) == 2
    assert len({trial.prerequisites["initialisation"].id for trial in trials}) == 1
    supervised = [trial.override({"init_from": {"method": "supervised", "epochs": 3}}) for trial in trials]
    assert len({trial.prerequisites["initialisation"].id for trial in supervised}) == 2


def test_a_replicate_starts_from_its_own_initialisation() -> None:
    trial = digits_trial(init_from={**SIMCLR, "replicate": 7})
    for replicate in (0, 1):
        assert trial.override({"replicate": replicate}).prerequisites["initialisation"].replicate == replicate


def test_what_an_initialisation_does_not_say_is_as_in_its_trial() -> None:
    trial = Trial(method="supervised", init_from={"method": "simclr"})
    assert trial.prerequisites["initialisation"].dataset == "cifar10"
    smaller = trial.override({"dataset": "digits", "network": "small_convnet", "epochs": 3})
    source = smaller.prerequisites["initialisation"]
    assert (source.dataset, source.network, source.epochs) == ("digits", "small_convnet", 3)
    assert trial.id != smaller.id != smaller.override({"init_from": None}).id


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"init_from": {"epochs": 3}}, "init_from needs a method"),
        ({"init_from": {"method": "simklr"}}, "simclr"),
        ({"init_from": {"method": "simclr", "epoch": 3}}, "'epoch': did you mean 'epochs'"),
        ({"init_from": {"method": "simclr", "network": "preact_resnet18"}}, "cannot start small_convnet"),
        ({"init_from": SIMCLR, "weights": "imagenet"}, "give one of them"),
        ({"init_from": {"method": "supervised", "noise.rate": 0.0}, **SYMMETRIC}, "another noise"),
        ({"init_from": {"method": "supervised", "labels": 100}, "labels": 50}, "another labels"),
        ({"init_from": {"method": "simclr", "validation.images": 0}, "validation.images": 20}, "another validation"),
        ({"noise": {"kind": "semantic", "teacher": {"labels": 50}}, "labels": 50}, "teacher fewer"),
        ({"noise.kind": "semantic"}, "noise.teacher"),
        ({"noise.kind": "semantic", "noise.teacher": {"epochs": 3}}, "noise.teacher"),
        ({"noise.kind": "semantic", "noise.rate": 0.3, "noise.teacher": {"labels": 50}}, "takes no rate"),
    ],
)
def test_impossible_wishes_get_one_sentence(changes: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError) as error:
        digits_trial(**changes)
    assert words in str(error.value) and "\n" not in str(error.value), error.value


@pytest.mark.slow
def test_semantic_noise_is_what_a_small_teacher_says(tmp_path: Path) -> None:
    teacher = {"labels": 100, "epochs": 10, "steps": 10}
    trial = digits_trial(noise={"kind": "semantic", "teacher": teacher})
    before = trial.prerequisites["teacher"]
    assert (before.method_name, before.labels, before.noise) == ("supervised", 100, Noise())
    *_, row = run(before)
    save_trained(tmp_path, before, row.snapshot()["parts"], Current())
    made = [assemble(trial, execution) for execution in (Execution(trained=tmp_path), Execution())]
    for _, seen, truth in made:
        rate = (seen.labels != truth.labels).double().mean()
        assert 0.01 < rate < 0.4 and rate == pytest.approx(truth.facts["noise_realised"])
    assert made[0][2].facts["noise_hash"] == made[1][2].facts["noise_hash"]
    # what is kept is what is used, and a damaged file is computed again
    kept = next(tmp_path.glob("*.labels"))
    labels = checkpoints.read(kept, {"file": kept.name})["labels"]
    assert len(labels) == len(load("digits").train_labels)
    checkpoints.write(kept, {"labels": torch.zeros_like(labels)}, {"file": kept.name})
    assert (assemble(trial, Execution(trained=tmp_path))[1].labels == 0).all()
    kept.write_bytes(b"damaged")
    again = assemble(trial, Execution(trained=tmp_path))[2]
    assert again.facts["noise_hash"] == made[0][2].facts["noise_hash"]


def test_a_damaged_prerequisite_gets_one_sentence(tmp_path: Path) -> None:
    trial = digits_trial(init_from=SIMCLR)
    path = Current().trained_path(tmp_path, trial.prerequisites["initialisation"])
    for content in (None, b"", b"no weights"):
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(DataError, match="run the study again"):
            assemble(trial, Execution(trained=tmp_path))


def test_a_plan_trains_each_prerequisite_once_and_first() -> None:
    study = Study(
        name="transfer",
        question="Does it help?",
        base=digits_trial(noise={"kind": "symmetric", "rate": 0.4}),
        arms={"scratch": {}, "transfer": {"init_from": SIMCLR}, "simclr": {"method": "simclr"}},
        factors={"noise.rate": [0.2, 0.5]},
        replicates=2,
    )
    plan = study.plan()
    ids = [planned.id for planned in plan.trials]
    assert len(ids) == len(set(ids)) == 3 * 2 * 2 + 2
    for position, planned in enumerate(plan.trials):
        for before in planned.trial.prerequisites.values():
            assert ids.index(before.id) < position
    prerequisites = [planned for planned in plan.trials if planned.prerequisite]
    assert [planned.arm for planned in prerequisites] == ["initialisation: simclr"] * 2
    assert [(one.trial, one.arm) for one in plan.record.prerequisites] == [(p.id, p.arm) for p in prerequisites]
    assert len(plan.record.trials) == 12
    chosen = plan.of_arms(["transfer"])
    assert len(chosen) == 4 + 2 and {p.id for p in prerequisites} <= chosen


def test_an_arm_of_the_study_can_be_the_prerequisite_of_another() -> None:
    study = Study(
        name="transfer",
        question="Does it help?",
        base=digits_trial(),
        arms={"simclr": SIMCLR, "transfer": {"init_from": SIMCLR}},
        replicates=2,
    )
    plan = study.plan()
    assert len(plan.trials) == 4
    assert [planned.prerequisite for planned in plan.trials if planned.arm == "simclr"] == [True, True]


STUDY = """
from lnl import Noise, Study, Trial
study = Study(
    name="transfer", question="Does what another trial learnt help?",
    base=Trial(method="supervised", dataset="digits", network="small_convnet", labels=50, epochs=2, steps=3),
    arms={
        "scratch": {},
        "transfer": {"init_from": {"method": "simclr", "epochs": 2}},
        "taught": {"noise": {"kind": "semantic", "teacher": {"labels": 50, "epochs": 8}}, "labels": None},
    },
    factors={"noise.rate": [0.2, 0.4]},
    panels={
        "transfer": {"title": "From scratch or not", "arms": ["scratch", "transfer"], "across": ["noise.rate"]},
        "taught": {"title": "A network's labels", "arms": ["scratch", "taught"]},
    },
    presets={"noisy": {"base": {"noise.kind": "symmetric", "noise.rate": 0.3}}},
    replicates=2,
    embeddings=30,
)
if __name__ == "__main__":
    study.main()
"""


@pytest.mark.slow
def test_a_study_with_prerequisites(tmp_path: Path) -> None:
    """Trained once and first; asked for with their arms only; trained again where their file is gone.

    That trials wait for them on Ray: tests/execution/test_runner.py.
    """
    path, storage = tmp_path / "transfer.py", tmp_path / "results"
    path.write_text(STUDY, encoding="utf-8")

    def execute(*flags: str) -> subprocess.CompletedProcess[str]:
        command = [WITHOUT_RAY, str(path), "--preset", "noisy", "--storage", str(storage)]
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
        return run_script([*command, *flags], environment)

    def trained() -> dict[str, int]:
        rows, broken = Store(storage).read("trials", "transfer")
        assert not broken and set(rows["status"]) <= {"ok"}
        return rows["arm"].value_counts().to_dict()

    first = execute("--arms", "transfer", "--no-report")
    assert first.returncode == 0, first.stdout + first.stderr
    assert trained() == {"initialisation: simclr": 2, "transfer": 4}
    everything = execute()
    assert everything.returncode == 0, everything.stdout + everything.stderr
    counts = {"initialisation: simclr": 2, "transfer": 4, "scratch": 6, "teacher: supervised": 2, "taught": 2}
    assert trained() == counts
    rows, _ = Store(storage).read("trials", "transfer")
    taught = rows[rows["arm"] == "taught"]
    assert taught["noise_realised"].between(0.02, 0.6).all() and taught["noise_realised"].nunique() == 2
    # alone, without the study's stored prerequisites, the same trial trains them first and ends the same
    mine = rows[(rows["arm"] == "transfer") & (rows["replicate"] == 1)].iloc[0]
    *_, row = run(parse(json.loads(mine["config"])))
    assert row.metrics["test", "accuracy"] == mine["accuracy_last"] and row.facts["init_hash"] == mine["init_hash"]
    arrays, _ = Store(storage).read("arrays", "transfer")
    assert set(arrays["name"]) >= {"embeddings_before", "embeddings", "embedding_labels"}
    assert set(arrays.loc[arrays["name"] == "embeddings_before", "epoch"]) == {1}
    embedded = arrays[arrays["name"] == "embeddings"]
    assert set(embedded["trial"]) == set(rows.loc[rows["replicate"] == 0, "trial"])
    shapes = arrays.loc[arrays["name"] == "embeddings", "shape"].map(tuple)
    assert set(shapes) == {(30, 30)}

    gone = next(storage.glob("trained/*.pt"))  # trained again only where something starts from it
    gone.unlink()
    again = execute("--no-report")
    assert again.returncode == 0, again.stdout + again.stderr
    assert not gone.exists() and trained() == counts
    source = rows[rows["trial"] == gone.name.partition("-")[0]].iloc[0]
    arm = "transfer" if "simclr" in source["arm"] else "taught"
    lost = rows[(rows["arm"] == arm) & (rows["replicate"] == source["replicate"])].iloc[0]
    Store(storage).attempt_path("trials", "transfer", lost["trial"], 1).unlink()
    again = execute("--no-report")
    assert again.returncode == 0, again.stdout + again.stderr
    assert gone.exists() and trained() == counts | {source["arm"]: 3}


def test_one_teacher_labels_for_a_trial_and_for_its_initialisation() -> None:
    noise = {"kind": "semantic", "teacher": {"labels": 100}}
    trial = digits_trial(noise=noise, epochs=8, init_from={"method": "supervised", "epochs": 2})
    source = trial.prerequisites["initialisation"]
    assert (source.epochs, source.noise.kind) == (2, "semantic")
    assert source.prerequisites["teacher"].id == trial.prerequisites["teacher"].id


def test_other_weights_under_the_same_name_make_a_result_stale(tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    hashes = []
    for content in (b"one", b"other"):
        path.write_bytes(content)
        hashes.append(Current().sources(digits_trial(weights=str(path))).code_hash)
    assert len({*hashes, Current().sources(digits_trial()).code_hash}) == 3


def planned(tmp_path: Path) -> tuple[object, Store, dict[str, object]]:
    study = Study(
        name="transfer", question="?", base=digits_trial(), arms={"transfer": {"init_from": SIMCLR}}, replicates=1
    )
    plan = study.plan()
    return plan, Store(tmp_path), {planned.arm: planned for planned in plan.trials}


def row_of(planned: object, **fields: object) -> dict[str, object]:
    trial = planned.trial
    about = {"trial": trial.id, "attempt": 1, "status": "ok", "method": "simclr", **Current().sources(trial)._asdict()}
    return {**about, "dataset": "digits", "network": "small_convnet", "epochs_done": 3, "seconds": 1.0, **fields}


def test_what_waits_for_what(tmp_path: Path) -> None:
    """A dependent never starts from weights of other code, nor while its source is to be trained."""
    plan, store, by_arm = planned(tmp_path)
    source, dependent = by_arm["initialisation: simclr"], by_arm["transfer"]

    trained = partial(is_trained, store, plan.study, current=Current())

    def next_ones() -> list[object]:
        waiting = trials_to_run(plan, reconcile(plan, store), {"missing", "failed"}, set(), trained)
        return [one for one in waiting if is_ready(one, {other.id for other in waiting}, trained)]

    assert next_ones() == [source]
    path = Current().trained_path(store.trained, source.trial)
    save_trained(store.trained, source.trial, {}, Current())
    assert next_ones() == [source], "another study has trained it, but this one has no row of it"
    store.write_attempt("transfer", row_of(source), [])
    assert next_ones() == [dependent]
    path.unlink()
    assert next_ones() == [source], "finished, but its file is gone"
    path.with_name(f"{source.id}-0123456789ab.pt").touch()
    assert next_ones() == [source], "a file of other code does not count"
    save_trained(store.trained, source.trial, {}, Current())
    store.write_attempt("transfer", row_of(dependent), [])
    path.unlink()
    assert next_ones() == [], "nothing needs it"


def test_what_waits_for_a_trial_that_failed_says_why(tmp_path: Path) -> None:
    plan, store, by_arm = planned(tmp_path)
    failure = {"status": "failed", "failure_class": "oom", "failure_message": "Out of memory.\nMore."}
    store.write_attempt("transfer", row_of(by_arm["initialisation: simclr"], **failure), [])
    statuses = reconcile(plan, store)
    trained = partial(is_trained, store, plan.study, current=Current())
    assert why_blocked([by_arm["transfer"]], statuses, trained).endswith("(simclr): oom: Out of memory.")


def test_what_starts_from_a_trial_that_diverged_has_diverged_with_it(tmp_path: Path) -> None:
    """It would wait for ever, and no verdict would come; its draw is known, so its contrasts stay paired."""
    study = Study(
        name="transfer",
        question="?",
        base=digits_trial(labels=50),
        arms={"transfer": {"init_from": {**SIMCLR, "method.optimizer.learning_rate": 1e30}}},
        replicates=1,
    )
    plan, store = study.plan(), Store(tmp_path)
    source, dependent = plan.trials

    trained = partial(is_trained, store, plan.study, current=Current())

    def waiting() -> list[object]:
        return trials_to_run(plan, reconcile(plan, store), {"missing", "failed"}, set(), trained)

    assert waiting() == [source, dependent] and not is_ready(dependent, {source.id, dependent.id}, trained)
    execute(store, plan, source)
    assert waiting() == [dependent] and is_ready(dependent, {dependent.id}, trained)
    execute(store, plan, dependent)
    assert waiting() == []
    rows = store.read("trials", "transfer")[0].set_index("trial").loc[[source.id, dependent.id]]
    assert rows["failure_class"].tolist() == ["nan", "nan"] and rows["classes"].tolist() == [10, 10]
    why = rows["failure_message"].tolist()
    assert why[1] == f"simclr, which it starts from, diverged: {why[0]}"
    *_, plain = run(digits_trial(labels=50))
    for name in ("data_hash", "noise_hash", "split_hash"):
        assert rows.loc[dependent.id, name] == plain.facts[name]

    told: dict[str, object] = {}  # alone, without the study's stored prerequisites, it ends the same
    with pytest.raises(Diverged) as error:
        next(run(dependent.trial, tell=told.update))
    assert str(error.value) == why[1] and told["noise_hash"] == plain.facts["noise_hash"]


def test_a_teacher_that_diverged_leaves_no_labels_which_is_no_doing_of_the_method() -> None:
    teacher = {"labels": 100, "method.optimizer.learning_rate": 1e30}
    trial = digits_trial(noise={"kind": "semantic", "teacher": teacher})
    with pytest.raises(DataError, match=r"The teacher of the noise gives no labels: .* lower the learning rate"):
        next(run(trial))


def execute(store: Store, plan: Plan, planned: Planned) -> None:
    """As a Ray worker does."""
    about = {
        **{"trial": planned.trial.model_dump(mode="json"), "arm": planned.arm, "setting": planned.setting},
        **{"prerequisite": planned.prerequisite, "store": store.identity(), "run": "this run", "study": plan.study},
        **{"preset": plan.preset, "plan_hash": plan.hash, "sources": Current().sources(planned.trial)},
        **{"selection": "last", "embeddings": 0, "rerun_stale": False},
    }
    job = execution_job.Job(**{**dict.fromkeys(execution_job.Job.__dataclass_fields__), **about})
    worker.execute(job, execution_job.RunSettings(storage=store.root, gpus_per_trial=0), lambda report: None)
