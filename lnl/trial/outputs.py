"""What a trained method says of each image, and its weights: what a trial keeps on request.

`of` makes any of it at the end of an epoch.  Tables have the columns of `lnl.storage.schema.PREDICTIONS` and `BELIEFS`,
but for those that name the attempt.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor, nn

from lnl.methods import Method, has_beliefs
from lnl.storage.kept import Outputs
from lnl.storage.part_names import Kept
from lnl.storage.schema import BELIEFS, PREDICTIONS
from lnl.training.images import in_parts
from lnl.training.learner import Learner
from lnl.training.state import Stateful
from lnl.training.task import Beliefs, Origin, Task, Truth

MOST_CLASSES = 20  # whose probabilities are all kept
RANKING = ("clean", "coefficient", "loss")  # the first of these beliefs that a method has puts its labels in order


@dataclass(frozen=True)
class Trained:
    """A method at the end of an epoch, with what it sees and what it does not."""

    method: Method
    parts: Mapping[str, Stateful]
    seen: Task
    truth: Truth


@torch.no_grad()
def of(trained: Trained, kinds: Collection[Kept]) -> Outputs:
    """Those of a trained method's outputs that are asked for."""
    return Outputs(
        predictions=predictions(trained) if "predictions" in kinds else None,
        beliefs=beliefs(trained) if "beliefs" in kinds else None,
        weights=weights(trained.parts) if "weights" in kinds else None,
    )


def predictions(trained: Trained) -> pa.Table:
    """A row for each test image, then for each labelled, unlabelled and probe image of the task."""
    tables = []
    for subset in (_test(trained), *_training(trained)):
        probabilities = subset.probabilities
        few = probabilities.shape[1] <= MOST_CLASSES
        columns = {"confidence": probabilities.max(-1), "probabilities": list(probabilities) if few else None}
        tables.append(_table(subset, columns, PREDICTIONS))
    return pa.concat_tables(tables)


def beliefs(trained: Trained) -> pa.Table:
    """A row for each labelled image, the most suspected given label first.

    In order of what the method tells (`RANKING`; of several networks the mean), and where that is equal, or it tells
    nothing, of the probability that its prediction gives to the given label.
    """
    subset, method = next(_training(trained)), trained.method
    told = method.beliefs() if has_beliefs(method) else Beliefs()
    opinions = {name: _mean(getattr(told, name)) for name in ("clean", "coefficient", "loss", "selected")}
    of_given = subset.probabilities[np.arange(len(subset.given)), subset.given]
    ranked_by = next((name for name in RANKING if opinions[name] is not None), "given_probability")
    trust = {**opinions, "given_probability": of_given}[ranked_by]
    assert trust is not None
    order = np.lexsort((subset.origin.index, of_given, -trust if ranked_by == "loss" else trust))  # NaN comes last
    proposed, proposed_probability = _proposed(told.labels)
    columns: Columns = {
        **opinions,
        "given_probability": of_given,
        "proposed": proposed,
        "proposed_probability": proposed_probability,
        "ranked_by": [ranked_by] * len(order),
    }
    return _table(subset, columns, BELIEFS).take(pa.array(order))


def weights(parts: Mapping[str, Stateful]) -> dict[str, Tensor]:
    """The weights with which a method predicts, as "part.parameter", such as "learner.heads.classifier.weight".

    Of a learner that averages its weights these are the averages.
    """
    named: dict[str, Tensor] = {}
    for name, part in parts.items():
        module = part.networks[-1] if isinstance(part, Learner) else part
        if isinstance(module, nn.Module):
            named |= {f"{name}.{key}": tensor for key, tensor in module.state_dict().items()}
    return named


# ------------------------------------------------------------------------------------------------------------- images


@dataclass(frozen=True)
class _Subset:
    """Some images with what is known of them and predicted for them."""

    name: str
    origin: Origin
    given: np.ndarray  # (n,) -1: the method saw no label
    true: np.ndarray  # (n,) -1: not known
    probabilities: np.ndarray  # (n, K)


def _test(trained: Trained) -> _Subset:
    truth = trained.truth
    labels = truth.test_labels.cpu().numpy()
    predicted = in_parts(truth.test_images, trained.method.predict)
    return _Subset("test", truth.tested, np.full(len(labels), -1), labels, predicted.float().cpu().numpy())


def _training(trained: Trained) -> Iterator[_Subset]:
    """The images of the task, the labelled ones first, as evaluation goes through them."""
    seen, truth = trained.seen, trained.truth
    for name, index in (("labelled", seen.labelled), ("unlabelled", seen.unlabelled), ("probe", seen.probe)):
        if len(index):
            probabilities = seen.over(index, trained.method.predict).float().cpu().numpy()
            given, true = (labels[index].cpu().numpy() for labels in (seen.labels, truth.labels))
            yield _Subset(name, truth.images.at(index.cpu().numpy()), given, true, probabilities)


Columns = Mapping[str, np.ndarray | Sequence[object] | None]


def _table(subset: _Subset, columns: Columns, schema: pa.Schema) -> pa.Table:
    """The rows of a subset; None: a column of nulls."""
    count = len(subset.given)
    all_columns: Columns = {
        "subset": [subset.name] * count,
        "index": subset.origin.index,
        "file": subset.origin.files,
        "given": np.ma.masked_less(subset.given, 0),
        "true": np.ma.masked_less(subset.true, 0),
        "predicted": subset.probabilities.argmax(-1),
        **columns,
    }
    fields = [field for field in schema if field.name in all_columns]
    arrays = [
        pa.nulls(count, field.type)
        if (values := all_columns[field.name]) is None
        else pa.array(values, field.type, from_pandas=True)  # NaN becomes null
        for field in fields
    ]
    return pa.table(arrays, schema=pa.schema(fields))


def _mean(values: Tensor | None) -> np.ndarray | None:
    """The mean over networks of what is known: (..., L) with NaN -> (L,); None where nothing is."""
    if values is None or not values.isfinite().any():
        return None
    return values.reshape(-1, values.shape[-1]).float().nanmean(0).cpu().numpy()


def _proposed(labels: Tensor | None) -> tuple[np.ma.MaskedArray | None, np.ndarray | None]:
    """The refined label of each image and its probability, the mean over networks: (..., L, K) -> two (L,)."""
    if labels is None:
        return None, None
    mean = labels.reshape(-1, *labels.shape[-2:]).float().nanmean(0).cpu().numpy()
    sure = mean.max(-1)
    return np.ma.masked_where(np.isnan(sure), mean.argmax(-1)), sure
