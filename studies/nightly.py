"""Has any method, or any switch of RobMix and DivideMix, moved since the last nights?

Every night draws its own replicates (`--night today`); `lnl diff nightly` compares them with the nights before.  A step
of a point is found within two nights where replicates spread by .4 points, and four times of five by half a point.  Two
arms are one configuration on other replicates: their difference must hold zero, or it is the comparison that is broken.
"""

from lnl import Contrast, Noise, Preset, Study, Trial

ROBMIX: dict[str, dict[str, object]] = {
    "mixmatch_only": {"method.topology": "mixmatch_only"},
    "alternating": {"method.topology": "alternating_epoch"},
    "frozen_head": {"method.head_update": "frozen"},
    "frozen_after_half": {"method.head_update": "frozen_after", "method.head_frozen_from": 0.5},
    "gradient_stopped": {"method.head_gradient": "stop"},
    "gradient_tenth": {"method.head_gradient": "scale", "method.gradient_scale": 0.1},
    "gradient_reversed": {"method.head_gradient": "reverse"},
    "pcgrad": {"method.head_gradient": "pcgrad"},
    "two_optimizers": {"method.optimizers": "two_owner"},
    "two_alternating": {"method.optimizers": "two_owner", "method.sync": "alternate"},
    "projection_only": {"method.optimizers": "per_module", "method.updated": "projection"},
}
DIVIDEMIX: dict[str, dict[str, object]] = {
    "first_network": {"method.ensemble": "first"},
    "no_co_training": {"method.co_divide": False, "method.co_guess": False, "method.ensemble": "first"},
    "no_refinement": {"method.refine": False},
    "confidence_penalty": {"method.confidence_penalty": 1.0, "method.lambda_u": 0.0},
}
OTHERS = {
    "gce_truncated": {"method": "gce", "method.truncated": True},
    "lc_backward": {"method": "loss_correction", "method.direction": "backward"},
    "mentornet_data": {"method": "mentornet", "method.mentor": "data_driven", "method.burn_in": 0.17},
    "s4l_exemplar": {"method": "s4l", "method.pretext": "exemplar"},
}
METHODS = (
    *(
        "mixup",
        "gce",
        "loss_correction",
        "glc",
        "co_teaching",
        "mentornet",
        "dynamic_bootstrapping",
        "rog",
        "dividemix",
        "deep_self_learning",
        "clean_net",
    ),
    *("learning_to_reweight", "ieg", "mixmatch", "robmix", "fixmatch", "selfmatch", "s4l", "pseudo_label"),
    *("simclr", "barlow_twins", "byol"),
)
# Its graph is that of SimCLR's features; an epoch is an iteration.
PROPAGATION = {
    "method": "label_propagation",
    "epochs": 20,
    "init_from": {"method": "simclr", "epochs": 16, "steps": 256},
}

# Detectors, too, judge labels by SimCLR's features, once.
DETECTION = PROPAGATION | {"method": "label_errors", "epochs": 1}

SMALL = {"dataset": "digits", "network": "small_convnet", "probe": 20, "method.batch_size": 32}
# MixMatch's constants for so short a training, as in `robmix_ablation`, and averages that it can fill.
SHORT: dict[str, object] = {"method.lambda_u": 25.0, "method.ramp": 0.3, "method.optimizer.average": 0.95}
FILLED: dict[str, object] = {"method.optimizer.average": 0.95}
SHORT_SIMCLR = {"method": "simclr", "method.batch_size": 32, "epochs": 32}
ON_DIGITS: dict[str, dict[str, object]] = {
    **{f"robmix_{switch}": SHORT for switch in ROBMIX},
    **{arm: SHORT for arm in ("mixmatch", "robmix")},
    **{arm: FILLED for arm in ("fixmatch", "pseudo_label", "ieg")},
    "selfmatch": {**FILLED, "method.pretrain_epochs": 8},
    "barlow_twins": {"method.projector_width": 256},
    "byol": {"method.hidden": 256},
    "label_propagation": {"epochs": 5, "init_from": SHORT_SIMCLR},
    "label_errors": {"init_from": SHORT_SIMCLR},
}

study = Study(
    name="nightly",
    question="Has any method, or any switch of RobMix and DivideMix, moved since the last nights?",
    base=Trial(
        method="supervised",
        dataset="cifar10",
        labels=4000,
        probe=100,
        noise=Noise("symmetric", 0.4),
        epochs=64,
        steps=1024,
    ),
    arms={
        # one configuration, drawn afresh under a second name: an A/A test.  It is cross-entropy, which all are above.
        "canary": {},
        "canary_again": {"replicate": 500},
        **{name: {"method": name} for name in METHODS},
        "label_propagation": PROPAGATION,
        "label_errors": DETECTION,
        **{f"robmix_{switch}": {"method": "robmix", **changes} for switch, changes in ROBMIX.items()},
        **{f"dividemix_{switch}": {"method": "dividemix", **changes} for switch, changes in DIVIDEMIX.items()},
        **OTHERS,
    },
    replicates=4,
    contrasts=[Contrast("canary_again", against="canary", smallest_effect=0.02)],
    presets={
        # does everything run?
        "smoke": Preset(
            base=SMALL | {"labels": 50, "epochs": 12, "steps": 1},
            arms=ON_DIGITS
            | {"label_propagation": {"epochs": 2, "init_from": None}, "label_errors": {"init_from": None}},
            replicates=3,  # the fewest that `lnl diff` compares
        ),
        # minutes on two cores: real handwritten digits, 8 × 8
        "digits": Preset(base=SMALL | {"labels": 100, "epochs": 32, "steps": 6}, arms=ON_DIGITS),
        # for one GPU over night
        "cifar10": Preset(base={"epochs": 16, "steps": 256}),
        # RobMix's length, for a cluster
        "paper": Preset(),
    },
)

if __name__ == "__main__":
    study.main()
