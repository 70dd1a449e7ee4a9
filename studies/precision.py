"""Does bfloat16 cost accuracy?  The same trainings in float32 and in bfloat16, weights and updates in float32 in both.

Paired by replicate: the same data, wrong labels, initial weights and batches.
"""

from lnl import Contrast, Noise, Preset, Study, Trial

METHODS = ("supervised", "mixmatch", "dividemix")
SMALL = {"dataset": "digits", "network": "small_convnet"}

study = Study(
    name="precision",
    question="Does training in bfloat16 cost accuracy?",
    base=Trial(
        method="supervised",
        dataset="cifar10",
        network="wide_resnet28_2",
        labels=4000,
        noise=Noise("symmetric", 0.4),
        epochs=100,
    ),
    shared={"method.batch_size": 64},
    arms={
        f"{method}_{precision}": {"method": method, "precision": precision}
        for method in METHODS
        for precision in ("float32", "bfloat16")
    },
    replicates=10,
    contrasts=[
        Contrast(f"{method}_bfloat16", against=f"{method}_float32", smallest_effect=0.005) for method in METHODS
    ],
    presets={
        # does everything run?
        "smoke": Preset(base=SMALL | {"labels": 100, "epochs": 11, "steps": 2}, replicates=1),  # ten are warm-up
        # five minutes on two cores: real handwritten digits, 8 × 8
        "digits": Preset(base=SMALL | {"labels": 700, "epochs": 15}),
        # the same digits as vectors of their pixels
        "vectors": Preset(base={"dataset": "digits_vectors", "network": "mlp", "labels": 700, "epochs": 15}),
        "cifar10": Preset(base={"epochs": 30}),
    },
)

if __name__ == "__main__":
    study.main()
