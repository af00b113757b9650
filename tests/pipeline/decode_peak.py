"""Decode pictures with hostile ones among them: lists of both by pickle on standard input.

Writes, by pickle: which rows were valid, whether the good ones have the pixels they have alone, and
by how many bytes peak memory grew.
"""

import os
import pickle
import resource
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import itertools

import tensorflow as tf

from pipeline import preprocessing


def main() -> None:
    images, hostile = pickle.load(sys.stdin.buffer)
    decode = tf.function(lambda records: preprocessing.decode_batch(records, 32))
    alone, _ = decode(tf.constant(images))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    pairs = itertools.zip_longest(images, hostile)
    mixed = [record for pair in pairs for record in pair if record is not None]
    pixels, valid = decode(tf.constant(mixed))
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    rows = [row for row, record in enumerate(mixed) if record in images]
    same = bool(tf.reduce_all(tf.gather(pixels, rows) == alone))
    sys.stdout.buffer.write(pickle.dumps((valid.numpy().tolist(), same, grown)))


if __name__ == "__main__":
    main()
