import pytest

from serving import flags
from serving.grpc_api import Options

BASE = "--model_base_path=/m"


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as caught:
        flags.parse(list(arguments))
    assert caught.value.code == 2
    return capsys.readouterr().err


def test_defaults_are_tensorflow_servings():
    given = flags.parse([BASE])
    assert (given.port, given.rest_api_port, given.model_name) == (8500, 0, "default")
    assert (given.file_system_poll_wait_seconds, given.max_num_load_retries) == (1, 5)
    assert given.load_retry_interval_micros == 60_000_000
    assert given.rest_api_timeout_in_ms == 30_000
    assert given.enable_model_warmup
    for switch in (
        "enable_batching", "enable_grpc_healthcheck_service", "rest_api_enable_cors_support",
        "allow_version_labels_for_unavailable_models", "enable_serialization_as_tensor_content",
        "enable_signature_method_name_check", "enable_per_model_batching_parameters",
    ):  # fmt: skip
        assert getattr(given, switch) is False


@pytest.mark.parametrize(
    ("given", "value"),
    [
        ("--enable_batching", True),
        ("--enable_batching=true", True),
        ("--enable_batching=1", True),
        ("--enable_batching=False", False),
        ("--enable_batching=0", False),
    ],
)
def test_a_switch_may_have_a_value(given, value):
    assert flags.parse([BASE, given]).enable_batching is value


@pytest.mark.parametrize(
    "given",
    [
        "--num_load_threads=4", "--num_unload_threads=4", "--use_tfrt=false", "--enable_profiler",
        "--tensorflow_session_config_file=/no/such", "--saved_model_tags=serve,gpu",
        "--per_process_gpu_memory_fraction=0.5", "--rest_api_impl=evhttp",
        "--flush_filesystem_caches=true", "--thread_pool_factory_config_file=/f",
    ],
)  # fmt: skip
def test_a_flag_that_means_nothing_here_is_taken_with_a_warning(capsys, given):
    flags.parse([BASE, given])
    warning = capsys.readouterr().err
    assert len(warning.splitlines()) == 1
    assert f"warning: {given.partition('=')[0]} has no effect: " in warning


def test_flags_that_mean_something_are_taken_in_silence(capsys):
    flags.parse([BASE, "--enable_batching", "--grpc_max_threads=3", "--access_log"])
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("--grpc_max_thread=4", "--grpc_max_threads"),
        ("--model_base_pth=/m", "--model_base_path"),
        ("--enable-batching", "--enable_batching"),
    ],
)
def test_an_unknown_flag_names_the_nearest(capsys, given, meant):
    message = refusal(capsys, BASE, given)
    assert f"unknown flag {given.partition('=')[0]}: did you mean {meant}?" in message
    assert len(message.splitlines()) == 1


def test_an_unknown_flag_near_to_none_is_named(capsys):
    message = refusal(capsys, BASE, "--zzzzzzzz=1")
    assert "unknown flag --zzzzzzzz (see --help)" in message


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "give either --model_base_path or --model_config_file"),
        ([BASE, "--batching_parameters_file=/b"], "needs --enable_batching"),
        (
            [
                BASE,
                *(f"--tensorflow_{x}_parallelism=1" for x in ("session", "intra_op", "inter_op")),
            ],
            "--tensorflow_session_parallelism stands for both",
        ),
        ([BASE, "--port=8501", "--rest_api_port=8501"], "cannot be same as --port"),
        ([BASE, "--port=0"], "'0' is not a whole number from 1 to 65535"),
        ([BASE, "--port=1e3"], "'1e3' is not a whole number"),
        ([BASE, "--grpc_channel_arguments=a"], "'a' is not name=value"),
        ([BASE, "--mixed_precision=float16"], "bfloat16"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(capsys, arguments, words):
    message = refusal(capsys, *arguments)
    assert words in message
    assert len(message.splitlines()) == 1


@pytest.mark.parametrize(
    ("text", "pairs"),
    [
        ("", []),
        ("grpc.max_receive_message_length=1000", [("grpc.max_receive_message_length", 1000)]),
        (
            "grpc.keepalive_time_ms=-1,grpc.lb_policy_name=pick=first",
            [("grpc.keepalive_time_ms", -1), ("grpc.lb_policy_name", "pick=first")],
        ),
    ],
)
def test_channel_arguments_are_numbers_or_text(text, pairs):
    assert flags.parse([BASE, f"--grpc_channel_arguments={text}"]).grpc_channel_arguments == pairs


def test_more_calls_than_a_batch_holds_are_let_in():
    assert flags.parse([BASE]).grpc_max_threads >= Options().max_calls == 96


def test_the_version_needs_no_model():
    assert flags.parse(["--version"]).version
