"""Does a robust loss, or mixup, help when 30 % of the labels are wrong?"""

from lnl import Contrast, Noise, Preset, Study, Trial

study = Study(
    name="my_study",  # results are stored under it
    question="Does a robust loss, or mixup, help when 30 % of the labels are wrong?",  # the report's title
    # The trial from which all others differ.  `lnl reference` lists its fields; what is not said has a default.
    base=Trial(
        method="supervised",  # cross-entropy; `lnl methods` lists all
        dataset="digits",  # your images: "folder:PATH" with train/CLASS/* and test/CLASS/*, or "npz:FILE"
        network="small_convnet",  # for small images and CPUs; on a GPU "preact_resnet18", for example
        noise=Noise("symmetric", 0.3),  # made, so that it is known; Noise() takes the labels as they are
        epochs=60,
    ),
    # Settings of the method that hold for every arm whose method has them.
    shared={"method.batch_size": 64},
    # What is compared: a name, and what it changes of the base.
    arms={
        "cross_entropy": {},
        "gce": {"method": "gce"},
        "mixup": {"method": "mixup"},
    },
    replicates=5,  # of each arm, in pairs: replicate 3 of every arm has the same wrong labels
    # What you want to know, declared before you look: a gain of half a point, or more, is worth telling.
    contrasts=[Contrast("gce", against="cross_entropy", direction="helps", smallest_effect=0.005)],
    # The same study at other sizes: --preset NAME.
    presets={
        "smoke": Preset(base={"epochs": 2, "steps": 3, "method.batch_size": 16}, replicates=1),  # does everything run?
        "small": Preset(base={"epochs": 15, "steps": 20}, replicates=4),  # a first look, in minutes on two cores
    },
)

if __name__ == "__main__":
    study.main()
