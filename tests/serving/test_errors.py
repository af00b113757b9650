import grpc
import pytest
import tensorflow as tf

from serving.errors import Code, ServingError, translate


@pytest.mark.parametrize("code", Code)
def test_codes_are_grpcs(code):
    assert code.value.grpc.value[0] == code.value.number
    assert code.name == code.value.grpc.name


def test_there_is_a_code_for_each_of_grpcs():
    assert {code.value.grpc for code in Code} == set(grpc.StatusCode) - {
        grpc.StatusCode.OK,
        grpc.StatusCode.UNAUTHENTICATED,
    }


def test_tensorflows_errors_keep_their_code():
    failure = translate(tf.errors.UnavailableError(None, None, "queue full"))
    assert failure == ServingError(Code.UNAVAILABLE, "queue full")


def test_anything_else_is_internal():
    assert translate(KeyError("x")) == ServingError(Code.INTERNAL, "KeyError: 'x'")
