"""Agreement of the labels that prompts ask for with those that the judge reads in the images.

Accuracy is the share read as asked; macro F1 is the unweighted mean of F1 = 2 TP / (2 TP + FP + FN) over the classes asked for
(scikit-learn's, with those labels); the confusion matrix counts rows of the asked class and columns of the read one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tilting.errors import TiltingError

OTHER = "(other)"


@dataclass(frozen=True)
class Reading:
    """Agreement for one kind of label.

    Attributes:
        count: images whose prompt asks for such a label.
        accuracy: in [0, 1].
        macro_f1: in [0, 1], over the classes asked for.
        classes: the names of rows (those asked for), and of columns but for the last.
        confusion: counts, rows asked, columns read; the last column is every class nobody asked for.
    """

    count: int
    accuracy: float
    macro_f1: float
    classes: tuple[str, ...]
    confusion: tuple[tuple[int, ...], ...]


def read_labels(asked: Sequence[str], read: Sequence[str]) -> Reading:
    """Compare labels.

    Args:
        asked: n names of classes.
        read: n names, what the judge found most likely.

    Raises:
        TiltingError: none, or not as many of both.
    """
    from sklearn.metrics import accuracy_score, confusion_matrix, f1_score

    if not asked or len(asked) != len(read):
        raise TiltingError(f"labels asked and read must be as many, and at least one: {len(asked)} and {len(read)}")
    classes = sorted(set(asked))
    known = [name if name in set(classes) else OTHER for name in read]
    counts = confusion_matrix(list(asked), known, labels=[*classes, OTHER])[:-1]
    f1 = f1_score(list(asked), known, labels=classes, average="macro", zero_division=0)  # type: ignore[arg-type]
    rows = tuple(tuple(int(v) for v in row) for row in counts)
    return Reading(len(asked), float(accuracy_score(list(asked), known)), float(f1), tuple(classes), rows)
