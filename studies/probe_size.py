"""How many trusted images does a method need, and what are they worth?  (seed document 004, its tables 1 and 2)

The trusted images are part of the training images: a larger probe leaves fewer of the others, and a method that uses no
probe finds it, with its right labels, among them.
"""

from lnl import Contrast, Noise, Panel, Preset, Study, Trial

PER_CLASS = (1, 2, 5, 10, 25, 50)
TEN_CLASSES = [10 * count for count in PER_CLASS]
METHODS = ("supervised", "ieg", "l2r", "glc", "mentornet_data")
# One optimizer for all in short trainings; IEG's weight of the consistency loss is meant for 200,000 steps.
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
        "mentornet_data": {"method": "mentornet", "method.mentor": "data_driven"},
        # What IEG makes of the probe: mixed up with other images, trained on as it is, or used in the meta step alone.
        "ieg_unmixed": {"method": "ieg", "method.mixup": "none"},
        "ieg_probe_unlearnt": {"method": "ieg", "method.use_probe": False},
        "ieg_small_probe_batch": {"method": "ieg", "method.probe_batch_size": 10},
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
        Contrast("ieg_probe_unlearnt", against="ieg", smallest_effect=0.005),
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
            base={"dataset": "digits", "network": "small_convnet", "probe": 50, "epochs": 30, **ALIKE},
            factors={"probe": [10, 50, 250], "noise.rate": [0.4, 0.8]},
            arms=dict.fromkeys((*METHODS[1:], "ieg_unmixed", "ieg_probe_unlearnt", "ieg_small_probe_batch"), ALIKE),
            panels=("size", "use"),
            replicates=4,
        ),
        "cifar10": Preset(
            factors={"probe": [10, 100, 500], "noise.rate": [0.4, 0.8]}, panels=("size", "use"), replicates=3
        ),
        # The paper's protocol: 400 epochs of 500 steps, labels redrawn among all classes; 50,000 images in all.
        # CIFAR-100: --set dataset=cifar100, whose probes of 100, 500 and 1,000 are 1, 5 and 10 images a class.
        "paper": Preset(
            base={
                "network": "wide_resnet28_10",
                "epochs": 400,
                "noise": {"kind": "symmetric", "rate": 0.4, "include_true": True, "exact": False},
            },
            factors={"probe": [10, 50, 100, 500, 1000], "noise.rate": [0.0, 0.2, 0.4, 0.8]},
            replicates=3,
        ),
    },
)

if __name__ == "__main__":
    study.main()
