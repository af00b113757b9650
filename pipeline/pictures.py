"""Pictures of results, as PNG."""

import io
import warnings

import numpy as np

MOST_CLASSES = 30  # of which every name and count can be read


def confusion(counts: list[list[int]], class_names: tuple[str, ...]) -> bytes:
    """A confusion matrix: rows are what is shown, columns what was answered, colours shares."""
    from matplotlib.figure import Figure  # most of a second, at the start of every stage

    matrix = np.array(counts)
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    few = len(class_names) <= MOST_CLASSES
    side = 2 + 0.6 * len(class_names) if few else 10
    figure = Figure(figsize=(side, side), layout="constrained")
    axes = figure.add_subplot(xlabel="answer", ylabel="class")
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    if few:
        places, plain = range(len(class_names)), {"parse_math": False}  # dollars are dollars
        axes.set_xticks(places, class_names, rotation=45, ha="right", **plain)
        axes.set_yticks(places, class_names, **plain)
        for (row, column), count in np.ndenumerate(matrix):
            if count:
                colour = "white" if shares[row, column] > 0.5 else "black"
                axes.text(column, row, str(count), ha="center", va="center", color=colour)
    file = io.BytesIO()
    with warnings.catch_warnings():  # letters that the font lacks, names longer than the picture
        warnings.simplefilter("ignore", UserWarning)
        figure.savefig(file, format="png", dpi=80)
    return file.getvalue()
