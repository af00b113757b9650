import itertools
from pathlib import Path

import pytest

from pipeline import files


def fail(partial):
    partial.write_text("half")
    raise RuntimeError("the power went out")


def test_a_write_that_fails_leaves_what_was_there(tmp_path):
    path = tmp_path / "a.json"
    files.write_json(path, {"n": 1})
    with pytest.raises(RuntimeError):
        files.write(path, fail)
    assert path.read_text() == '{\n  "n": 1\n}\n'
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    folder = tmp_path / "out"

    def fill(text):
        def save(partial):
            partial.mkdir()
            (partial / text).write_text(text)

        return save

    files.replace_folder(folder, fill("one"))
    files.replace_folder(folder, fill("two"))
    assert [path.name for path in folder.iterdir()] == ["two"]
    with pytest.raises(RuntimeError):
        files.replace_folder(folder, fail)
    assert [path.name for path in folder.iterdir()] == ["two"]
    assert list(tmp_path.iterdir()) == [folder]

    rename, renames = Path.rename, itertools.count()

    def interrupted(self, target):
        if next(renames) == 1:
            raise SystemExit(143)
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(SystemExit):
        files.replace_folder(folder, fill("three"))
    assert [path.name for path in folder.iterdir()] == ["two"]
