"""Is RobMix best where labels are many and few of them wrong?  (seed document 000, section 4.1)

"Model gives best performance with 10% label noise and 4000 labels": that setting beside its two neighbours, fewer
labels and more noise.  All settings are drawn in `robmix_ablation`, whose contrasts are about its base setting.
"""

from lnl import Contrast, Noise, Panel, Preset, Study, Trial

OPTIMIZER = {"kind": "adamw", "learning_rate": 0.002, "weight_decay": 0.02, "schedule": "constant", "average": 0.999}
SHORT = {"method": {"name": "robmix", "lambda_u": 25.0, "ramp": 0.3}, "method.optimizer.average": 0.95}

study = Study(
    name="robmix_best_setting",
    question="Is RobMix best with 10 % noise and 4,000 labels?",
    base=Trial(method="robmix", dataset="cifar10", labels=4000, noise=Noise("symmetric", 0.1), epochs=64, steps=1024),
    shared={"method.optimizer": OPTIMIZER},
    arms={
        "best_setting": {},
        "fewer_labels": {"labels": 1000},
        "more_noise": {"noise.rate": 0.2},
    },
    panels={
        "best_setting": Panel(
            "Many labels and little noise, beside fewer labels and more noise",
            ("best_setting", "fewer_labels", "more_noise"),
            curves=("train/loss_contrastive", "train/loss_mixmatch", "test/accuracy"),
        )
    },
    replicates=5,
    contrasts=[
        Contrast("best_setting", against="fewer_labels", direction="helps", smallest_effect=0.005),
        Contrast("best_setting", against="more_noise", direction="helps", smallest_effect=0.005),
    ],
    presets={
        # does everything run?  seconds
        "smoke": Preset(
            base={
                "dataset": "digits",
                "network": "small_convnet",
                "labels": 100,
                "epochs": 2,
                "steps": 4,
                "method.batch_size": 16,
            },
            arms={"fewer_labels": {"labels": 50}},
            replicates=2,
        ),
        # two minutes on two cores: real handwritten digits, 8 × 8, with the constants of `robmix_ablation`
        "digits": Preset(
            base={"dataset": "digits", "network": "small_convnet", "labels": 400, **SHORT}
            | {"epochs": 10, "steps": 20, "method.batch_size": 32},
            arms={"fewer_labels": {"labels": 200}},
            replicates=10,
            smallest_effect=0.01,
        ),
        "cifar10": Preset(),
        # the lengths of the MixMatch paper: 2^20 steps
        "paper": Preset(base={"epochs": 1024}),
    },
)

if __name__ == "__main__":
    study.main()
