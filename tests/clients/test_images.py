from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from tfs_client import InvalidImageError, _images, tfs_pb2


def pixels(height: int, width: int) -> np.ndarray:
    return np.zeros((height, width, 3), np.uint8)


@pytest.mark.parametrize(
    ("images", "single"),
    [
        ("a.png", True),
        (Path("a.png"), True),
        (b"...", True),
        (bytearray(b"..."), True),
        (memoryview(b"..."), True),
        (pixels(2, 2), True),
        (np.zeros((4, 2, 2, 3), np.uint8), False),
        (["a.png"], False),
        (iter([b"..."]), False),
    ],
)
def test_one_image_is_told_from_several(images, single):
    assert _images.is_single(images) is single


def test_images_of_one_kind_share_a_request():
    images = [b"a", pixels(2, 3), b"b", pixels(4, 4), pixels(2, 3), b"c"]
    prepared = [_images.prepare(i, image) for i, image in enumerate(images)]
    grouping = _images.Grouping(2, 1000)
    groups = [[i.position for i in batch] for image in prepared for batch in grouping.add(image)]
    assert groups == [[0, 2], [1, 4]]
    assert [[image.position for image in batch] for batch in grouping.rest()] == [[3], [5]]


def test_a_group_that_would_be_too_large_goes_first():
    grouping = _images.Grouping(9, 10)
    groups = [
        [len(image.content) for image in batch]
        for i, size in enumerate((4, 6, 1, 99, 2))
        for batch in grouping.add(_images.prepare(i, b"x" * size))
    ]
    assert groups == [[4, 6], [1], [99]]


def parsed(pieces) -> tfs_pb2.TensorProto:
    return tfs_pb2.TensorProto.FromString(b"".join(pieces))


def test_requests_name_the_signature_and_input():
    encoded = _images.to_input([_images.prepare(0, b"a"), _images.prepare(1, b"b")])
    assert encoded[:2] == ("serving_default", "image_bytes")
    assert list(parsed(encoded[2]).string_val) == [b"a", b"b"]
    signature, name, tensor = _images.to_input([_images.prepare(0, pixels(2, 3))])
    assert (signature, name) == ("predict_images", "images")
    assert [dim.size for dim in parsed(tensor).tensor_shape.dim] == [1, 2, 3, 3]


def test_of_16_bits_the_upper_8_are_sent(tmp_path):
    """As of the same picture's file, which the server decodes."""
    levels = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)
    Image.fromarray(levels).save(tmp_path / "grey.png")
    sent = _images.prepare(0, Image.open(tmp_path / "grey.png")).content
    decoded = tf.io.decode_png((tmp_path / "grey.png").read_bytes(), channels=3)
    np.testing.assert_array_equal(sent, decoded)
    with pytest.raises(InvalidImageError, match="image 3: cannot be read: mode F does not say"):
        _images.prepare(3, Image.fromarray(levels.astype(np.float32)))


@pytest.mark.parametrize(
    ("image", "words"),
    [
        ("/no/such/file.png", "/no/such/file.png: cannot be read: No such file"),
        (Path("/"), "/: cannot be read: Is a directory"),
        (np.zeros((2, 2, 3)), r"image 7: pixels must be uint8 .* not float64"),
        (np.zeros((2, 2), np.uint8), r"not uint8 \[2, 2\]"),
        (np.zeros((0, 2, 3), np.uint8), r"not uint8 \[0, 2, 3\]"),
        ("", "image 7: has an empty path"),
        (None, "image 7: is a NoneType"),
    ],
)
def test_what_is_no_image_is_named(image, words):
    with pytest.raises(InvalidImageError, match=words) as caught:
        _images.prepare(7, image)
    assert caught.value.image in str(caught.value)
