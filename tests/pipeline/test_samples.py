import tensorflow as tf

from pipeline import samples


def test_samples_are_the_first_test_images(data, tmp_path):
    folder = samples.write(data, tmp_path)
    assert folder == samples.folder(data.name, tmp_path)
    files = sorted(folder.iterdir())
    assert len(files) == min(samples.COUNT, data.test.size)
    for file, (image, label) in zip(files, data.test.images(), strict=True):
        assert file.stem[4:] == data.class_names[int(label)]
        assert (tf.io.decode_png(file.read_bytes()).numpy() == image.numpy()).all()
