"""How many trusted images does a method need, and what are they worth?  (seed document 004, its tables 1 and 2)

The trusted images are part of the training images: a larger probe leaves fewer of the others, and a method that uses no
probe finds it, with its right labels, among them.  Methods have the optimizers and batch sizes of their papers, and an
epoch is one pass; only the preset digits gives all the same, and as many steps.
"""

from lnl import Contrast, Noise, Panel, Preset, Study, Trial

PER_CLASS = (1, 2, 5, 10, 25, 50)
TEN_CLASSES = [10 * count for count in PER_CLASS]
METHODS = ("supervised", "ieg", "l2r", "glc", "mentornet_data")
# One optimizer and batch size for all, in short trainings.
ALIKE = {
    "method.batch_size": 64,
    "method.optimizer": {
        "kind": "sgd",
        "learning_rate": 0.03,
        "momentum": 0.9,
        "nesterov": True,
        "weight_decay": 5e-4,
        "schedule": "cosine",
        "average": 0.0,
    },
}
# The paper's protocol: 400 epochs, for IEG of 500 steps; labels redrawn among all classes; 50,000 images in all.
PAPER = {
    "network": "wide_resnet28_10",
    "epochs": 400,
    "noise": {"kind": "symmetric", "rate": 0.4, "include_true": True, "exact": False},
}

study = Study(
    name="probe_size",
    question="How many trusted images does a method need, and what are they worth?",
    base=Trial(
        method="supervised",
        dataset="cifar10",
        network="wide_resnet28_2",
        probe=100,
        noise=Noise("symmetric", 0.4),
        epochs=100,
    ),
    arms={
        "supervised": {},
        "ieg": {"method": "ieg"},
        "l2r": {"method": "learning_to_reweight"},
        "glc": {"method": "glc"},
        "mentornet_data": {"method": "mentornet", "method.mentor": "data_driven", "method.burn_in": 0.17},
        # What IEG makes of the probe.  Without MixUp (of all images) it is trained on as it is; without its own loss,
        # too, its labels count in the meta step alone: as partners in MixUp they would still be learnt.
        "ieg_unmixed": {"method": "ieg", "method.mixup": "none"},
        "ieg_probe_unlearnt": {"method": "ieg", "method.mixup": "none", "method.use_probe": False},
        "ieg_small_probe_batch": {"method": "ieg", "method.probe_batch_size": 10},
        # with the weight decay that the official code has for this network
        "ieg_resnet29": {"method": "ieg", "network": "resnet29_ieg", "method.optimizer.weight_decay": 2e-4},
    },
    factors={"probe": TEN_CLASSES, "noise.rate": [0.2, 0.4, 0.8]},
    panels={
        "size": Panel(
            "Accuracy by probe size and noise",
            METHODS,
            ("probe", "noise.rate"),
            curves=("test/accuracy", "oracle/selection_auc", "oracle/memorised"),
        ),
        "use": Panel(
            "What IEG makes of its probe",
            ("ieg", "ieg_unmixed", "ieg_probe_unlearnt", "ieg_small_probe_batch"),
            ("probe",),
        ),
        "network": Panel("A small network", ("ieg", "ieg_resnet29"), ("probe", "noise.rate")),
    },
    replicates=5,
    contrasts=[
        *(
            Contrast(arm, against="supervised", direction="helps", smallest_effect=0.005)
            for arm in METHODS
            if arm != "supervised"
        ),
        Contrast("ieg_unmixed", against="ieg", direction="hurts", smallest_effect=0.005),
        Contrast("ieg_probe_unlearnt", against="ieg_unmixed", smallest_effect=0.005),
    ],
    presets={
        # does everything run?  a minute
        "smoke": Preset(
            base={"dataset": "digits", "network": "small_convnet", "labels": 50, "probe": 20, "epochs": 2, "steps": 3},
            factors={"probe": [10, 20], "noise.rate": [0.4]},
            panels=("size", "use"),
            replicates=1,
        ),
        # a quarter of an hour on two cores: real handwritten digits, 8 × 8
        "digits": Preset(
            base={"dataset": "digits", "network": "small_convnet", "probe": 50, "epochs": 30, "steps": 23, **ALIKE},
            factors={"probe": [10, 50, 250], "noise.rate": [0.4, 0.8]},
            panels=("size", "use"),
            replicates=4,
        ),
        "cifar10": Preset(
            factors={"probe": [10, 100, 500], "noise.rate": [0.4, 0.8]}, panels=("size", "use"), replicates=3
        ),
        "paper": Preset(
            base=PAPER,
            factors={"probe": [10, 50, 100, 500, 1000], "noise.rate": [0.0, 0.2, 0.4, 0.8]},
            replicates=3,
        ),
        # 1, 5 and 10 images of each of 100 classes: GLC refuses a probe that lacks a class
        "paper_cifar100": Preset(
            base=PAPER | {"dataset": "cifar100", "probe": 1000},
            factors={"probe": [100, 500, 1000], "noise.rate": [0.0, 0.2, 0.4, 0.8]},
            replicates=3,
        ),
    },
)

if __name__ == "__main__":
    study.main()
