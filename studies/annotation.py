"""How few labels, and how wrong ones, does propagation over self-supervised features need?  (seed document 003, figures
1 to 3)

BYOL never sees a label; its features join all images in a graph of nearest neighbours, over which the labels spread,
an iteration an epoch.  Verified labels are reset after each iteration (figure 1); where labels are wrong none is
verified (figures 2 and 3).

Figure 1 simulates annotation in rounds, as in the document: labels are drawn at random, those of a smaller number are
among those of a larger one, and each replicate begins anew.  "Labelled only" is its orange line, which spreads labels
over annotated and test images alone; "labelled votes" spreads nothing.  Of the red line, that of Bengar et al. (2021),
no number can be read, as it is a picture; what the document reports in its text stands in the report, beside the
papers.  Figure 3 is the share of wrong labels from iteration 0 on, which are the given labels.

The presets `paper` augment images at 224 pixels, as the network sees them, with BYOL's blur and jitter.
"""

from lnl import Contrast, Noise, Panel, Preset, Study, Trial

FEW = {"noise.rate": 0.0, "labels_drawn": "random"}
ALL = {"labels": None}
VOTE = {"method.mode": "neighbours", "epochs": 1}  # which a second iteration would repeat
# One training for all numbers of labels and all noise: BYOL uses neither.
BYOL = {"method": "byol", "labels": None, "labels_drawn": "balanced", "epochs": 200}
# The document's steps and rates on CIFAR-10.  Where BEiT's weights are not at hand, ImageNet's stand in for them.
VIT = {
    "method": "byol",
    "labels": None,
    "labels_drawn": "balanced",
    "weights": "imagenet",
    "epochs": 10,
    "steps": 300,
    "method.batch_size": 64,
    "method.target_decay": 0.998,
    "method.optimizer": {"kind": "adamw", "learning_rate": 2.3e-5, "weight_decay": 5e-4, "schedule": "constant"},
}
VIT_CIFAR100 = VIT | {
    "steps": 500,
    "method.target_decay": 0.9993,
    "method.optimizer": {"kind": "adamw", "learning_rate": 4.6e-5, "weight_decay": 2.1e-6, "schedule": "constant"},
}
# The document's weights, a file that its authors publish: see docs/your-data.md.
BEIT = {"weights": "beit_base_patch16_224_pt22k.pth"}

study = Study(
    name="annotation",
    question="How few labels, and how wrong ones, does propagation over self-supervised features need?",
    base=Trial(
        method="label_propagation",
        dataset="cifar10",
        network="wide_resnet28_2",
        init_from=BYOL,
        labels=50,  # 0.1 % of the images
        noise=Noise("symmetric", 0.5),
        epochs=20,
    ),
    arms={
        "labelled_only": FEW | {"method.unlabelled": False, "method.clamp": "hard"},
        "labelled_votes": FEW | VOTE,
        "propagation": FEW | {"method.clamp": "hard"},
        "given_labels": ALL | VOTE,
        "pseudo_labels": ALL,
    },
    factors={
        "labels": [10, 20, 50, 100, 200, 500, 1000, 5000],
        "noise.rate": [0.0, 0.2, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9],
    },
    panels={
        "annotation": Panel(
            "Figure 1: accuracy by number of labels, all of them right",
            ("labelled_only", "labelled_votes", "propagation"),
            ("labels",),
            curves=("test/accuracy",),
        ),
        "wrong_labels": Panel(
            "Figure 2: all images labelled, a vote of their given labels or of pseudo-labels",
            ("given_labels", "pseudo_labels"),
            ("noise.rate",),
            curves=(),
        ),
        "iterations": Panel(
            "Figure 3: share of wrong labels among the pseudo-labels by iteration",
            ("pseudo_labels",),
            ("noise.rate",),
            curves=("oracle/refined_noise",),
        ),
    },
    replicates=5,
    contrasts=[
        Contrast("propagation", against="labelled_only", direction="helps", smallest_effect=0.005),
        Contrast("pseudo_labels", against="given_labels", direction="helps", smallest_effect=0.005),
    ],
    presets={
        # does everything run?
        "smoke": Preset(
            base={
                "dataset": "digits",
                "network": "small_convnet",
                "init_from": BYOL | {"method.batch_size": 32, "method.hidden": 64, "epochs": 1, "steps": 4},
                "epochs": 2,
            },
            factors={"labels": [20, 50], "noise.rate": [0.0, 0.5]},
            replicates=2,
        ),
        # minutes on two cores: real handwritten digits, 8 × 8
        "digits": Preset(
            base={
                "dataset": "digits",
                "network": "small_convnet",
                "init_from": BYOL | {"method.batch_size": 64, "method.hidden": 256, "epochs": 10},
            },
            factors={"labels": [10, 20, 50, 100, 200, 500, 1000]},
            replicates=10,
        ),
        "cifar10": Preset(),
        "cifar100": Preset(
            base={"dataset": "cifar100", "labels": 500, "method.k": 15, "method.temperature": 0.02},
            factors={"labels": [100, 200, 500, 1000, 5000, 10000]},
        ),
        # the document's network, lengths and rates
        "paper": Preset(
            base={"network": "vit_b_16", "resize": 224, "init_from": VIT, "precision": "bfloat16"},
            replicates=3,
        ),
        "paper_cifar100": Preset(
            base={
                "dataset": "cifar100",
                "network": "vit_b_16",
                "resize": 224,
                "init_from": VIT_CIFAR100,
                "precision": "bfloat16",
                "labels": 500,
                "method.k": 15,
                "method.temperature": 0.02,
            },
            factors={"labels": [100, 200, 500, 1000, 5000, 10000]},
            replicates=3,
        ),
        # the document's weights, too
        "paper_beit": Preset(
            base={"network": "beit_b_16", "resize": 224, "init_from": VIT | BEIT, "precision": "bfloat16"},
            replicates=3,
        ),
        "paper_beit_cifar100": Preset(
            base={
                "dataset": "cifar100",
                "network": "beit_b_16",
                "resize": 224,
                "init_from": VIT_CIFAR100 | BEIT,
                "precision": "bfloat16",
                "labels": 500,
                "method.k": 15,
                "method.temperature": 0.02,
            },
            factors={"labels": [100, 200, 500, 1000, 5000, 10000]},
            replicates=3,
        ),
    },
)

if __name__ == "__main__":
    study.main()
