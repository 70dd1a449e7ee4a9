"""What does a search of its parameters buy each method, and does their order survive it?

Every method has its paper's own values at first, which are for long trainings, and as many suggestions.  An arm is a
method: `--method robmix` keeps one.  The number of trusted images is not searched: it is what is given, and the same
for all (`search_probe_size` asks what it is worth).

Validation is noisy: who has a few right labels trains on them.  Under symmetric noise the better model is the better
one by wrong labels, too, in expectation; but fewer than two thirds of the answers count, so it takes many images.
"""

from lnl import Contrast, Noise, Preset, Search, Study, Trial, Validation, methods

SEARCHED = {key for name in methods.names() for key in methods.load(name).SEARCH}
SMALL = {"dataset": "digits", "network": "small_convnet", "probe": 20, "epochs": 32, "method.batch_size": 32}
# MixMatch's constants for so short a training, as in `robmix_ablation`, and averages that it can fill.
SHORT: dict[str, object] = {"method.lambda_u": 25.0, "method.ramp": 0.3, "method.optimizer.average": 0.95}
ON_DIGITS: dict[str, dict[str, object]] = {
    "mixmatch": SHORT,
    "robmix": SHORT,
    "fixmatch": {"method.optimizer.average": 0.95},
    "pseudo_label": {"method.optimizer.average": 0.95},
    "selfmatch": {"method.optimizer.average": 0.95, "method.pretrain_epochs": 8},
    "ieg": {"method.optimizer.average": 0.95},
    "barlow_twins": {"method.projector_width": 256},
    "byol": {"method.hidden": 256},
    "label_propagation": {"epochs": 5},
}

study = Study(
    name="search",
    question="What does a search of its parameters buy each method, and does their order survive it?",
    base=Trial(
        method="supervised",
        dataset="cifar10",
        labels=4000,
        probe=100,
        noise=Noise("symmetric", 0.4),
        validation=Validation(images=5000, labels="noisy"),
        epochs=64,
        steps=1024,
    ),
    # An epoch of label propagation is an iteration; its graph is that of SimCLR's features.
    arms={name: {"method": name} for name in methods.names()}
    | {
        "label_propagation": {
            "method": "label_propagation",
            "epochs": 20,
            "init_from": {"method": "simclr", "epochs": 64, "steps": 1024},
        }
    },
    replicates=5,
    contrasts=[
        Contrast(name, against="supervised", direction="helps", smallest_effect=0.005)
        for name in methods.names()
        if name != "supervised"
    ],
    search=Search(parameters=tuple(sorted(SEARCHED - {"probe"}))),
    presets={
        # does everything run?  minutes, as there are so many methods
        "smoke": Preset(
            base=SMALL | {"labels": 50, "validation.images": 50, "steps": 1},
            arms=ON_DIGITS | {"label_propagation": {"epochs": 2, "init_from": None}},
            replicates=1,
            search={"suggestions": 2},
        ),
        # one method: a minute or two on two cores, as a trial takes 1 to 6 s; all of them: half an hour.  Real
        # handwritten digits, 8 × 8: 100 labels, 400 images of validation, some 900 without label
        "digits": Preset(
            base=SMALL | {"labels": 100, "validation.images": 400, "steps": 6},
            arms=ON_DIGITS | {"label_propagation": {"epochs": 5, "init_from": None}},
        ),
        # for GPUs: 22 methods × 30 suggestions, of which ASHA stops most
        "cifar10": Preset(
            base={"epochs": 32, "steps": 512},
            arms={"label_propagation": {"init_from": {"method": "simclr", "epochs": 32, "steps": 512}}},
            replicates=3,
            search={"pruner": "asha"},
        ),
        "paper": Preset(base={"epochs": 1024}, search={"suggestions": 60}),
    },
)

if __name__ == "__main__":
    study.main()
