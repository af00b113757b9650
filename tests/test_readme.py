"""What the documents show is what works."""

import re

import pytest
import tensorflow as tf

from tests.conftest import ROOT, colour_image

README = (ROOT / "README.md").read_text()
MAKEFILE = (ROOT / "Makefile").read_text()
CI = (ROOT / ".ci" / "run").read_text()


@pytest.mark.parametrize("document", ["README.md", "clients/README.md"])
def test_the_clients_example_runs(document, client, tmp_path, capsys):
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / document).read_text(), re.S)
    image = tmp_path / "red.png"
    image.write_bytes(tf.io.encode_png(colour_image("red", 1)).numpy())
    code, addresses = re.subn(r"localhost:8500", client.address, code)
    code, images = re.subn(r'"[^"]+\.png"', repr(str(image)), code)
    assert (addresses, images) == (1, 1)
    exec(compile(code, document, "exec"), {})
    answer = client.classify(str(image))
    assert capsys.readouterr().out == f"{answer.label} {answer.score}\n"


def mentioned(text: str) -> set[str]:
    """Targets in `make a b VARIABLE=…`."""
    commands = re.findall(r"^\s*(?:again )?make ([^#&\n]*)|`make ([^`\n]*)`", text, re.M)
    words = " ".join(first or second for first, second in commands).split()
    return {word for word in words if re.fullmatch(r"[a-z0-9-]+", word)}


def test_every_target_the_readme_names_exists_and_runs_in_ci():
    targets = set(re.findall(r"^([a-z0-9-]+):", MAKEFILE, re.M))
    named = mentioned(README) - {"alone", "lists"}
    assert {"demo", "test", "train", "export", "serve", "classify", "benchmark"} <= named
    assert named <= targets
    # `export` evaluates and `publish` validates, so that these are the same commands once more.
    assert named - {"evaluate", "validate"} <= mentioned(CI)


def test_every_target_is_listed_by_make():
    targets = set(re.findall(r"^([a-z0-9-]+):", MAKEFILE, re.M))
    assert targets - {"lint"} == set(re.findall(r"^([a-z0-9-]+):.*## ", MAKEFILE, re.M))
