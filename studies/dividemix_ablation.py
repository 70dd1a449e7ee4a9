"""Which parts of DivideMix matter, and can its warm-up or its losses be replaced?  (Table 5 of the paper; seed document
001, report 3, ideas 1 and 2)

The paper's own lambda_u and threshold are those of the base at rates 0.5 and 0.8.  Its row "without augmentation" is
not defined there; here it is learning from plain images after the usual warm-up.
"""

from lnl import Contrast, Noise, Panel, Preset, Study, Trial

SMALL = {"dataset": "digits", "network": "small_convnet"}
DIVISION = ("train/loss", "oracle/selection_auc", "oracle/selection_precision", "test/accuracy")
ALONE = {"method.co_divide": False, "method.co_guess": False, "method.ensemble": "first"}
ASYMMETRIC = {
    "noise": {"kind": "asymmetric", "rate": 0.4},
    "method.lambda_u": 0.0,
    "method.confidence_penalty": 1.0,
}
# Right labels of another data set, as those of a network that somebody published.
OTHER_DATA: dict[str, object] = {
    "method": "supervised",
    "dataset": "cifar100",
    "labels": None,
    "noise": {},
    "epochs": 200,
}
LETTERS: dict[str, object] = OTHER_DATA | {"dataset": "letters", "epochs": 20}
ONE_EPOCH = LETTERS | {"epochs": 1}
OPTIMIZER = Trial(method="dividemix").value("method.optimizer")  # cross-entropy's, too

study = Study(
    name="dividemix_ablation",
    question="Which parts of DivideMix matter, and can its warm-up or its losses be replaced?",
    base=Trial(
        method="dividemix",
        dataset="cifar10",
        network="preact_resnet18",
        noise=Noise("symmetric", 0.5, include_true=True),
        epochs=300,
    ),
    shared={"method.optimizer": OPTIMIZER},
    arms={
        "full": {},
        # the paper's Table 5
        "first_network": {"method.ensemble": "first"},
        "no_co_training": ALONE,
        "no_refinement": {"method.refine": False},
        # one view, as copies of a plain image are one image: `one_view` is what that alone does
        "no_augmentation": {"method.guess_view": "none", "method.train_view": "none", "method.views": 1},
        "divide_and_mixmatch": ALONE | {"method.refine": False},
        "supervised": {"method": "supervised"},
        # one part at a time
        "own_division": {"method.co_divide": False},
        "own_guesses": {"method.co_guess": False},
        "one_view": {"method.views": 1},
        "no_sharpening": {"method.temperature": 1.0},
        "no_mixup": {"method.mixup": "none"},
        "no_prior": {"method.prior": False},
        "no_unlabelled_loss": {"method.lambda_u": 0.0},
        "no_ramp": {"method.ramp": 0},
        "mean_probability": {"method.ensemble": "probabilities"},
        # losses over epochs
        "averaged": {"method.average_losses": "always"},
        "not_averaged": {"method.average_losses": "never"},
        # labels that look alike are mistaken for each other
        "asymmetric": ASYMMETRIC,
        "asymmetric_no_penalty": ASYMMETRIC | {"method.confidence_penalty": 0.0},
        "asymmetric_no_refinement": ASYMMETRIC | {"method.refine": False},
        "asymmetric_by_neighbours": ASYMMETRIC | {"method.split_source": "neighbours"},
        # features instead of losses
        "neighbours": {"method.split_source": "neighbours"},
        # with its paper's threshold
        "fine": {"method.split_source": "fine", "method.threshold": 0.6},
        "loss_times_neighbours": {"method.split_source": "product"},
        "loss_and_neighbours": {"method.split_source": "both"},
        # transfer instead of warm-up: beside `short_warm_up`, `transfer` differs in where it starts alone
        "short_warm_up": {"method.warm_up": 5},
        "no_warm_up": {"method.warm_up": 0},
        "transfer": {"method.warm_up": 5, "init_from": {"method": "simclr", "epochs": 500}},
        "transfer_probe": {
            "method.warm_up": 5,
            "method.warm_up_updates": "head",
            "init_from": {"method": "simclr", "epochs": 500},
        },
        "transfer_neighbours": {
            "method.warm_up": 5,
            "method.split_source": "neighbours",
            "method.embedding": "initial",
            "init_from": {"method": "simclr", "epochs": 500},
        },
        # the document's own: a network that has learned from another data set, fine-tuned
        "other_data": {"method.warm_up": 5, "init_from": OTHER_DATA},
        "other_data_probe": {"method.warm_up": 5, "method.warm_up_updates": "head", "init_from": OTHER_DATA},
        "other_data_no_warm_up": {"method.warm_up": 0, "init_from": OTHER_DATA},
    },
    factors={"noise.rate": [0.2, 0.5, 0.8, 0.9], "method.threshold": [0.1, 0.3, 0.5, 0.7, 0.9]},
    panels={
        "ablation": Panel(
            "The paper's ablation",
            (
                "full",
                "first_network",
                "no_co_training",
                "no_refinement",
                "no_augmentation",
                "divide_and_mixmatch",
                "supervised",
            ),
            ("noise.rate",),
        ),
        "parts": Panel(
            "One part less",
            (
                "full",
                "own_division",
                "own_guesses",
                "one_view",
                "no_sharpening",
                "no_mixup",
                "no_prior",
                "no_unlabelled_loss",
                "no_ramp",
                "mean_probability",
            ),
        ),
        "history": Panel(
            "Losses averaged over epochs", ("full", "averaged", "not_averaged"), ("noise.rate",), DIVISION
        ),
        "asymmetric": Panel(
            "40 % asymmetric noise",
            ("asymmetric", "asymmetric_no_penalty", "asymmetric_no_refinement", "asymmetric_by_neighbours"),
            curves=DIVISION,
        ),
        "embedding": Panel(
            "Features instead of losses",
            ("full", "neighbours", "fine", "loss_times_neighbours", "loss_and_neighbours"),
            ("noise.rate",),
            DIVISION,
        ),
        "threshold": Panel("Threshold of the mixture", ("full", "own_division"), ("method.threshold",), DIVISION),
        "warm_up": Panel(
            "Transfer instead of warm-up",
            ("full", "short_warm_up", "no_warm_up", "transfer", "transfer_probe", "transfer_neighbours"),
            ("noise.rate",),
            DIVISION,
        ),
        "other_data": Panel(
            "Transfer from another data set instead of warm-up",
            ("full", "short_warm_up", "other_data", "other_data_probe", "other_data_no_warm_up"),
            ("noise.rate",),
            DIVISION,
        ),
    },
    replicates=5,
    contrasts=[
        Contrast("first_network", against="full", direction="hurts", smallest_effect=0.005),
        Contrast("no_co_training", against="full", direction="hurts", smallest_effect=0.005),
        Contrast("no_refinement", against="full", direction="hurts", smallest_effect=0.005),
        Contrast("no_augmentation", against="full", direction="hurts", smallest_effect=0.005),
        Contrast("divide_and_mixmatch", against="full", direction="hurts", smallest_effect=0.005),
        Contrast("supervised", against="full", direction="hurts", smallest_effect=0.02),
        Contrast("loss_and_neighbours", against="full", smallest_effect=0.005),
        Contrast("transfer", against="full", smallest_effect=0.005),
        Contrast("other_data", against="full", smallest_effect=0.005),
        Contrast("asymmetric_no_penalty", against="asymmetric", direction="hurts", smallest_effect=0.005),
    ],
    presets={
        # does everything run?
        "smoke": Preset(
            base=SMALL
            | {"labels": 50, "epochs": 3, "steps": 2}
            | {"method": {"name": "dividemix", "warm_up": 2}, "method.batch_size": 16},
            arms={
                "short_warm_up": {"method.warm_up": 1},
                "transfer": {"method.warm_up": 1, "init_from": {"method": "simclr", "epochs": 1}},
                "transfer_probe": {"method.warm_up": 1, "init_from": {"method": "simclr", "epochs": 1}},
                "transfer_neighbours": {"method.warm_up": 1, "init_from": {"method": "simclr", "epochs": 1}},
                "other_data": {"method.warm_up": 1, "init_from": ONE_EPOCH},
                "other_data_probe": {"method.warm_up": 1, "init_from": ONE_EPOCH},
                "other_data_no_warm_up": {"init_from": ONE_EPOCH},
            },
            factors={"noise.rate": [0.5], "method.threshold": [0.5, 0.7]},
            replicates=1,
        ),
        # twenty minutes on two cores: all real handwritten digits, 8 × 8
        "digits": Preset(
            base=SMALL
            | {"epochs": 16, "method": {"name": "dividemix", "warm_up": 6, "ramp": 4}, "method.batch_size": 32},
            arms={
                "short_warm_up": {"method.warm_up": 2},
                "transfer": {"method.warm_up": 2, "init_from": {"method": "simclr", "epochs": 20}},
                "transfer_probe": {"method.warm_up": 2, "init_from": {"method": "simclr", "epochs": 20}},
                "transfer_neighbours": {"method.warm_up": 2, "init_from": {"method": "simclr", "epochs": 20}},
                "other_data": {"method.warm_up": 2, "init_from": LETTERS},
                "other_data_probe": {"method.warm_up": 2, "init_from": LETTERS},
                "other_data_no_warm_up": {"init_from": LETTERS},
            },
            factors={"noise.rate": [0.5, 0.8]},
            panels=("ablation", "parts", "embedding", "threshold", "other_data"),
            replicates=4,
        ),
        # a third of the paper's length, for one GPU
        "cifar10": Preset(
            base={"epochs": 100, "precision": "bfloat16"},
            factors={"noise.rate": [0.5, 0.8]},
            replicates=3,
        ),
        "paper": Preset(),
    },
)

if __name__ == "__main__":
    study.main()
