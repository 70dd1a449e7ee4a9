"""Which detector finds the wrong labels, on which features, of which annotation?

Nothing is trained: each arm is a detector that judges the given labels from features (`lnl.labelling`).  CIFAR-10N's
labels, of which 40, 17 and 9 % are wrong (`worse`, `random1`, `aggre`); each replicate draws its own 10,000 images.

The verdicts are on how well a detector ranks, compared with the truth (`oracle/selection_auc`, the AUROC, and
`oracle/error_average_precision`), and on what its flags are worth: test accuracy of a linear classifier on the same
features that leaves out the labels which the detector flags.  Precision and recall of the flags stand beside them.

`cleanlab` needs its library.  The features, once, as in `studies/embeddings.py`; those of the preset `simclr`, which
have seen no label, by `lnl embed cifar10 --trial RESULTS/ID` from a SimCLR that was trained on CIFAR-10's images.
"""

from lnl import Contrast, Noise, Panel, Preset, Study, Trial

PEOPLE = [{"kind": "given", "column": column} for column in ("worse", "random1", "aggre")]
DRAWN = [{"kind": "symmetric", "rate": 0.2}, {"kind": "pair", "rate": 0.3}]
LITE0, SIMCLR = "features:cifar10-efficientnet_lite0.npz", "features:cifar10-simclr.npz"
DETECTORS = ("probe", "neighbours", "propagation", "cleanlab")
# What is judged, and from which difference on it matters.
JUDGED = {"oracle/selection_auc": 0.005, "oracle/error_average_precision": 0.01, "test/accuracy": 0.005}
FOUND = (
    "oracle/selection_auc",
    "oracle/error_average_precision",
    "oracle/error_precision",
    "oracle/error_recall",
    "test/accuracy",
)

study = Study(
    name="label_errors",
    question="Which detector finds the wrong labels, and are its flags worth leaving out?",
    base=Trial(
        method="label_errors",
        dataset=LITE0,
        network="linear",
        labels=10_000,
        noise=Noise("given", column="worse"),
        epochs=1,
    ),
    arms={detector: {"method.detector": detector} for detector in DETECTORS},
    factors={"noise": PEOPLE, "dataset": [LITE0]},
    panels={
        "annotations": Panel("Detectors, by annotation", DETECTORS, ("noise",), curves=FOUND),
        "features": Panel("Detectors, by features", DETECTORS, ("dataset",), curves=FOUND),
    },
    replicates=8,
    contrasts=[
        Contrast("probe", against=other, direction="helps", smallest_effect=smallest, metric=metric)
        for metric, smallest in JUDGED.items()
        for other in ("cleanlab", "neighbours", "propagation")
    ],
    presets={
        # does everything run?  seconds: handwritten digits as vectors of their pixels
        "smoke": Preset(
            base={"dataset": "digits_vectors", "labels": 200, "noise": DRAWN[0]},
            factors={"noise": DRAWN, "dataset": ["digits_vectors"]},
            panels=("annotations",),
            replicates=2,
        ),
        # a minute on two cores: all of the digits, wrong labels drawn anew in each replicate
        "digits": Preset(
            base={"dataset": "digits_vectors", "labels": None, "noise": DRAWN[0]},
            factors={"noise": DRAWN, "dataset": ["digits_vectors"]},
            panels=("annotations",),
        ),
        # CIFAR-10N on features of EfficientNet-Lite0
        "embeddings": Preset(panels=("annotations",)),
        # on two kinds of features
        "features": Preset(factors={"dataset": [LITE0, SIMCLR]}),
    },
)

if __name__ == "__main__":
    study.main()
