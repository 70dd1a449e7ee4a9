"""How sharp is the optimum in RobMix's λ and in its two temperatures?  (seed document 000, which names no values)

`search_lambda` and `search_temperature` look for the best values by one replicate each; here a few values have all
replicates, so that the curve of test accuracy against the value has intervals.  One value changes at a time.  The
threshold of DivideMix is a panel of `dividemix_ablation`, the size of the probe is `probe_size`.
"""

from lnl import Contrast, Noise, Panel, Preset, Study, Trial

SHORT = {"method.lambda_u": 25.0, "method.ramp": 0.3, "method.optimizer.average": 0.95}

study = Study(
    name="sensitivity",
    question="How sharp is the optimum in RobMix's weight and temperatures when 40 % of a few labels are wrong?",
    base=Trial(method="robmix", dataset="cifar10", labels=250, noise=Noise("symmetric", 0.4), epochs=64, steps=1024),
    arms={"robmix": {}, "mixmatch_only": {"method.topology": "mixmatch_only"}},
    factors={
        "method.lambda_mixmatch": [0.1, 0.3, 1.0, 3.0, 10.0],
        "method.contrastive_temperature": [0.05, 0.1, 0.2, 0.5, 1.0],
        "method.temperature": [0.1, 0.25, 0.5, 0.75, 1.0],
    },
    panels={
        "weight": Panel(
            "Weight λ of the MixMatch loss", ("robmix",), ("method.lambda_mixmatch",), curves=("test/accuracy",)
        ),
        "contrastive_temperature": Panel(
            "Temperature of the contrastive loss",
            ("robmix",),
            ("method.contrastive_temperature",),
            curves=("test/accuracy",),
        ),
        "sharpening": Panel(
            "Temperature that sharpens the guesses",
            ("robmix", "mixmatch_only"),
            ("method.temperature",),
            curves=("test/accuracy",),
        ),
    },
    replicates=5,
    contrasts=[Contrast("mixmatch_only", against="robmix", smallest_effect=0.005)],
    presets={
        # does everything run?
        "smoke": Preset(
            base={
                "dataset": "digits",
                "network": "small_convnet",
                "labels": 50,
                "epochs": 2,
                "steps": 4,
                "method.batch_size": 16,
            },
            factors={
                "method.lambda_mixmatch": [0.1, 1.0, 10.0],
                "method.contrastive_temperature": [0.1, 0.5],
                "method.temperature": [0.5, 1.0],
            },
            replicates=2,
        ),
        # five minutes on two cores, as a trial takes 2 to 5 s: real handwritten digits, 8 × 8
        "digits": Preset(
            base=SHORT
            | {
                "dataset": "digits",
                "network": "small_convnet",
                "labels": 50,
                "epochs": 10,
                "steps": 20,
                "method.batch_size": 32,
            },
            replicates=8,
        ),
        "cifar10": Preset(base={"epochs": 32, "steps": 512}, replicates=3),
        "paper": Preset(base={"epochs": 1024}),
    },
)

if __name__ == "__main__":
    study.main()
