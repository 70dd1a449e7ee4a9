"""Do IEG's data coefficients tell right labels from wrong ones?  (seed document 004, its study on CIFAR-100)

A coefficient λ weighs a given label against the network's guess, and a weight w the whole image; both come from one
gradient of a trusted probe's loss.  Shown for each noise rate and each size of the probe: the mean coefficient of right
and of wrong labels, how well weights and coefficients rank and select, and how many of the labels that they make are
right.  What each of the two is worth in accuracy is asked beside it: the paper's own table has λ cost a point at 40 %
noise.
"""

from lnl import Contrast, Noise, Panel, Preset, Study, Trial

INSIDE = (
    "oracle/coefficient_histogram",
    "oracle/selection_auc",
    "oracle/selection_precision",
    "oracle/refined_accuracy",
    "test/accuracy",
)
# Short trainings: the moving average must be able to follow.
SHORT = {"method.batch_size": 64, "method.optimizer.learning_rate": 0.03, "method.optimizer.average": 0.95}

study = Study(
    name="coefficients",
    question="Do IEG's data coefficients tell right labels from wrong ones, and what are they worth?",
    base=Trial(
        method="ieg",
        dataset="cifar100",
        network="wide_resnet28_2",
        probe=1000,
        noise=Noise("symmetric", 0.4),
        epochs=100,
    ),
    arms={
        "ieg": {},
        "no_coefficients": {"method.use_coefficients": False},
        "no_weights": {"method.use_weights": False},
        "neither": {"method.use_coefficients": False, "method.use_weights": False},
    },
    factors={"noise.rate": [0.2, 0.4, 0.8], "probe": [100, 500, 1000, 5000]},
    panels={
        "noise": Panel("Data coefficients by noise rate", ("ieg",), ("noise.rate",), INSIDE),
        "probe": Panel("Data coefficients by probe size", ("ieg",), ("probe",), INSIDE),
        "worth": Panel(
            "What coefficients and weights are worth",
            ("ieg", "no_coefficients", "no_weights", "neither"),
            ("noise.rate",),
            ("test/accuracy",),
        ),
    },
    replicates=5,
    contrasts=[
        Contrast("no_coefficients", against="ieg", smallest_effect=0.005),
        Contrast("no_weights", against="ieg", direction="hurts", smallest_effect=0.005),
        Contrast("neither", against="ieg", direction="hurts", smallest_effect=0.005),
    ],
    presets={
        # does everything run?
        "smoke": Preset(
            base={
                "dataset": "digits",
                "network": "small_convnet",
                "labels": 50,
                "probe": 20,
                "epochs": 2,
                "steps": 3,
                "method.batch_size": 16,
            },
            factors={"noise.rate": [0.4, 0.8], "probe": [10, 20]},
            replicates=2,
        ),
        # a quarter of an hour on two cores: real handwritten digits, 8 × 8
        "digits": Preset(
            base={"dataset": "digits", "network": "small_convnet", "probe": 50, "epochs": 20, "steps": 23, **SHORT},
            factors={"probe": [10, 50, 250]},
            replicates=4,
        ),
        "cifar10": Preset(base={"dataset": "cifar10", "probe": 100}, factors={"probe": [10, 100, 1000]}, replicates=3),
        # the paper's network, length and noise
        "paper": Preset(
            base={
                "network": "wide_resnet28_10",
                "epochs": 400,
                "noise": {"kind": "symmetric", "rate": 0.4, "include_true": True, "exact": False},
            },
            replicates=3,
        ),
    },
)

if __name__ == "__main__":
    study.main()
