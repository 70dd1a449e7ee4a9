"""Where does another trusted image stop paying?  (seed document 004; `probe_size` crosses the same numbers)

The size of the probe is searched between one image of each class and as many as there are.  Its images are taken from
training, so that a larger probe leaves fewer of the others.  A probe is a budget: read the accuracy by size among the
suggestions, not the winner alone, which can only be one of the large ones unless the others' labels matter more.

Validation is noisy: an image whose right label is known belongs to the probe.  Without a probe of its own, the baseline
finds the 50 images of the base, with their right labels, among its own, and is not searched.
"""

from lnl import Contrast, Integer, Noise, Preset, Search, Study, Trial, Validation

SMALL = {"dataset": "digits", "network": "small_convnet", "validation.images": 300}
# One optimizer and batch size for all, as in `probe_size`.
ALIKE = {
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
SEARCHED = ("ieg", "l2r", "glc")

study = Study(
    name="search_probe_size",
    question="Where does another trusted image stop paying?",
    base=Trial(
        method="supervised",
        dataset="cifar10",
        network="wide_resnet28_2",
        probe=50,
        noise=Noise("symmetric", 0.4),
        validation=Validation(images=5000, labels="noisy"),
        epochs=100,
    ),
    arms={
        "supervised": {},
        "ieg": {"method": "ieg"},
        "l2r": {"method": "learning_to_reweight"},
        "glc": {"method": "glc"},
    },
    replicates=5,
    contrasts=[Contrast(arm, against="supervised", direction="helps", smallest_effect=0.005) for arm in SEARCHED],
    search=Search(parameters=("probe",), arms=SEARCHED, suggestions=20),
    presets={
        # does everything run?
        "smoke": Preset(
            base=SMALL | {"labels": 50, "epochs": 2, "steps": 3},
            replicates=1,
            search={"suggestions": 3, "space": {"probe": Integer(10, 100, log=True)}},
        ),
        # five minutes on two cores, as a trial takes 1 to 10 s: real handwritten digits, 8 × 8, of which 1,137 are to
        # be shared between the probe and the others
        "digits": Preset(
            base=SMALL | ALIKE | {"epochs": 10, "steps": 18},
            search={"space": {"probe": Integer(10, 500, log=True)}},
        ),
        "cifar10": Preset(replicates=3),
        "paper": Preset(base={"network": "wide_resnet28_10", "epochs": 400}),
    },
)

if __name__ == "__main__":
    study.main()
