"""What cannot be trained as it is asked for is refused when a study is planned, in one sentence that names the arm."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lnl import data, methods
from lnl.cli import flags, main
from lnl.cli.studies import find_study
from lnl.study import checks
from lnl.study.parts import Panel
from lnl.study.study import Study
from lnl.training.task import Noise
from lnl.trial.config import Trial

STUDIES = sorted((Path(__file__).parents[2] / "studies").glob("*.py"))
BASE = Trial(
    method="supervised",
    dataset="digits",
    network="small_convnet",
    labels=100,
    probe=20,
    noise=Noise("symmetric", 0.4),
    epochs=4,
    steps=3,
)
REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"method": "dividemix", "method.warm_up": 4}, "A warm-up of 4 epochs leaves none of 4 for DivideMix"),
    ({"method": "glc", "epochs": 1}, "Training in two phases needs two epochs or more, not 1"),
    ({"method": "glc", "probe": 5}, "GLC learns from its probe how each class is mislabelled, but class "),
    ({"method": "loss_correction", "epochs": 1}, "Training in two phases needs two epochs or more, not 1"),
    ({"method": "loss_correction", "method.given": [[0.5, 0.5], [0.5, 0.5]]}, "The given matrix is of 2 classes, but"),
    ({"method": "ieg", "probe": 0}, "ieg learns from trusted images"),
    ({"method": "learning_to_reweight", "probe": 0}, "learning_to_reweight learns from trusted images"),
    (
        {"method": "mentornet", "method.mentor": "data_driven", "probe": 0},
        "A data-driven MentorNet learns from trusted",
    ),
    ({"labels": 5000}, "digits has 1437 training images with labels, but 5020 are asked for"),
    ({"labels": 5}, "labels=5 leaves some of digits's 10 classes without any"),
    ({"unlabelled_ratio": 50}, "asks for 5000 unlabelled images, but digits has 1317 left"),
    ({"validation.images": 400, "validation.source": "test"}, "takes all 360 test images"),
    ({"network": "swin_t"}, "images of 8 × 8 pixels are too small for swin_t"),
    ({"network": "vit_b_16", "resize": 40}, "vit_b_16 cuts images into patches of 16 pixels, not images of 40"),
    *(
        ({"method": name, "labels": None, "probe": 0, "method.include_labelled": False}, "draws from unlabelled images")
        for name in ("fixmatch", "selfmatch")
    ),
    *(({"method": name, "labels": None}, "draws from unlabelled images") for name in ("mixmatch", "robmix")),
    ({"init_from": {"method": "simclr", "validation.images": 5}}, "init_from has another validation"),
]


def declare(arm: dict[str, Any]) -> Study:
    return Study(name="x", question="?", base=BASE, arms={"plain": {}, "odd one": arm}, replicates=2)


@pytest.mark.parametrize(("arm", "sentence"), REFUSED)
def test_what_cannot_be_trained_is_refused_by_the_plan(tmp_path: Path, arm: dict[str, Any], sentence: str) -> None:
    """No data are there, and none are fetched."""
    with pytest.raises(ValueError) as refusal:
        checks.check(declare(arm).plan().trials, tmp_path, read=False)
    text = str(refusal.value)
    assert text.startswith("Arm 'odd one': ") and sentence in text, text
    assert "\n" not in text and text[-1] in ".?" and text[-2] not in ".?", text
    assert list(tmp_path.iterdir()) == []


def test_a_setting_is_named_beside_its_arm(tmp_path: Path) -> None:
    study = declare({}).model_copy(update={"arms": {"plain": {}}, "factors": {"labels": [100, 5000]}})
    with pytest.raises(data.Unfit, match=r"^Arm 'plain' at \{\"labels\":5000\}: digits has 1437"):
        checks.check(study.plan().trials, tmp_path, read=False)


def test_noise_that_the_classes_do_not_allow_is_refused(tmp_path: Path) -> None:
    npz(tmp_path / "three.npz", classes=3)
    arm = {"dataset": "npz:three.npz", "labels": 12, "probe": 0, "noise": {"kind": "asymmetric_block", "rate": 0.4}}
    trials = declare(arm).plan().trials
    checks.check(trials, tmp_path, read=False)  # its data were never prepared, so nothing is known of them
    with pytest.raises(data.Unfit, match=r"^Arm 'odd one': Noise 'asymmetric_block' needs blocks of five classes"):
        checks.check(trials, tmp_path, read=True)
    with pytest.raises(data.Unfit, match=r"^Arm 'odd one': Noise"):
        checks.check(trials, tmp_path, read=False)  # they are prepared by now
    checks.check(declare({"dataset": "npz:nowhere.npz"}).plan().trials, tmp_path, read=False)
    with pytest.raises(data.DataError, match=r"nowhere\.npz"):
        checks.check(declare({"dataset": "npz:nowhere.npz"}).plan().trials, tmp_path, read=True)


def npz(path: Path, classes: int) -> None:
    labels = np.arange(60) % classes
    images = np.random.default_rng(0).integers(0, 255, (60, 8, 8), dtype=np.uint8)
    np.savez(path, x_train=images, y_train=labels, x_test=images[:30], y_test=labels[:30])


@pytest.mark.parametrize("name", methods.names())
def test_no_method_is_refused_that_can_be_trained(tmp_path: Path, name: str) -> None:
    """By its stand-in, with its own defaults: the constructor of every method runs on it."""
    trial = BASE.override({"method": name, "epochs": 100})
    study = Study(name="x", question="?", base=trial, replicates=1)
    checks.check(study.plan().trials, tmp_path, read=False)


@pytest.mark.slow
@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_the_studies_that_come_with_it_are_not_refused(tmp_path: Path, path: Path) -> None:
    study = find_study(str(path))
    for preset in study.presets:
        checks.check(study.plan(preset).trials, tmp_path, read=False)


@pytest.mark.parametrize("name", ["digits", "stl10"])
def test_the_published_size_is_that_of_the_data(name: str) -> None:
    outline = data.outline(name, Path("/nowhere"))
    assert outline is not None
    if name == "digits":
        whole = data.load(name)
        assert outline.train_images.shape == whole.train_images.shape
        assert outline.test_images.shape == whole.test_images.shape
        assert len(outline.class_names) == len(whole.class_names)
    else:
        assert (outline.train_labels >= 0).sum() == 5000 and len(outline.train_images) == 105_000


FILE = """from lnl import Study, Trial
base = Trial(method="dividemix", dataset="digits", network="small_convnet", labels=100, epochs=4, steps=3)
Study(name="late", question="?", base=base, arms={"full": {}, "short": {"method.warm_up": 1}}, replicates=1).main()
"""


@pytest.mark.slow
def test_plan_and_run_refuse_alike_before_ray_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "late.py").write_text(FILE, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    sentence = "error: Arm 'full': A warm-up of 10 epochs leaves none of 4 for DivideMix: raise the trial's epochs or "
    for command in (["plan", "late.py"], ["run", "late.py"]):
        assert main.main(command) == flags.ERROR
        shown = capsys.readouterr()
        assert shown.err.startswith(sentence) and shown.err.count("\n") == 1 and shown.out == ""
    assert main.main(["plan", "late.py", "--arms", "short"]) == flags.COMPLETE
    code = "import sys; from lnl.study import checks; assert 'ray' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2], timeout=60)


def test_many_trials_are_checked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Replicates and panels that share a configuration cost nothing more."""
    made = []
    plain = checks._construct
    monkeypatch.setattr(checks, "_construct", lambda *about: (made.append(about), plain(*about)))
    study = declare({"method": "mixup"}).model_copy(
        update={"panels": {"p": Panel("", ("plain", "odd one"))}, "replicates": 50}
    )
    checks.check(study.plan().trials, tmp_path, read=False)
    assert len(made) == 2
