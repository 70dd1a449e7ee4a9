"""DivideMix on human labels: another network, an earlier drop of the learning rate?  (seed document 001, report 3,
ideas 1, 4 and 5)

CIFAR-100N, ResNet-34 with a 3 × 3 stem, warm-up of 30 epochs with the confidence penalty.  The document saw its model
converge from epoch 65 and asks for a drop at 70 instead of 150.  ViT-B/16, Swin-T and ConvNeXt-T have ImageNet's
weights; on a CPU small ones have those of another data set.  They have seen more data than the other networks: each is
compared with cross-entropy from the same start, and with nobody else.
"""

from lnl import Contrast, Noise, Panel, Preset, Study, Trial

CURVES = ("train/loss", "oracle/selection_auc", "test/accuracy")
FINE_TUNED = {"weights": "imagenet", "resize": 224, "epochs": 20, "precision": "bfloat16"}
ADAMW = {
    "method.optimizer.kind": "adamw",
    "method.optimizer.learning_rate": 1e-4,
    "method.optimizer.weight_decay": 0.05,
    "method.optimizer.schedule": "cosine",
}
STUDENT = FINE_TUNED | ADAMW | {"method.warm_up": 2, "method.ramp": 4, "method.guess_statistics": "running"}
BASELINE = {"method": "supervised"} | FINE_TUNED | ADAMW
# Cross-entropy by DivideMix's optimizer and not by its own.
SUPERVISED = {"method": "supervised", "method.optimizer": Trial(method="dividemix").value("method.optimizer")}

# The same students in small, on a CPU: pre-trained on letters for digits, as those above on ImageNet for CIFAR.
LETTERS = {
    "method": "supervised",
    "method.batch_size": 32,
    "method.optimizer": {
        "kind": "adamw",
        "learning_rate": 3e-3,
        "weight_decay": 0.05,
        "schedule": "cosine",
        "warm_up": 0.1,
    },
    "dataset": "letters",
    "labels": None,
    "noise": {},
    "epochs": 20,
}
IN_SMALL = {
    "weights": None,
    "resize": None,
    "precision": "float32",
    "epochs": 10,
    "init_from": LETTERS,
    "method.optimizer.learning_rate": 1e-3,
}
IN_SMOKE = IN_SMALL | {"epochs": 3, "init_from": LETTERS | {"epochs": 1, "steps": 2}}
VIT = {"network": "vit_small_images"}
SWIN = {"network": "swin_small_images"}
CONVNEXT = {"network": "convnext_small_images"}

DIVIDEMIX = {"name": "dividemix", "confidence_penalty": 1.0, "lambda_u": 0.0}

study = Study(
    name="students",
    question="DivideMix on human labels: another network, an earlier drop of the learning rate?",
    base=Trial(
        method=DIVIDEMIX | {"warm_up": 30},
        dataset="cifar100",
        network="resnet34",
        noise=Noise("human", column="fine"),
        epochs=300,
    ),
    arms={
        "drop_150_of_300": {},
        "drop_70_of_300": {"method.optimizer.milestones": (70 / 300,)},
        "drop_70_of_120": {"epochs": 120, "method.optimizer.milestones": (70 / 120,)},
        "unlabelled_loss_25": {"method.lambda_u": 25.0},
        "unlabelled_loss_150": {"method.lambda_u": 150.0},
        "supervised": SUPERVISED,
        "loss_and_neighbours": {"method.split_source": "both"},
        "preact_resnet18": {"network": "preact_resnet18"},
        "wide_resnet28_10": {"network": "wide_resnet28_10"},
        "resnet34_imagenet": {"network": "resnet34_imagenet"},
        "vit": {"network": "vit_b_16"} | STUDENT,
        "swin": {"network": "swin_t"} | STUDENT,
        "convnext": {"network": "convnext_tiny"} | STUDENT,
        "vit_supervised": {"network": "vit_b_16"} | BASELINE,
        "swin_supervised": {"network": "swin_t"} | BASELINE,
        "convnext_supervised": {"network": "convnext_tiny"} | BASELINE,
        "convnext_probed": {"network": "convnext_tiny"} | STUDENT | {"method.warm_up_updates": "head"},
        "convnext_no_warm_up": {"network": "convnext_tiny"} | STUDENT | {"method.warm_up": 0},
    },
    panels={
        "learning_rate": Panel(
            "When the learning rate drops", ("drop_150_of_300", "drop_70_of_300", "drop_70_of_120"), curves=CURVES
        ),
        "method": Panel(
            "Weight of the unlabelled loss, and what divides",
            ("drop_150_of_300", "unlabelled_loss_25", "unlabelled_loss_150", "loss_and_neighbours", "supervised"),
            curves=CURVES,
        ),
        "networks": Panel(
            "Other residual networks, from scratch",
            ("drop_150_of_300", "preact_resnet18", "wide_resnet28_10", "resnet34_imagenet"),
            curves=CURVES,
        ),
        "vit": Panel("ViT, pre-trained", ("vit_supervised", "vit"), curves=CURVES),
        "swin": Panel("Swin transformer, pre-trained", ("swin_supervised", "swin"), curves=CURVES),
        "convnext": Panel(
            "ConvNeXt, pre-trained: transfer instead of warm-up",
            ("convnext_supervised", "convnext", "convnext_probed", "convnext_no_warm_up"),
            curves=CURVES,
        ),
    },
    replicates=3,
    contrasts=[
        Contrast("drop_70_of_300", against="drop_150_of_300", smallest_effect=0.005),
        Contrast("drop_70_of_120", against="drop_150_of_300", smallest_effect=0.005),
        Contrast("unlabelled_loss_25", against="drop_150_of_300", smallest_effect=0.005),
        Contrast("loss_and_neighbours", against="drop_150_of_300", smallest_effect=0.005),
        Contrast("vit", against="vit_supervised", direction="helps", smallest_effect=0.005),
        Contrast("swin", against="swin_supervised", direction="helps", smallest_effect=0.005),
        Contrast("convnext", against="convnext_supervised", direction="helps", smallest_effect=0.005),
        Contrast("convnext_probed", against="convnext", smallest_effect=0.005),
    ],
    presets={
        # does everything run?
        "smoke": Preset(
            base={
                "dataset": "digits",
                "network": "small_convnet",
                "noise": {"kind": "symmetric", "rate": 0.4},
                "labels": 50,
                "epochs": 3,
                "steps": 2,
                "method": DIVIDEMIX | {"warm_up": 1},
                "method.batch_size": 16,
            },
            arms={
                "drop_70_of_120": {"epochs": 2},
                "vit": IN_SMOKE | VIT,
                "vit_supervised": IN_SMOKE | VIT,
                "swin": IN_SMOKE | SWIN,
                "swin_supervised": IN_SMOKE | SWIN,
                "convnext": IN_SMOKE | CONVNEXT,
                "convnext_supervised": IN_SMOKE | CONVNEXT,
                "convnext_probed": IN_SMOKE | CONVNEXT,
                "convnext_no_warm_up": IN_SMOKE | CONVNEXT,
                "wide_resnet28_10": {"network": "wide_resnet28_2"},
                "resnet34_imagenet": {"network": "resnet18_imagenet"},
            },
            replicates=1,
        ),
        # a quarter of an hour on two cores: all real handwritten digits, 8 × 8
        "digits": Preset(
            base={
                "dataset": "digits",
                "network": "small_convnet",
                "noise": {"kind": "asymmetric", "rate": 0.4},
                "epochs": 30,
                "method": DIVIDEMIX | {"warm_up": 5, "ramp": 4},
                "method.batch_size": 32,
            },
            arms={
                "drop_70_of_120": {"epochs": 12},
                "vit": IN_SMALL | VIT,
                "vit_supervised": IN_SMALL | VIT,
                "swin": IN_SMALL | SWIN,
                "swin_supervised": IN_SMALL | SWIN,
                "convnext": IN_SMALL | CONVNEXT,
                "convnext_supervised": IN_SMALL | CONVNEXT,
                "convnext_probed": IN_SMALL | CONVNEXT,
                "convnext_no_warm_up": IN_SMALL | CONVNEXT,
            },
            panels=("learning_rate", "method", "vit", "swin", "convnext"),
            replicates=4,
        ),
        # CIFAR-10N, its worst labels, a third of the length, for one GPU
        "cifar10": Preset(
            base={
                "dataset": "cifar10",
                "noise": {"kind": "human", "column": "worse"},
                "epochs": 100,
                "method": DIVIDEMIX | {"warm_up": 10},
                "precision": "bfloat16",
            },
            arms={"drop_70_of_120": {"epochs": 40}},
        ),
        "paper": Preset(),
    },
)

if __name__ == "__main__":
    study.main()
