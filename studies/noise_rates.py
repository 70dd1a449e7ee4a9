"""Which method withstands which kind of label noise, and how much of it?  (the tables of seed documents 001 and 004)"""

from lnl import Contrast, Panel, Preset, Study, Trial

SYMMETRIC = [{"kind": "symmetric", "rate": rate} for rate in (0.2, 0.5, 0.8)]
OTHERS = [
    {"kind": "asymmetric", "rate": 0.4},
    {"kind": "pair", "rate": 0.45},
    {"kind": "instance", "rate": 0.4},
    {"kind": "human", "column": "worse"},
    {"kind": "semantic", "teacher": {"labels": 2500}},  # which knows the probe, too
]

# Trained on all labels.  Methods that use no probe find its images, with their right labels, among the others.
NOISY_LABELS = {
    "cross_entropy": {"method": "supervised"},
    "mixup": {"method": "mixup"},
    "gce": {"method": "gce"},
    "gce_truncated": {"method": "gce", "method.truncated": True},
    "lc_forward": {"method": "loss_correction"},
    "lc_backward": {"method": "loss_correction", "method.direction": "backward"},
    "glc": {"method": "glc"},
    # The paper sets the forget rate to the noise rate, which nobody knows: here one value for all settings.
    "co_teaching": {"method": "co_teaching", "method.forget_rate": 0.45},
    "mentornet": {"method": "mentornet"},
    "mentornet_data": {"method": "mentornet", "method.mentor": "data_driven", "method.burn_in": 0.17},
    "bootstrapping": {"method": "dynamic_bootstrapping"},
    "rog": {"method": "rog"},
    "rog_shrunk": {"method": "rog", "method.shrinkage": 0.5},
    "dividemix": {"method": "dividemix"},
    # The paper's other setting, for asymmetric noise.
    "dividemix_penalty": {"method": "dividemix", "method.confidence_penalty": 1.0, "method.lambda_u": 0.0},
    "clean_net": {"method": "clean_net"},
    "self_learning": {"method": "deep_self_learning"},
    "l2r": {"method": "learning_to_reweight"},
    "ieg": {"method": "ieg"},
    # Features that never saw a label: a linear classifier on them, and their neighbour graph.
    "simclr_linear": {"method": "simclr"},
    # An epoch is an iteration; document 003 makes 20.
    "simclr_propagation": {
        "method": "label_propagation",
        "epochs": 20,
        "init_from": {"method": "simclr", "epochs": 300},
    },
}
FEW_LABELS = {
    "pseudo_label": {"method": "pseudo_label"},
    "mixmatch": {"method": "mixmatch"},
    "robmix": {"method": "robmix"},
    "fixmatch": {"method": "fixmatch"},
    "selfmatch": {"method": "selfmatch", "method.pretrain_epochs": 16},
    "s4l_rotation": {"method": "s4l"},
    "s4l_exemplar": {"method": "s4l", "method.pretext": "exemplar"},
}
# One optimizer and batch size for all, so that methods differ in nothing else.
COMMON = {
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
SHORT_SIMCLR = {"method": "simclr", **COMMON}

study = Study(
    name="noise_rates",
    question="Which method withstands which kind of label noise, and how much of it?",
    base=Trial(method="supervised", dataset="cifar10", network="preact_resnet18", probe=100, epochs=300).override(
        {"noise": SYMMETRIC[1]}
    ),
    arms={**NOISY_LABELS, **FEW_LABELS},
    factors={"noise": [*SYMMETRIC, *OTHERS], "labels": [1000], "noise.rate": [0.2, 0.5, 0.8]},
    panels={
        "noisy_labels": Panel(
            "All images labelled, many wrongly",
            tuple(NOISY_LABELS),
            ("noise",),
            curves=("test/accuracy", "oracle/memorised", "oracle/selection_auc"),
        ),
        "one_of_each": Panel(
            "All images labelled, many wrongly: one arm of each method",
            (
                "cross_entropy",
                "mixup",
                "gce",
                "lc_forward",
                "glc",
                "co_teaching",
                "mentornet",
                "bootstrapping",
                "rog_shrunk",
                "dividemix",
                "clean_net",
                "self_learning",
                "l2r",
                "ieg",
                "simclr_linear",
            ),
            ("noise",),
            curves=("test/accuracy", "oracle/memorised", "oracle/selection_auc"),
        ),
        "few_labels": Panel(
            "Few images labelled, many wrongly", ("cross_entropy", *FEW_LABELS), ("labels", "noise.rate")
        ),
    },
    replicates=5,
    contrasts=[
        Contrast(arm, against="cross_entropy", direction="helps", smallest_effect=0.005)
        for arm in NOISY_LABELS
        if arm != "cross_entropy"
    ],
    presets={
        # does everything run?
        "smoke": Preset(
            base={
                "dataset": "digits",
                "network": "small_convnet",
                "probe": 20,
                "epochs": 2,
                "steps": 3,
                "method.batch_size": 16,
            },
            factors={"noise": [SYMMETRIC[1]], "labels": [50], "noise.rate": [0.5]},
            arms={arm: {"method.warm_up": 1} for arm in ("dividemix", "dividemix_penalty")}
            | {"selfmatch": {"method.pretrain_epochs": 1}}
            | {"simclr_propagation": {"epochs": 2, "init_from": {"method": "simclr", "epochs": 2}}},
            panels=("noisy_labels", "few_labels"),
            replicates=1,
        ),
        # half an hour on two cores: real handwritten digits, the two settings that published tables agree on
        "digits": Preset(
            base={"dataset": "digits", "network": "small_convnet", "probe": 50, "epochs": 60, **COMMON},
            factors={"noise": [SYMMETRIC[1], OTHERS[0]]},
            arms={"simclr_propagation": {"init_from": SHORT_SIMCLR | {"epochs": 60}}},
            panels=("noisy_labels",),
        ),
        # half an hour on two cores: real CIFAR-10 images and the labels that people gave them
        "cifar10n_cpu": Preset(
            base={
                "network": "small_convnet",
                "noise": OTHERS[3],
                "labels": 1000,
                "unlabelled_ratio": 1,
                "epochs": 12,
                "steps": 40,
                **COMMON,
            },
            factors={"noise": [OTHERS[3]]},
            arms={arm: {"method.warm_up": 3, "method.ramp": 4} for arm in ("dividemix", "dividemix_penalty")}
            | {"co_teaching": {"method.ramp": 3}}
            | {"simclr_propagation": {"init_from": SHORT_SIMCLR | {"epochs": 12}}},
            panels=("one_of_each",),
            replicates=4,
        ),
        "cifar10": Preset(
            base={"epochs": 100},
            arms={"simclr_propagation": {"init_from": {"method": "simclr", "epochs": 100}}},
            panels=("noisy_labels", "few_labels"),
            replicates=3,
        ),
        # each method with the optimizer, batch size and length of its own paper's kind: 300 epochs
        "paper": Preset(panels=("noisy_labels", "few_labels")),
    },
)

if __name__ == "__main__":
    study.main()
