"""Do more unlabelled images per labelled one help?  (seed document 002, Table 4)

FixMatch without a threshold, Adam, 32 labelled and 64 unlabelled images a step, on STL-10.  Every arm makes the same
number of steps; the document leaves that open, and more data would be more training.  Its weak and strong views are one
list of operations with different probabilities, of which it says no more; here they are the two views of Barlow Twins.
The labels of the document are right; here some may be wrong, too.
"""

from lnl import Contrast, Noise, Panel, Preset, Study, Trial, Validation

ADAM = {"kind": "adam", "learning_rate": 2e-3, "weight_decay": 0.0, "schedule": "constant", "average": 0.0}
# FixMatch's own, from which the document departs; as there, what predicts is no average.
SGD = {
    "kind": "sgd",
    "learning_rate": 0.03,
    "nesterov": True,
    "weight_decay": 5e-4,
    "schedule": "fixmatch",
    "average": 0.0,
}
WITHOUT_THRESHOLD = {
    "name": "fixmatch",
    "mu": 2,
    "threshold": 0.0,
    "weak_view": "blurred",
    "strong_view": "solarised",
    "include_labelled": False,
}
# The document's supervised training sees its images strongly augmented; FixMatch sees the labelled ones weakly.
SUPERVISED = {"method": "supervised", "method.augmentation": "contrastive"}
SMALL = {"dataset": "digits", "labels": 50, "validation.images": 72}

study = Study(
    name="label_ratios",
    question="Do 1, 5 or 20 unlabelled images per labelled one make a difference, and to which network?",
    base=Trial(
        method=WITHOUT_THRESHOLD,
        dataset="stl10",
        network="wide_resnet45_2",
        noise=Noise("symmetric", 0.0),
        validation=Validation(images=1600, source="test"),
        epochs=100,
        steps=157,  # one pass over 5,000 labelled images
    ),
    shared={"method.batch_size": 32, "method.optimizer": ADAM},
    arms={
        "one": {"unlabelled_ratio": 1},
        "five": {"unlabelled_ratio": 5},
        "twenty": {"unlabelled_ratio": 20},
        "twenty_threshold": {"unlabelled_ratio": 20, "method.threshold": 0.95},
        "twenty_sgd": {"unlabelled_ratio": 20, "method.optimizer": SGD},
        "supervised": SUPERVISED,
    },
    factors={"network": ["convnet_002", "resnet18_imagenet", "wide_resnet45_2"], "noise.rate": [0.0, 0.2, 0.4]},
    panels={
        "networks": Panel(
            "Unlabelled images per labelled one, by network", ("one", "five", "twenty", "supervised"), ("network",)
        ),
        "threshold": Panel("With and without a threshold", ("twenty", "twenty_threshold"), ("network",)),
        "optimizer": Panel("Adam, and the SGD of FixMatch's authors", ("twenty", "twenty_sgd"), ("network",)),
        "noise": Panel(
            "Unlabelled images per labelled one, by noise rate",
            ("one", "five", "twenty", "supervised"),
            ("noise.rate",),
        ),
    },
    replicates=5,
    contrasts=[
        Contrast("five", against="one", direction="helps", smallest_effect=0.005),
        Contrast("twenty", against="one", direction="helps", smallest_effect=0.005),
        Contrast("one", against="supervised", direction="helps", smallest_effect=0.005),
        Contrast("twenty_threshold", against="twenty", smallest_effect=0.005),
        Contrast("twenty_sgd", against="twenty", direction="hurts", smallest_effect=0.005),
    ],
    presets={
        # does everything run?  under a minute
        "smoke": Preset(
            base=SMALL | {"network": "small_convnet", "epochs": 2, "steps": 4, "method.batch_size": 16},
            factors={"network": ["convnet_002", "small_convnet"], "noise.rate": [0.0, 0.4]},
            replicates=2,
        ),
        # minutes on two cores: real handwritten digits, 8 × 8
        "digits": Preset(
            base=SMALL | {"network": "small_convnet", "epochs": 10, "steps": 20},
            factors={"network": ["convnet_002", "small_convnet", "wide_resnet45_2"]},
            replicates=4,
        ),
        "cifar10": Preset(
            base={"dataset": "cifar10", "labels": 2000, "validation.images": 2000, "network": "wide_resnet28_2"},
            factors={"network": ["convnet_002", "resnet18", "wide_resnet28_2"]},
        ),
        # the document's data and lengths, five replicates
        "paper": Preset(),
    },
)

if __name__ == "__main__":
    study.main()
