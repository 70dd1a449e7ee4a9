"""Labels, no labels, or both: what do three networks make of STL-10?  (seed document 002, Tables 1 to 3 and Figure 5)

Settings are the document's where it has any.  Ours: the accuracy of self-supervised features is that of a linear
classifier on them, fitted to the labelled images; semi-supervised training takes as many steps as it needs to see every
labelled image as often as supervised training does, and sees them weakly augmented; its two views, one list of
operations with different probabilities, are those of Barlow Twins, as the document says no others; all 20 unlabelled
images per labelled one.  Table 4 is the study `label_ratios`.
"""

from lnl import Contrast, Noise, Panel, Preset, Study, Trial, Validation

ADAM = {"kind": "adam", "weight_decay": 0.0, "schedule": "constant", "average": 0.0}
BARLOW_TWINS = {
    "method": "barlow_twins",
    "method.batch_size": 125,
    "method.views": "unlike",
    "method.projector_layers": 0,
    "method.optimizer": ADAM | {"learning_rate": 5e-4},
    "epochs": 4,
    "steps": 800,  # one pass over 100,000 unlabelled images
}
FIXMATCH = {
    "method": "fixmatch",
    "method.batch_size": 32,
    "method.mu": 2,
    "method.threshold": 0.0,
    "method.weak_view": "blurred",
    "method.strong_view": "solarised",
    "method.include_labelled": False,
    "method.optimizer": ADAM | {"learning_rate": 2e-3},
    "steps": 157,  # one pass over 5,000 labelled images
}
SUPERVISED = {
    "name": "supervised",
    "batch_size": 125,
    "augmentation": "contrastive",
    "optimizer": ADAM | {"learning_rate": 2e-3},
}


SMALL = {
    "dataset": "digits",
    "labels": 50,
    "validation.images": 72,
    "network": "small_convnet",
}
SMOKE_FEATURES = {"method.batch_size": 16, "epochs": 1, "steps": 4}
SMOKE_SEMI = {"method.batch_size": 16, "steps": 4}
DIGITS_FEATURES = {"method.batch_size": 32, "epochs": 4, "steps": 50}
DIGITS_SEMI = {"method.batch_size": 32, "steps": 20}

study = Study(
    name="architectures_002",
    question="Does semi-supervised learning beat supervised and self-supervised learning on every network?",
    base=Trial(
        method=SUPERVISED,
        dataset="stl10",
        network="wide_resnet45_2",
        unlabelled_ratio=20,
        noise=Noise(),
        validation=Validation(images=1600, source="test"),
        epochs=100,
        steps=40,  # one pass over 5,000 labelled images
    ),
    arms={
        "supervised": {},
        "self_supervised": BARLOW_TWINS,
        "semi_supervised": FIXMATCH,
        "semi_from_features": FIXMATCH | {"init_from": BARLOW_TWINS},  # "yields no improvement"
    },
    factors={"network": ["convnet_002", "resnet18_imagenet", "wide_resnet45_2"]},
    panels={
        "networks": Panel(
            "Supervised, self-supervised and semi-supervised learning, by network",
            ("supervised", "self_supervised", "semi_supervised", "semi_from_features"),
            ("network",),
        ),
    },
    replicates=5,
    contrasts=[
        Contrast("semi_supervised", against="supervised", direction="helps", smallest_effect=0.005),
        Contrast("self_supervised", against="supervised", direction="hurts", smallest_effect=0.005),
        Contrast("semi_from_features", against="semi_supervised", smallest_effect=0.005),
    ],
    embeddings=500,
    presets={
        # does everything run?  under a minute
        "smoke": Preset(
            base=SMALL | {"epochs": 2, "steps": 4, "method.batch_size": 16},
            factors={"network": ["convnet_002", "small_convnet"]},
            arms={
                "self_supervised": SMOKE_FEATURES,
                "semi_supervised": SMOKE_SEMI,
                "semi_from_features": SMOKE_SEMI | {"init_from": BARLOW_TWINS | SMOKE_FEATURES},
            },
            replicates=2,
        ),
        # minutes on two cores: real handwritten digits, 8 × 8
        "digits": Preset(
            base=SMALL | {"epochs": 10, "steps": 20, "method.batch_size": 32},
            factors={"network": ["convnet_002", "small_convnet", "wide_resnet45_2"]},
            arms={
                "self_supervised": DIGITS_FEATURES,
                "semi_supervised": DIGITS_SEMI,
                "semi_from_features": DIGITS_SEMI | {"init_from": BARLOW_TWINS | DIGITS_FEATURES},
            },
            replicates=4,
        ),
        "cifar10": Preset(
            base={
                "dataset": "cifar10",
                "labels": 2000,
                "validation.images": 2000,
                "network": "wide_resnet28_2",
            },
            factors={"network": ["convnet_002", "resnet18", "wide_resnet28_2"]},
        ),
        # the document's data and lengths, five replicates
        "paper": Preset(),
    },
)

if __name__ == "__main__":
    study.main()
