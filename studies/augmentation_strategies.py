"""Which augmentation for the loss model, which for learning?  (Nishi et al. 2021; seed document 001, report 3, idea 3)

Warm-up × analysis × descent, as the paper has it: AugDesc-XY guesses on X (w: weak, s: strong) and learns from Y, and
the first word is the view of warm-up.  Strong is AutoAugment, as there; all cells have one schedule, unlike there.
"""

from lnl import Contrast, Noise, Panel, Preset, Study, Trial

WW = {"method.separate_views": True}
WS = {"method.train_view": "autoaugment"}
SW = {"method.guess_view": "autoaugment"}
SS = {"method.separate_views": True, "method.guess_view": "autoaugment", "method.train_view": "autoaugment"}
PLAIN = {"method.warm_up_view": "none"}
STRONG = {"method.warm_up_view": "autoaugment"}
CURVES = ("train/loss", "oracle/selection_auc", "oracle/refined_accuracy", "test/accuracy")
OPTIMIZER = Trial(method="dividemix").value("method.optimizer")  # cross-entropy's, too
SUPERVISED = {"method": "supervised", "method.weak.padding": "zeros"}  # as DivideMix shifts its images

study = Study(
    name="augmentation_strategies",
    question="Which augmentation for the loss model, which for learning?",
    base=Trial(
        method="dividemix",
        dataset="cifar10",
        network="preact_resnet18",
        noise=Noise("symmetric", 0.5, include_true=True),
        epochs=300,
    ),
    shared={"method.optimizer": OPTIMIZER},
    arms={
        "raw": {"method.warm_up_view": "none", "method.guess_view": "none", "method.train_view": "none"},
        "runtime_w": {},
        "runtime_s": {"method.guess_view": "autoaugment", "method.train_view": "autoaugment"},
        "weak_ww": WW,
        "weak_ws": WS,
        "weak_sw": SW,
        "weak_ss": SS,
        "strong_ww": STRONG | WW,
        "strong_ws": STRONG | WS,
        "strong_sw": STRONG | SW,
        "strong_ss": STRONG | SS,
        "plain_ww": PLAIN | WW,
        "plain_ws": PLAIN | WS,
        "plain_sw": PLAIN | SW,
        "plain_ss": PLAIN | SS,
        "weak_ws_randaugment": {"method.train_view": "strong"},
        "weak_ws_weak_loss": WS | {"method.loss_view": "weak"},
        "supervised": SUPERVISED,
        "supervised_strong": SUPERVISED | {"method.augmentation": "autoaugment"},
    },
    factors={"noise.rate": [0.2, 0.5, 0.8, 0.9]},
    panels={
        "strategies": Panel(
            "Runtime and AugDesc",
            ("runtime_w", "raw", "runtime_s", "weak_ww", "weak_ss", "weak_ws", "weak_ws_randaugment"),
            ("noise.rate",),
            CURVES,
        ),
        "warm_up": Panel("Augmentation of the warm-up", ("weak_ws", "strong_ws", "plain_ws"), ("noise.rate",), CURVES),
        "grid": Panel(
            "Warm-up × analysis × descent",
            (
                "weak_ww",
                "weak_ws",
                "weak_sw",
                "weak_ss",
                "strong_ww",
                "strong_ws",
                "strong_sw",
                "strong_ss",
                "plain_ww",
                "plain_ws",
                "plain_sw",
                "plain_ss",
            ),
            curves=CURVES,
        ),
        "loss_view": Panel("Augmentation of the loss model", ("weak_ws", "weak_ws_weak_loss"), ("noise.rate",), CURVES),
        "baseline": Panel("The same for cross-entropy", ("supervised", "supervised_strong"), ("noise.rate",)),
    },
    replicates=5,
    contrasts=[
        Contrast("weak_ws", against="runtime_w", direction="helps", smallest_effect=0.005),
        Contrast("weak_ws", against="runtime_s", direction="helps", smallest_effect=0.005),
        Contrast("weak_ws", against="weak_ss", direction="helps", smallest_effect=0.005),
        Contrast("strong_ws", against="weak_ws", smallest_effect=0.005),
        Contrast("weak_ws_weak_loss", against="weak_ws", smallest_effect=0.005),
        Contrast("raw", against="runtime_w", direction="hurts", smallest_effect=0.02),
    ],
    presets={
        # does everything run?
        "smoke": Preset(
            base={
                "dataset": "digits",
                "network": "small_convnet",
                "labels": 50,
                "epochs": 2,
                "steps": 2,
                "method": {"name": "dividemix", "warm_up": 1},
                "method.batch_size": 16,
            },
            factors={"noise.rate": [0.5]},
            replicates=1,
        ),
        # a quarter of an hour on two cores: all real handwritten digits, 8 × 8
        "digits": Preset(
            base={
                "dataset": "digits",
                "network": "small_convnet",
                "epochs": 16,
                "method": {"name": "dividemix", "warm_up": 6, "ramp": 4},
                "method.batch_size": 32,
            },
            factors={"noise.rate": [0.5, 0.8]},
            panels=("strategies", "warm_up"),
            replicates=4,
        ),
        # a third of the paper's length, for one GPU
        "cifar10": Preset(
            base={"epochs": 100, "precision": "bfloat16"}, factors={"noise.rate": [0.5, 0.8]}, replicates=3
        ),
        "paper": Preset(),
    },
)

if __name__ == "__main__":
    study.main()
