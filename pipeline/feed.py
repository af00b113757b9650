"""A training split -> the batches of every step: shuffled, cropped, augmented.

What a step sees is a function of the seed and the step's number alone, not of what was read before
or of how many workers share the batch: a resumed run goes on with the very batch that an
uninterrupted one would see, and two workers with half a batch each see what one sees.

Splits that fit in memory are decoded once: brought to the network's size and addressed by number,
or, where crops are to be cut out of them, as they are. Those and larger ones are read as a stream
through a shuffle buffer, and resuming skips records without opening them.
"""

import dataclasses
import functools
import sys
from dataclasses import dataclass

import numpy as np
import tensorflow as tf
from tqdm import tqdm

from pipeline import augment, dataset, preprocessing
from pipeline.config import Config
from pipeline.dataset import Split
from pipeline.preprocessing import Window

MEMORY_BYTES = 2 << 30  # of decoded pictures
SAMPLED = 100  # pictures that tell how large all of them are
SHUFFLED_RECORDS = 20_000  # about 2 GB of ImageNet's


@dataclass(frozen=True)
class Feed:
    """The batches of one recipe over one split."""

    split: Split
    recipe: Config
    memory: tuple[tf.Tensor, tf.Tensor] | None  # uint8 pixels [N,S,S,3] and int64 labels [N]

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches in the split; at least one, in which pictures then come twice."""
        return max(1, self.split.size // self.recipe.batch_size)

    def batches(
        self, step: int, image_size: int, context: tf.distribute.InputContext | None = None
    ) -> tf.data.Dataset:
        """Endless batches from a step on: (uint8 pixels [B,S,S,3], int64 labels [B]).

        Args:
            step: number of the first step, from 0.
            image_size: S; pictures in memory are shrunk to it.
            context: which worker of how many this is: its batches are its share of the whole.
        """
        context = context or tf.distribute.InputContext()
        examples = self._remembered(step, context) if self.memory else self._streamed(step, context)
        batch = context.get_per_replica_batch_size(self.recipe.batch_size)
        examples = examples.batch(batch, drop_remainder=True)
        if self.memory:
            examples = examples.map(self._look_up, num_parallel_calls=tf.data.AUTOTUNE)
        examples = examples.map(
            lambda pixels, labels, positions: (
                augment.augment(
                    preprocessing.to_pixels(pixels, image_size), positions, self.recipe
                ),
                labels,
            ),
            num_parallel_calls=tf.data.AUTOTUNE,
        )
        return dataset.untuned(examples.prefetch(tf.data.AUTOTUNE))

    def _remembered(self, step: int, context: tf.distribute.InputContext) -> tf.data.Dataset:
        """Positions of the worker's pictures."""
        first = step * self.recipe.batch_size
        positions = tf.data.Dataset.range(first, np.iinfo(np.int64).max)
        return positions.shard(context.num_input_pipelines, context.input_pipeline_id)

    def _look_up(self, positions: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        pixels, labels = self.memory  # type: ignore[misc]
        rows = _shuffled(positions, self._epoch_size, self.split.size, self.recipe.seed)
        return tf.gather(pixels, rows), tf.gather(labels, rows), positions

    def _streamed(self, step: int, context: tf.distribute.InputContext) -> tf.data.Dataset:
        """The worker's (pixels [S,S,3], label [], position []), by way of a shuffle buffer."""
        epoch, done = divmod(step * self.recipe.batch_size, self._epoch_size)

        def shuffled(epoch: tf.Tensor) -> tf.data.Dataset:
            seed = self.recipe.seed + epoch
            records = self.split.records.shuffle(SHUFFLED_RECORDS, seed=seed)
            return records.repeat().take(self._epoch_size)

        records = tf.data.Dataset.range(epoch, np.iinfo(np.int64).max).flat_map(shuffled)
        numbered = records.skip(done).enumerate(start=step * self.recipe.batch_size)
        # Every worker reads all records, and decodes its own.
        numbered = numbered.shard(context.num_input_pipelines, context.input_pipeline_id)

        def picture(position: tf.Tensor, record: tuple[tf.Tensor, tf.Tensor]):
            encoded, label = record
            image = self.split.open(encoded, self._window(position))
            return preprocessing.to_pixels(image, self.recipe.image_size), label, position

        return numbered.map(picture, num_parallel_calls=tf.data.AUTOTUNE)

    def _window(self, position: tf.Tensor) -> Window | None:
        if self.recipe.crop == 1:
            return None
        return functools.partial(augment.crop, position=position, recipe=self.recipe)

    @property
    def _epoch_size(self) -> int:
        return self.steps_per_epoch * self.recipe.batch_size


def _shuffled(positions: tf.Tensor, epoch_size: int, size: int, seed: int) -> tf.Tensor:
    """Positions of one step -> rows of the split; each epoch permutes all rows in its own way."""
    epoch, places = positions[0] // epoch_size, positions % epoch_size % size
    seeds = tf.stack([tf.constant(seed, tf.int64), epoch])
    return tf.random.experimental.index_shuffle(places, seeds, tf.constant(size - 1, tf.int64))


def feed(split: Split, recipe: Config) -> Feed:
    """Open a split for training; one that fits is read into memory, a few seconds for 60,000."""
    if recipe.crop < 1:  # crops are cut out of the whole picture, before it is resized
        return Feed(_kept(split), recipe, None)
    fits = split.size * recipe.image_size**2 * 3 <= MEMORY_BYTES
    return Feed(split, recipe, _read(split, recipe.image_size) if fits else None)


def _reading(size: int) -> tqdm:
    return tqdm(desc="reading", total=size, unit=" images", disable=None, file=sys.stderr)


def _read(split: Split, image_size: int) -> tuple[tf.Tensor, tf.Tensor]:
    pixels = np.empty((split.size, image_size, image_size, 3), np.uint8)
    labels = np.empty(split.size, np.int64)
    done = 0
    with _reading(split.size) as bar:
        for batch, batch_labels in dataset.batches(split, image_size):
            rows = slice(done, done := done + len(batch))
            pixels[rows], labels[rows] = batch, batch_labels
            bar.update(len(batch))
    with tf.device("/cpu:0"):
        return tf.constant(pixels), tf.constant(labels)


def _kept(split: Split) -> Split:
    """The same pictures, decoded and in memory; the split as it is, if they do not fit there.

    Large JPEGs are decoded at a reduced size, as evaluation does (see `preprocessing.decode`), of
    which 12 million pixels take 2 MB in place of 36; crops from files are cut out at full size.
    """
    kept, total = split.images().cache(), 0
    with _reading(split.size) as bar:
        for number, (image, _) in enumerate(dataset.untuned(kept.prefetch(tf.data.AUTOTUNE)), 1):
            total += int(tf.size(image))
            expected = total * split.size / number if number >= SAMPLED else total
            if expected > MEMORY_BYTES:
                bar.leave = False
                return split
            bar.update()
    return dataclasses.replace(split, records=kept, open=preprocessing.cut)
