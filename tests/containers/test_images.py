"""The images, built for real and run as their Dockerfiles' first lines say."""

import re
import shlex
import time
from collections.abc import Iterator
from fnmatch import fnmatch

import pytest
from tfs_client import Client

from tests.conftest import ROOT
from tests.containers import base_image, images

HEALTHY_SECONDS = 120


@pytest.fixture(scope="session")
def pipeline(engine) -> str:
    """The pipeline's image."""
    return images.build(engine, images.FOLDER / "pipeline.Dockerfile")


@pytest.fixture(scope="session")
def tensorflow_serving(engine, embedded) -> Iterator[str]:
    """The image around TensorFlow Serving, or around what stands in for it."""
    dockerfile = images.FOLDER / "tensorflow-serving.Dockerfile"
    (base,) = (name for name in base_image.names(dockerfile) if "tensorflow" in name)
    with base_image.standing_in(engine, base, embedded, images.name(dockerfile)):
        yield images.build(engine, dockerfile)


def _documented(dockerfile: str) -> list[str]:
    """The arguments of the `docker run` in a Dockerfile's first lines, without published ports."""
    head = (images.FOLDER / dockerfile).read_text().split("\nFROM", 1)[0]
    text = re.sub(r"\s*\\?\n#\s*", " ", head.split("docker run ", 1)[1])
    return re.sub(r"-p \S+ ?", "", text).split()


@pytest.mark.parametrize(
    ("name", "codes"),
    [("embedded", ["0"]), ("tensorflow_serving", ["0", "143"])],  # its own binary has no handler
)
def test_a_servers_image_runs_as_its_first_lines_say(engine, name, codes, models, show, request):
    """With its own flags, and becomes healthy by its own check; SIGTERM ends it."""
    image = request.getfixturevalue(name)
    words = [word.replace('"$PWD/models:/models:ro"', f"{models}:/models:ro")
             for word in _documented(f"{name.replace('_', '-')}.Dockerfile")]  # fmt: skip
    assert words[-1] == image
    container = engine("run", "--detach", "--network=host", *words)
    try:
        started = time.monotonic()
        while (health := _health(engine, container)) != "healthy":
            assert health == "starting", engine.run("logs", container).stderr
            assert time.monotonic() - started < HEALTHY_SECONDS
            time.sleep(0.5)
        seconds = time.monotonic() - started
        with Client("127.0.0.1:8500") as client:
            assert client.wait_until_ready(5) == 1
        engine("stop", "--time", "35", container, timeout=60)
        code = engine("inspect", "--format", "{{.State.ExitCode}}", container)
        assert code in codes
    finally:
        engine("rm", "--force", container)
    show(
        f"{image}: {images.size(engine, image) / 1e9:.2f} GB, healthy after {seconds:.0f} s, "
        f"`docker stop` ends it with code {code}"
    )


def test_tensorflow_servings_image_has_its_server(engine, tensorflow_serving, show):
    words = ("--network=none", "--entrypoint", "tensorflow_model_server", tensorflow_serving)
    version, library, *_ = engine("run", "--rm", *words, "--version").splitlines()
    assert library.startswith("TensorFlow Library: 2.20.")
    show(f"{tensorflow_serving}: its tensorflow_model_server is {version}")


def _health(engine, container: str) -> str:
    return engine("inspect", "--format", "{{.State.Health.Status}}", container)


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        ("--version", 0, r"embedded server: \d.*\nTensorFlow Library: 2\.20"),
        ("--help", 0, "--model_config_file"),
        ("--nonsense=1", 2, "unknown flag --nonsense"),
        ("--model_config_file=/etc/nothing --port=8500", 2, "/etc/nothing"),
        ("--port=8500 --model_config_file=/etc/googlenet/models.config "
         "--batching_parameters_file=/etc/googlenet/models.config --enable_batching", 2,
         "models.config"),
    ],
)  # fmt: skip
def test_a_mistake_is_said_in_a_line(engine, embedded, words, code, says):
    done = engine.run("run", "--rm", "--network=none", "--read-only", "--tmpfs", "/tmp", embedded,
                      *shlex.split(words))  # fmt: skip
    printed = done.stdout + done.stderr
    assert done.returncode == code, printed
    assert re.search(says, printed), printed
    assert "Traceback" not in printed


def test_the_pipelines_image_runs_its_stages(engine, pipeline, show):
    words = _documented("pipeline.Dockerfile")
    assert words[0] == pipeline
    done = engine.run("run", "--rm", "--network=none", "--read-only", "--tmpfs", "/tmp", *words)
    assert done.returncode == 0, done.stderr
    assert "--preset" in done.stdout
    refused = engine.run("run", "--rm", "--network=none", "--read-only", "--tmpfs", "/tmp",
                         pipeline, "train", "--dataset", "/nothing")  # fmt: skip
    assert refused.returncode == 2, refused.stderr
    assert "Traceback" not in refused.stderr
    assert "/nothing" in refused.stderr
    show(f"pipeline image: {images.size(engine, pipeline) / 1e9:.2f} GB")


def test_the_builds_context_is_small():
    """What `.dockerignore` lets through is sent to the engine at each build."""
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    sent = [line.removeprefix("!") for line in lines if line.startswith("!")]
    left_out = [line.removeprefix("**/") for line in lines if line.startswith("**/")]
    total = sum(
        file.stat().st_size
        for name in sent
        for file in [ROOT / name, *(ROOT / name).rglob("*")]
        if file.is_file()
        and not any(fnmatch(part, pattern) for part in file.parts for pattern in left_out)
    )
    assert total < 5e6
