"""Which parts of two-headed RobMix matter when some of the few labels are wrong?  (seed document 000, sections 4.1 to
4.5)

The setting that section 4.1 calls the best is the study `robmix_best_setting`.
"""

from lnl import Contrast, Noise, Panel, Preset, Study, Trial

SMALL = {"dataset": "digits", "network": "small_convnet", "labels": 50}
# What is RobMix's alone, and what all arms share that do not say otherwise.
SHORT = {"method": {"name": "robmix", "lambda_u": 25.0, "ramp": 0.3}, "method.optimizer.average": 0.95}
# RobMix's and MixMatch's, and so that of the arm which has another one by default.
OPTIMIZER = {"kind": "adamw", "learning_rate": 0.002, "weight_decay": 0.02, "schedule": "constant", "average": 0.999}
# Of all images, whatever the setting, so that it is trained once per replicate.
SIMCLR = {"method": "simclr", "labels": None, "unlabelled_ratio": None, "epochs": 200, "steps": None}
BOTH_LOSSES = ("train/loss_contrastive", "train/loss_mixmatch", "test/accuracy")

study = Study(
    name="robmix_ablation",
    question="Which parts of two-headed RobMix matter when 40 % of a few labels are wrong?",
    base=Trial(method="robmix", dataset="cifar10", labels=250, noise=Noise("symmetric", 0.4), epochs=64, steps=1024),
    shared={"method.optimizer": OPTIMIZER},
    # Two pairs of the document's arms are one training each and stand here once: stepping the classifier's optimizer
    # only is the frozen head, and a stopped gradient is MixMatch alone (kept as an arm, for L1's curve beside it).
    arms={
        "full": {},
        "mixmatch_only": {"method.topology": "mixmatch_only"},
        "alternating": {"method.topology": "alternating_epoch"},
        # what two of the three authors built, and the backbone of the document's Algorithm 2
        "pretrain_then_ssl": {"method.topology": "pretrain_then_ssl", "method.pretrain_epochs": 64},
        "pretrained_backbone": {"init_from": SIMCLR},
        "s4l": {"method": "s4l"},
        "selfmatch": {"method": "selfmatch"},
        "supervised": {"method": "supervised"},
        "frozen_head": {"method.head_update": "frozen"},
        "frozen_after_half": {"method.head_update": "frozen_after", "method.head_frozen_from": 0.5},
        "gradient_stopped": {"method.head_gradient": "stop"},
        "gradient_tenth": {"method.head_gradient": "scale", "method.gradient_scale": 0.1},
        "gradient_reversed": {"method.head_gradient": "reverse"},
        "pcgrad": {"method.head_gradient": "pcgrad"},
        "two_optimizers": {"method.optimizers": "two_owner"},
        "two_alternating": {"method.optimizers": "two_owner", "method.sync": "alternate"},
        "projection_only": {"method.optimizers": "per_module", "method.updated": "projection"},
        "frozen_tenth": {"method.head_update": "frozen", "method.head_gradient": "scale", "method.gradient_scale": 0.1},
        "frozen_alternating": {
            "method.head_update": "frozen",
            "method.optimizers": "two_owner",
            "method.sync": "alternate",
        },
        "tenth_alternating": {
            "method.head_gradient": "scale",
            "method.gradient_scale": 0.1,
            "method.optimizers": "two_owner",
            "method.sync": "alternate",
        },
        "all_three": {
            "method.head_update": "frozen",
            "method.head_gradient": "scale",
            "method.gradient_scale": 0.1,
            "method.optimizers": "two_owner",
            "method.sync": "alternate",
        },
        # "this trend is not followed in the original RobMix architecture (the one without two heads)", 4.4
        "alternating_frozen": {"method.topology": "alternating_epoch", "method.head_update": "frozen"},
        "alternating_projection": {
            "method.topology": "alternating_epoch",
            "method.optimizers": "per_module",
            "method.updated": "projection",
        },
    },
    factors={"labels": [250, 1000, 4000], "noise.rate": [0.0, 0.1, 0.2, 0.4], "unlabelled_ratio": [1, 5, 20]},
    panels={
        "noise_and_labels": Panel(
            "Losses and accuracy by noise rate and labels",
            ("full", "mixmatch_only", "alternating"),
            ("labels", "noise.rate"),
            BOTH_LOSSES,
        ),
        "topology": Panel(
            "One head or two, together or in turn", ("full", "alternating", "mixmatch_only", "supervised")
        ),
        "pretraining": Panel(
            "Self-supervision in every epoch, or first",
            ("full", "pretrain_then_ssl", "pretrained_backbone", "mixmatch_only"),
            (),
            BOTH_LOSSES,
        ),
        "beside": Panel("Beside S4L and SelfMatch", ("full", "s4l", "selfmatch", "mixmatch_only")),
        "frozen_head": Panel(
            "No weight update in the projection head", ("full", "frozen_head", "frozen_after_half"), (), BOTH_LOSSES
        ),
        "gradient": Panel(
            "A changed gradient from the projection head",
            ("full", "gradient_stopped", "gradient_tenth", "gradient_reversed", "pcgrad"),
            curves=(
                "train/gradient_norm_contrastive",
                "train/gradient_norm_mixmatch",
                "train/gradient_cosine",
                "test/accuracy",
            ),
        ),
        "optimizers": Panel(
            "Who owns and who steps the optimizers",
            ("full", "two_optimizers", "two_alternating", "frozen_head", "projection_only"),
            (),
            BOTH_LOSSES,
        ),
        "optimizers_in_turn": Panel(
            "Who steps the optimizers of one network that is trained in turn",
            ("alternating", "alternating_frozen", "alternating_projection"),
            (),
            BOTH_LOSSES,
        ),
        "ratios": Panel("Unlabelled images per labelled one", ("full", "mixmatch_only"), ("unlabelled_ratio",)),
        "combined": Panel(
            "Frozen head × gradient × optimizers, combined",
            (
                "full",
                "frozen_head",
                "gradient_tenth",
                "two_alternating",
                "frozen_tenth",
                "frozen_alternating",
                "tenth_alternating",
                "all_three",
            ),
        ),
    },
    replicates=5,
    contrasts=[
        Contrast("supervised", against="full", direction="hurts", smallest_effect=0.005),
        Contrast("mixmatch_only", against="full", smallest_effect=0.005),
        Contrast("frozen_head", against="full", smallest_effect=0.005),
        Contrast("gradient_reversed", against="full", direction="hurts", smallest_effect=0.005),
        Contrast("two_alternating", against="full", smallest_effect=0.005),
        Contrast("projection_only", against="full", direction="hurts", smallest_effect=0.005),
        Contrast("alternating_frozen", against="alternating", smallest_effect=0.005),
        Contrast("pretrain_then_ssl", against="full", smallest_effect=0.005),
    ],
    presets={
        # does everything run?  under a minute
        "smoke": Preset(
            base=SMALL | {"epochs": 2, "steps": 4, "method.batch_size": 16},
            factors={"labels": [50, 100], "noise.rate": [0.2, 0.4], "unlabelled_ratio": [1, 5]},
            arms={
                "pretrain_then_ssl": {"method.pretrain_epochs": 1},
                "pretrained_backbone": {"init_from": SIMCLR | {"epochs": 1, "steps": 4}},
                "selfmatch": {"method.pretrain_epochs": 1},
            },
            replicates=2,
        ),
        # minutes on two cores: real handwritten digits, 8 × 8, with MixMatch's constants for so short a training; 400
        # labels, because with fewer the replicates spread too much for ten of them to decide
        "digits": Preset(
            base=SMALL | SHORT | {"labels": 400, "epochs": 10, "steps": 20, "method.batch_size": 32},
            factors={"labels": [100, 200, 400], "noise.rate": [0.1, 0.2, 0.4]},
            panels=("noise_and_labels", "topology", "frozen_head", "gradient", "optimizers"),
            replicates=10,
            replicates_elsewhere=2,
            smallest_effect=0.01,
        ),
        # real CIFAR-10 with a small network, for a look without a GPU: 250 labels, 5,000 unlabelled images
        "cifar10_cpu": Preset(
            base=SHORT | {"network": "small_convnet", "unlabelled_ratio": 20, "epochs": 20, "steps": 40},
            panels=("topology",),
            replicates=1,
        ),
        "cifar10": Preset(),
        # the lengths of the MixMatch paper: 2^20 steps, five replicates
        "paper": Preset(base={"epochs": 1024}),
    },
)

if __name__ == "__main__":
    study.main()
