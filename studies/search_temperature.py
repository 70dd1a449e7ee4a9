"""Which temperatures suit RobMix: that of its contrastive loss, and that which sharpens its guesses?  (seed document
000)

Both are searched together, as one changes what the other is worth: NT-Xent's shapes the features, and sharpening says
how far a guess on them is trusted.  MixMatch alone has the second one only, and there it alone is searched.

Validation is noisy, as the labels are: nobody who has few labels has right ones to spare.  It has more images than
there are labels, so that suggestions can be told apart; it is no training, and the same for all.
"""

from lnl import Contrast, Noise, Preset, Search, Study, Trial, Validation

SMALL = {"dataset": "digits", "network": "small_convnet", "method.batch_size": 32}
SHORT = {"method.lambda_u": 25.0, "method.ramp": 0.3, "method.optimizer.average": 0.95}

study = Study(
    name="search_temperature",
    question="Which temperatures suit RobMix when 40 % of a few labels are wrong?",
    base=Trial(
        method="robmix",
        dataset="cifar10",
        labels=250,
        noise=Noise("symmetric", 0.4),
        validation=Validation(images=5000, labels="noisy"),
        epochs=64,
        steps=1024,
    ),
    arms={"robmix": {}, "mixmatch_only": {"method.topology": "mixmatch_only"}},
    replicates=5,
    contrasts=[Contrast("mixmatch_only", against="robmix", smallest_effect=0.005)],
    search=Search(
        parameters=("method.contrastive_temperature", "method.temperature"), samplers=("tpe", "random"), suggestions=25
    ),
    presets={
        # does everything run?
        "smoke": Preset(
            base=SMALL | {"labels": 50, "validation.images": 50, "epochs": 2, "steps": 3},
            replicates=1,
            search={"suggestions": 3},
        ),
        # five minutes on two cores, as a trial takes 2 to 5 s: real handwritten digits, 8 × 8, some 900 without label
        "digits": Preset(
            base=SMALL | SHORT | {"labels": 100, "validation.images": 400, "epochs": 10, "steps": 20}, replicates=8
        ),
        "cifar10": Preset(base={"epochs": 32, "steps": 512}, replicates=3, search={"samplers": ("tpe",)}),
        "paper": Preset(base={"epochs": 1024}),
    },
)

if __name__ == "__main__":
    study.main()
