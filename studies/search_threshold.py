"""How sure must DivideMix be that a label is right, and does that depend on the kind of noise?  (seed document 001)

The paper takes 0.5, and 0.6 at 90 % noise, where it knows the rate.  Here the threshold of the mixture is searched for
each kind of noise by itself, by TPE and by chance.  `own_division` is searched, too: a network that learns from its own
division may need to be surer of it.

Validation is noisy, as all labels are; of asymmetric noise, whose wrong labels look alike, this may choose what agrees
with them, which is what anybody would get who has no right labels.
"""

from lnl import Contrast, Panel, Preset, Search, Study, Trial, Validation

SMALL = {"dataset": "digits", "network": "small_convnet", "method.batch_size": 32}
KINDS = [{"kind": kind, "rate": 0.4} for kind in ("symmetric", "asymmetric")]
OPTIMIZER = Trial(method="dividemix").value("method.optimizer")  # cross-entropy's, too

study = Study(
    name="search_threshold",
    question="How sure must DivideMix be that a label is right, and does that depend on the kind of noise?",
    base=Trial(
        method="dividemix",
        dataset="cifar10",
        network="preact_resnet18",
        validation=Validation(images=5000, labels="noisy"),
        epochs=300,
    ).override({"noise": KINDS[0]}),
    shared={"method.optimizer": OPTIMIZER},
    arms={"dividemix": {}, "own_division": {"method.co_divide": False}, "supervised": {"method": "supervised"}},
    factors={"noise": KINDS},
    panels={
        "threshold": Panel(
            "Threshold of the mixture",
            ("dividemix", "own_division", "supervised"),
            ("noise",),
            curves=("test/accuracy", "oracle/selection_precision", "oracle/selection_recall"),
        )
    },
    replicates=5,
    contrasts=[
        Contrast("own_division", against="dividemix", direction="hurts", smallest_effect=0.005),
        Contrast("supervised", against="dividemix", direction="hurts", smallest_effect=0.02),
    ],
    search=Search(
        parameters=("method.threshold",),
        arms=("dividemix", "own_division"),
        samplers=("tpe", "random"),
        settings="each",
        suggestions=15,
    ),
    presets={
        # does everything run?
        "smoke": Preset(
            base=SMALL
            | {"labels": 100, "validation.images": 50, "epochs": 3, "steps": 2}
            | {"method": {"name": "dividemix", "warm_up": 1}},
            replicates=1,
            search={"suggestions": 2},
        ),
        # a quarter of an hour on two cores, as a trial takes 5 to 8 s: real handwritten digits, 8 × 8
        "digits": Preset(
            base=SMALL
            | {"validation.images": 400, "epochs": 12, "method": {"name": "dividemix", "warm_up": 4, "ramp": 4}},
        ),
        "cifar10": Preset(
            base={"epochs": 100, "precision": "bfloat16"}, replicates=3, search={"samplers": ("tpe",), "pruner": "asha"}
        ),
        "paper": Preset(),
    },
)

if __name__ == "__main__":
    study.main()
